"""The wrappers that a request, a command line or a model file may name, and their options."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from grpo_core.environments.nested import Env
from grpo_core.spaces import list_normalizable
from grpo_core.suggestions import suggest

if TYPE_CHECKING:
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

# A wrapper's name and all its options, as JSON.
Wrapper = dict[str, Any]
MAX_WRAPPERS = 16
# Observations in a stack, and in stacks of stacks together.
_MAX_STACKED = 64
_MAX_KEYS = 64


class SetupError(ValueError):
    """An argument or a wrapper does not fit an environment."""


class _Option(NamedTuple):
    """An option of a wrapper.

    :param default: The default; its type is that of the option. An empty list stands for a required list of names.
    :param least: Smallest number.
    :param most: Largest number.
    """

    default: Any
    least: float = -1e9
    most: float = 1e9


# The wrappers, what each does, and its options.
WRAPPERS: Mapping[str, tuple[str, Mapping[str, _Option]]] = {
    "filter": ("keeps the named keys of a Dict of observations", {"keys": _Option([])}),
    "flatten": ("makes one Box of observations with keys, nested or with discrete parts", {}),
    "frame_stack": ("stacks the last n observations: images along their channels", {"n": _Option(4, 2, _MAX_STACKED)}),
    "grayscale": ("makes images grey", {}),
    "resize": ("scales images", {"height": _Option(84, 1, 512), "width": _Option(84, 1, 512)}),
    "atari": (
        "Stable-Baselines3's AtariWrapper; the emulator then neither skips frames nor repeats actions itself",
        {
            "noop_max": _Option(30, 0, 1000),
            "frame_skip": _Option(4, 1, 100),
            "screen_size": _Option(84, 1, 512),
            "terminal_on_life_loss": _Option(True),
            "clip_reward": _Option(True),
            "action_repeat_probability": _Option(0.0, 0, 1),
        },
    ),
    "time_aware": ("adds the share of the time limit that has passed to the observation", {}),
    "rescale_action": (
        "lets continuous actions go from low to high, whatever the environment's bounds are",
        {"low": _Option(-1.0), "high": _Option(1.0)},
    ),
    "bound_action": ("declares finite bounds for continuous actions", {"low": _Option(-1.0), "high": _Option(1.0)}),
    "round_action": ("rounds continuous actions for an environment that takes a Box of integers", {}),
    "clip_reward": (
        "clips rewards in training; evaluations report the environment's own",
        {"low": _Option(-1.0), "high": _Option(1.0)},
    ),
    "normalize": (
        "the same as the setting normalize; it comes last",
        {"norm_obs": _Option(True), "norm_reward": _Option(True)},
    ),
}


def parse_wrappers(wrappers: Any) -> list[Wrapper]:
    """Check a list of wrappers, the innermost first, and fill in their options.

    :param wrappers: Names, or objects with a ``name`` and options.
    :raises ValueError: If one is unknown or an option does not fit; the message says which, the rule and the remedy.
    """
    if not isinstance(wrappers, list | tuple):
        raise ValueError(f"it must be a list of names or objects, not {wrappers!r:.80}")
    if len(wrappers) > MAX_WRAPPERS:
        raise ValueError(f"it has {len(wrappers)} entries; at most {MAX_WRAPPERS} are taken")
    parsed = [_parse_wrapper(wrapper) for wrapper in wrappers]
    if any(wrapper["name"] == "normalize" for wrapper in parsed[:-1]):
        raise ValueError("'normalize' must come last, and once: what is outside it would not be normalised")
    n_stacked = math.prod(wrapper["n"] for wrapper in parsed if wrapper["name"] == "frame_stack")
    if n_stacked > _MAX_STACKED:
        raise ValueError(f"'frame_stack' stacks {n_stacked} observations in all; at most {_MAX_STACKED} are taken")
    return parsed


def _parse_wrapper(wrapper: Any) -> Wrapper:
    given = {"name": wrapper} if isinstance(wrapper, str) else wrapper
    if not isinstance(given, dict) or not isinstance(given.get("name"), str):
        raise ValueError(f'{wrapper!r:.80} is neither a name nor an object such as {{"name": "flatten"}}')
    name = given["name"]
    if name not in WRAPPERS:
        hint = f"{suggest(name, WRAPPERS, n_most=1)} choose among {', '.join(WRAPPERS)}".lstrip()
        raise ValueError(f"{name!r:.80} is unknown; {hint}")
    options = WRAPPERS[name][1]
    for option in given:
        if option != "name" and option not in options:
            takes = ", ".join(options) or "none"
            raise ValueError(f"'{name}' does not take {str(option)[:80]!r}; its options: {takes}")
    parsed = {"name": name}
    for option, rule in options.items():
        parsed[option] = _parse_option(f"{name}: {option}", given.get(option, rule.default), rule)
    if "low" in parsed and not parsed["low"] < parsed["high"]:
        raise ValueError(f"'{name}' has low={parsed['low']} and high={parsed['high']}; low must be smaller")
    return parsed


def _parse_option(where: str, value: Any, rule: _Option) -> Any:
    default = rule.default
    if isinstance(default, list):
        fits = isinstance(value, list | tuple) and 0 < len(value) <= _MAX_KEYS
        if not fits or not all(isinstance(key, str) and 0 < len(key) <= 100 for key in value):
            raise ValueError(f"{where}={value!r:.80} must be a list of 1 to {_MAX_KEYS} names")
        return list(value)
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{where}={value!r:.80} must be true or false")
        return value
    kind = "whole number" if isinstance(default, int) else "number"
    is_number = isinstance(value, int if isinstance(default, int) else int | float) and not isinstance(value, bool)
    if not is_number or not rule.least <= value <= rule.most:
        raise ValueError(f"{where}={value!r:.80} must be a {kind} from {rule.least:g} to {rule.most:g}")
    return type(default)(value)


def separate_normalization(wrappers: Sequence[Wrapper]) -> tuple[list[Wrapper], dict[str, Any] | None]:
    """Take a last wrapper ``normalize`` out of the others, since its statistics belong to all environments together.

    :return: The other wrappers, and its options; None without one.
    """
    if not wrappers or wrappers[-1]["name"] != "normalize":
        return list(wrappers), None
    return list(wrappers[:-1]), {name: value for name, value in wrappers[-1].items() if name != "name"}


def make_normalized(env: "VecEnv", options: Mapping[str, Any], gamma: float) -> "VecNormalize":
    """Put a ``VecNormalize`` around environments; of a Dict it normalises what can be, unless options name the keys.

    :param options: Its other arguments.
    :raises ValueError: If the observations are neither Boxes nor a Dict of some, and the options do not turn that off.
    """
    # It imports torch, which the server does without.
    from stable_baselines3.common.vec_env import VecNormalize

    space = env.observation_space
    if isinstance(space, spaces.Dict) and options.get("norm_obs", True) and (keys := list_normalizable(space)):
        options = {"norm_obs_keys": keys, **options}
    return VecNormalize(env, gamma=gamma, **options)


def choose_env_kwargs(wrappers: Sequence[Wrapper], spec_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that wrappers need the environment to have: AtariWrapper skips frames itself.

    :param spec_kwargs: The arguments that the environment is registered with.
    """
    if all(wrapper["name"] != "atari" for wrapper in wrappers):
        return {}
    needed = {"frameskip": 1, "repeat_action_probability": 0.0}
    return {name: value for name, value in needed.items() if name in spec_kwargs}


def apply_wrappers(env: Env, wrappers: Sequence[Wrapper], is_training: bool) -> Env:
    """Put an environment into wrappers, the innermost first.

    :param is_training: Whether to change rewards and to end episodes early, as some wrappers do for training. Without,
        whole episodes earn the environment's own reward.
    :raises SetupError: If a wrapper does not fit the environment.
    """
    for wrapper in wrappers:
        options = {name: value for name, value in wrapper.items() if name != "name"}
        if wrapper["name"] == "normalize" or (wrapper["name"] == "clip_reward" and not is_training):
            continue
        if wrapper["name"] == "atari" and not is_training:
            options |= {"terminal_on_life_loss": False, "clip_reward": False}
        try:
            env = _BUILDERS[wrapper["name"]](env, **options)
        except Exception as error:  # wrappers raise what they stumble over
            raise SetupError(
                f"wrapper '{wrapper['name']}' does not fit observation_space {env.observation_space} and action_space "
                f"{env.action_space} ({type(error).__name__}: {error}); leave it out, or put another one before it."
            ) from error
    return env


def suggest_wrappers(env: Env) -> list[Wrapper | str]:
    """List wrappers that make the spaces of an environment fit a policy; empty if none is known to."""
    suggested: list[Wrapper | str] = []
    observed, acted = env.observation_space, env.action_space
    if isinstance(observed, spaces.Dict):
        kept = [key for key, part in observed.spaces.items() if _is_flat(part)]
        if kept and len(kept) < len(observed.spaces):
            suggested.append({"name": "filter", "keys": kept})
        if kept and any(not isinstance(observed.spaces[key], spaces.Box) for key in kept):
            suggested.append("flatten")
    elif isinstance(observed, spaces.Tuple | spaces.MultiDiscrete | spaces.Discrete) and _is_flat(observed):
        suggested.append("flatten")
    if isinstance(acted, spaces.Box) and acted.dtype.kind in "iu" and acted.is_bounded():
        suggested.append("round_action")
    elif isinstance(acted, spaces.Box) and not acted.is_bounded():
        suggested.append("bound_action")
    return suggested


def _is_flat(space: spaces.Space[Any]) -> bool:
    """Return whether Gymnasium makes one Box of a space."""
    try:
        return isinstance(spaces.flatten_space(space), spaces.Box) and not isinstance(space, spaces.Text)
    except NotImplementedError:
        return False


def _filter(env: Env, keys: Sequence[str]) -> Env:
    if not isinstance(env.observation_space, spaces.Dict):
        raise ValueError("only observations with keys can be filtered")
    missing = [key for key in keys if key not in env.observation_space.spaces]
    if missing:
        raise ValueError(f"there is no key {missing[0]!r}; its keys are {', '.join(env.observation_space.spaces)}")
    return gym.wrappers.FilterObservation(env, keys)


def _flatten(env: Env) -> Env:
    space = env.observation_space
    if isinstance(space, spaces.Dict) and not all(map(_is_flat, space.spaces.values())):
        kept = [key for key, part in space.spaces.items() if _is_flat(part)]
        raise ValueError(f'first {{"name": "filter", "keys": {json.dumps(kept)}}}, which keeps what has numbers')
    return gym.wrappers.FlattenObservation(env)


def _stack_frames(env: Env, n: int) -> Env:
    space = env.observation_space
    if not isinstance(space, spaces.Box) or len(space.shape) > 3:
        raise ValueError("only a Box of up to three axes can be stacked; flatten or filter observations first")
    stacked = gym.wrappers.FrameStackObservation(env, n)
    if len(space.shape) == 2:
        return stacked
    # The channels of an image are its shortest axis, as SB3 sees it.
    axis = -1 if len(space.shape) == 1 or space.shape[0] > space.shape[-1] else 0

    def merge(frames: Any) -> Any:
        return np.concatenate(list(frames), axis=axis)

    low, high = merge([space.low] * n), merge([space.high] * n)
    return gym.wrappers.TransformObservation(stacked, merge, spaces.Box(low, high, dtype=space.dtype.type))


def _add_time(env: Env) -> Env:
    return gym.wrappers.TimeAwareObservation(env, flatten=True, normalize_time=True)


def _rescale_action(env: Env, low: float, high: float) -> Env:
    space = env.action_space
    if not isinstance(space, spaces.Box) or space.dtype.kind != "f" or not space.is_bounded():
        raise ValueError("only a Box of floats with bounds can be rescaled; bound_action or round_action make one")
    bounds = (np.full(space.shape, bound, space.dtype) for bound in (low, high))
    return gym.wrappers.RescaleAction(env, *bounds)


def _bound_action(env: Env, low: float, high: float) -> Env:
    space = env.action_space
    if not isinstance(space, spaces.Box):
        raise ValueError("only a Box of actions has bounds")
    bounded = spaces.Box(low, high, space.shape, np.float32)
    return gym.wrappers.TransformAction(env, lambda action: action, bounded)


def _round_action(env: Env) -> Env:
    space = env.action_space
    if not isinstance(space, spaces.Box) or space.dtype.kind not in "iu" or not space.is_bounded():
        raise ValueError("only a Box of integers with bounds needs it")
    dtype = space.dtype
    bounded = spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)
    return gym.wrappers.TransformAction(env, lambda action: np.rint(action).astype(dtype), bounded)


def _play_atari(env: Env, **options: Any) -> Env:
    from stable_baselines3.common.atari_wrappers import AtariWrapper

    return AtariWrapper(env, **options)


_BUILDERS: Mapping[str, Callable[..., Env]] = {
    "filter": _filter,
    "flatten": _flatten,
    "frame_stack": _stack_frames,
    "grayscale": lambda env: gym.wrappers.GrayscaleObservation(env, keep_dim=True),
    "resize": lambda env, height, width: gym.wrappers.ResizeObservation(env, (height, width)),
    "atari": _play_atari,
    "time_aware": _add_time,
    "rescale_action": _rescale_action,
    "bound_action": _bound_action,
    "round_action": _round_action,
    "clip_reward": lambda env, low, high: gym.wrappers.ClipReward(env, low, high),
}
