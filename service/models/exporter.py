"""Saved models as files for other programs."""

import hashlib
import threading
from typing import Any, NamedTuple

from cachetools import LRUCache

from grpo_core.actor.actor import Actor
from grpo_core.export.forward import make_masks_input
from grpo_core.export.policy_file import MissingPackageError, check_installed, export_policy
from grpo_core.spaces import UnsupportedSpaceError
from service.errors import ConflictError, InvalidRequestError, NotInstalledError
from service.models.card import make_card
from service.models.files.folder import FileSignature
from service.models.store import ModelStore
from service.schemas.models import ExportFormatName
from service.workers.short_tasks import ShortTasks
from service.workers.task import Progress, Task

_MAX_CACHED_BYTES = 32 * 2**20
# Of the card: they change while the file stays.
_PASSING_FACTS = {"status", "evaluation"}


class Export(NamedTuple):
    """An exported policy.

    :param content: The file's bytes.
    :param sha256: Their SHA-256.
    """

    content: bytes
    sha256: str


class ModelExporter:
    """Writes saved models in other formats. Safe to use from any thread.

    A call may take seconds; its file is cached until the model's file changes.

    :param store: The models.
    :param short_tasks: Writes the files, since some formats need torch.
    """

    def __init__(self, store: ModelStore, short_tasks: ShortTasks) -> None:
        self._store = store
        self._short_tasks = short_tasks
        self._lock = threading.Lock()
        self._exports: LRUCache[tuple[FileSignature, str, ExportFormatName, bool], Export] = LRUCache(
            _MAX_CACHED_BYTES, getsizeof=lambda export: len(export.content)
        )

    def export(self, model_name: str, export_format: ExportFormatName, with_masks: bool) -> Export:
        """Write a model in another format, with what its card says of it.

        :param with_masks: Whether the policy takes action masks beside every observation.
        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If its file cannot be used.
        :raises InvalidRequestError: If its actions cannot be masked, but are to be.
        :raises NotInstalledError: If the server lacks the format's package.
        :raises ServiceError: Whatever ``ShortTasks.run`` raises.
        """
        model = self._store.get(model_name)
        name = model_name.partition("@")[0]  # whichever of its names was asked for
        with self._lock:
            export = self._exports.get((model.signature, name, export_format, with_masks))
        if export is not None:
            return export
        try:
            check_installed(export_format)
        except MissingPackageError as error:
            raise NotInstalledError(f"{error} Install it on the server, or ask for another format.") from error
        file = self._store.inspect_file(model_name)
        if file.model is None:
            raise ConflictError(f"model '{model_name}' is {file.status}; only usable files can be exported.")
        actor = file.model.actor
        if with_masks:
            try:
                make_masks_input(actor)
            except UnsupportedSpaceError as error:
                raise InvalidRequestError(f"action_masks does not fit model '{model_name}': {error}") from error
        card = make_card(name, file)
        facts = card.model_dump(mode="json", exclude=_PASSING_FACTS, exclude_none=True)
        arguments = actor, facts, export_format, with_masks
        task = Task("service.models.exporter:write_policy", arguments, env_name=None)
        content = self._short_tasks.run(task, "export it with grpo export.")
        export = Export(content, hashlib.sha256(content).hexdigest())
        with self._lock:
            if len(content) <= self._exports.maxsize:
                self._exports[file.signature, name, export_format, with_masks] = export
        return export


def write_policy(actor: Actor, facts: dict[str, Any], name: str, with_masks: bool, progress: Progress) -> bytes:
    """Write a policy in another format: a task, as ``Task`` describes them."""
    return export_policy(actor, facts, name, with_masks)
