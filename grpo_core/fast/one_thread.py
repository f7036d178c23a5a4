"""Keep a library's thread pools to one thread for as long as that is needed."""

import threading
from typing import Any

from threadpoolctl import ThreadpoolController


class OneThread:
    """Limits thread pools to one thread inside ``with`` blocks. Safe to use from any thread.

    The limit holds for the whole process. Each block of threadpoolctl's own would save what it finds and put that back
    at its end: of two that overlap, the second finds one thread, and would leave the process with it for good. Here the
    first block sets the limit, and the last one lifts it.

    :param pools: The library's thread pools.
    """

    def __init__(self, pools: ThreadpoolController) -> None:
        self._pools = pools
        # Guards the two below.
        self._lock = threading.Lock()
        self._n_users = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._n_users == 0:
                self._limit = self._pools.limit(limits=1)
            self._n_users += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._n_users -= 1
            if self._n_users == 0:
                self._limit.restore_original_limits()
