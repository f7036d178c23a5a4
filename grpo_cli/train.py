"""``grpo train``: train a policy, save it and evaluate it."""

import argparse
import json
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import NamedTemporaryFile
from types import FrameType
from typing import TYPE_CHECKING, Any, get_args

import gymnasium as gym
from gymnasium import spaces

from grpo_cli.evaluate import print_evaluation
from grpo_cli.model import EXPORT_SUFFIXES, find_model_file
from grpo_cli.options import (
    DEFAULT_EPISODES,
    MAX_SEED,
    add_env_module_option,
    add_env_setup_options,
    add_parser,
    explain,
    has_packages,
    import_env_modules,
    make_int_parser,
    parse_env_kwargs,
    parse_wrapper_options,
    prepare_folder,
    prepare_output,
    require_packages,
    resolve_env,
    write,
)
from grpo_cli.training_settings import TrainingSettings, choose_settings, resolve_classes
from grpo_core.environments.making import EnvSetup, make_env
from grpo_core.environments.wrappers import make_normalized, separate_normalization, suggest_wrappers
from grpo_core.options.hyperparameters import HYPERPARAMETERS, Group, list_group
from grpo_core.options.presets import NO_PRESET, list_general_presets
from grpo_core.options.rewards import ENVIRONMENT_REWARD, REWARD_FUNCTIONS
from grpo_core.spaces import UnsupportedSpaceError, check_spaces, list_normalizable
from grpo_terminal import SIGNAL_STATUS, UsageError

if TYPE_CHECKING:  # importing torch takes seconds, and only "train" needs it
    from stable_baselines3.common.vec_env import VecEnv

    from grpo import GRPO


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    parser = add_parser(commands, "train", _run, "train a policy and save it")
    parser.add_argument("--env", required=True, help="id of a Gymnasium environment")
    parser.add_argument(
        "-n", "--total-timesteps", type=make_int_parser(1), help="simulator steps; default: the preset's"
    )
    add_env_setup_options(parser)
    parser.add_argument("--preset", help="environment whose settings to start from, 'general' or 'none'")
    parser.add_argument("--n-envs", type=make_int_parser(1), help="number of environments")
    parser.add_argument(
        "--seed", type=make_int_parser(0, MAX_SEED), help="makes the training repeatable; default: drawn and printed"
    )
    parser.add_argument(
        "-params",
        "--hyperparams",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=VALUE",
        help="hyperparameters, policy_kwargs or normalize",
    )
    parser.add_argument(
        "--reward-function",
        choices=[ENVIRONMENT_REWARD, *REWARD_FUNCTIONS],
        default=ENVIRONMENT_REWARD,
        help="reward to train on (%(default)s)",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("-o", "--output", help="model file, or folder for ENV.zip; default: here")
    place.add_argument("-f", "--log-folder", type=Path, default=Path(), help="folder for ENV.zip")
    parser.add_argument(
        "--eval-episodes",
        type=make_int_parser(0),
        default=DEFAULT_EPISODES,
        help="episodes to play at the end (%(default)s)",
    )
    parser.add_argument("-tb", "--tensorboard-log", type=Path, help="folder for TensorBoard")
    parser.add_argument(
        "-P", "--progress", action=argparse.BooleanOptionalAction, help="show a progress bar; default: in a terminal"
    )
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=0, help="1 prints a table per rollout")
    add_env_module_option(parser)
    parser.add_argument("--device", type=_parse_device, default="auto", help="auto, cpu or cuda (%(default)s)")
    for group in get_args(Group):
        _add_hyperparameters(parser, group)


def _add_hyperparameters(parser: argparse.ArgumentParser, group: Group) -> None:
    options = parser.add_argument_group(group, "Defaults are in parentheses; presets override them.")
    for name in list_group(group):
        row = HYPERPARAMETERS[name]
        default = row.none_means if row.default is None else row.default
        # Values stay text: a number may be a schedule such as lin_0.001, or none.
        options.add_argument(
            f"--{name.replace('_', '-')}",
            choices=row.choices or None,
            metavar=None if row.choices else row.kind.__name__.upper(),
            help=f"{row.meaning} ({default})".replace("%", "%%").replace("`", ""),
        )


def _parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda and cuda:N")
    return text


def _run(options: argparse.Namespace) -> int:
    import_env_modules(options.env_module)
    shows_progress = _wants_progress(options)
    if options.tensorboard_log is not None:
        require_packages("--tensorboard-log", "tensorboard")
    wrappers, normalization = separate_normalization(parse_wrapper_options(options.wrapper))
    setup = EnvSetup(resolve_env(options.env), parse_env_kwargs(options.env_kwargs), wrappers)
    settings = choose_settings(
        options, setup.env_name, partial(_choose_preset, setup, options.total_timesteps), normalization
    )
    output = _place_model(options)
    seed = secrets.randbelow(MAX_SEED + 1) if options.seed is None else options.seed
    with closing(_make_envs(setup, settings)) as env:
        model = _build_model(options, settings, env, seed)
        prepare_output("--log-folder" if options.output is None else "--output", output)
        if options.tensorboard_log is not None:
            prepare_folder("--tensorboard-log", options.tensorboard_log)
        preset = _describe_preset(settings.preset_name)
        with _stop_on_signal(model) as stop:
            write(f"training on {setup.env_name} for {settings.n_timesteps:,} steps with {preset}, seed {seed}")
            begun = time.monotonic()
            try:
                model.learn(
                    settings.n_timesteps, callback=lambda *_: not stop.signal_number, progress_bar=shows_progress
                )
            except Exception as error:  # of any kind; what was learned is saved, and it is raised again
                stop.is_over = True
                _save_after(error, model, setup, output)
                raise
            was_cut, stop.is_over = stop.signal_number != 0, True
            place = _save(output, model.to_bytes(**setup._asdict()))
        write(f"trained {model.num_timesteps:,} steps in {time.monotonic() - begun:.1f} s, saved {place}")
        if stop.signal_number:
            write(f"interrupted: the file holds the policy {'so far' if was_cut else 'of the whole training'}")
            return SIGNAL_STATUS + stop.signal_number
        actor = model.make_actor()
    if options.eval_episodes > 0:
        print_evaluation(actor, setup, options.eval_episodes, seed=0, deterministic=True)
    return 0 if place == output else 1


def _save_after(error: Exception, model: "GRPO", setup: EnvSetup, output: Path) -> None:
    """Save what was learned before an error, unless it is nothing, or numbers that no policy computes with."""
    from grpo_core.update.policies import find_not_finite

    if model._n_updates == 0 or find_not_finite(model.policy) is not None:
        return
    place = _save(output, model.to_bytes(**setup._asdict()))
    sys.stderr.write(
        f"grpo: the training was ended by {type(error).__name__} after {model.num_timesteps:,} steps; {place} holds "
        "the policy so far.\n"
    )


def _save(output: Path, content: bytes) -> Path:
    """Write a model file; where that is refused, one in the folder for temporary files.

    :return: Its path.
    """
    from grpo_core.saving.atomic_write import UnconfirmedWriteError
    from grpo_core.saving.model_state import write_model

    try:
        write_model(output, content)
    except UnconfirmedWriteError as error:
        sys.stderr.write(f"grpo: {error}\n")
    except OSError as error:
        with NamedTemporaryFile(prefix=f"{output.stem[:50]}-", suffix=output.suffix, delete=False) as file:
            file.write(content)
        sys.stderr.write(
            f"grpo: --output {output} cannot be written ({error.strerror}); the policy is in {file.name}, move it.\n"
        )
        return Path(file.name)
    return output


def _describe_preset(name: str) -> str:
    if name == NO_PRESET:
        return "no preset"
    return f"the preset {name}" if name in list_general_presets() else f"the preset of {name}"


def _wants_progress(options: argparse.Namespace) -> bool:
    if options.progress:
        require_packages("--progress", "tqdm", "rich")
    # SB3's bar needs both.
    return bool(options.progress or (options.progress is None and sys.stdout.isatty() and has_packages("tqdm", "rich")))


def _choose_preset(setup: EnvSetup, n_timesteps: int | None, is_episodic: bool) -> tuple[str, spaces.Space[Any]]:
    """Return the name of the general preset that suits an environment, and its action space.

    :param n_timesteps: Simulator steps of the training; None leaves them to the preset.
    :param is_episodic: Whether groups are to be whole episodes, even if they can branch.
    :raises UsageError: If it cannot be made, or no policy can be trained in it.
    """
    from grpo_core.banks.choose_bank import find_obstacle
    from grpo_core.options.presets import choose_general_preset

    with closing(_make_vec_env(setup, 1)) as env:
        try:
            obstacle = None if is_episodic else find_obstacle(env)
        except ValueError as error:
            raise UsageError(f"--env {setup.env_name} cannot be trained in: {error}") from error
        if obstacle is not None:
            write(f"groups are whole episodes: {obstacle}")
        is_restorable = obstacle is None and not is_episodic
        name = choose_general_preset(env.observation_space, env.action_space, is_restorable, n_timesteps)
        return name, env.action_space


def _make_vec_env(setup: EnvSetup, n_envs: int) -> "VecEnv":
    from stable_baselines3.common.env_util import make_vec_env

    def make_checked() -> gym.Env[Any, Any]:
        env = make_env(setup, is_training=True, option="add --env-module")
        try:
            check_spaces(env)
        except UnsupportedSpaceError as error:
            texts = [each if isinstance(each, str) else json.dumps(each) for each in suggest_wrappers(env)]
            options = " ".join(f"--wrapper {shlex.quote(text)}" for text in texts)
            raise UnsupportedSpaceError(f"{error} Or add {options}" if options else str(error)) from error
        return env

    try:
        return make_vec_env(make_checked, n_envs)
    except Exception as error:  # code of the environment
        raise UsageError(f"--env {setup.env_name} cannot be made: {explain(error, setup)}") from error


def _make_envs(setup: EnvSetup, settings: TrainingSettings) -> "VecEnv":
    env = _make_vec_env(setup, settings.n_envs)
    if settings.normalize is None:
        return env
    try:
        options = dict(settings.normalize)
        if settings.preset_name in list_general_presets() and not list_normalizable(env.observation_space):
            options.setdefault("norm_obs", False)
        return make_normalized(env, options, settings.arguments.get("gamma", 0.99))
    except (ValueError, TypeError, AssertionError) as error:
        env.close()
        raise UsageError(f"normalize={settings.normalize} does not fit {setup.env_name}: {error}") from error


def _build_model(options: argparse.Namespace, settings: TrainingSettings, env: "VecEnv", seed: int) -> "GRPO":
    from torch import cuda

    from grpo import GRPO
    from grpo_core.options.policies import choose_policy

    if options.device.startswith("cuda") and not cuda.is_available():
        raise UsageError(f"--device {options.device} is not available; take auto or cpu.")
    try:
        return GRPO(
            settings.policy or choose_policy(env.observation_space),
            env,
            **resolve_classes(settings.arguments),
            reward_function=REWARD_FUNCTIONS.get(options.reward_function),
            tensorboard_log=None if options.tensorboard_log is None else str(options.tensorboard_log),
            verbose=options.verbose,
            seed=seed,
            device=options.device,
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error


@dataclass
class _Stop:
    """Whether a training is to stop.

    :ivar signal_number: Of the signal that asked for it; 0 if none has.
    :ivar is_over: Whether the training has ended, and is only to be saved.
    """

    signal_number: int = 0
    is_over: bool = False


@contextmanager
def _stop_on_signal(model: "GRPO") -> Iterator[_Stop]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP end the training, and a second Ctrl-C the program, but not the save.

    Supervisors may send a SIGTERM twice, to a process and to its group.
    """
    stop = _Stop()

    def on_signal(signal_number: int, frame: FrameType | None) -> None:
        if stop.signal_number and signal_number == signal.SIGINT and not stop.is_over:
            raise KeyboardInterrupt
        stop.signal_number = stop.signal_number or signal_number
        model.stop()

    previous = {
        number: signal.signal(number, on_signal)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as nohup has it
    }
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _place_model(options: argparse.Namespace) -> Path:
    """Return the path of the model file: in a folder, and by default, it has the name of the environment."""
    file_name = f"{options.env.replace('/', '-').replace(':', '-')}.zip"
    if options.output is None:
        return Path(options.log_folder / file_name)
    path = Path(options.output)
    # Read as text, for a path has no slash at its end.
    is_folder = options.output.endswith(("/", os.sep))
    if is_folder or (os.path.isdir(path) and not find_model_file(path).is_file()):
        return path / file_name
    return _add_suffix(path)


def _add_suffix(path: Path) -> Path:
    if path.suffix in EXPORT_SUFFIXES:
        name = path.with_suffix(".zip").name
        raise UsageError(
            f"--output {path} would be taken for an export; name it {name}, and make one of that: grpo export {name}."
        )
    return path if path.suffix else path.with_name(f"{path.name}.zip")
