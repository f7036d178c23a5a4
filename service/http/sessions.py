"""Sessions of browsers, which cannot send the API key by themselves: a cookie that stands for it."""

import hmac
import time
from collections.abc import Callable

from cachetools import TTLCache

COOKIE_NAME = "grpo_session"
SESSION_SECONDS = 12 * 3600
_ALGORITHM = "sha256"
# Tokens are signed with the key, and nothing else is signed with it that could be taken for one.
_PURPOSE = b"grpo session until "
_MAX_FAILURES = 10
_FAILURE_SECONDS = 60
_MAX_REMEMBERED = 4096


class Sessions:
    """Makes and checks tokens: the second at which one expires, and a signature of it.

    Nothing is stored, so tokens outlive a restart, and another key makes all of them void.

    :param api_key: What tokens are signed with.
    :param clock: Tells the time in seconds.
    """

    def __init__(self, api_key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._api_key = api_key
        self._clock = clock

    def make_token(self) -> str:
        """Make a token that is valid for ``SESSION_SECONDS`` from now."""
        expiry = b"%d" % (self._clock() + SESSION_SECONDS)
        return f"{expiry.decode()}.{self._sign(expiry)}"

    def is_valid(self, token: bytes) -> bool:
        """Tell whether a token was made with this key and has not expired."""
        expiry, _, signature = token.partition(b".")
        if not hmac.compare_digest(signature, self._sign(expiry).encode()):
            return False
        return self._clock() < int(expiry)  # a number, since it was signed here

    def _sign(self, expiry: bytes) -> str:
        return hmac.new(self._api_key, _PURPOSE + expiry, _ALGORITHM).hexdigest()


class LoginLimit:
    """Counts the failures of each address, to slow down whoever guesses.

    :param clock: Tells the time in seconds, without ever going back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._n_failures: TTLCache[str, int] = TTLCache(_MAX_REMEMBERED, _FAILURE_SECONDS, clock)

    def is_reached(self, address: str) -> bool:
        """Tell whether an address has failed too often within a minute."""
        return self._n_failures.get(address, 0) >= _MAX_FAILURES

    def note_failure(self, address: str) -> None:
        """Count a wrong key."""
        self._n_failures[address] = self._n_failures.get(address, 0) + 1
