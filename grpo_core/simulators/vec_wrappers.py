"""Do to the observations of one environment what the wrappers of a vectorised one do.

Groups step single environments past these wrappers, so what they change is applied here to one observation at a
time: ``VecTransposeImage`` and ``VecFrameStack``. Normalisation is left to the rollout, which needs the observations
as they were, too.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

Array = npt.NDArray[Any]

# The last frames of one environment, one entry per VecFrameStack; never changed in place.
Frames = tuple[Any, ...]


class ObservationPath:
    """The way of one environment's observations through the wrappers to the policy.

    :param wrappers: The wrappers that change observations, the innermost first.
    """

    def __init__(self, wrappers: Sequence[VecFrameStack | VecTransposeImage]) -> None:
        self.is_empty = not wrappers
        self._stages: list[Callable[[Any], Any] | StackedObservations[Any]] = [
            wrapper.stacked_obs if isinstance(wrapper, VecFrameStack) else wrapper.transpose_observations
            for wrapper in wrappers
        ]

    def lead(self, observation: Any, frames: Frames | None) -> tuple[Any, Frames]:
        """Return what the policy sees, and the frames to remember.

        :param observation: The environment's observation.
        :param frames: The frames after the step before; None at the start of an episode.
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
    """Append an observation to a stack of the last ones, and drop the oldest.

    :param stack: What was returned for the observation before; None at the start of an episode.
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


def read_vec_wrappers(env: VecEnv) -> tuple[VecEnv, ObservationPath]:
    """Take a vectorised environment's wrappers apart.

    :return: The vectorised environment inside all wrappers, and the way of observations out of it.
    :raises ValueError: If there is a wrapper that groups cannot step past, or normalisation in the wrong place.
    """
    changing: list[VecFrameStack | VecTransposeImage] = []
    is_normalized = False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            if is_normalized:
                raise ValueError("There are two VecNormalize around the environment; leave out one of them.")
            is_normalized = True
            _check_normalization(env, changing)
        elif isinstance(env, VecFrameStack):
            changing.append(env)
        elif isinstance(env, VecTransposeImage):
            if not env.skip:
                changing.append(env)
        elif not isinstance(env, VecMonitor | VecCheckNan):
            raise ValueError(
                f"GRPO steps single environments and so past {type(env).__name__}. Around them there may be "
                "VecNormalize, VecFrameStack, VecTransposeImage, VecMonitor and VecCheckNan; do the rest in a wrapper "
                "of the single environment: make_vec_env(env_id, n_envs, wrapper_class=...)."
            )
        env = env.venv
    return env, ObservationPath(changing[::-1])


def _check_normalization(env: VecNormalize, outside: Sequence[VecFrameStack | VecTransposeImage]) -> None:
    """Refuse what would change observations after they were normalised: the rollout normalises last."""
    if not env.norm_obs:
        return
    for wrapper in outside:
        if isinstance(wrapper, VecFrameStack):
            raise ValueError(
                "VecFrameStack is outside of a VecNormalize that normalises observations. Stack first: "
                "VecNormalize(VecFrameStack(env, n_stack))."
            )
        images = getattr(wrapper, "image_space_keys", None)
        if images is None or not set(images).isdisjoint(env.norm_obs_keys or ()):
            raise ValueError(
                "VecTransposeImage, which Stable-Baselines3 adds by itself, is outside of a VecNormalize that "
                "normalises images. Pass norm_obs=False to VecNormalize, or norm_obs_keys without the images; policies "
                "scale images themselves."
            )
