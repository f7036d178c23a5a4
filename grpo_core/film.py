"""Make films of episodes, GIFs that loop and MP4s, from the frames that an environment renders."""

import io
import itertools
import math
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # Pillow is optional
    from PIL.Image import Image

FILM_SUFFIXES = (".gif", ".mp4")
# More would double the size of a GIF and the time to write it, with little visible gain.
_MAX_FRAMES_PER_SECOND = 25.0
_DEFAULT_FRAMES_PER_SECOND = 30.0
# Longer side of a frame.
_MAX_PIXELS = 480
# Frames kept in memory; even, since every second one is dropped when there are more.
_MAX_FRAMES = 256
_MIN_FRAMES = 16
_MAX_COLOURS = 256
# Number of frames that a film's palette is computed from, and their longer side.
_MAX_SAMPLES = 64
_SAMPLE_PIXELS = 120
# How long a GIF shows the end of the episode before it starts again.
_HOLD_SECONDS = 1.0


class FilmRecorder:
    """Records an episode of any length in bounded memory: frames that are evenly spaced in time.

    :param n_per_second: Steps per second, from the environment's metadata; 30 is used unless it is in (0, 1000].
    """

    def __init__(self, n_per_second: Any) -> None:
        is_rate = isinstance(n_per_second, int | float) and 0 < n_per_second <= 1000
        self._step_seconds = 1 / float(n_per_second if is_rate else _DEFAULT_FRAMES_PER_SECOND)
        self._stride = math.ceil(1 / self._step_seconds / _MAX_FRAMES_PER_SECOND)
        self._frames: list[Image] = []
        self._n_steps = 0

    def record_step(self, render: Callable[[], Any]) -> None:
        """Record one step; only some of the steps are rendered.

        :param render: Returns the picture, uint8 of shape ``(height, width, 3)``.
        :raises ValueError: If it returns anything else.
        """
        if self._n_steps % self._stride == 0:
            if len(self._frames) == _MAX_FRAMES:
                self._frames = self._frames[::2]
                self._stride *= 2
            self._frames.append(self._draw(render))
        self._n_steps += 1

    def record_last_step(self, render: Callable[[], Any]) -> None:
        """Render the last step if ``record_step`` has skipped it, so that the film shows the end of the episode."""
        if (self._n_steps - 1) % self._stride:
            self._frames.append(self._draw(render))

    def save(self, path: Path, max_bytes: int) -> None:
        """Write the film, in one step where one is already; the suffix of the path chooses GIF or MP4.

        :param max_bytes: Largest file. A larger film is reduced to every second, fourth, ... frame, but never to fewer
            than 16.
        :raises OSError: If the disk refuses; what is there already is untouched.
        """
        temporary = path.with_name(f".tmp-{uuid.uuid4().hex}{path.suffix}")
        try:
            self._write(temporary, max_bytes)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)

    def _write(self, path: Path, max_bytes: int) -> None:
        frames, frame_seconds = self._frames, self._step_seconds * self._stride
        while True:
            if path.suffix == ".gif":
                path.write_bytes(encode_gif(frames, frame_seconds, _HOLD_SECONDS))
            else:
                write_mp4(path, frames, frame_seconds)
            if path.stat().st_size <= max_bytes or len(frames) < 2 * _MIN_FRAMES:
                return
            frames, frame_seconds = [*frames[:-1:2], frames[-1]], 2 * frame_seconds

    def _draw(self, render: Callable[[], Any]) -> "Image":
        from PIL import Image

        frame = render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            came = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else f"{type(frame).__name__}"
            raise ValueError(
                f"render() returned {came}; in render mode 'rgb_array' it must return a uint8 array (height, width, 3)."
            )
        image = Image.fromarray(frame)
        if self._frames:
            size = self._frames[0].size
        else:
            scale = min(1.0, _MAX_PIXELS / max(image.size))
            # MP4 needs even sizes.
            size = (_to_even(image.width * scale), _to_even(image.height * scale))
        return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def encode_gif(frames: Sequence["Image"], frame_seconds: float, hold_seconds: float = 0.0) -> bytes:
    """Encode frames of one size as a GIF that loops. One palette for all frames avoids flicker.

    :param frame_seconds: Time that each frame is shown.
    :param hold_seconds: Additional time for the last frame.
    """
    from PIL import Image

    palette = _make_palette(frames)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    # A GIF counts in hundredths of a second. Rounding ends instead of lengths keeps the total length.
    ends = [10 * round(100 * frame_seconds * i) for i in range(len(frames) + 1)]
    lengths = [end - start for start, end in itertools.pairwise(ends)]
    lengths[-1] += round(1000 * hold_seconds)
    file = io.BytesIO()
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], duration=lengths, loop=0)
    return file.getvalue()


def write_mp4(path: Path, frames: Sequence["Image"], frame_seconds: float) -> None:
    """Write frames of one size as an MP4 that browsers play: H.264, 4:2:0 colours, and the index in front.

    :param frame_seconds: Time that each frame is shown.
    :raises OSError: If the disk refuses it.
    """
    import imageio.v3

    images: Any = list(frames)  # the writer turns them into arrays one by one
    imageio.v3.imwrite(
        path,
        images,
        plugin="FFMPEG",
        fps=1 / frame_seconds,
        codec="libx264",
        pixelformat="yuv420p",
        # Halved colours need sizes divisible by 2; the default would enlarge images to multiples of 16.
        macro_block_size=2,
        ffmpeg_log_level="error",
        output_params=["-movflags", "+faststart"],
    )
    if not _is_whole_mp4(path.read_bytes()):  # the writer does not look at how ffmpeg ended
        raise OSError("the film is not whole; is its disk full?")


def _is_whole_mp4(content: bytes) -> bool:
    """Return whether an MP4 has its index and ends where its last part does; parts begin with their size and name."""
    names, start = [], 0
    while start < len(content):
        names.append(content[start + 4 : start + 8])
        start += max(8, int.from_bytes(content[start : start + 4]))
    return start == len(content) and b"moov" in names


def _make_palette(frames: Sequence["Image"]) -> "Image":
    from PIL import Image

    samples = [*frames[:: math.ceil(len(frames) / _MAX_SAMPLES)], frames[-1]]
    shrink = max(1, math.ceil(max(frames[0].size) / _SAMPLE_PIXELS))
    width, height = (math.ceil(n_pixels / shrink) for n_pixels in frames[0].size)
    sheet = Image.new("RGB", (width, height * len(samples)))
    for i, sample in enumerate(samples):
        # The nearest pixel, so that no new colours appear.
        sheet.paste(sample.resize((width, height), Image.Resampling.NEAREST), (0, i * height))
    return sheet.quantize(_MAX_COLOURS, dither=Image.Dither.NONE)


def _to_even(n_pixels: float) -> int:
    return max(2, 2 * round(n_pixels / 2))
