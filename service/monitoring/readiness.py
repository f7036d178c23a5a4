"""Whether the server can do all that it is there for."""

import threading

from service.models.store import ModelStore


class Readiness:
    """Looks anew whenever it is asked, so that the server is ready again as soon as nothing stands in the way.

    :param store: Where the models are.
    :param closing: Set when the server begins to shut down.
    """

    def __init__(self, store: ModelStore, closing: threading.Event) -> None:
        self._store = store
        self._closing = closing

    def list_obstacles(self) -> list[str]:
        """Say what stands in the way; empty if the server is ready."""
        obstacles = []
        if self._closing.is_set():
            obstacles.append("the server is shutting down")
        storage_problem = self._store.find_storage_problem()
        if storage_problem is not None:
            obstacles.append(storage_problem)
        return obstacles
