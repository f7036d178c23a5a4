"""The ids of requests, by which an answer is found in the log."""

import itertools
import re
import uuid

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_N_COUNTED = 2**48


class RequestIds:
    """Makes request ids. Safe to use from any thread."""

    def __init__(self) -> None:
        first = str(uuid.uuid4())
        self._head = first[:24]
        # Ids must differ but need not be secret; drawing each anew would take ten times as long as counting.
        self._numbers = itertools.count(int(first[24:], 16))

    def choose(self, offered: bytes | None) -> str:
        """Return the id that a client offers if it is short and plain; otherwise a new one in the form of a UUID4.

        :param offered: The header ``X-Request-ID``.
        """
        if offered is not None and _REQUEST_ID.fullmatch(offered):
            return offered.decode()
        return f"{self._head}{next(self._numbers) % _N_COUNTED:012x}"


def make_urn(request_id: str) -> str:
    """Return a URN for a request's id, which is a UUID unless the client chose it."""
    try:
        return f"urn:uuid:{uuid.UUID(request_id)}"
    except ValueError:
        return f"urn:grpo:request:{request_id}"
