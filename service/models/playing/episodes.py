"""Evaluate and film trained policies: tasks, since they run the environment's code."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym

from grpo_core.environments.registered_limits import find_max_steps
from grpo_core.evaluation import (
    Episode,
    check_spaces,
    make_random_policy,
    play_episode,
    play_episodes,
    summarize_episodes,
)
from grpo_core.film import FilmRecorder
from grpo_core.options.checks import MAX_EPISODE_STEPS
from service.environments.build import build_env
from service.environments.inspection import list_render_modes
from service.environments.step_limit import warn_of_cuts
from service.errors import ConflictError, InvalidRequestError
from service.models.playing.play import Play
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import ModelFigures, VideoFormat
from service.workers.task import Progress

_RENDER_MODE = "rgb_array"
_MAX_FILM_BYTES = 4 * 2**20
# A file names the arguments that its environment is made with.
_LIMIT_REMEDY = (
    "for another limit, register the environment with max_episode_steps, or train the model with "
    '"env_kwargs": {"max_episode_steps": n}'
)


def evaluate_policy(play: Play, n_episodes: int, progress: Progress) -> bytes:
    """Play whole episodes with a policy, and with uniformly random actions from the same seeds.

    Where the environment declares no time limit, episodes are cut as ``grpo evaluate`` cuts them.

    :return: ``ModelFigures`` in JSON.
    :raises ConflictError: If the policy does not fit the environment.
    :raises InvalidRequestError: If the environment cannot be created, or its rewards are not finite.
    """
    check_stop = _make_stop_check(progress)
    env = build_env(play.setup)
    try:
        _check_fit(play, env)
        max_steps = find_max_steps(env.spec, MAX_EPISODE_STEPS)
        policies = {"the policy": play.make_policy(), "random actions": make_random_policy(env.action_space, play.seed)}
        played = {
            whose: play_episodes(env, policy, n_episodes, play.seed, max_steps, check_stop)
            for whose, policy in policies.items()
        }
    finally:
        env.close()
    trained, random = (_summarize(play, episodes) for episodes in played.values())
    warnings = [line for whose, some in played.items() for line in warn_of_cuts(some, max_steps, whose, _LIMIT_REMEDY)]
    return ModelFigures(evaluation=trained, random=random, warnings=warnings).model_dump_json().encode()


def film_policy(play: Play, video_format: VideoFormat, max_steps: int, folder: str, progress: Progress) -> bytes:
    """Play one episode and film it.

    :param max_steps: Largest number of steps; a longer episode is cut.
    :param folder: Temporary folder for the film.
    :return: A line of JSON with ``reward`` and ``n_steps``, followed by the film.
    :raises ConflictError: If the policy does not fit the environment.
    :raises InvalidRequestError: If the environment cannot be created or rendered.
    """
    # pygame reads it on import and then needs no screen.
    os.putenv("SDL_VIDEODRIVER", "dummy")
    check_stop = _make_stop_check(progress)
    env = _build_rendered_env(play)
    try:
        recorder = FilmRecorder((env.metadata or {}).get("render_fps"))

        def on_step() -> None:
            check_stop()
            recorder.record_step(env.render)

        episode = play_episode(env, play.make_policy(), play.seed, max_steps, on_step)
        recorder.record_last_step(env.render)
    finally:
        env.close()
    _check_finite(play.env_name, [episode.reward])
    file = Path(folder) / f"film.{video_format}"
    recorder.save(file, _MAX_FILM_BYTES)
    header = {"reward": episode.reward, "n_steps": episode.n_steps}
    return json.dumps(header).encode() + b"\n" + file.read_bytes()


def _build_rendered_env(play: Play) -> gym.Env[Any, Any]:
    env = build_env(play.setup)
    try:
        _check_fit(play, env)
        modes = list_render_modes(env)
    finally:
        env.close()
    if _RENDER_MODE not in modes:
        raise InvalidRequestError(
            f"env_name '{play.env_name}' cannot be filmed: its metadata lists the render_modes {modes}, but a film "
            f"needs '{_RENDER_MODE}'; add it, or evaluate the model with POST /models/{{model_name}}/evaluate."
        )
    return build_env(play.setup, render_mode=_RENDER_MODE)


def _check_fit(play: Play, env: gym.Env[Any, Any]) -> None:
    try:
        check_spaces(play.actor, env)
    except ValueError as error:
        raise ConflictError(
            f"this model cannot be played in env_name '{play.env_name}': {error} It may have been trained with "
            "wrappers or in another version of the environment; train it again with POST /train."
        ) from error


def _summarize(play: Play, episodes: list[Episode]) -> EpisodeFigures:
    _check_finite(play.env_name, [episode.reward for episode in episodes])
    return EpisodeFigures.model_validate(asdict(summarize_episodes(episodes)))


def _check_finite(env_name: str, rewards: list[float]) -> None:
    if not all(map(math.isfinite, rewards)):
        raise InvalidRequestError(f"env_name '{env_name}' gives rewards that are not finite; fix the environment.")


def _make_stop_check(progress: Progress) -> Callable[[], None]:
    """Return a function to call at every step: it raises ``InterruptedError`` once the task is told to stop."""
    was_stopped = False

    def stop() -> None:
        nonlocal was_stopped
        was_stopped = True

    def check_stop() -> None:
        if was_stopped:
            raise InterruptedError("the task was told to stop")

    progress.attach_stop(stop)
    return check_stop
