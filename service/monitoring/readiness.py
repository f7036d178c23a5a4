"""Check whether the server can save models and run jobs."""

import threading
import time

from service.models.store import ModelStore
from service.replicas.mirror import Mirror

# A look at the storage asks for the size of every model, and strangers may ask how things are.
_RECENT_SECONDS = 1.0


class Readiness:
    """Checks when it is asked, so that the server is ready again soon after an obstacle is gone.

    :param store: The models.
    :param closing: Set when the server begins to shut down.
    :param mirror: Copies the models from elsewhere; None if they are here.
    """

    def __init__(self, store: ModelStore, closing: threading.Event, mirror: Mirror | None = None) -> None:
        self._store = store
        self._mirror = mirror
        self._closing = closing
        self._looking = threading.Lock()
        self._storage_problem: str | None = None
        self._next_look = 0.0

    def list_obstacles(self) -> list[str]:
        """List what keeps the server from working; empty if it is ready."""
        obstacles = []
        if self._closing.is_set():
            obstacles.append("the server is shutting down")
        if self._mirror is not None and not self._mirror.is_complete:
            obstacles.append(self._mirror.problem or "the models are being copied")
        storage_problem = self._find_storage_problem()
        if storage_problem is not None:
            obstacles.append(storage_problem)
        return obstacles

    def _find_storage_problem(self) -> str | None:
        """Look at the storage, or return a recent look; callers share one."""
        with self._looking:
            if time.monotonic() >= self._next_look:
                self._storage_problem = self._store.folder.find_problem()
                self._next_look = time.monotonic() + _RECENT_SECONDS
            return self._storage_problem
