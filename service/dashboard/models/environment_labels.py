"""Labels for the observations and actions of well-known environments, from Gymnasium's documentation."""

from collections.abc import Mapping

_OBSERVATIONS: Mapping[str, tuple[str, ...]] = {
    "CartPole": ("cart position", "cart velocity", "pole angle", "pole velocity"),
    "MountainCar": ("position", "velocity"),
    "MountainCarContinuous": ("position", "velocity"),
    "Pendulum": ("cosine of angle", "sine of angle", "angular velocity"),
    "Acrobot": ("cosine 1", "sine 1", "cosine 2", "sine 2", "velocity 1", "velocity 2"),
    "LunarLander": ("x", "y", "x velocity", "y velocity", "angle", "spin", "left leg down", "right leg down"),
    "FrozenLake": ("field",),
    "CliffWalking": ("field",),
    "Taxi": ("state",),
}
_ACTIONS: Mapping[str, tuple[str, ...]] = {
    "CartPole": ("push left", "push right"),
    "MountainCar": ("left", "none", "right"),
    "Acrobot": ("torque -1", "none", "torque +1"),
    "LunarLander": ("none", "left engine", "main engine", "right engine"),
    "FrozenLake": ("left", "down", "right", "up"),
    "CliffWalking": ("up", "right", "down", "left"),
    "Taxi": ("south", "north", "east", "west", "pick up", "drop off"),
}


def list_observation_names(env_name: str | None) -> tuple[str, ...]:
    """List the names of the numbers in an environment's observation; none if they are unknown."""
    return _OBSERVATIONS.get(_get_stem(env_name), ())


def list_cosines(env_name: str | None) -> list[int]:
    """List the places of the cosines of angles in an environment's observation; the sine comes right after each."""
    return [place for place, name in enumerate(list_observation_names(env_name)) if name.startswith("cosine")]


def list_action_names(env_name: str | None) -> tuple[str, ...]:
    """List the names of an environment's discrete actions; none if they are unknown."""
    return _ACTIONS.get(_get_stem(env_name), ())


def _get_stem(env_name: str | None) -> str:
    return (env_name or "").partition("-v")[0]
