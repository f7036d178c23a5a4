"""Read the server's answers: JSON, arrays, and the class of all answers."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Self, Union, get_args, get_origin, get_type_hints

import httpx2

from grpo_client.errors import InvalidArgument, MissingPackage, ServerUnreachable

if TYPE_CHECKING:
    import numpy.typing as npt

Interval = tuple[float, float]


def read_json(response: httpx2.Response) -> Any:
    """Read a body as JSON.

    :raises ServerUnreachable: If it is something else.
    """
    try:
        return response.json()
    except (ValueError, RecursionError) as error:
        raise ServerUnreachable(
            f"the answer of {response.url} is not JSON, so this is not a GRPO server; check the URL."
        ) from error


def read_list(response: httpx2.Response, key: str) -> list[Any]:
    """Read the list under a key of a JSON object.

    :raises ServerUnreachable: If there is no such list.
    """
    body = read_json(response)
    if not isinstance(body, dict) or not isinstance(body.get(key), list):
        raise ServerUnreachable(f"the answer has no list '{key}', so this is not a GRPO server; check the URL.")
    items: list[Any] = body[key]
    return items


def check_type(response: httpx2.Response, *media_types: str) -> httpx2.Response:
    """Return a response of one of these media types, in lower case; a proxy's page has another, or none.

    :raises ServerUnreachable: If it has another.
    """
    media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type not in media_types:
        raise ServerUnreachable(
            f"the answer of {response.url} is of type {media_type or 'none'} and not {' or '.join(media_types)}, so "
            "this is not a GRPO server; check the URL."
        )
    return response


def import_numpy() -> Any:
    """Import NumPy, which only arrays need.

    :raises MissingPackage: If it is not installed.
    """
    try:
        import numpy
    except ImportError as error:
        raise MissingPackage("predict_array needs NumPy: pip install numpy, or use predict_batch.") from error
    return numpy


def read_array(response: httpx2.Response) -> "npt.NDArray[Any]":
    """Read an array.

    :raises ServerUnreachable: If the answer holds none.
    """
    try:
        actions: npt.NDArray[Any] = import_numpy().load(io.BytesIO(response.content), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ServerUnreachable("the answer is no array, so this is not a GRPO server; check the URL.") from error
    return actions


def to_plain(value: Any) -> Any:
    """Turn arrays, answers, times and paths into what JSON can express; leave everything else as it is.

    :raises InvalidArgument: If it is nested too deeply, or holds itself.
    """
    try:
        return _to_plain(value)
    except RecursionError as error:
        raise InvalidArgument(
            "the request is nested too deeply, or holds itself; give lists of a few levels."
        ) from error


def _to_plain(value: Any) -> Any:
    if hasattr(value, "tolist"):  # NumPy's arrays and numbers
        return value.tolist()
    if isinstance(value, Answer):
        return value.to_json()
    if isinstance(value, Mapping):
        return {key: _to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to_plain(item) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return str(value) if isinstance(value, Path) else value


def _convert(kind: Any, value: Any) -> Any:
    """Convert JSON to the type of a field: times, nested answers and tuples; everything else stays as it is."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if value is None:
        return None
    if datetime in kinds:
        return datetime.fromisoformat(value)
    for one in kinds:
        if isinstance(one, type) and issubclass(one, Answer):
            return one.parse(value)
        if get_origin(one) is tuple:
            return tuple(_convert(get_args(one)[0], item) for item in value)
    return value


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A JSON object of the server."""

    @classmethod
    @cache
    def _get_kinds(cls) -> dict[str, Any]:
        return get_type_hints(cls)

    @classmethod
    def parse(cls, body: Any) -> Self:
        """Read a JSON object; fields that this class does not have are ignored.

        :raises ServerUnreachable: If a GRPO server would not send it.
        """
        try:
            return cls(**{name: _convert(kind, body[name]) for name, kind in cls._get_kinds().items() if name in body})
        except (TypeError, ValueError, AttributeError) as error:
            raise ServerUnreachable(
                f"the answer is not a {cls.__name__} of a GRPO server; check the URL. {error}"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``parse`` reads."""
        return {name: to_plain(getattr(self, name)) for name in self._get_kinds()}
