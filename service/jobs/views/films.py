"""Films of what jobs have learned so far."""

from service.errors import ConflictError, NotFoundError
from service.jobs.job import Job
from service.jobs.lineage import find_its_model, read_checkpoint_model
from service.jobs.registry import JobRegistry
from service.models.playing.play import FilmOrder
from service.models.playing.player import Film, ModelPlayer
from service.models.store import ModelStore


class JobFilms:
    """Films the policies of jobs. Safe to use from any thread.

    :param registry: The jobs.
    :param store: The models that they have saved.
    :param player: Makes the films.
    """

    def __init__(self, registry: JobRegistry, store: ModelStore, player: ModelPlayer) -> None:
        self._registry, self._store, self._player = registry, store, player

    def film(self, job_id: str, order: FilmOrder, of: str | None = None) -> tuple[Film, int | None]:
        """Film one episode of the newest policy of a job: the one that it has saved, or else its latest checkpoint's.

        :param of: Digest of a film that was made before: it comes again, even if there is a newer policy by now.
        :return: The film, and the simulator steps of the checkpoint; None if the saved policy plays, or for ``of``.
        :raises NotFoundError: If there is no such job, or the film was not kept.
        :raises ConflictError: If nothing of it was kept yet, or it cannot be played.
        :raises ServiceError: Whatever ``ModelPlayer.film`` raises.
        """
        job = self._registry.get(job_id)
        if of is not None and (made := self._player.find_film(of)) is not None:
            return made, None
        film, timesteps = self._film_newest(job, order)
        if of not in (None, film.digest):
            raise NotFoundError(f"the film {of} was not kept; leave out `of` for one of the newest policy.")
        return film, timesteps

    def _film_newest(self, job: Job, order: FilmOrder) -> tuple[Film, int | None]:
        status = job.describe()
        saved = None if status.model_name is None else find_its_model(self._store, job)
        if saved is not None:  # perhaps an earlier version by now
            return self._player.film(saved, order), None
        kept = read_checkpoint_model(self._registry.checkpoints, job)
        if kept is None and status.model_name is not None:
            raise ConflictError(
                f"what job {job.job_id} has saved as '{status.model_name}' was deleted since, or is too old a version "
                f"to be kept; GET /models/{status.model_name}/versions lists those that are there."
            )
        if kept is None:
            raise ConflictError(
                f"job {job.job_id} has neither a checkpoint nor a model to film; a running job takes a checkpoint a "
                "minute, or as often as checkpoint_every says."
            )
        content, timesteps = kept
        return self._player.film_content(content, job.config.env_setup, order), timesteps
