"""What an executor runs, what it hears of it meanwhile, and what it makes of it."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from service.schemas.jobs import EndedBy


class TaskFailedError(Exception):
    """A task failed; the message is fit for a client as it is."""


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
    """A function and its arguments.

    :param function: ``module:function``. The module is imported where the task runs, and only there: most of them need
        torch, which the server does without. Called as ``function(*arguments, progress)``; returns what it made.
    :param arguments: Whatever cloudpickle can carry.
    :param env_name: Registered environment that the function builds.
    """

    function: str
    arguments: tuple[Any, ...]
    env_name: str

    def run(self, progress: Progress) -> bytes:
        """Import the function and call it."""
        function: Callable[..., bytes] = pkgutil.resolve_name(self.function)
        return function(*self.arguments, progress)


class Run(Protocol):
    """A task under way."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait for its end, but no longer than that; return whether it has ended."""

    def get_content(self) -> bytes:
        """Return what it made, once it has ended.

        :raises Exception: What the task raised.
        """

    def kill(self) -> None:
        """End it without a result. A thread cannot be killed: it is left behind."""
