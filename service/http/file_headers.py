"""Tell which version of a file a request means, and which part of it (RFC 9110).

``If-Match`` and ``If-None-Match`` (13.1) name versions; ``Range`` (14) winds films forward, and lets downloads go on
where they broke off.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from fastapi import Request, Response

from service.errors import PreconditionFailedError, Problem
from service.http.problems import Refusal, error_response
from service.models.served import InspectedFile

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")
NOT_SATISFIABLE = Problem("range-not-satisfiable", "The file has no such range")


def is_known(request: Request, etag: str) -> bool:
    """Return whether the client has this version of a file already."""
    return _lists(request, "if-none-match", etag)


def check_match(request: Request, etag: str | None) -> None:
    """Refuse a request for another version of a file than the current one.

    :param etag: The current ``ETag``: "" if the file is too large to have one, None if there is no file.
    :raises PreconditionFailedError: If ``If-Match`` does not list it.
    """
    if "if-match" in request.headers and not _lists(request, "if-match", etag):
        there = "there is none" if etag is None else _describe(etag)
        raise PreconditionFailedError(f"If-Match does not list the file that is there: {there}; look at it first.")


def check_change(request: Request, find_file: Callable[[], InspectedFile | None]) -> None:
    """Refuse to change another version of a file than the one that the client means.

    :param find_file: Is ``ModelStore.find_file``; called only if the client names a version.
    :raises PreconditionFailedError: If ``If-Match`` does not list it, or ``If-None-Match`` does.
    """
    if not {"if-match", "if-none-match"} & set(request.headers):
        return
    etag = None
    if (file := find_file()) is not None:
        etag = "" if file.sha256 is None else f'"{file.sha256}"'
    check_match(request, etag)
    if _lists(request, "if-none-match", etag):
        raise PreconditionFailedError(f"If-None-Match lists the file that is there: {_describe(etag or '')}.")


def _lists(request: Request, header: str, etag: str | None) -> bool:
    if etag is None:
        return False
    tags = {tag.strip() for value in request.headers.getlist(header) for tag in value.split(",")}
    if header == "if-none-match":  # a weak tag is as good where nothing is changed
        tags = {tag.removeprefix("W/") for tag in tags}
    return "*" in tags or (etag != "" and etag in tags)


def _describe(etag: str) -> str:
    return f"its ETag is {etag}" if etag else "it is too large to have an ETag"


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

    That is the whole file if the request names no part, several, or one of another version.

    :param n_bytes: Size of the file, above 0.
    :param etag: The file's ``ETag``.
    :return: A refusal if the file ends before the part begins.
    """
    headers = {"ETag": etag, "Accept-Ranges": "bytes"}
    asked = _RANGE.fullmatch(request.headers.get("range", "").strip().lower())
    if asked is None or asked.groups() == ("", "") or request.headers.get("if-range", etag) != etag:
        return Part(0, n_bytes, 200, headers)
    first, last = asked.groups()
    if not first:  # the last n bytes
        start, stop = max(0, n_bytes - int(last)), n_bytes
    else:
        start, stop = int(first), min(n_bytes, int(last) + 1) if last else n_bytes
        if last and int(last) < start:  # not a range at all
            return Part(0, n_bytes, 200, headers)
    if start >= stop:
        detail = f"the file has {n_bytes} bytes; ask for some of these."
        return Refusal(NOT_SATISFIABLE, 416, detail, {"Content-Range": f"bytes */{n_bytes}"})
    return Part(start, stop - start, 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{n_bytes}"})


def answer_content(
    request: Request, content: bytes, sha256: str, headers: Mapping[str, str], media_type: str
) -> Response:
    """Answer with a file in memory, or with the part of it that was asked for.

    :param sha256: Its SHA-256, in hexadecimal digits, which is its ``ETag``.
    :param headers: More headers.
    :raises PreconditionFailedError: If ``If-Match`` does not list it.
    """
    etag = f'"{sha256}"'
    check_match(request, etag)
    if is_known(request, etag):
        return Response(status_code=304, headers={"ETag": etag, **headers})
    part = choose_part(request, len(content), etag)
    if isinstance(part, Refusal):
        return error_response(*part)
    asked = content[part.start : part.start + part.n_bytes]
    return Response(asked, part.status_code, {**headers, **part.headers}, media_type)
