"""``grpo play``, or ``grpo enjoy``: watch an episode in a window, or film it."""

import argparse
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from grpo_cli.model import make_playable_env, open_model
from grpo_cli.options import (
    add_parser,
    add_playing_options,
    describe_setup,
    has_packages,
    make_int_parser,
    prepare_output,
    write,
)
from grpo_core.evaluation import make_policy, play_episode
from grpo_core.film import FILM_SUFFIXES, FilmRecorder
from grpo_terminal import Parser, UsageError

_MAX_FILM_BYTES = 32 * 2**20


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    for name in ("enjoy", "play"):  # no alias, whose usage would show the other name
        _add_options(add_parser(commands, name, _run, "watch a policy play"))


def _add_options(parser: Parser) -> None:
    add_playing_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help=f"film to save, ending in {' or '.join(FILM_SUFFIXES)}; default: show a window",
    )
    parser.add_argument(
        "--max-steps", type=make_int_parser(1), default=500, help="longest episode, in steps (%(default)s)"
    )


def _run(options: argparse.Namespace) -> int:
    if options.output is not None:
        _check_film(options.output)
    content, setup = open_model(options)
    if options.output is None:
        _check_display()
    actor = content.make_actor()
    if options.output is not None:
        prepare_output("--output", options.output)
        # A film needs no screen, and SDL would complain that it finds none.
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    with closing(make_playable_env(setup, actor, "human" if options.output is None else "rgb_array")) as env:
        policy = make_policy(actor, not options.stochastic, np.random.default_rng(options.seed))
        recorder = FilmRecorder(env.metadata.get("render_fps"))
        # In render mode "human" the environment draws by itself.
        on_step = (lambda: None) if options.output is None else lambda: recorder.record_step(env.render)
        episode = play_episode(env, policy, options.seed, options.max_steps, on_step)
        if options.output is not None:
            recorder.record_last_step(env.render)
            try:
                recorder.save(options.output, _MAX_FILM_BYTES)
            except OSError as error:
                raise UsageError(f"--output {options.output} cannot be written: {error}") from error
    write(f"{describe_setup(setup)}, seed {options.seed}: {episode.n_steps} steps, reward {episode.reward:.2f}")
    if options.output is not None:
        write(f"saved {options.output}")
    return 0


def _check_film(path: Path) -> None:
    if path.suffix not in FILM_SUFFIXES:
        raise UsageError(f"--output {path} is not a film; end its name in {' or '.join(FILM_SUFFIXES)}.")
    if not has_packages("PIL", "imageio", "imageio_ffmpeg"):
        raise UsageError(
            "--output needs Pillow, imageio and imageio-ffmpeg: pip install Pillow imageio imageio-ffmpeg, or watch."
        )


def _check_display() -> None:
    """Look for a screen: without one, simulators draw unseen, or end the process."""
    names = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(map(os.environ.get, names)):
        raise UsageError("there is no display to show a window on; film the episode instead: --output episode.gif.")
