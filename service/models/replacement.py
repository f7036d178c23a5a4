"""Put uploads, and earlier versions, in the place of models, while no job may save under their names."""

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from grpo_core.saving.model_file import ModelFileError
from grpo_core.saving.moments import verify_trainable
from service.errors import ConflictError, InvalidRequestError
from service.models.card import make_card
from service.models.promotion import ModelPromotion
from service.models.store import ModelStore
from service.schemas.models import ModelCard, RollbackResponse

# Files verified at the same time; one of a few kilobytes may claim spaces that take many megabytes to read.
_MAX_VERIFIED = 2


class ModelReplacement:
    """Puts files in the place of models. Safe to use from any thread.

    :param store: The models.
    :param promotion: Makes earlier versions the newest again.
    :param reserve_name: Keeps a name from jobs and other uploads meanwhile; raises ``ConflictError`` if one has it.
    """

    def __init__(
        self,
        store: ModelStore,
        promotion: ModelPromotion,
        reserve_name: Callable[[str], AbstractContextManager[None]],
    ) -> None:
        self._store, self._promotion, self._reserve_name = store, promotion, reserve_name
        self._verifying = threading.BoundedSemaphore(_MAX_VERIFIED)

    def save_upload(self, model_name: str, content: bytes, overwrite: bool, check: Callable[[], None]) -> ModelCard:
        """Verify a model file, save it and serve it; return its card.

        :param overwrite: Whether it may replace a model of that name.
        :param check: Called once the name is reserved; raises if that model is not to be replaced.
        :raises InvalidRequestError: If the file cannot be used; nothing is replaced.
        :raises ConflictError: If the name is taken, or an active job will save under it.
        :raises StorageLowError: If it does not fit on the disk or into the folder.
        :raises StorageError: If it cannot be written to the disk.
        """
        with self._reserve_name(model_name):
            if not overwrite and self._store.exists(model_name):
                raise ConflictError(
                    f"a model '{model_name}' already exists; choose another name or send overwrite=true."
                )
            check()
            self._store.folder.check_can_save(len(content), model_name)
            try:
                with self._verifying:
                    self._store.publish(model_name, content, parsed=verify_trainable(content))
            except ModelFileError as error:
                raise InvalidRequestError(f"this model file cannot be used: {error}") from error
            return make_card(model_name, self._store.inspect_file(model_name))  # before another request can delete it

    def roll_back(
        self, model_name: str, version: int | None, check: Callable[[], None] = lambda: None
    ) -> RollbackResponse:
        """Make an earlier version of a model the newest again.

        :param check: Called once the name is reserved; raises if the newest is not to be replaced.
        :raises ConflictError: If an active job or an upload will save under its name.
        :raises ServiceError: Whatever ``ModelPromotion.roll_back`` raises.
        """
        with self._reserve_name(model_name), self._verifying:
            check()
            return self._promotion.roll_back(model_name, version)
