"""Named reward functions of the next state.

A reward function maps a batch of steps to one reward each: tensors ``state (B, n)``, ``action (B, m)`` and
``next_state (B, n)`` to ``(B, 1)`` or ``(B,)``. States are the environment's own observations, never normalised.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the server lists the functions without torch
    from torch import Tensor

RewardFunction = Callable[["Tensor", "Tensor", "Tensor"], "Tensor"]
# One reward function, or a list of them, in which None is the environment's own reward.
Reward = RewardFunction | Sequence[RewardFunction | None]
# Name of the environment's own reward.
ENVIRONMENT_REWARD = "environment"


def get_reward_name(reward_function: RewardFunction | None) -> str:
    """Return the name of a reward function: its own or its class's; None is the environment's own reward."""
    if reward_function is None:
        return ENVIRONMENT_REWARD
    name: str = getattr(reward_function, "__name__", type(reward_function).__name__)
    return name


# CartPole-v1 observations: cart position in m, cart velocity in m/s, pole angle in rad, angular velocity in rad/s.
_POSITION, _ANGLE = 0, 2
# The pole angle at which CartPole ends an episode: 12 degrees.
_ANGLE_LIMIT_RAD = 0.2095


def optimized_cartpole(state: "Tensor", action: "Tensor", next_state: "Tensor") -> "Tensor":
    """Reward an upright pole and a centred cart exponentially, in [0.1, 5.5].

    ``clip(1.5 + 3 exp(-8 |angle|) + exp(-1.5 x^2) - 2 max(|x| - 2, 0), 0.1, 6)``, x in m, angle in rad.
    """
    x, angle = next_state[:, _POSITION], next_state[:, _ANGLE]
    upright = 3.0 * (-8.0 * angle.abs()).exp()
    centred = (-1.5 * x.square()).exp()
    near_the_edge = 2.0 * (x.abs() - 2.0).clamp(min=0.0)
    return (1.5 + upright + centred - near_the_edge).clamp(0.1, 6.0).unsqueeze(1)


def simple_cartpole(state: "Tensor", action: "Tensor", next_state: "Tensor") -> "Tensor":
    """Reward a small pole angle, linearly: ``clip(1 - |angle| / 0.2095, 0.1, 1)``, angle in rad."""
    angle = next_state[:, _ANGLE]
    return (1.0 - angle.abs() / _ANGLE_LIMIT_RAD).clamp(0.1, 1.0).unsqueeze(1)


# The shipped reward functions by name, and the environments whose observations they understand.
REWARD_FUNCTIONS: Mapping[str, RewardFunction] = MappingProxyType(
    {
        "optimized_cartpole": optimized_cartpole,
        "simple_cartpole": simple_cartpole,
    }
)
CARTPOLE_ENVIRONMENTS = frozenset({"CartPole-v0", "CartPole-v1"})


def name_reward_function(reward_function: RewardFunction | None, name: str) -> RewardFunction | None:
    """Give a reward function the name that it is registered under: Python calls every lambda the same.

    Those shipped keep theirs, by which a model file finds them again.
    """
    if reward_function is None or get_reward_name(reward_function) == name or is_shipped(reward_function):
        return reward_function
    named = partial(reward_function)  # unlike a function around it, it shows the signature
    vars(named)["__name__"] = name
    return named


def is_shipped(reward_function: RewardFunction | None) -> bool:
    """Return whether a reward function is one of ``REWARD_FUNCTIONS``."""
    return reward_function in REWARD_FUNCTIONS.values()


def can_score(reward_function: RewardFunction | None, env_name: str) -> bool:
    """Return False if a reward function is known not to understand an environment's observations.

    :param reward_function: The function; None is the environment's own reward.
    """
    return not is_shipped(reward_function) or env_name in CARTPOLE_ENVIRONMENTS


def get_default_reward(env_name: str) -> str:
    """Return the name of an environment's default reward function."""
    return "optimized_cartpole" if env_name in CARTPOLE_ENVIRONMENTS else ENVIRONMENT_REWARD


def find_reward_functions(names: str | list[str] | None) -> Reward | None:
    """Return the shipped reward functions with these names; None if one of them is not shipped."""
    if names is None or isinstance(names, str):
        return REWARD_FUNCTIONS.get(names or "")
    if not all(name == ENVIRONMENT_REWARD or name in REWARD_FUNCTIONS for name in names):
        return None
    return [REWARD_FUNCTIONS.get(name) for name in names]
