"""Whether the server can save models and run jobs."""

import threading

from service.models.store import ModelStore
from service.replicas.mirror import Mirror


class Readiness:
    """Checks at every call, so that the server is ready again as soon as the obstacle is gone.

    :param store: The models.
    :param closing: Set when the server begins to shut down.
    :param mirror: Copies the models from elsewhere; None if nothing has to.
    """

    def __init__(self, store: ModelStore, closing: threading.Event, mirror: Mirror | None = None) -> None:
        self._store = store
        self._mirror = mirror
        self._closing = closing

    def list_obstacles(self) -> list[str]:
        """List what keeps the server from working; empty if it is ready."""
        obstacles = []
        if self._closing.is_set():
            obstacles.append("the server is shutting down")
        if self._mirror is not None and not self._mirror.is_complete:
            obstacles.append(self._mirror.problem or "the models are being copied")
        storage_problem = self._store.folder.find_problem()
        if storage_problem is not None:
            obstacles.append(storage_problem)
        return obstacles
