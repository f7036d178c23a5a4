"""Threads that step the simulators of a batch beside the caller's own."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import torch

from grpo_core.process import count_cores

# With fewer rows for each, waking a thread costs more than it takes over.
_MIN_ROWS_PER_THREAD = 2

# Does the rows that it is handed; several threads draw from one iterator.
RowWork = Callable[[Iterator[int]], None]


def count_threads() -> int:
    """Return how many threads a process may keep busy: its cores, or fewer if torch was told so.

    ``OMP_NUM_THREADS`` and ``torch.set_num_threads`` are where users say that many trainings share a machine.
    """
    return min(count_cores(), torch.get_num_threads())


class StepThreads:
    """Lets threads share the rows of a batch.

    It pays where rows are computed outside the interpreter's lock. Threads start when they are first needed, and end
    with this object. A process that was forked starts its own.

    :param n_threads: Threads that work at once, the caller's included; 1 starts none. It may be changed.
    """

    def __init__(self, n_threads: int = 1) -> None:
        self.n_threads = n_threads
        self._executor: ThreadPoolExecutor | None = None
        self._made_for = (0, 0)

    def begin(self, work: RowWork, n_rows: int) -> Callable[[], None]:
        """Let other threads begin with the rows of a batch.

        :param work: Called in every thread, with an iterator that all of them share.
        :return: To be called for the caller's part; it returns when all rows are done, and raises what they raised.
        """
        rows = iter(range(n_rows))
        n_others = min(self.n_threads, n_rows // _MIN_ROWS_PER_THREAD) - 1
        others: list[Future[None]] = [self._get_executor().submit(work, rows) for _ in range(n_others)]

        def finish() -> None:
            try:
                work(rows)
            finally:
                wait(others)
            for other in others:
                other.result()

        return finish

    def _get_executor(self) -> ThreadPoolExecutor:
        needed = os.getpid(), self.n_threads
        if self._executor is None or self._made_for != needed:
            # One that is dropped ends its threads once they are idle.
            self._executor, self._made_for = ThreadPoolExecutor(self.n_threads - 1, "grpo-step"), needed
        return self._executor
