"""What an executor runs, and what it hears of it meanwhile."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from service.schemas.jobs import EndedBy


class Progress(Protocol):
    """What work under way tells whoever started it."""

    def attach(self, stop: Callable[[], None]) -> None:
        """Hand over the function that ends the work early."""

    def advance(self, current_timesteps: int) -> None:
        """Say how many simulator steps were taken; said again after every minibatch, as a sign of life."""

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Say what the latest rollout and update measured, under SB3's log keys."""

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Say how the policy did in whole episodes: the fields of ``EvaluationRow`` but the time."""

    def conclude(self, ended_by: EndedBy) -> None:
        """Say that a rule ends the work early, and which."""


class Task(NamedTuple):
    """A function and what it is called on; both are sent to a worker process by reference.

    :param function: Called as ``function(*arguments, progress)``; returns what it made.
    :param arguments: Whatever pickles.
    :param env_name: Registered environment that the function makes.
    :param foreign: Those of the arguments that others than this project have written, by what an error calls them.
    """

    function: Callable[..., bytes]
    arguments: tuple[Any, ...]
    env_name: str
    foreign: Mapping[str, Any]

    def run(self, progress: Progress) -> bytes:
        """Call the function."""
        return self.function(*self.arguments, progress)
