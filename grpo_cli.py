"""The command line of the library: train, judge, watch and describe policies without a server.

``python grpo.py train --env CartPole-v1 --output cartpole``, or ``grpo train`` where the package is installed. Options
that rl-baselines3-zoo has too go by its names.
"""

import argparse
import ast
import difflib
import hashlib
import importlib
import inspect
import json
import math
import re
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np

from grpo_core.actor.actor import ACTIVATIONS, Actor
from grpo_core.evaluation import (
    Evaluation,
    check_spaces,
    make_policy,
    make_random_policy,
    play_episode,
    play_episodes,
    summarize_episodes,
)
from grpo_core.film import FILM_SUFFIXES, FilmStrip
from grpo_core.options.rewards import CARTPOLE_ENVIRONMENTS, ENVIRONMENT_REWARD, REWARD_FUNCTIONS
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent, ModelFileError

if TYPE_CHECKING:  # torch takes seconds, which only "train" needs
    from stable_baselines3.common.vec_env import VecEnv

    from grpo import GRPO

_NO_PRESET = "none"
_DEFAULT_TIMESTEPS = 20_000
_DEFAULT_EPISODES = 20
_MAX_SEED = 2**32 - 1
# A policy may keep an episode without a time limit going forever.
_MAX_STEPS_WITHOUT_LIMIT = 10_000
# Arguments of GRPO with an option of their own; --hyperparams takes all of them.
_OPTIONS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "ent_coef",
    "group_mode",
    "group_size",
    "horizon",
    "baseline",
)
# Arguments of GRPO that other options decide, or that cannot be written on a command line.
_NOT_HYPERPARAMETERS = {
    "self",
    "env",
    "tensorboard_log",
    "verbose",
    "seed",
    "device",
    "reward_function",
    "reward_weights",
    "_init_setup_model",
}
_WORDS = {"true": True, "false": False, "none": None, "null": None}
# "module:Name" would import a module that a file names.
_PLAIN_ENV_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")
_ENV_KWARGS = {"disable_env_checker": True}
_INTERRUPTED = 130
_MAX_FILM_BYTES = 32 * 2**20


class _UsageError(Exception):
    """A command line that cannot work; its text names the value, the rule and the remedy."""


class _Recipe(NamedTuple):
    """What to train with.

    :param preset_name: Whose preset filled in what was left out, or ``none``.
    :param n_timesteps: Simulator steps.
    :param n_envs: Environments.
    :param policy: Name of the policy; None for what suits the observations.
    :param normalize: Arguments of ``VecNormalize``; None leaves it out.
    :param arguments: Arguments of ``GRPO``.
    """

    preset_name: str
    n_timesteps: int
    n_envs: int
    policy: str | None
    normalize: Mapping[str, Any] | None
    arguments: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    :param arguments: What follows the program's name; None takes it from the command line.
    :return: The exit status: 0, 2 if the command line cannot work, 130 after Ctrl-C.
    """
    options = _make_parser().parse_args(arguments)
    try:
        status: int = options.run(options)
        return status
    except _UsageError as error:
        sys.stderr.write(f"grpo: {error}\n")
        return 2
    except KeyboardInterrupt:
        return _INTERRUPTED


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="grpo", description="GRPO without a server.", allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    evaluate = _add_command(commands, "evaluate", _evaluate, "play episodes, beside a random policy")
    _add_playing_options(evaluate)
    evaluate.add_argument("-n", "--episodes", type=_whole(1), default=_DEFAULT_EPISODES, help="how many (%(default)s)")
    enjoy = _add_command(commands, "enjoy", _enjoy, "watch a policy play", aliases=["play"])
    _add_playing_options(enjoy)
    enjoy.add_argument(
        "-o", "--output", type=Path, help=f"film the episode: a name in {', '.join(FILM_SUFFIXES)}; default: a window"
    )
    enjoy.add_argument("--max-steps", type=_whole(1), default=500, help="cut it after so many steps (%(default)s)")
    describe = _add_command(commands, "info", _describe, "say what a model file holds")
    describe.add_argument("--model", type=Path, required=True, help="model file")
    return parser


def _add_command(commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str, **more: Any) -> Any:
    parser = commands.add_parser(name, help=text, description=text.capitalize() + ".", allow_abbrev=False, **more)
    parser.set_defaults(run=run)
    return parser


def _add_train(commands: Any) -> None:
    parser = _add_command(commands, "train", _train, "train a policy and save it")
    parser.add_argument("--env", required=True, help="id of a Gymnasium environment")
    parser.add_argument("-n", "--total-timesteps", type=_whole(1), help="simulator steps; default: the preset's")
    parser.add_argument("--preset", help="environment whose settings fill in what is left out, or 'none'")
    parser.add_argument("--n-envs", type=_whole(1), help="environments whose groups fill one rollout")
    parser.add_argument(
        "--seed", type=_whole(0, _MAX_SEED), help="makes the training repeatable; default: drawn, and told"
    )
    for name in _OPTIONS:
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"argument {name} of GRPO")
    parser.add_argument(
        "-params", "--hyperparams", nargs="+", default=[], metavar="NAME=VALUE", help="any arguments of GRPO"
    )
    parser.add_argument(
        "--reward-function",
        choices=[ENVIRONMENT_REWARD, *REWARD_FUNCTIONS],
        default=ENVIRONMENT_REWARD,
        help="what to train on (%(default)s)",
    )
    parser.add_argument("-o", "--output", type=Path, help="model file; default: ENV.zip")
    parser.add_argument("-f", "--log-folder", type=Path, default=Path(), help="folder of ENV.zip without --output")
    parser.add_argument("--eval-episodes", type=_whole(0), default=_DEFAULT_EPISODES, help="0 for none (%(default)s)")
    parser.add_argument("-tb", "--tensorboard-log", type=Path, help="folder for TensorBoard")
    parser.add_argument("-P", "--progress", action=argparse.BooleanOptionalAction, help="default: in a terminal")
    parser.add_argument("--verbose", type=int, choices=[0, 1, 2], default=0, help="1: a table per rollout")
    parser.add_argument("--env-module", action="append", default=[], help="module that registers environments")
    parser.add_argument("--device", type=_parse_device, default="auto", help="auto, cpu or cuda (%(default)s)")


def _add_playing_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", type=Path, required=True, help="model file")
    parser.add_argument("--env", help="default: the environment that the file names")
    parser.add_argument("--seed", type=_whole(0, _MAX_SEED), default=0, help="of the first episode (%(default)s)")
    parser.add_argument("--stochastic", action="store_true", help="draw actions instead of taking the likeliest")
    parser.add_argument("--env-module", action="append", default=[], help="module that registers environments")


def _whole(smallest: int, largest: int = 10**12) -> Callable[[str], int]:
    """Make what reads a whole number."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,13}", text) or not smallest <= int(text) <= largest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest} to {largest}")
        return int(text)

    return parse


def _parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of auto, cpu, cuda and cuda:N")
    return text


def _train(options: argparse.Namespace) -> int:
    _import_modules(options.env_module)
    shows_progress = _wants_progress(options)
    if options.tensorboard_log is not None:
        _require("--tensorboard-log", "tensorboard")
    recipe = _choose_recipe(options)
    output = options.output or options.log_folder / f"{options.env.replace('/', '-').replace(':', '-')}.zip"
    seed = secrets.randbelow(_MAX_SEED + 1) if options.seed is None else options.seed
    with closing(_make_envs(options.env, recipe)) as env:
        model = _build_model(options, recipe, env, seed)
        preset = "no preset" if recipe.preset_name == _NO_PRESET else f"the preset of {recipe.preset_name}"
        _write(f"training on {options.env} for {recipe.n_timesteps:,} steps with {preset}, seed {seed}")
        begun = time.monotonic()
        with _stop_on_interrupt(model) as interrupted:
            model.learn(recipe.n_timesteps, callback=lambda *_: not interrupted.is_set(), progress_bar=shows_progress)
        saved = _save(model, output, options.env)
        _write(f"trained {model.num_timesteps:,} steps in {time.monotonic() - begun:.1f} s, saved {saved}")
        if interrupted.is_set():
            _write("interrupted: the file holds what was learned until then")
            return _INTERRUPTED
        actor = model.make_actor()
    if options.eval_episodes > 0:
        _judge(actor, options.env, options.eval_episodes, seed=0, deterministic=True)
    return 0


def _wants_progress(options: argparse.Namespace) -> bool:
    if options.progress:
        _require("--progress", "tqdm", "rich")
    # SB3's bar needs both.
    return bool(options.progress or (options.progress is None and sys.stdout.isatty() and _has("tqdm", "rich")))


def _has(*modules: str) -> bool:
    return all(find_spec(module) is not None for module in modules)


def _require(option: str, *modules: str) -> None:
    if not _has(*modules):
        raise _UsageError(f"{option} needs {' and '.join(modules)}: pip install {' '.join(modules)}, or leave it out.")


def _choose_recipe(options: argparse.Namespace) -> _Recipe:
    """Put the preset, the options and ``--hyperparams`` together, the later ones first."""
    from grpo_core.options.presets import Preset, get_preset, parse_schedules

    given = _collect_hyperparameters(options)
    is_own_reward = options.reward_function == ENVIRONMENT_REWARD
    if not is_own_reward and options.env not in CARTPOLE_ENVIRONMENTS:
        raise _UsageError(
            f"--reward-function {options.reward_function} reads the observations of CartPole, which {options.env} "
            f"does not have; take --reward-function {ENVIRONMENT_REWARD}."
        )
    # Presets are tuned to the environment's own reward.
    preset_name = options.preset or (options.env if is_own_reward else _NO_PRESET)
    preset = None if preset_name == _NO_PRESET else get_preset(preset_name)
    if preset is None and options.preset not in (None, _NO_PRESET):
        raise _UsageError(f"--preset {options.preset} is not known; choose {_list_preset_choices()}.")
    preset_name = _NO_PRESET if preset is None else preset_name
    preset = preset or Preset(_DEFAULT_TIMESTEPS, "", 1, None, {})
    policy, normalize = given.pop("policy", preset.policy or None), given.pop("normalize", preset.normalize)
    try:
        arguments = parse_schedules({**preset.arguments, **given})
    except ValueError as error:
        raise _UsageError(f"a schedule is written lin_NUMBER, such as lin_0.001: {error}.") from error
    return _Recipe(
        preset_name,
        options.total_timesteps or preset.n_timesteps,
        options.n_envs or preset.n_envs,
        policy,
        {} if normalize is True else normalize or None,
        arguments,
    )


def _list_preset_choices() -> str:
    from grpo_core.options.presets import list_presets

    return ", ".join([_NO_PRESET, *list_presets()])


def _collect_hyperparameters(options: argparse.Namespace) -> dict[str, Any]:
    from grpo import GRPO

    known = [name for name in inspect.signature(GRPO.__init__).parameters if name not in _NOT_HYPERPARAMETERS]
    known.append("normalize")
    given = {name: text for name in _OPTIONS if (text := getattr(options, name)) is not None}
    for pair in options.hyperparams:
        name, sign, text = pair.partition("=")
        if name not in known or not sign:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}=...?" if close else f"choose among {', '.join(known)}."
            raise _UsageError(f"--hyperparams {pair} does not set a hyperparameter of GRPO as NAME=VALUE; {hint}")
        given[name] = text
    return {name: _parse_literal(text) for name, text in given.items()}


def _parse_literal(text: str) -> Any:
    """Read a value as Python spells it, or true, false, none and null in any case; all else is a string."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError):
        return text


def _import_modules(names: Sequence[str]) -> None:
    if not names:
        return
    # Where "python -m" looks first; neither a script's folder nor an installed command is the current one.
    sys.path.insert(0, "")
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise _UsageError(
                f"--env-module {name} cannot be imported ({error}); run from the folder it is in."
            ) from error


def _make_envs(env_name: str, recipe: _Recipe) -> "VecEnv":
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    try:
        env = make_vec_env(env_name, recipe.n_envs, env_kwargs=_ENV_KWARGS)
    except gym.error.Error as error:
        raise _UsageError(f"--env {env_name} cannot be made: {error}") from error
    if recipe.normalize is None:
        return env
    try:
        return VecNormalize(env, gamma=recipe.arguments.get("gamma", 0.99), **recipe.normalize)
    except (ValueError, TypeError, AssertionError) as error:
        env.close()
        raise _UsageError(f"normalize={recipe.normalize} does not fit {env_name}: {error}") from error


def _build_model(options: argparse.Namespace, recipe: _Recipe, env: "VecEnv", seed: int) -> "GRPO":
    from torch import cuda

    from grpo import GRPO
    from grpo_core.options.policy_kwargs import choose_policy

    if options.device.startswith("cuda") and not cuda.is_available():
        raise _UsageError(f"--device {options.device} is not there; take auto or cpu.")
    try:
        return GRPO(
            recipe.policy or choose_policy(env.observation_space),
            env,
            **_name_classes(recipe.arguments),
            reward_function=REWARD_FUNCTIONS.get(options.reward_function),
            tensorboard_log=None if options.tensorboard_log is None else str(options.tensorboard_log),
            verbose=options.verbose,
            seed=seed,
            device=options.device,
        )
    except (ValueError, TypeError) as error:
        raise _UsageError(str(error)) from error


def _name_classes(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Put classes in place of their names in ``policy_kwargs``, where a command line can only name them."""
    import torch

    from grpo_core.options.policy_kwargs import OPTIMIZERS

    policy_kwargs = arguments.get("policy_kwargs")
    if not isinstance(policy_kwargs, dict):
        return dict(arguments)
    classes = {
        "activation_fn": {name: getattr(torch.nn, name) for name in ACTIVATIONS},
        "optimizer_class": dict(OPTIMIZERS),
    }
    named = {
        key: classes[key].get(value, value) if key in classes and isinstance(value, str) else value
        for key, value in policy_kwargs.items()
    }
    return {**arguments, "policy_kwargs": named}


@contextmanager
def _stop_on_interrupt(model: "GRPO") -> Iterator[threading.Event]:
    """Let the first Ctrl-C end the training, which keeps what was learned, and the second one the program."""
    interrupted = threading.Event()

    def on_interrupt(signal_number: int, frame: FrameType | None) -> None:
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()
        model.stop()

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, previous)


def _save(model: "GRPO", path: Path, env_name: str) -> Path:
    from grpo_core.saving.model_state import write_model

    path = path if path.suffix else path.with_name(f"{path.name}.zip")
    write_model(path, model.to_bytes(env_name=env_name))
    return path


def _evaluate(options: argparse.Namespace) -> int:
    content, env_name = _open_model(options)
    _judge(content.make_actor(), env_name, options.episodes, options.seed, not options.stochastic)
    return 0


def _judge(actor: Actor, env_name: str, n_episodes: int, seed: int, deterministic: bool) -> None:
    """Play the same episodes with a policy and at random, and tell both."""
    with closing(_make_env(env_name, actor)) as env:
        assert env.spec is not None, "gym.make gives one"
        max_steps = math.inf if env.spec.max_episode_steps is not None else _MAX_STEPS_WITHOUT_LIMIT
        policies = {
            "policy": make_policy(actor, deterministic, np.random.default_rng(seed)),
            "random": make_random_policy(env.action_space, seed),
        }
        evaluations = {
            name: summarize_episodes(play_episodes(env, policy, n_episodes, seed, max_steps), env.spec.reward_threshold)
            for name, policy in policies.items()
        }
    _write(f"{n_episodes} episodes of {env_name} from seed {seed}, {'likeliest' if deterministic else 'drawn'} actions")
    if math.isfinite(max_steps):
        _write(f"{env_name} has no time limit: episodes are cut after {max_steps:,} steps")
    _write(f"{'':22}{'policy':>26}{'random actions':>26}")
    rows = {name: _tabulate(evaluation) for name, evaluation in evaluations.items()}
    for label, cell in rows["policy"].items():
        _write(f"{label:22}{cell:>26}{rows['random'][label]:>26}")


def _tabulate(evaluation: Evaluation) -> dict[str, str]:
    """Spell out the figures of an evaluation by their labels."""
    rate = evaluation.success_rate
    return {
        "mean reward": f"{evaluation.mean_reward:.2f}",
        "95 % interval": _format_interval(evaluation.mean_reward_ci95, 1.0),
        "standard deviation": f"{evaluation.std_reward:.2f}",
        "worst to best": _format_interval((evaluation.min_reward, evaluation.max_reward), 1.0),
        "mean length": f"{evaluation.mean_length:.1f}",
        "success rate, %": "not defined" if rate is None else f"{100 * rate:.1f}",
        "its 95 % interval": _format_interval(evaluation.success_rate_ci95, 100.0),
    }


def _format_interval(interval: tuple[float, float] | None, scale: float) -> str:
    return "-" if interval is None else f"{scale * interval[0]:.2f} to {scale * interval[1]:.2f}"


def _enjoy(options: argparse.Namespace) -> int:
    if options.output is not None:
        _check_film(options.output)
    content, env_name = _open_model(options)
    actor = content.make_actor()
    with closing(_make_env(env_name, actor, "human" if options.output is None else "rgb_array")) as env:
        policy = make_policy(actor, not options.stochastic, np.random.default_rng(options.seed))
        strip = FilmStrip(env.metadata.get("render_fps"))
        # A window shows itself.
        on_step = (lambda: None) if options.output is None else lambda: strip.watch(env.render)
        episode = play_episode(env, policy, options.seed, options.max_steps, on_step)
        if options.output is not None:
            strip.end(env.render)
            options.output.parent.mkdir(parents=True, exist_ok=True)
            strip.develop(options.output, _MAX_FILM_BYTES)
    _write(f"{env_name}, seed {options.seed}: {episode.n_steps} steps, reward {episode.reward:.2f}")
    if options.output is not None:
        _write(f"saved {options.output}")
    return 0


def _check_film(path: Path) -> None:
    if path.suffix not in FILM_SUFFIXES:
        raise _UsageError(f"--output {path} is no film; end its name in {' or '.join(FILM_SUFFIXES)}.")
    if not _has("PIL", "imageio", "imageio_ffmpeg"):
        raise _UsageError("--output needs Pillow, imageio and imageio-ffmpeg: pip install 'sb3-grpo[film]', or watch.")


def _make_env(env_name: str, actor: Actor, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Build an environment that a policy can play in."""
    # Not every constructor takes the argument.
    watched: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        env = gym.make(env_name, **_ENV_KWARGS, **watched)
        check_spaces(actor, env)
    except (gym.error.Error, ValueError, TypeError) as error:
        raise _UsageError(f"--env {env_name} cannot be played: {error}") from error
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", []):
        env.close()
        raise _UsageError(f"--env {env_name} cannot be watched: it has no render mode {render_mode!r}.")
    return env


def _open_model(options: argparse.Namespace) -> tuple[ModelContent, str]:
    """Read a model file, and find out which environment it is to be played in."""
    _import_modules(options.env_module)
    content = _read_model(options.model)
    if options.env is not None:
        return content, options.env
    env_name = content.meta.get("env_name")
    if not isinstance(env_name, str) or not _PLAIN_ENV_NAME.fullmatch(env_name):
        raise _UsageError(f"{options.model} does not name a registered environment; say which with --env.")
    return content, env_name


def _read_model(path: Path) -> ModelContent:
    try:
        return model_file.from_bytes(_find_file(path).read_bytes())
    except (OSError, ModelFileError) as error:
        raise _UsageError(f"--model {path} cannot be read: {error}") from error


def _find_file(path: Path) -> Path:
    return path if path.is_file() or path.suffix else path.with_name(f"{path.name}.zip")


def _describe(options: argparse.Namespace) -> int:
    """Tell what a file says of its model; in JSON, for a file from elsewhere may hold control characters."""
    content = _read_model(options.model)
    file = _find_file(options.model)
    meta = dict(content.meta)
    hyperparameters, network = meta.get("hyperparameters", {}), meta["network"]
    facts = {
        "file": f"{file}, {file.stat().st_size:,} bytes",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "environment": json.dumps(meta.get("env_name")),
        "observations": str(content.observation_space),
        "actions": str(content.action_space),
        "network": json.dumps(network),
        "parameters": f"{sum(math.prod(array.shape) for array in content.weights.values()):,}",
        "reward function": json.dumps(meta.get("reward_function") or ENVIRONMENT_REWARD),
        "normalization": json.dumps(meta.get("normalization")),
        "steps, updates": f"{json.dumps(meta.get('num_timesteps'))}, {json.dumps(meta.get('n_updates'))}",
        "versions": json.dumps(meta.get("versions")),
    }
    for name, fact in facts.items():
        _write(f"{name:16} {fact}")
    _write("hyperparameters")
    for name, value in sorted(hyperparameters.items()) if isinstance(hyperparameters, dict) else []:
        _write(f"  {json.dumps(name)[1:-1]:24} {json.dumps(value)}")
    return 0


def _write(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
