"""Put uploads, and earlier versions, in the place of models, while no job may save under their names."""

import hashlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager

from grpo_core.saving.model_file import ModelFileError
from grpo_core.saving.moments import verify_trainable
from service.errors import ConflictError, InvalidRequestError
from service.models.card import make_card
from service.models.store import ModelStore
from service.schemas.models import ModelCard, RollbackResponse

# Files verified at the same time; one of a few kilobytes may claim spaces that take many megabytes to read.
_MAX_VERIFIED = 2


class ModelReplacement:
    """Puts files in the place of models. Safe to use from any thread.

    :param store: The models.
    :param reserve_name: Keeps a name from jobs and other uploads meanwhile; raises ``ConflictError`` if one has it.
    """

    def __init__(self, store: ModelStore, reserve_name: Callable[[str], AbstractContextManager[None]]) -> None:
        self._store, self._reserve_name = store, reserve_name
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
        """Save an earlier version of a model as the newest one; what was the newest is kept.

        :param version: None is the one before the newest.
        :param check: Called once the name is reserved; raises if the newest is not to be replaced.
        :raises NotFoundError: If there is no such model or version.
        :raises ConflictError: If an active job or an upload will save under its name, or the model has no earlier
            version, or the version cannot be used.
        :raises StorageError: If the disk refuses.
        """
        with self._reserve_name(model_name), self._verifying:
            check()
            restored = self._choose_restored(model_name, version)
            reference = f"{model_name}@{restored}"
            self._store.get(reference)  # says why a damaged one cannot be used
            folder = self._store.folder
            try:
                content = folder.read(reference)[1]
                folder.check_can_save(len(content), model_name)
                sha256 = hashlib.sha256(content).hexdigest()
                job_id = folder.versions.read_notes(model_name).find_job(restored, sha256)
                self._store.publish(model_name, content, job_id)
            except ModelFileError as error:  # it has been damaged while it was in memory
                raise ConflictError(f"version {restored} of model '{model_name}' cannot be used: {error}") from error
            return RollbackResponse(
                message=f"Version {restored} is the newest again",
                model_name=model_name,
                version=folder.versions.find_newest(model_name),
                restored_version=restored,
            )

    def _choose_restored(self, name: str, version: int | None) -> int:
        versions = self._store.folder.versions
        with versions.lock(name):  # or a save could come between two of these looks
            self._store.check_exists(name)
            newest = versions.find_newest(name)
            earlier = [number for number in versions.list_kept(name) if number != newest]
        if version is None and not earlier:
            raise ConflictError(f"model '{name}' has no earlier version to go back to.")
        restored = earlier[-1] if version is None else version
        if restored == newest:
            raise ConflictError(f"version {restored} of model '{name}' is the newest already; choose an earlier one.")
        return restored
