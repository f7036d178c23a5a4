"""Requests that are meant for one version of a file (RFC 9110, 13.1): ``If-Match`` and ``If-None-Match``."""

from collections.abc import Callable

from fastapi import Request

from service.errors import PreconditionFailedError


def is_known(request: Request, etag: str) -> bool:
    """Return whether the client has this version of a file already."""
    return _lists(request, "if-none-match", etag)


def check_match(request: Request, etag: str | None) -> None:
    """Refuse a request for another version of a file than the one that is there.

    :param etag: That one's ``ETag``; None if there is no file.
    :raises PreconditionFailedError: If ``If-Match`` does not list it.
    """
    if "if-match" in request.headers and not _lists(request, "if-match", etag):
        there = "there is none" if etag is None else f"its ETag is {etag}"
        raise PreconditionFailedError(f"If-Match does not list the file that is there: {there}; look at it first.")


def check_change(request: Request, find_sha256: Callable[[], str | None]) -> None:
    """Refuse to change a file that is not the one that the client means.

    :param find_sha256: Returns that of the file that is there, or None; called only if the client says what it means.
    :raises PreconditionFailedError: If ``If-Match`` does not list it, or ``If-None-Match`` does.
    """
    if not {"if-match", "if-none-match"} & set(request.headers):
        return
    sha256 = find_sha256()
    etag = None if sha256 is None else f'"{sha256}"'
    check_match(request, etag)
    if _lists(request, "if-none-match", etag):
        raise PreconditionFailedError(f"If-None-Match lists the file that is there: its ETag is {etag}.")


def _lists(request: Request, header: str, etag: str | None) -> bool:
    if etag is None:
        return False
    tags = {tag.strip() for value in request.headers.getlist(header) for tag in value.split(",")}
    if header == "if-none-match":  # a weak tag is as good where nothing is changed
        tags = {tag.removeprefix("W/") for tag in tags}
    return etag in tags or "*" in tags
