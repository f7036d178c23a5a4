"""Films play in real time."""

from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from grpo_core.film import save_film


def make_frames(n_frames: int) -> list[np.ndarray[tuple[int, ...], np.dtype[np.uint8]]]:
    """Draw frames of 18 x 20 pixels, each of one colour of its own."""
    return [np.full((18, 20, 3), 20 * i, np.uint8) for i in range(n_frames)]


@pytest.mark.parametrize(
    ("n_per_second", "n_shown", "milliseconds"),
    [(10, 12, 100), (25, 12, 40), (50, 6, 40), (100, 3, 40)],
)
def test_a_gif_shows_at_most_25_frames_a_second_and_lasts_as_long_as_the_episode(
    n_per_second: int, n_shown: int, milliseconds: int, tmp_path: Path
) -> None:
    save_film(tmp_path / "new" / "film.gif", make_frames(12), n_per_second)
    with Image.open(tmp_path / "new" / "film.gif") as film:
        assert (film.n_frames, film.info["duration"], film.info["loop"], film.size) == (  # type: ignore[attr-defined]
            n_shown,
            milliseconds,
            0,
            (20, 18),
        )


def test_a_video_keeps_every_frame(tmp_path: Path) -> None:
    save_film(tmp_path / "film.mp4", make_frames(12), 30)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "film.mp4")) == (12, 0.4)
