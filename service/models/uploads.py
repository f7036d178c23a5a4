"""Model files that clients send."""

import threading

from grpo_core.saving.model_file import ModelFileError
from service.errors import ConflictError, InvalidRequestError, StorageError
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore

_N_AT_ONCE = 2


class Uploads:
    """Takes model files in, once they have been verified. Safe to use from any thread.

    :param store: Where they go.
    :param registry: Knows which names jobs will save under.
    """

    def __init__(self, store: ModelStore, registry: JobRegistry) -> None:
        self._store = store
        self._registry = registry
        # A file of some kilobytes may claim a space that takes many megabytes while it is read.
        self._places = threading.BoundedSemaphore(_N_AT_ONCE)

    def save(self, model_name: str, content: bytes, overwrite: bool) -> None:
        """Verify a model file and serve it from now on.

        :param overwrite: Whether it may take the place of a model of that name.
        :raises InvalidRequestError: If it cannot be used; nothing was replaced.
        :raises ConflictError: If the name is taken, or will be by a job.
        :raises StorageError: If the disk does not take it.
        """
        with self._registry.reserve_name(model_name):
            if not overwrite and self._store.exists(model_name):
                raise ConflictError(
                    f"there is a model '{model_name}' already; pick another name, or send overwrite=true."
                )
            with self._places:
                self._publish(model_name, content)

    def _publish(self, model_name: str, content: bytes) -> None:
        try:
            self._store.publish(model_name, content)
        except ModelFileError as error:
            raise InvalidRequestError(f"this is no model file that can be used: {error}") from error
        except OSError as error:
            raise StorageError(f"model '{model_name}' cannot be saved ({error.strerror}); free some space.") from error
