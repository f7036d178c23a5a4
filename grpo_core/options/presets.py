"""Read the presets in ``presets.yml`` (rl-baselines3-zoo's format), and fit their sizes to given ones."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml
from gymnasium import spaces

from grpo_core.options.checks import DEFAULT_HORIZON
from grpo_core.options.rewards import CARTPOLE_ENVIRONMENTS, Reward, is_shipped
from grpo_core.spaces import is_image_space

# The zoo's keys that are not arguments of the algorithm.
_NOT_ARGUMENTS = ("n_timesteps", "policy", "n_envs", "normalize")
#: Chooses among the general presets by the spaces of the environment, and by whether it can be restored.
GENERAL_PRESET = "general"
#: Fills in nothing.
NO_PRESET = "none"
_GENERAL_PREFIX = "general-"
# Both chosen: a general preset's rollouts and minibatches are not halved to fewer steps than these, and its rollouts
# not where a training already has this many of them.
LEAST_STEPS, _LEAST_ROLLOUTS = 32, 8
#: A training of continuous actions with this many steps takes a general preset of its own: see benchmarks/TUNING.md.
LONG_TIMESTEPS = 500_000


@dataclass(frozen=True)
class Preset:
    """Tuned settings for one environment.

    :param n_timesteps: Simulator steps to train for.
    :param policy: Name of the policy; empty in general presets, where the observations choose it.
    :param n_envs: Number of environments.
    :param normalize: Arguments of ``VecNormalize`` except ``gamma``; None trains without it.
    :param arguments: Arguments of ``GRPO``, with schedules as text (``"lin_0.001"``).
    """

    n_timesteps: int
    policy: str
    n_envs: int
    normalize: Mapping[str, Any] | None
    arguments: Mapping[str, Any]

    def make_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``GRPO``, with schedules parsed."""
        return parse_schedules(self.arguments)


class Sizes(NamedTuple):
    """How many steps a rollout has, and how they are shared out.

    :param n_steps: Steps per environment and rollout.
    :param group_size: Branches per group.
    :param horizon: Most steps per branch; None for whole episodes without a limit.
    """

    n_steps: int
    group_size: int
    horizon: int | None


def get_preset(name: str) -> Preset | None:
    """Return the preset of an environment, or a general one, by its name; None for an unknown name."""
    entry = _read_presets().get(name)
    if entry is None:
        return None
    normalize = entry.get("normalize", False)
    return Preset(
        n_timesteps=int(entry["n_timesteps"]),
        policy=entry.get("policy", ""),
        n_envs=entry.get("n_envs", 1),
        normalize=({} if normalize is True else normalize) if normalize is not False else None,
        arguments={name: value for name, value in entry.items() if name not in _NOT_ARGUMENTS},
    )


def list_presets() -> list[str]:
    """List the environments that have a preset."""
    return sorted(name for name in _read_presets() if not name.startswith(_GENERAL_PREFIX))


def list_general_presets() -> list[str]:
    """List the presets for environments that have none of their own."""
    return sorted(name for name in _read_presets() if name.startswith(_GENERAL_PREFIX))


def choose_preset_name(env_name: str, reward: Reward | None) -> str:
    """Return the name of the preset for a training that asks for none: the environment's own where it has one.

    :param reward: What is trained on; None is the environment's own reward.
    :return: The environment or ``GENERAL_PRESET``; ``NO_PRESET`` for the rewards shipped for CartPole, which take the
        defaults of POST /train.
    """
    functions = reward if isinstance(reward, Sequence) else [reward]
    brings_none = all(each is None or is_shipped(each) for each in functions)
    if env_name in CARTPOLE_ENVIRONMENTS and reward is not None and brings_none:
        return NO_PRESET
    return env_name if get_preset(env_name) is not None else GENERAL_PRESET


def choose_general_preset(
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    is_restorable: bool,
    n_timesteps: int | None = None,
) -> str:
    """Return the name of the general preset that suits an environment and a training.

    :param is_restorable: Whether groups can start on the way; otherwise they are whole episodes.
    :param n_timesteps: Simulator steps of the training; None leaves them to the preset.
    """
    parts = observation_space.spaces.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    if any(map(is_image_space, parts)):
        family = "image"
    else:
        family = "continuous" if isinstance(action_space, spaces.Box) else "discrete"
    if not is_restorable:
        return f"{_GENERAL_PREFIX}{family}-episodes"
    is_long = family == "continuous" and n_timesteps is not None and n_timesteps >= LONG_TIMESTEPS
    return f"{_GENERAL_PREFIX}{family}-long" if is_long else f"{_GENERAL_PREFIX}{family}"


def shorten_rollouts(n_steps: int, n_timesteps: int) -> int:
    """Halve the rollouts of a general preset until a training has at least eight; 32 steps are the least."""
    while n_steps > max(LEAST_STEPS, n_timesteps // _LEAST_ROLLOUTS) and n_steps % 2 == 0:
        n_steps //= 2
    return n_steps


def fit_sizes(
    defaults: Mapping[str, Any],
    given: Mapping[str, Any],
    mode: str,
    action_space: spaces.Space[Any],
    most_steps: float = math.inf,
) -> Sizes:
    """Fit the sizes that were left out to the given ones; what still does not fit is for ``GRPO`` to refuse.

    :param defaults: ``n_steps``, ``group_size``, ``horizon`` and, where groups are whole episodes, ``group_mode``; the
        horizon is only a target.
    :param given: Those of the same names that are to stay; the horizon may be None.
    :param mode: How groups are played, ``"auto"`` resolved.
    :param most_steps: Largest ``n_steps`` to choose.
    """
    n_steps, group_size = ({**defaults, **given}[name] for name in ("n_steps", "group_size"))
    horizon = given.get("horizon")
    if mode == "episode":
        of_episodes = defaults["horizon"] if defaults.get("group_mode") == "episode" else None
        return Sizes(n_steps, group_size, horizon or of_episodes)
    if mode == "action" and isinstance(action_space, spaces.Discrete) and "group_size" not in given:
        group_size = int(action_space.n)
    target = defaults["horizon"] or DEFAULT_HORIZON
    if "n_steps" not in given and (fitted := fit_n_steps(n_steps, group_size, horizon, target)) <= most_steps:
        n_steps = fitted
    return Sizes(n_steps, group_size, horizon or fit_horizon(n_steps, group_size, target))


def fit_n_steps(n_steps: int, group_size: int, horizon: int | None, target: int) -> int:
    """Return the number of steps closest to ``n_steps`` that makes whole groups.

    :param horizon: The given one; None if ``fit_horizon`` is to choose it, close to ``target``.
    """
    if n_steps % (group_size * (horizon or 1)) == 0:
        return n_steps
    group_steps = group_size * (horizon or target)
    return max(1, round(n_steps / group_steps)) * group_steps


def fit_horizon(n_steps: int, group_size: int, target: int) -> int:
    """Return the horizon closest to ``target``, as a ratio, with which whole groups fill a rollout.

    Where no horizon does, it is 1, and ``GRPO`` refuses that with the closest ``n_steps``.
    """
    fitting = [n for n in range(1, n_steps // group_size + 1) if n_steps % (group_size * n) == 0]
    return min(fitting, key=lambda n: abs(math.log(n / target)), default=1)


@cache
def _read_presets() -> Mapping[str, Mapping[str, Any]]:
    presets: dict[str, dict[str, Any]] = yaml.safe_load((files("grpo_core.options") / "presets.yml").read_text())
    return presets


def parse_schedules(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with schedules parsed: ``"lin_x"`` falls linearly from x to 0.

    :raises ValueError: If ``x`` is not a number.
    """
    # Imported here, since it imports torch and the server reads presets too.
    from stable_baselines3.common.utils import LinearSchedule

    return {
        name: LinearSchedule(float(value.removeprefix("lin_")), 0.0, 1.0)
        if isinstance(value, str) and value.startswith("lin_")
        else value
        for name, value in arguments.items()
    }
