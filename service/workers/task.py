"""The task that executors run, its progress while it runs, and its outcome."""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from service.schemas.jobs import EndedBy
from service.workers.receipts import Receipts


class TaskFailedError(Exception):
    """A task failed; the message may be shown to clients."""


class WorkerNotStartedError(TaskFailedError):
    """The server could not start a process for a task; later it may."""


#: How a worker has died that the system has perhaps ended; whoever knows what it did adds what helps.
KILLED = "the worker process was killed (SIGKILL), as the system does when memory runs out"


class WorkerLostError(TaskFailedError):
    """The process that ran a task has died, which may not happen again."""

    def explain(self, memory_remedy: str) -> str:
        """Return the message, and what helps if memory has run out.

        :param memory_remedy: That.
        """
        return str(self).replace(f"{KILLED}.", f"{KILLED}; {memory_remedy}")


class NodeLostError(WorkerLostError):
    """The machine that ran a task, or what starts workers there, is gone or does not answer."""


class ClusterLostError(TaskFailedError):
    """The machines that run tasks cannot be reached, or have no room now; later they may."""


class TaskDrainedError(TaskFailedError):
    """The server ended before a worker was ready for the task."""


#: Stops that count: the first ends the training, the second skips what would follow.
N_STOPS = 2


class Progress(Protocol):
    """Receives the reports of a running task, and may stop it."""

    def attach_stop(self, stop: Callable[[], None]) -> None:
        """Receive the function that ends the task early; it may be called from any thread.

        Called ``N_STOPS`` times, it also skips what would follow.
        """

    def advance(self, current_timesteps: int) -> None:
        """Receive the number of simulator steps taken so far; repeated after every minibatch, to show activity."""

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        """Receive metrics of the latest rollout and update, under SB3's log keys."""

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Receive an evaluation: the fields of ``EvaluationRow`` without the time."""

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        """Receive the evaluation of the policy that is saved: the fields of ``FinalEvaluation``."""

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        """Receive a checkpoint to go on from.

        :param described: Its ``timesteps``, ``created_at`` (when it was taken), whether it is ``exact``, a ``note``.
        """

    def publish_warning(self, warning: str) -> None:
        """Receive a warning for the client."""

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        """Receive the rule that ends the training early."""


class IgnoredProgress:
    """A ``Progress`` that ignores all reports, and never stops the task."""

    def attach_stop(self, stop: Callable[[], None]) -> None: ...
    def advance(self, current_timesteps: int) -> None: ...
    def publish_metrics(self, metrics: Mapping[str, float]) -> None: ...
    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None: ...
    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None: ...
    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None: ...
    def publish_warning(self, warning: str) -> None: ...
    def publish_ended_by(self, ended_by: EndedBy) -> None: ...


class Task(NamedTuple):
    """A function and its arguments.

    :param function: The function's name, ``module:function``. Its module is imported only where the task runs, since
        most need torch, which the server never imports. It is called as ``function(*arguments, progress)`` and returns
        bytes.
    :param arguments: The arguments; cloudpickle must be able to pickle them.
    :param env_name: The registered environment that the function builds; None if it builds none.
    :param device: What a job trains on, ``"cpu"`` or ``"cuda"``, for which a cluster looks for room; None for a short
        task, which is run at once.
    :param n_cpus: Processors that a job keeps busy.
    :param goes_on: Whether a job goes on from a checkpoint, so that it has something to save once it has started.
    """

    function: str
    arguments: tuple[Any, ...]
    env_name: str | None
    device: str | None = None
    n_cpus: int = 1
    goes_on: bool = False

    def run(self, progress: Progress) -> bytes:
        """Import the function, call it and return what it returns."""
        function: Callable[..., bytes] = pkgutil.resolve_name(self.function)
        return function(*self.arguments, progress)


class Run(Protocol):
    """A started task."""

    @property
    def delay_seconds(self) -> float:
        """How long others have kept it from the processor so far; 0 where nobody says."""

    def wait(self, timeout_seconds: float) -> bool:
        """Wait until the task has ended, at most for a time; return whether it has."""

    def get_content(self) -> bytes:
        """Return the bytes that the ended task returned.

        :raises Exception: Whatever the task raised.
        """

    def kill(self) -> None:
        """End the task without a result; a thread cannot be killed and is abandoned."""


class LastingRun(Run, Protocol):
    """A started task that outlives the server.

    :ivar n_earlier_stops: How often an earlier server has asked it to stop.
    """

    n_earlier_stops: int

    def release(self) -> None:
        """Let go of the task's result, once that is safe; until then another server can ask for it."""

    def leave(self) -> None:
        """Leave the task, which goes on, to the next server."""


class Keeper(Protocol):
    """An executor whose tasks can outlive the server, and are found again by the next one."""

    def start_lasting(self, task: Task, progress: Progress, receipts: Receipts) -> LastingRun:
        """Start a job's task, as ``Executor.start`` does; the job is the one of the context."""

    def adopt(self, job_id: str, progress: Progress, receipts: Receipts) -> LastingRun | None:
        """Go on following a task that an earlier server has started; None if it is gone.

        A stop of the job does not end the search, and is sent once the task is found.

        :raises ClusterLostError: If that cannot be found out.
        :raises TaskDrainedError: If the server ends before it is found; the next one can find it.
        """

    def end_left(self) -> None:
        """End, in the background, the tasks that earlier servers have left and no server follows."""
