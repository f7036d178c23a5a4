"""Labels for the numbers of an observation and for actions: an environment's own, or Gymnasium's documentation's."""

from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple

from service.environments.catalogue import Catalogue
from service.errors import ServiceError

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


class Labels(NamedTuple):
    """Names of the numbers in an environment's observation, and of its discrete actions; empty if unknown."""

    observations: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    def list_cosines(self) -> list[int]:
        """List the places of the cosines of angles; the sine comes right after each."""
        return [place for place, name in enumerate(self.observations) if name.startswith("cosine")]


def get_labels(env_name: str | None) -> Labels:
    """Return the labels of a well-known environment.

    :param env_name: None if it is unknown.
    """
    stem = (env_name or "").partition("-v")[0]
    return Labels(_OBSERVATIONS.get(stem, ()), _ACTIONS.get(stem, ()))


def ask_for_labels(catalogue: Catalogue, env_name: str) -> Labels:
    """Ask an environment for its labels; the first call builds it."""
    with suppress(ServiceError):  # such as one that is not registered here
        _, facts = catalogue.inspect(env_name)
        return Labels(tuple(facts.observation_names), tuple(facts.action_names))
    return Labels()
