"""Which request and which job the running code works for."""

import random
import re
import uuid
from contextvars import ContextVar

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
JOB_ID: ContextVar[str | None] = ContextVar("job_id", default=None)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_VERSION_4 = 0x4 << 76 | 0x8 << 60
_RANDOM_BITS = ~(0xF << 76 | 0xC << 60)


class RequestIds:
    """Names requests, so that an answer can be found in the log."""

    def __init__(self) -> None:
        # A generator of its own, since whoever trains seeds Python's; ids have to differ, not to be secret.
        self._rng = random.Random()

    def choose(self, offered: bytes | None) -> str:
        """Take the id that a client offers if it is short and plain; else draw a UUID of version 4.

        :param offered: The header ``X-Request-ID``.
        """
        if offered is not None and _REQUEST_ID.fullmatch(offered):
            return offered.decode()
        # A fifth of the time that uuid.uuid4 takes.
        digits = f"{self._rng.getrandbits(128) & _RANDOM_BITS | _VERSION_4:032x}"
        return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def make_urn(request_id: str) -> str:
    """Make a URI of a request's id, which is a UUID unless the client has chosen it."""
    try:
        return f"urn:uuid:{uuid.UUID(request_id)}"
    except ValueError:
        return f"urn:grpo:request:{request_id}"
