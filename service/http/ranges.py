"""Parts of a file (RFC 9110): films that are wound forward, and downloads that go on where they broke off."""

import re
from typing import NamedTuple

from fastapi import Request

from service.errors import Problem
from service.http.problems import Refusal

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
NOT_SATISFIABLE = Problem("range-not-satisfiable", "The file has no such range")


class Part(NamedTuple):
    """A part of a file, and how it is answered.

    :param start: Its first byte.
    :param n_bytes: Its size.
    :param status_code: 200 for a whole file, 206 for a part.
    :param headers: What tells the client which part it is.
    """

    start: int
    n_bytes: int
    status_code: int
    headers: dict[str, str]


def choose_part(request: Request, n_bytes: int, etag: str) -> Part | Refusal:
    """Return the part of a file that a request asks for.

    That is all of it if the request names none, or several, or one of another version of the file.

    :param n_bytes: Size of the file, above 0.
    :param etag: The file's ``ETag``.
    :return: A refusal if the file ends before the part begins.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip().lower())
    if asked is None or asked.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return Part(0, n_bytes, 200, headers)
    first, last = asked.groups()
    if not first:  # the last so many bytes
        start, stop = max(0, n_bytes - int(last)), n_bytes
    else:
        start, stop = int(first), min(n_bytes, int(last) + 1) if last else n_bytes
        if last and int(last) < start:  # not a range at all
            return Part(0, n_bytes, 200, headers)
    if start >= stop:
        detail = f"the file has {n_bytes} bytes; ask for some of these."
        return Refusal(NOT_SATISFIABLE, 416, detail, {"Content-Range": f"bytes */{n_bytes}"})
    return Part(start, stop - start, 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{n_bytes}"})
