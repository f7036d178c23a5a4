"""Copies the models of an object store to a folder, and keeps the folder in step with it.

Serving from a folder is what the store of models does already: one look at a file tells whether it has changed. So
nothing else has to know where the models come from.
"""

import json
import logging
import os
import re
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from grpo_core.saving import model_file
from service.errors import describe_error, printable
from service.models.files.lock import TEMPORARY_PREFIX, FolderInUseError, FolderLock
from service.models.files.paths import VERSIONS_FOLDER
from service.schemas.fields import is_model_name

logger = logging.getLogger("grpo.service")

# In the models folder, so that no model that lies there already is taken for one that has been deleted elsewhere.
_FOLDER = ".mirror"
_STATE_FILE = ".state.json"
# Object stores charge for each look, and a model takes longer than that to train.
_LOOK_SECONDS = 1.0
# A file that is being copied may take longer than a server should take to end; it is copied again by the next one.
_CLOSE_SECONDS = 5.0
# Versions and aliases of one model take some hundred bytes each.
_MAX_NOTES_BYTES = 2**20
# A model's newest version, an earlier one, or what is known of them; see service.models.files.versions.
_PATH = re.compile(r"(?P<newest>[^/]+)\.zip|\.versions/(?P<name>[^/]+)/(?P<file>[1-9]\d{0,8}\.zip|notes\.json)")
# What changes with a file, as the file systems of fsspec call it.
_MARKS = ("size", "ETag", "etag", "md5Hash", "LastModified", "updated", "last_modified", "mtime", "ino", "created")


class MirrorError(OSError):
    """An object store cannot be read; the message says why, and the remedy."""


class _RemoteFile(NamedTuple):
    """A file of the store.

    :param mark: Changes with its content.
    :param modified_at: Unix time; None if the store does not say.
    """

    path: str
    n_bytes: int
    mark: str
    modified_at: float | None


class Mirror:
    """Keeps a folder in step with an object store, looking once a second. Safe to use from any thread.

    Replicas with the same folder take turns: one of them copies, and another goes on if it ends. A file is verified
    before it replaces another, and the files of one model replace theirs together. Notes that are there already are not
    replaced while a file of their model cannot be used: an alias stays at what can be served.

    :param url: The models folder in the store, as fsspec writes it: ``s3://bucket/models``.
    :param models_dir: Where the copies go, into a hidden folder.
    :raises MirrorError: If fsspec, or its part for such stores, is not installed, or it does not know the URL.
    :raises OSError: If the folder cannot be created.
    """

    def __init__(self, url: str, models_dir: Path) -> None:
        self._files, self._root = _open_store(url)
        self._url = url
        #: Where the copies are.
        self.folder = models_dir / _FOLDER
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        #: Why the last look failed, or which files of the store cannot be used; None if all is well.
        self.problem: str | None = None
        #: Whether everything usable that was there at a look has been copied since.
        self.is_complete = False
        # Marks of the copied files, and of those that cannot be used, by path; and what size the copies have.
        self._copied: dict[str, str] = {}
        self._sizes: dict[str, int | None] = {}
        self._refused: dict[str, tuple[str, str]] = {}
        # Why models could not be read at the last look, by name; the next one tries again.
        self._failed: dict[str, str] = {}
        self._lock: FolderLock | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to copy, in a thread."""
        self._thread = threading.Thread(target=self._run, name="grpo-mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop copying, and let another replica go on."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_SECONDS)  # as it ends it lets go; while it still copies, another one must not
        else:
            self._release()

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def look(self) -> None:
        """Look at the store once, and copy what has changed; what fails is in ``problem``."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it
            self._renew_lock()
            if self._lock is None and not self._take_turn():
                return
            self._forget_lost()
            self._copy_changes(self._list_files())
            problem = "; ".join([*(reason for _, reason in self._refused.values()), *self._failed.values()]) or None
        except Exception as error:  # foreign code: every kind of store has errors of its own
            problem = f"the models at {self._url.partition(':')[0]}: cannot be copied: {describe_error(error)}"
        if problem != self.problem and problem is not None:
            logger.warning("%s", problem)
        self.problem = problem

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                begun = time.monotonic()
                self.look()
                self._closing.wait(max(0.0, begun + _LOOK_SECONDS - time.monotonic()))
        finally:
            self._release()

    def _take_turn(self) -> bool:
        """Become the one that copies; return False if another replica is."""
        try:
            self._lock = FolderLock(self.folder)
        except FolderInUseError:
            state = self._read_state()
            is_other = state is not None and state["url"] != self._url
            self.problem = "another replica copies another models_url to this models_dir" if is_other else None
            self.is_complete = state is not None and not is_other and state.get("is_complete") is True
            return False
        state = self._read_state()
        if state is not None and state["url"] == self._url:
            self._copied, self._sizes = state["copied"], state["sizes"]
        return True

    def _renew_lock(self) -> None:
        if self._lock is not None:
            try:
                self._lock.renew()
            except FolderInUseError:  # the folder was removed, and another replica was quicker
                self._release()

    def _forget_lost(self) -> None:
        """Forget copies that have gone or changed, so that they are copied again.

        A crash or a full disk may have cut one short, or somebody removed it or put another file in its place.
        """
        self._copied = {
            path: mark
            for path, mark in self._copied.items()
            if (size := self._get_size(path)) is not None and size == self._sizes.get(path)
        }

    def _read_state(self) -> dict[str, Any] | None:
        with suppress(OSError, ValueError):
            state = json.loads((self.folder / _STATE_FILE).read_bytes())
            if isinstance(state, dict) and all(isinstance(state.get(name), dict) for name in ("copied", "sizes")):
                return {"url": None, **state}
        return None

    def _get_size(self, path: str) -> int | None:
        with suppress(OSError):
            return (self.folder / path).stat().st_size
        return None

    def _list_files(self) -> dict[str, _RemoteFile]:
        """List the models of the store by path.

        :raises MirrorError: If there is no model, although some were copied: a folder whose disk is not mounted looks
            empty.
        :raises Exception: If a folder cannot be listed.
        """
        self._files.invalidate_cache()
        root = self._root.rstrip("/")
        files = {}
        # Not find(), which leaves out what it cannot list: that would look as if it were deleted.
        for _, _, found in self._files.walk(root, detail=True, on_error="raise"):
            for facts in found.values():
                path = facts["name"].removeprefix(root).lstrip("/")
                if _find_model(path) is not None:
                    files[path] = _RemoteFile(facts["name"], facts["size"], _mark(facts), _find_time(facts))
        if self._copied and not files:
            raise MirrorError("there is no model any more; what was copied before stays")
        return files

    def _copy_changes(self, files: Mapping[str, _RemoteFile]) -> None:
        changed: defaultdict[str, list[str]] = defaultdict(list)
        self._refused = {path: refused for path, refused in self._refused.items() if path in files}
        # Notes that may point an alias at what is refused.
        still_refused = [path for path, (mark, _) in self._refused.items() if files[path].mark == mark]
        held = {_find_notes(path) for path in still_refused} & self._copied.keys()
        for path, file in files.items():
            if path not in held and file.mark not in (self._copied.get(path), self._refused.get(path, ("",))[0]):
                changed[_find_model(path) or ""].append(path)
        self._failed = {}
        for model_name, paths in changed.items():
            try:
                self._copy_model({path: files[path] for path in sorted(paths, key=_order)})
            except Exception as error:  # foreign code; one file that cannot be read must not keep the others away
                self._failed[model_name] = f"model '{model_name}' cannot be copied: {describe_error(error)}"
        gone = sorted(self._list_copies() - files.keys(), key=_order, reverse=True)
        for path in gone:
            (self.folder / path).unlink(missing_ok=True)
            self._copied.pop(path, None)
        is_complete = self.is_complete or not self._failed
        if changed or gone or not self.is_complete:
            sizes = {path: self._sizes.get(path) for path in self._copied}
            state = {"url": self._url, "copied": self._copied, "sizes": sizes, "is_complete": is_complete}
            _write(self.folder / _STATE_FILE, json.dumps(state).encode(), None).replace(self.folder / _STATE_FILE)
        self.is_complete = is_complete

    def _copy_model(self, files: Mapping[str, _RemoteFile]) -> None:
        """Replace files of one model together; if one of them cannot be used, the others come at the next look."""
        staged: dict[str, Path] = {}
        try:
            for path, file in files.items():
                target = self.folder / path
                target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                staged[path] = _write(target, self._read(path, file), file.modified_at)
            self._mark_newest(staged)
            for path, temporary in staged.items():
                temporary.replace(self.folder / path)
                self._copied[path], self._sizes[path] = files[path].mark, self._get_size(path)
                self._refused.pop(path, None)
        except model_file.ModelFileError as error:
            self._refused[path] = file.mark, f"{printable(path)} is not copied: {error}"
        finally:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)

    def _mark_newest(self, staged: Mapping[str, Path]) -> None:
        """Give a version with the newest one's content its time, as the trainer's link has it.

        By that it is known to be the newest itself: stores have a time of their own for each.
        """
        for path, temporary in staged.items():
            newest = staged.get(name := f"{_find_model(path)}.zip", self.folder / name)
            with suppress(OSError):
                if _is_version(path) and temporary.read_bytes() == newest.read_bytes():
                    times = newest.stat()
                    os.utime(temporary, ns=(times.st_atime_ns, times.st_mtime_ns))

    def _read(self, path: str, file: _RemoteFile) -> bytes:
        """Read and verify a file.

        :raises ModelFileError: If it cannot be used.
        """
        is_model = path.endswith(".zip")
        max_bytes = model_file.SERVICE_LIMITS.file_bytes if is_model else _MAX_NOTES_BYTES
        if file.n_bytes > max_bytes:
            raise model_file.ModelFileError(f"it has {file.n_bytes} bytes, more than the limit of {max_bytes}.")
        content: bytes = self._files.cat_file(file.path)
        if is_model:
            model_file.from_bytes(content).make_actor()
        else:
            _check_notes(content)
        return content

    def _list_copies(self) -> set[str]:
        paths = (path.relative_to(self.folder).as_posix() for path in _list_zips_and_notes(self.folder))
        return {path for path in paths if _find_model(path) is not None}


def _check_notes(content: bytes) -> None:
    try:
        json.loads(content)
    except ValueError as error:
        raise model_file.ModelFileError(f"it is not JSON: {error}") from error


def _open_store(url: str) -> tuple[Any, str]:
    try:
        from fsspec.core import url_to_fs  # only here, since most servers do without
    except ImportError as error:
        raise MirrorError("models_url needs fsspec: pip install fsspec and the package for your store.") from error
    try:
        files, root = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise MirrorError(f"models_url cannot be opened: {error}") from error
    return files, root


def _list_zips_and_notes(folder: Path) -> Iterable[Path]:
    yield from folder.glob("*.zip")
    yield from (folder / VERSIONS_FOLDER).glob("*/*")


def _find_model(path: str) -> str | None:
    """Return the model that a path belongs to; None if it is no model's."""
    match = _PATH.fullmatch(path)
    name = match and (match["newest"] or match["name"])
    return name if name and is_model_name(name) else None


def _find_notes(path: str) -> str:
    """Return the path of the notes on the model that a path belongs to."""
    return f"{VERSIONS_FOLDER}/{_find_model(path)}/notes.json"


def _is_version(path: str) -> bool:
    """Tell whether a path is an earlier version's."""
    return path.startswith(f"{VERSIONS_FOLDER}/") and path.endswith(".zip")


def _order(path: str) -> tuple[bool, str]:
    """Sort earlier versions before the newest, so that none is missing at any instant."""
    return not path.startswith(f"{VERSIONS_FOLDER}/"), path


def _mark(facts: Mapping[str, Any]) -> str:
    return "|".join(str(facts[name]) for name in _MARKS if facts.get(name) is not None)


def _find_time(facts: Mapping[str, Any]) -> float | None:
    times = (facts.get(name) for name in ("mtime", "LastModified", "last_modified", "updated", "created"))
    found = next((moment for moment in times if isinstance(moment, float | datetime)), None)
    return found.timestamp() if isinstance(found, datetime) else found


def _write(target: Path, content: bytes, modified_at: float | None) -> Path:
    """Write a file beside the one that it will replace, and return where."""
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}")
    try:
        temporary.write_bytes(content)
        if modified_at is not None:
            os.utime(temporary, (modified_at, modified_at))
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary
