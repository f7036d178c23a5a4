"""Films of what jobs have learned so far."""

import threading

from cachetools import LRUCache

from service.errors import ConflictError, NotFoundError
from service.jobs.job import Job
from service.jobs.lineage import find_its_model, read_checkpoint_model
from service.jobs.registry import JobRegistry
from service.models.playing.play import FilmOrder
from service.models.playing.player import Film, ModelPlayer
from service.models.store import ModelStore
from service.schemas.models import VideoFormat

# More than the player keeps: a film has kilobytes.
_MAX_REMEMBERED = 16_384


class JobFilms:
    """Films the policies of jobs. Safe to use from any thread.

    :param registry: The jobs.
    :param store: The models that they have saved.
    :param player: Makes the films.
    """

    def __init__(self, registry: JobRegistry, store: ModelStore, player: ModelPlayer) -> None:
        self._registry, self._store, self._player = registry, store, player
        self._lock = threading.Lock()
        # Which films were made of which job. Guarded by the lock.
        self._made: LRUCache[tuple[str, VideoFormat, str], None] = LRUCache(_MAX_REMEMBERED)

    def film(self, job_id: str, order: FilmOrder, of: str | None = None) -> tuple[Film, int | None]:
        """Film one episode of the newest policy of a job: the one that it has saved, or else its latest checkpoint's.

        :param of: Digest of a film that was made of this job before, in this format: it comes again, even if there is a
            newer policy by now.
        :return: The film, and the simulator steps of the checkpoint; None if the saved policy plays, or for ``of``.
        :raises NotFoundError: If there is no such job, or no such film of it was kept.
        :raises ConflictError: If nothing of it was kept yet, or it cannot be played.
        :raises ServiceError: Whatever ``ModelPlayer.film`` raises.
        """
        job = self._registry.get(job_id)
        if of is not None and (made := self._find_film(job.job_id, order.video_format, of)) is not None:
            return made, None
        film, timesteps = self._film_newest(job, order)
        if of not in (None, film.digest):
            raise NotFoundError(
                f"the film {of} was not kept, or is no film of this job as {order.video_format}; leave out `of` for "
                "one of the newest policy."
            )
        with self._lock:
            self._made[job.job_id, order.video_format, film.digest] = None
        return film, timesteps

    def _find_film(self, job_id: str, video_format: VideoFormat, digest: str) -> Film | None:
        with self._lock:
            is_its_own = (job_id, video_format, digest) in self._made
        return self._player.find_film(digest) if is_its_own else None

    def _film_newest(self, job: Job, order: FilmOrder) -> tuple[Film, int | None]:
        status = job.describe()
        saved = None if status.model_name is None else find_its_model(self._store, job)
        if saved is not None:  # perhaps an earlier version by now
            return self._player.film(saved, order), None
        kept = read_checkpoint_model(self._registry.checkpoints, job)
        if kept is None and status.model_name is not None:
            name, remedy = status.model_name, "there is no model of that name any more; train it again, or upload it"
            if self._store.exists(name):
                remedy = f"GET /models/{name}/versions lists those that are there"
            raise ConflictError(
                f"what job {job.job_id} has saved as '{name}' was deleted since, or is too old a version to be kept; "
                f"{remedy}."
            )
        if kept is None:
            raise ConflictError(
                f"job {job.job_id} has neither a checkpoint nor a model to film; a running job takes a checkpoint a "
                "minute, or as often as checkpoint_every says."
            )
        content, timesteps = kept
        return self._player.film_content(content, job.config.env_setup, order), timesteps
