"""Browser sessions: a cookie in place of the API key, which pages cannot send by themselves."""

import hmac
import time
from collections.abc import Callable

COOKIE_NAME = "grpo_session"
SESSION_SECONDS = 12 * 3600
_ALGORITHM = "sha256"
# The key signs nothing else that could be mistaken for a token.
_PURPOSE = b"grpo session until "


class Sessions:
    """Makes and checks tokens: an expiry time in seconds and its signature.

    Nothing is stored, so tokens survive a restart, and a new key invalidates all of them.

    :param api_key: Signs the tokens.
    :param clock: Returns the time in seconds.
    """

    def __init__(self, api_key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._api_key = api_key
        self._clock = clock

    def make_token(self) -> str:
        """Make a token that is valid for ``SESSION_SECONDS`` from now."""
        expiry = b"%d" % (self._clock() + SESSION_SECONDS)
        return f"{expiry.decode()}.{self._sign(expiry)}"

    def is_valid(self, token: bytes) -> bool:
        """Return whether a token was made with this key and has not expired."""
        expiry, _, signature = token.partition(b".")
        if not hmac.compare_digest(signature, self._sign(expiry).encode()):
            return False
        return self._clock() < int(expiry)  # a number, since it was signed here

    def _sign(self, expiry: bytes) -> str:
        return hmac.new(self._api_key, _PURPOSE + expiry, _ALGORITHM).hexdigest()
