"""Evaluate and film saved models."""

import hashlib
import json
import os
import shutil
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cachetools import LRUCache

from grpo_core.environments.making import EnvSetup
from grpo_core.saving import model_file
from service.environments.catalogue import find_spec
from service.errors import ConflictError, StorageError
from service.models.card import find_env_name, find_env_setup
from service.models.files.folder import FileSignature
from service.models.playing.play import FilmOrder, Play
from service.models.served import ServedModel
from service.models.store import ModelStore
from service.schemas.jobs import EpisodeFigures
from service.schemas.models import EvaluateResponse, ModelFigures, VideoFormat
from service.workers.short_tasks import ShortTasks
from service.workers.task import Task

MEDIA_TYPES: dict[VideoFormat, str] = {"gif": "image/gif", "mp4": "video/mp4"}
_MAX_CACHED_BYTES = 32 * 2**20
_MAX_EVALUATIONS = 512
_FOLDER_PREFIX = "grpo-film-"
# No film takes a day: a folder of this age is what a killed server has left.
_LEFTOVER_SECONDS = 86_400.0


class Film(NamedTuple):
    """One filmed episode.

    :param content: The file's bytes.
    :param media_type: Its media type, such as ``image/gif``.
    :param reward: Sum of the environment's own rewards.
    :param n_steps: Number of steps in the episode.
    :param digest: SHA-256 of the file, in hexadecimal digits.
    """

    content: bytes
    media_type: str
    reward: float
    n_steps: int
    digest: str


# A file and how to play it; the same key always gives the same film or evaluation.
_FilmKey = tuple[FileSignature | bytes, FilmOrder]
_EvaluationKey = tuple[FileSignature, int, int, bool]


class ModelPlayer:
    """Plays saved models in the environments that their files name. Safe to use from any thread.

    Calls may take seconds. Films and evaluations are cached until the file changes.

    :param store: The models.
    :param short_tasks: Runs the episodes, since they run the environment's code.
    """

    def __init__(self, store: ModelStore, short_tasks: ShortTasks) -> None:
        _sweep_folders()
        self._store = store
        self._short_tasks = short_tasks
        # Guards the three below.
        self._lock = threading.Lock()
        self._films: LRUCache[_FilmKey, Film] = LRUCache(_MAX_CACHED_BYTES, getsizeof=lambda film: len(film.content))
        self._answers: LRUCache[_EvaluationKey, EvaluateResponse] = LRUCache(_MAX_EVALUATIONS)
        self._latest: LRUCache[FileSignature, EpisodeFigures] = LRUCache(_MAX_EVALUATIONS)

    def evaluate(self, model_name: str, n_episodes: int, seed: int, deterministic: bool) -> EvaluateResponse:
        """Evaluate a model over whole episodes, and compare it with uniformly random actions from the same seeds.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If it cannot be played in the environment that its file names.
        :raises ServiceError: If the environment fails, and whatever ``ShortTasks.run`` raises.
        """
        model, play = self._prepare(model_name, seed, deterministic)
        key = (model.signature, n_episodes, seed, deterministic)
        with self._lock:
            answer = self._answers.get(key)
        if answer is None:
            started = time.monotonic()
            task = Task("service.models.playing.episodes:evaluate_policy", (play, n_episodes), play.env_name)
            content = self._short_tasks.run(task, "ask for fewer episodes.")
            figures = ModelFigures.model_validate_json(content)
            answer = EvaluateResponse(
                model_name=model_name,
                env_name=play.env_name,
                seed=seed,
                deterministic=deterministic,
                evaluation=figures.evaluation,
                random=figures.random,
                better_than_random=_is_better(figures.evaluation, figures.random),
                seconds=time.monotonic() - started,
                warnings=figures.warnings,
            )
        with self._lock:
            self._answers[key] = answer
            if deterministic:  # as a final evaluation is, so that a model is shown as it answers
                self._latest[model.signature] = answer.evaluation
        # The same file may have been asked for by another name before, such as an alias.
        return answer.model_copy(update={"model_name": model_name})

    def film(self, model_name: str, order: FilmOrder) -> Film:
        """Film one episode of a model.

        :raises NotFoundError: If there is no such model.
        :raises ConflictError: If it cannot be played in the environment that its file names.
        :raises StorageError: If the temporary folder cannot be used.
        :raises ServiceError: If the environment fails or cannot be rendered, and whatever ``ShortTasks.run`` raises.
        """
        model, play = self._prepare(model_name, order.seed, order.deterministic)
        return self._film(play, model.signature, order)

    def film_content(self, content: bytes, setup: EnvSetup, order: FilmOrder) -> Film:
        """Film one episode of a model file that is not among the models.

        :raises ConflictError: If only torch can run it, or it does not fit the environment.
        :raises StorageError: If the temporary folder cannot be used.
        :raises ServiceError: If the environment fails or cannot be rendered, and whatever ``ShortTasks.run`` raises.
        """
        try:
            actor = model_file.from_bytes(content).make_actor()
        except model_file.ModelFileError as error:
            raise ConflictError(f"this policy cannot be filmed: {error}") from error
        play = Play(actor, setup, order.seed, order.deterministic)
        return self._film(play, hashlib.sha256(content).digest(), order)

    def _film(self, play: Play, file: FileSignature | bytes, order: FilmOrder) -> Film:
        key = (file, order)
        with self._lock:
            film = self._films.get(key)
        if film is not None:
            return film
        with _make_folder() as folder:
            arguments = (play, order.video_format, order.max_steps, folder)
            task = Task("service.models.playing.episodes:film_policy", arguments, play.env_name)
            header, _, content = self._short_tasks.run(
                task, "ask for a lower max_steps.", "ask for a lower max_steps, or give the server more memory."
            ).partition(b"\n")
        digest = hashlib.sha256(content).hexdigest()
        film = Film(content, MEDIA_TYPES[order.video_format], **json.loads(header), digest=digest)
        with self._lock:
            if len(content) <= self._films.maxsize:
                self._films[key] = film
        return film

    def find_film(self, digest: str) -> Film | None:
        """Return a film that was made before; None if it was not kept."""
        with self._lock:
            return next((film for film in self._films.values() if film.digest == digest), None)

    def find_evaluation(self, signature: FileSignature) -> EpisodeFigures | None:
        """Return the latest evaluation of a file with the most likely actions; None without one since it changed."""
        with self._lock:
            return self._latest.get(signature)

    def _prepare(self, model_name: str, seed: int, deterministic: bool) -> tuple[ServedModel, Play]:
        model = self._store.get(model_name)
        # The file may have been uploaded, so it must only name environments that are registered here.
        env_name = find_env_name(model.meta)
        if env_name is None:
            raise ConflictError(
                f"model '{model_name}' cannot be played: its file names no environment, as files of GRPO.save do not; "
                "train a model with POST /train."
            )
        if find_spec(env_name) is None:
            raise ConflictError(
                f"model '{model_name}' cannot be played: its environment '{env_name}' is not registered here; start "
                "the server with --env-module and the module that registers it."
            )
        setup = find_env_setup(model.meta)
        if setup is None:
            raise ConflictError(
                f"model '{model_name}' cannot be played: its file gives '{env_name}' env_kwargs or wrappers that a "
                "request could not give; train it again with POST /train."
            )
        return model, Play(model.actor, setup, seed, deterministic)


def _is_better(trained: EpisodeFigures, random: EpisodeFigures) -> bool:
    """Return whether the interval of the trained policy is above that of random actions; a single episode has none."""
    if trained.mean_reward_ci95 is None or random.mean_reward_ci95 is None:
        return False
    return trained.mean_reward_ci95[0] > random.mean_reward_ci95[1]


def _make_folder() -> tempfile.TemporaryDirectory[str]:
    """Create a folder for a film: here, since a killed task could not remove it."""
    try:
        return tempfile.TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "unknown reason"  # the error's own text may hold paths
        raise StorageError(
            f"the film cannot be made: the server's temporary folder cannot be used ({reason}); free some space there, "
            "or start the server with another TMPDIR."
        ) from error


def _sweep_folders() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _LEFTOVER_SECONDS:
                shutil.rmtree(folder)
