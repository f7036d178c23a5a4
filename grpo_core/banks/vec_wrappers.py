"""Apply a vectorised environment's wrappers to the observations of one environment.

Groups step single environments and so bypass these wrappers. This module does what ``VecTransposeImage`` and
``VecFrameStack`` do, one observation at a time. The rollout normalises, since it also needs the raw observations.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from grpo_core.banks.visits import is_noticed

Array = npt.NDArray[Any]

# The last frames of one environment, one entry per VecFrameStack; never changed in place.
Frames = tuple[Any, ...]

_INNERMOST = (DummyVecEnv, SubprocVecEnv)
_ACCEPTED = (VecNormalize, VecFrameStack, VecTransposeImage, VecMonitor, VecCheckNan, *_INNERMOST)
# Methods of those that groups bypass.
_BYPASSED = (
    "reset", "step", "step_async", "step_wait", "_save_obs", "_obs_from_buf",
    "normalize_obs", "_normalize_obs", "_update_reward", "check_array_value", "_check_val",
)  # fmt: skip


class ObservationTransform:
    """The changes that a vectorised environment's wrappers make to an observation of one environment.

    :param wrappers: The wrappers that change observations, the innermost first.
    """

    def __init__(self, wrappers: Sequence[VecFrameStack | VecTransposeImage]) -> None:
        self.is_empty = not wrappers
        self._stages: list[Callable[[Any], Any] | StackedObservations[Any]] = [
            wrapper.stacked_obs if isinstance(wrapper, VecFrameStack) else wrapper.transpose_observations
            for wrapper in wrappers
        ]

    def apply(self, observation: Any, frames: Frames | None) -> tuple[Any, Frames]:
        """Return the observation that the policy sees, and the frames to remember for the next call.

        :param observation: The environment's observation.
        :param frames: The frames returned for the previous step; None at the start of an episode.
        """
        new_frames: list[Any] = []
        for stage in self._stages:
            if isinstance(stage, StackedObservations):
                observation = _push(stage, None if frames is None else frames[len(new_frames)], observation)
                new_frames.append(observation)
            else:
                observation = stage(observation)
        return observation, tuple(new_frames)


def _push(stacking: StackedObservations[Any], stack: Any, observation: Any) -> Any:
    """Append an observation to a stack of the latest ones, and drop the oldest.

    :param stack: The previous stack; None at the start of an episode.
    """
    if isinstance(observation, dict):
        parts = stacking.sub_stacked_observations
        return {key: _push(parts[key], stack and stack[key], value) for key, value in observation.items()}
    axis = stacking.repeat_axis
    if stack is None:
        stack = np.zeros(stacking.stacked_shape, observation.dtype)
    n_channels = observation.shape[axis]
    kept = stack[n_channels:] if axis == 0 else stack[..., n_channels:]
    return np.concatenate((kept, observation), axis=axis)


def read_vec_wrappers(env: VecEnv) -> tuple[VecEnv, ObservationTransform]:
    """Separate a vectorised environment from its wrappers.

    :return: The vectorised environment inside all wrappers, and what the wrappers do to observations.
    :raises ValueError: If there is a wrapper, or a method of the innermost, that groups must not bypass, or
        normalisation in the wrong place.
    """
    changing: list[VecFrameStack | VecTransposeImage] = []
    is_normalized = False
    while isinstance(env, VecEnvWrapper):
        _check_bypassed(env)
        if isinstance(env, VecNormalize):
            if is_normalized:
                raise ValueError("The environment has two VecNormalize wrappers; remove one of them.")
            is_normalized = True
            _check_normalization(env, changing)
        elif isinstance(env, VecFrameStack):
            changing.append(env)
        elif isinstance(env, VecTransposeImage) and not env.skip:
            changing.append(env)
        env = env.venv
    if isinstance(env, _INNERMOST):
        _check_bypassed(env)
    return env, ObservationTransform(changing[::-1])


def _check_bypassed(env: VecEnv) -> None:
    """Refuse a wrapper of another kind, and one whose class or owner has replaced a method that groups bypass."""
    name = type(env).__name__
    kind = next((kind for kind in _ACCEPTED if isinstance(env, kind)), None)
    if kind is not None:
        method = next((method for method in _BYPASSED if _is_replaced(env, kind, method)), None)
        if method is None:
            return
        name = f"{name}.{method}"
    raise ValueError(
        f"GRPO steps single environments and so bypasses {name}. It supports DummyVecEnv, SubprocVecEnv, VecNormalize, "
        "VecFrameStack, VecTransposeImage, VecMonitor and VecCheckNan as they are; for anything else, wrap the single "
        "environments: make_vec_env(env_id, n_envs, wrapper_class=...)."
    )


def _is_replaced(env: VecEnv, kind: type[VecEnv], method: str) -> bool:
    original, held = getattr(kind, method, None), vars(env).get(method)
    is_own = held is None or is_noticed(held) or getattr(held, "__func__", None) is original
    return not is_own or getattr(type(env), method, None) is not original


def _check_normalization(env: VecNormalize, outside: Sequence[VecFrameStack | VecTransposeImage]) -> None:
    """Refuse wrappers that change observations after they are normalised, since the rollout normalises last."""
    if not env.norm_obs:
        return
    for wrapper in outside:
        if isinstance(wrapper, VecFrameStack):
            raise ValueError(
                "VecFrameStack is outside a VecNormalize that normalises observations; stack first: "
                "VecNormalize(VecFrameStack(env, n_stack))."
            )
        images = getattr(wrapper, "image_space_keys", None)
        if images is None or not set(images).isdisjoint(env.norm_obs_keys or ()):
            raise ValueError(
                "VecTransposeImage, which Stable-Baselines3 adds automatically, is outside a VecNormalize that "
                "normalises images; pass norm_obs=False to VecNormalize, or norm_obs_keys without the images, since "
                "policies scale images themselves."
            )


def warn_of_options(env: VecEnv) -> None:
    """Warn if options wait for the next reset of a vectorised environment: the episodes of groups begin without any."""
    base, _ = read_vec_wrappers(env)
    if any(base._options):
        warnings.warn(
            f"set_options({base._options}) has no effect on training: groups begin episodes by resets of the single "
            "environments, without options. Pass them to the environments as they are built, as in "
            "make_vec_env(env_id, env_kwargs={...}), or in a wrapper whose reset adds them.",
            stacklevel=3,
        )
