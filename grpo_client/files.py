"""What comes as a file: where it is saved, and whether it came whole."""

import hashlib
import os
import uuid
from pathlib import Path

import httpx2

from grpo_client.answers import Video
from grpo_client.errors import GRPOError

VIDEO_FORMATS = ("gif", "mp4")

FilePath = str | os.PathLike[str]


def save_file(path: FilePath, content: bytes) -> Path:
    """Write a file whose name always has the old content or the new, never a part; folders are made as needed."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".tmp-{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def save_model(path: FilePath, response: httpx2.Response) -> Path:
    """Save a model file whose SHA-256 is the one that the server tells.

    :raises GRPOError: If it is not.
    """
    told, found = response.headers.get("ETag", "").strip('"'), hashlib.sha256(response.content).hexdigest()
    if told not in ("", found):
        raise GRPOError(f"the file came damaged: its SHA-256 is {found}, the server's {told}; download it again.")
    return save_file(path, response.content)


def save_video(path: FilePath, response: httpx2.Response) -> Video:
    """Save a film."""
    reward, n_steps = (response.headers.get(f"X-Episode-{name}") for name in ("Reward", "Length"))
    return Video(
        path=save_file(path, response.content),
        n_bytes=len(response.content),
        reward=None if reward is None else float(reward),
        n_steps=None if n_steps is None else int(n_steps),
    )


def get_video_format(path: FilePath) -> str:
    """Tell the format of a film by its name.

    :raises ValueError: If the server makes no such films.
    """
    video_format = Path(path).suffix.removeprefix(".").lower()
    if video_format not in VIDEO_FORMATS:
        raise ValueError(f"path='{path}' is no film; end its name in .{' or .'.join(VIDEO_FORMATS)}.")
    return video_format
