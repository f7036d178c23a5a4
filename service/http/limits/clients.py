"""What one client may send: wrong keys, and, where strangers can reach the server, requests, uploads and jobs.

Clients are told apart by their addresses: a key is shared by all who know it.
"""

import ipaddress
from functools import lru_cache
from typing import Any

from starlette.types import Scope

from service.errors import Problem
from service.http.limits.windows import MovingWindow
from service.http.problems import Refusal
from service.settings import Settings

# Wrong keys a minute: 30 in headers, which programs repeat on one path after the other, or 10 at the login.
_MAX_GUESS_POINTS, _LOGIN_POINTS = 30, 3
# Providers assign the first 64 bits of an IPv6 address; a household or company chooses the rest.
_IPV6_NETWORK_BITS = 64

_RATE = Problem("too-many-requests", "This client sends too many requests")
_GUESSES = Problem("too-many-wrong-keys", "This address has sent too many wrong keys")


class GuessLimit:
    """Counts each address's wrong keys, in headers and at the login alike. The right key is never locked out."""

    def __init__(self) -> None:
        self._guesses = MovingWindow(_MAX_GUESS_POINTS, 60.0)

    def count_login(self, scope: Scope) -> int | None:
        """Count a wrong key at the login; return for how many seconds there were too many, or None."""
        return self._guesses.hit(find_peer(scope), _LOGIN_POINTS)

    def count_header(self, scope: Scope) -> Refusal | None:
        """Count a wrong key in a header; return a refusal if there were too many."""
        wait_seconds = self._guesses.hit(find_peer(scope))
        if wait_seconds is None:
            return None
        detail = f"too many wrong keys came from this address; send the right one, or wait {wait_seconds} s."
        return Refusal(_GUESSES, 429, detail, {"Retry-After": str(wait_seconds)})


class ClientLimits:
    """Limits how many requests, uploads and new jobs each client may send.

    :param settings: The limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._requests = MovingWindow(settings.client_requests_per_second, 1.0)
        self._jobs = MovingWindow(settings.client_jobs_per_minute, 60.0)
        self._upload_bytes = MovingWindow(settings.client_upload_bytes_per_hour, 3600.0)

    def check(self, scope: Scope) -> Refusal | None:
        """Count a request; return a refusal if its client has sent too many."""
        client = find_client(scope)
        refusal = _count(self._requests, client, "requests per second")
        if refusal is None and scope.get("method") == "POST" and _starts_job(scope["path"]):
            refusal = _count(self._jobs, client, "jobs per minute")
        return refusal

    def count_upload(self, scope: Scope, n_bytes: int) -> Refusal | None:
        """Count an upload; return a refusal if its client has sent too much. What is refused does not count.

        :param n_bytes: Its size: what its head says, or what was read if that says nothing.
        """
        return _count(self._upload_bytes, find_client(scope), "bytes of uploads per hour", max(1, n_bytes))


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


def _count(window: MovingWindow, client: str, unit: str, cost: int = 1) -> Refusal | None:
    wait_seconds = window.hit(client, cost)
    if wait_seconds is None:
        return None
    detail = f"this client may send {window.amount} {unit}; try again in {wait_seconds} s."
    return Refusal(_RATE, 429, detail, {"Retry-After": str(wait_seconds)})
