"""The versions of models as clients see them: listed, and chosen by aliases."""

import threading
from typing import Any

from cachetools import LRUCache

from service.errors import ConflictError, InvalidRequestError, NotFoundError
from service.models.card import make_card
from service.models.files.folder import FileSignature
from service.models.playing.player import ModelPlayer
from service.models.store import ModelStore
from service.schemas.fields import LATEST_ALIAS
from service.schemas.models import AliasResponse, ModelCard, ModelStatus, ModelVersion, ModelVersions

_MAX_DESCRIBED = 1024


class ModelPromotion:
    """Lists the versions of models, and points aliases at them. Safe to use from any thread.

    Aliases are moved by clients alone: evaluations differ in seeds and episodes, so none moves an alias.

    :param store: The models.
    :param player: Knows evaluations.
    """

    def __init__(self, store: ModelStore, player: ModelPlayer) -> None:
        self._store, self._player = store, player
        self._lock = threading.Lock()
        # To describe a version its file is read in full. Their status may have changed since.
        self._cards: LRUCache[FileSignature, ModelCard] = LRUCache(_MAX_DESCRIBED)

    def list_versions(self, name: str) -> ModelVersions:
        """List the versions of a model, the newest first.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If the disk refuses.
        """
        self._list_existing(name)  # reads the files that are new to it, before anything has to wait for the lock
        with self._store.folder.versions.lock(name):  # or a save or deletion could come between two of these looks
            return self._list_existing(name)

    def _list_existing(self, name: str) -> ModelVersions:
        self._store.check_exists(name)
        folder = self._store.folder
        numbers, notes = folder.versions.list_all(name), folder.versions.read_notes(name)
        versions = []
        for number in reversed(numbers):
            try:
                card = self._describe(f"{name}@{number}")
            except NotFoundError:  # somebody has removed it by hand, or on a replica the server that writes
                continue
            versions.append(
                ModelVersion(
                    version=number,
                    is_newest=number == numbers[-1],
                    aliases=sorted(alias for alias, version in notes.aliases.items() if version == number),
                    created_at=card.modified_at,
                    job_id=notes.find_job(number, card.sha256),
                    **card.model_dump(include=_SHARED_FACTS),
                )
            )
        if not versions:
            raise folder.make_not_found(name)
        return ModelVersions(model_name=name, versions=versions, aliases=dict(sorted(notes.aliases.items())))

    def set_alias(self, name: str, alias: str, version: int | None) -> AliasResponse:
        """Point an alias at a version.

        :param version: None is the newest.
        :raises InvalidRequestError: If the alias always is the newest version.
        :raises ServiceError: Whatever ``ModelStore.get`` and ``ModelStore.set_alias`` raise.
        """
        if alias.lower() == LATEST_ALIAS:
            raise InvalidRequestError(
                f"'{LATEST_ALIAS}' always means the newest version; choose another alias, such as prod."
            )
        versions = self._store.folder.versions
        with versions.lock(name):  # or what is the newest could be replaced, and make room, before it has its alias
            self._store.check_exists(name)
            number = versions.find_newest(name) if version is None else version
            self._store.get(f"{name}@{number}")  # says why a damaged one cannot be used, before its file is copied
            before = self._store.set_alias(name, alias, number)
        return AliasResponse(model_name=name, alias=alias, version=number, previous_version=before)

    def delete_alias(self, name: str, alias: str) -> AliasResponse:
        """Delete an alias; the version that it kept may make room for newer ones.

        :raises NotFoundError: If there is no such model or alias.
        :raises StorageError: If the disk refuses.
        """
        self._store.check_exists(name)
        before = self._store.set_alias(name, alias, None)
        return AliasResponse(model_name=name, alias=alias, version=None, previous_version=before)

    def _describe(self, reference: str) -> ModelCard:
        signature = self._store.folder.get_signature(reference)
        if signature is None:
            raise self._store.folder.make_not_found(reference)
        with self._lock:
            card = self._cards.get(signature)
        if card is None:
            try:
                file = self._store.inspect_file(reference)
            except ConflictError:  # it is not remembered: the disk may give it next time
                return make_card(reference, self._store.describe_unread(reference))
            signature, card = file.signature, make_card(reference, file)
            with self._lock:
                self._cards[signature] = card
        # What changes while the file stays the same.
        current: dict[str, Any] = {}
        if card.status in (ModelStatus.SAVED, ModelStatus.LOADED):
            current["status"] = ModelStatus.LOADED if self._store.is_loaded(reference, signature) else ModelStatus.SAVED
        if (evaluation := self._player.find_evaluation(signature)) is not None:
            current["evaluation"] = evaluation
        return card.model_copy(update=current)


_SHARED_FACTS = {"status", "n_bytes", "sha256", "env_name", "num_timesteps", "lineage", "evaluation"}
