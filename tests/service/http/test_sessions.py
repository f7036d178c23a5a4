"""Browser sessions, and the limit on wrong keys."""

import hashlib
import hmac

import pytest

from service.http.sessions import Sessions

KEY = b"a key of 22 characters"


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def sign(key: bytes, expiry: bytes) -> bytes:
    return hmac.new(key, b"grpo session until " + expiry, hashlib.sha256).hexdigest().encode()


class TestTokens:
    def test_a_token_names_its_last_second_and_not_the_key(self) -> None:
        token = Sessions(KEY, Clock()).make_token()
        assert token == "1043200." + sign(KEY, b"1043200").decode()

    def test_a_token_is_valid_for_twelve_hours(self) -> None:
        clock = Clock()
        sessions = Sessions(KEY, clock)
        token = sessions.make_token().encode()
        clock.now += 12 * 3600 - 1
        assert sessions.is_valid(token)
        clock.now += 1
        assert not sessions.is_valid(token)

    def test_another_key_makes_it_void(self) -> None:
        token = Sessions(KEY, Clock()).make_token().encode()
        assert Sessions(KEY, Clock()).is_valid(token)
        assert not Sessions(b"another key of 28 characters", Clock()).is_valid(token)

    @pytest.mark.parametrize(
        "token",
        [
            b"",
            b".",
            b"1043200",
            b"1043200.",
            b"1043200." + b"0" * 64,
            b"1043201." + sign(KEY, b"1043200"),
            b"9999999999." + sign(b"another key", b"9999999999"),
            b"1043200." + hmac.new(KEY, b"1043200", hashlib.sha256).hexdigest().encode(),
            b"\xff\xfe.\xff",
            KEY,
        ],
    )
    def test_a_forged_one_is_not_valid(self, token: bytes) -> None:
        assert not Sessions(KEY, Clock()).is_valid(token)
