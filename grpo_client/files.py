"""Save downloads, and check that they are whole."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from grpo_client.answers.models import Video
from grpo_client.answers.reading import check_type
from grpo_client.errors import FileProblem, GRPOError, InvalidArgument, ServerUnreachable

VIDEO_FORMATS = ("gif", "mp4")
#: Formats of exported policies by the end of a file's name.
EXPORT_FORMATS = {".onnx": "onnx", ".pt": "torchscript"}
_MODEL_TYPE, _BINARY_TYPE = "application/zip", "application/octet-stream"
_ZIP_BEGINNING = b"PK\x03\x04"
# Proxies drop the header, or make it weak or longer where they compress.
_SHA256_TAG = re.compile(r'"([0-9a-f]{64})"')

FilePath = str | os.PathLike[str]


def read_path(path: FilePath) -> Path:
    """Return a path that was given.

    :raises InvalidArgument: If it is empty, or neither a text nor an object for one.
    """
    text: object = os.fspath(path) if isinstance(path, str | os.PathLike) else path
    if not isinstance(text, str):
        raise InvalidArgument(f"path={path!r:.100} is of type {type(path).__name__}; give a text or a pathlib.Path.")
    if not text:
        raise InvalidArgument("path='' is empty; name a file.")
    return Path(text)


def read_target(path: FilePath) -> Path:
    """Return the path of a file to save.

    :raises InvalidArgument: If it is no path, or that of a folder.
    """
    target = read_path(path)
    if _ends_in_slash(path):
        raise InvalidArgument(f"path='{path}' is a folder; name a file in it.")
    return target


def place_model(path: FilePath | None, model_name: str) -> Path:
    """Return the path of the file for a model: in a folder, and by default, it has the model's name.

    :param path: A file, or a folder that is there or whose name ends in a slash.
    :raises InvalidArgument: If it is no path.
    """
    file_name = f"{model_name}.zip"
    if path is None:
        return Path(file_name)
    target = read_path(path)
    return target / file_name if _ends_in_slash(path) or os.path.isdir(target) else target


def _ends_in_slash(path: FilePath) -> bool:
    return os.fspath(path).endswith((os.sep, os.altsep or os.sep))


def save_file(path: FilePath, content: bytes) -> Path:
    """Write a file in one step, so that its name never holds a part of it; make its folder if needed.

    Where the path is a link, the file that it leads to is written.

    :raises FileProblem: If it cannot be written, or if there is something else than a file, such as a device.
    """
    with _explain(path, "written"):
        target = Path(os.path.realpath(path))
        if os.path.lexists(target) and not target.is_file():  # replacing it would take it from the programs that use it
            raise FileProblem(f"{path} is not a regular file; name another.")
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
        try:
            temporary.write_bytes(content)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    return Path(path)


def read_file(path: FilePath) -> bytes:
    """Read a file.

    :raises InvalidArgument: If it is no path.
    :raises FileProblem: If it cannot be read.
    """
    source = read_path(path)
    with _explain(path, "read"):
        return source.read_bytes()


@contextmanager
def _explain(path: FilePath, what: str) -> Iterator[None]:
    try:
        yield
    except FileProblem:
        raise
    except (OSError, ValueError) as error:  # a path with a null is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise FileProblem(f"{path} cannot be {what} ({reason}); check its path and permissions.") from error


def save_model(path: FilePath, response: httpx2.Response) -> Path:
    """Check a model file, and save it.

    :raises ServerUnreachable: If it is something else, such as a proxy's page.
    :raises GRPOError: If it came damaged.
    """
    _check_whole(check_type(response, _MODEL_TYPE, _BINARY_TYPE))
    if not response.content.startswith(_ZIP_BEGINNING):
        raise ServerUnreachable(
            f"the answer of {response.url} is no model file, so this is not a GRPO server; check the URL."
        )
    return save_file(path, response.content)


def save_export(path: FilePath, response: httpx2.Response) -> Path:
    """Check an exported policy, and save it.

    :raises ServerUnreachable: If it is something else, such as a proxy's page.
    :raises GRPOError: If it came damaged.
    """
    _check_whole(check_type(response, _BINARY_TYPE))
    return save_file(path, response.content)


def _check_whole(response: httpx2.Response) -> None:
    """Compare a body with the SHA-256 in its ``ETag``, if that holds one."""
    told = _SHA256_TAG.fullmatch(response.headers.get("ETag", ""))
    found = hashlib.sha256(response.content).hexdigest()
    if told is not None and told[1] != found:
        raise GRPOError(f"the file came damaged: its SHA-256 is {found}, the server's {told[1]}; download it again.")


def save_video(path: FilePath, response: httpx2.Response) -> Video:
    """Save a film.

    :raises ServerUnreachable: If its headers are missing.
    """
    headers = response.headers
    try:
        reward, n_steps = float(headers["X-Episode-Reward"]), int(headers["X-Episode-Length"])
        timesteps = int(headers["X-Checkpoint-Timesteps"]) if "X-Checkpoint-Timesteps" in headers else None
    except (KeyError, ValueError) as error:
        raise ServerUnreachable("the film came without its headers; does a proxy on the way drop them?") from error
    return Video(
        path=save_file(path, response.content),
        n_bytes=len(response.content),
        reward=reward,
        n_steps=n_steps,
        checkpoint_timesteps=timesteps,
    )


def get_video_format(path: FilePath) -> str:
    """Return the format of a film by the end of its name.

    :raises InvalidArgument: If the server makes no such films.
    """
    video_format = Path(path).suffix.removeprefix(".").lower()
    if video_format not in VIDEO_FORMATS:
        raise InvalidArgument(f"path='{path}' is not a film; end its name in .{' or .'.join(VIDEO_FORMATS)}.")
    return video_format


def get_export_format(path: FilePath) -> str:
    """Return the format of an exported policy by the end of its name.

    :raises InvalidArgument: If the server writes no such files.
    """
    export_format = EXPORT_FORMATS.get(Path(path).suffix.lower())
    if export_format is None:
        suffixes = " or ".join(f"{suffix} ({name})" for suffix, name in EXPORT_FORMATS.items())
        raise InvalidArgument(f"path='{path}' does not say which format to export to; end its name in {suffixes}.")
    return export_format
