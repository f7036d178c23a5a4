"""No workers: a server that only serves runs no tasks."""

from service.errors import ReadOnlyError
from service.workers.task import Progress, Run, Task


class NoExecutor:
    """Refuses every task.

    :param refusal: Says so to clients, and where to go instead.
    """

    def __init__(self, refusal: str) -> None:
        self._refusal = refusal

    @property
    def is_busy(self) -> bool:
        """Whether any task is running: never."""
        return False

    def warm_up(self) -> None:
        """Do nothing."""

    def start(self, task: Task, progress: Progress) -> Run:
        """Refuse a task.

        :raises ReadOnlyError: Always.
        """
        raise ReadOnlyError(self._refusal)

    def drain(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
