"""What one client may send: wrong keys, and, where strangers can reach the server, requests, uploads and jobs.

Clients are told apart by their addresses: a key is shared by all who know it.
"""

import ipaddress
import math
import time
from functools import lru_cache
from typing import Any

from limits import RateLimitItem, RateLimitItemPerHour, RateLimitItemPerMinute, RateLimitItemPerSecond
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter, MovingWindowRateLimiter
from starlette.types import Scope

from service.errors import Problem
from service.http.problems import Refusal
from service.settings import Settings

# Wrong keys a minute: 30 in headers, which programs repeat on one path after the other, or 10 at the login.
_MAX_GUESS_POINTS, _LOGIN_POINTS = 30, 3
# A household or a company is given so many bits of an IPv6 address, and chooses the rest itself.
_IPV6_NETWORK_BITS = 64

_RATE = Problem("too-many-requests", "This client sends too many requests")
_GUESSES = Problem("too-many-wrong-keys", "This address has sent too many wrong keys")


class GuessLimit:
    """Counts each address's wrong keys, in headers and at the login alike. The right key is never locked out."""

    def __init__(self) -> None:
        self._strategy = MovingWindowRateLimiter(MemoryStorage())
        self._item = RateLimitItemPerMinute(_MAX_GUESS_POINTS)

    def count_login(self, scope: Scope) -> int | None:
        """Count a wrong key at the login; return for how many seconds there were too many, or None."""
        return _hit(self._strategy, self._item, find_peer(scope), _LOGIN_POINTS)

    def count_header(self, scope: Scope) -> Refusal | None:
        """Count a wrong key in a header; return a refusal if there were too many."""
        wait_seconds = _hit(self._strategy, self._item, find_peer(scope))
        if wait_seconds is None:
            return None
        detail = f"too many wrong keys came from this address; send the right one, or wait {wait_seconds} s."
        return Refusal(_GUESSES, 429, detail, {"Retry-After": str(wait_seconds)})


class ClientLimits:
    """Limits how many requests, uploads and new jobs each client may send.

    :param settings: The limits.
    """

    def __init__(self, settings: Settings) -> None:
        storage = MemoryStorage()
        self._requests = FixedWindowRateLimiter(storage)
        self._slow = MovingWindowRateLimiter(storage)
        self._per_second = RateLimitItemPerSecond(settings.client_requests_per_second)
        self._jobs_per_minute = RateLimitItemPerMinute(settings.client_jobs_per_minute)
        self._bytes_per_hour = RateLimitItemPerHour(settings.client_upload_bytes_per_hour)

    def check(self, scope: Scope) -> Refusal | None:
        """Count a request; return a refusal if its client has sent too many."""
        client = find_client(scope)
        wait_seconds = _hit(self._requests, self._per_second, client)
        if wait_seconds is not None:
            return _refuse(wait_seconds, f"{self._per_second.amount} requests per second")
        if scope.get("method") == "POST" and _starts_job(scope["path"]):
            wait_seconds = _hit(self._slow, self._jobs_per_minute, client)
            if wait_seconds is None:
                return None
            return _refuse(wait_seconds, f"{self._jobs_per_minute.amount} jobs per minute")
        return None

    def count_upload(self, scope: Scope, n_bytes: int) -> Refusal | None:
        """Count an upload; return a refusal if its client has sent too much. What is refused does not count.

        :param n_bytes: Its size: what its head says, or what was read if that says nothing.
        """
        client, n_bytes = find_client(scope), max(1, n_bytes)
        if self._requests.test(self._bytes_per_hour, client, cost=n_bytes):
            self._requests.hit(self._bytes_per_hour, client, cost=n_bytes)
            return None
        # One that is too large for a whole hour may come before any hour has begun, which would end at once.
        is_too_large = n_bytes > self._bytes_per_hour.amount
        wait_seconds = 3600 if is_too_large else _find_wait(self._requests, self._bytes_per_hour, client)
        return _refuse(wait_seconds, f"{self._bytes_per_hour.amount} bytes of uploads per hour")


def _starts_job(path: str) -> bool:
    return path in ("/train", "/sweeps") or (path.startswith(("/training/", "/sweeps/")) and path.endswith("/resume"))


def find_peer(scope: Scope) -> str:
    """Return the address at the other end of a request's connection, whatever its headers claim."""
    peer = scope.get("state", {}).get("peer")
    return _find_network(peer if peer is not None else _get_host(scope))


def find_client(scope: Scope) -> str:
    """Return the address of a request's client: the one that a trusted proxy names, or else the peer's."""
    return _find_network(_get_host(scope))


def _get_host(scope: Scope) -> str:
    client: tuple[str, Any] | None = scope.get("client")
    return client[0] if client else ""


@lru_cache(4096)
def _find_network(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, _IPV6_NETWORK_BITS), strict=False))


def _hit(
    strategy: FixedWindowRateLimiter | MovingWindowRateLimiter, item: RateLimitItem, client: str, cost: int = 1
) -> int | None:
    """Count; return after how many seconds to come again, or None if there was room."""
    if strategy.hit(item, client, cost=cost):
        return None
    return _find_wait(strategy, item, client)


def _find_wait(strategy: FixedWindowRateLimiter | MovingWindowRateLimiter, item: RateLimitItem, client: str) -> int:
    return max(1, math.ceil(strategy.get_window_stats(item, client).reset_time - time.time()))


def _refuse(wait_seconds: int, limit: str) -> Refusal:
    detail = f"this client may send {limit}; try again in {wait_seconds} s."
    return Refusal(_RATE, 429, detail, {"Retry-After": str(wait_seconds)})
