"""Films are recorded and play in real time."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from grpo_core.film import FilmRecorder


def draw(shade: int, height: int = 20, width: int = 30) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), shade, np.uint8)


def read_saved_gif(recorder: FilmRecorder, path: Path, max_bytes: int = 2**30) -> list[tuple[int, int]]:
    """Save a GIF; return the brightness and the duration in ms of every frame."""
    recorder.save(path, max_bytes)
    with Image.open(path) as film:
        shown = []
        for i in range(film.n_frames):  # type: ignore[attr-defined]
            film.seek(i)
            shown.append((int(np.asarray(film.convert("RGB"))[0, 0, 0]), film.info["duration"]))
    return shown


def record(recorder: FilmRecorder, shades: Iterable[int]) -> None:
    for shade in shades:
        recorder.record_step(partial(draw, shade))


def test_a_slow_environments_film_shows_every_step_and_holds_its_end(tmp_path: Path) -> None:
    recorder = FilmRecorder(4)
    record(recorder, [0, 100, 200])
    recorder.record_last_step(partial(draw, 200))
    assert read_saved_gif(recorder, tmp_path / "film.gif") == [(0, 250), (100, 250), (200, 1250)]


def test_a_fast_environments_film_shows_some_steps_and_the_last_one(tmp_path: Path) -> None:
    drawn: list[int] = []

    def render(shade: int) -> npt.NDArray[np.uint8]:
        drawn.append(shade)
        return draw(shade)

    recorder = FilmRecorder(100)
    for shade in range(0, 60, 10):
        recorder.record_step(partial(render, shade))
    recorder.record_last_step(partial(render, 50))
    assert drawn == [0, 40, 50]
    assert [shade for shade, _ in read_saved_gif(recorder, tmp_path / "film.gif")] == [0, 40, 50]


@pytest.mark.parametrize("n_steps", [256, 258, 5000])
def test_a_long_episode_takes_at_most_256_frames_and_keeps_its_end(n_steps: int, tmp_path: Path) -> None:
    recorder = FilmRecorder(25)
    for i in range(n_steps):
        recorder.record_step(partial(draw, i % 200))
    recorder.record_last_step(partial(draw, 250))
    shown = read_saved_gif(recorder, tmp_path / "film.gif")
    assert len(shown) <= 257
    seconds = sum(milliseconds for _, milliseconds in shown) / 1000
    # As long as the episode, without the held end.
    assert seconds == pytest.approx(n_steps / 25 + 1, abs=2.6)
    if n_steps > 256:
        assert shown[-1][0] == pytest.approx(250, abs=2)


def test_a_film_that_would_be_too_large_shows_fewer_frames(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (60, 60, 3), np.uint8) for _ in range(64)]
    sizes = {}
    for max_bytes in (2**30, 100_000, 1):
        recorder = FilmRecorder(25)
        for frame in noise:
            recorder.record_step(lambda frame=frame: frame)  # type: ignore[misc]
        recorder.save(tmp_path / "film.gif", max_bytes)
        with Image.open(tmp_path / "film.gif") as film:
            sizes[max_bytes] = (film.n_frames, film.info["duration"])  # type: ignore[attr-defined]
    assert sizes[2**30] == (64, 40)
    # They always include the last frame.
    assert sizes[100_000] in [(33, 80), (17, 160)]
    assert sizes[1] == (17, 160)


@pytest.mark.parametrize(
    ("size", "shown"), [((400, 600), (480, 320)), ((1000, 500), (240, 480)), ((33, 21), (20, 32)), ((1, 1), (2, 2))]
)
def test_frames_are_even_and_at_most_480_pixels_long(
    size: tuple[int, int], shown: tuple[int, int], tmp_path: Path
) -> None:
    recorder = FilmRecorder(25)
    recorder.record_step(lambda: draw(100, *size))
    recorder.save(tmp_path / "film.gif", 2**30)
    with Image.open(tmp_path / "film.gif") as film:
        assert film.size == shown


@pytest.mark.parametrize("rate", [None, "fast", 0, -1, float("nan"), float("inf"), 10**400], ids=str)
def test_an_unusable_rate_counts_as_30(rate: Any, tmp_path: Path) -> None:
    recorder = FilmRecorder(rate)
    record(recorder, [0, 50, 100, 150])
    # At 30 steps a second, every second one is shown.
    assert read_saved_gif(recorder, tmp_path / "film.gif") == [(0, 70), (100, 1060)]


@pytest.mark.parametrize(
    "frame", [None, [draw(1)], np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3))], ids=type
)
def test_anything_but_an_image_is_refused(frame: Any) -> None:
    with pytest.raises(ValueError, match="uint8"):
        FilmRecorder(25).record_step(lambda: frame)


def test_an_mp4_begins_with_its_index_so_that_it_plays_while_it_loads(tmp_path: Path) -> None:
    recorder = FilmRecorder(25)
    record(recorder, [0, 100, 200])
    recorder.save(tmp_path / "film.mp4", 2**30)
    content = (tmp_path / "film.mp4").read_bytes()
    assert 0 < content.index(b"ftyp") < content.index(b"moov") < content.index(b"mdat")
