"""The service: its parts, and the operations of routes and dashboard that need several of them."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from anyio import CapacityLimiter

from grpo_core.options.rewards import RewardFunction
from grpo_core.saving.model_file import ModelFileError, from_bytes
from grpo_core.saving.moments import check_moments
from service.environments.catalogue import Catalogue
from service.errors import ConflictError, InvalidRequestError, NotFoundError, QueueFullError
from service.jobs.client_jobs import ClientJobs, JobLimits
from service.jobs.job import Job
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.journal import JobJournal, open_journal
from service.jobs.records.recorder import JobRecorder
from service.jobs.registry import JobRegistry
from service.jobs.views.events import EventStreams
from service.models.card import make_card
from service.models.exporter import ModelExporter
from service.models.folder import ModelFolder
from service.models.folder_id import read_folder_id
from service.models.folder_lock import FolderLock
from service.models.player import Film, ModelPlayer
from service.models.promotion import ModelPromotion
from service.models.served import ServedModel
from service.models.store import ModelStore
from service.monitoring.memory import get_available_bytes, get_total_bytes
from service.monitoring.prometheus import Metrics
from service.monitoring.readiness import Readiness
from service.replicas.mirror import Mirror
from service.replicas.read_only import ReadOnlyRule
from service.schemas.models import ModelCard, RollbackResponse, VideoFormat
from service.schemas.training import TrainConfig, TrainRequest
from service.settings import Settings
from service.sweeps.conductor import Conductor
from service.training.planning.plan import TrainingPlan
from service.training.planning.planner import Planner
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.executor import Executor, make_executor
from service.workers.none import NoExecutor
from service.workers.short_tasks import ShortTasks
from service.workers.task import Keeper

# Batches answered at the same time; each now and then keeps the event loop waiting for the interpreter.
_MAX_RUNNING_BATCHES = 2
# Requests planned at the same time.
_MAX_RUNNING_PLANS = 2
# Uploads verified at the same time; a file of a few kilobytes may claim spaces that take many megabytes to read.
_MAX_VERIFIED_UPLOADS = 2


class Service:
    """All parts of one running application. Safe to use from any thread.

    :param settings: Limits and folders.
    :param reward_functions: The reward functions that jobs can name; read again for every job.
    :param lock: Keeps other servers out of the models folder; None if nothing does.
    :raises OSError: If the models folder cannot be created or written to.
    """

    def __init__(
        self, settings: Settings, reward_functions: Mapping[str, RewardFunction], lock: FolderLock | None = None
    ) -> None:
        self.settings = settings
        self.reward_functions = reward_functions
        #: Set when the server begins to shut down.
        self.closing = threading.Event()
        #: Copies the models from an object store; None if they are in the folder already.
        self.mirror = None if settings.models_url is None else Mirror(settings.models_url, settings.models_dir)
        folder = ModelFolder(
            settings.models_dir if self.mirror is None else self.mirror.folder,
            min_free_bytes=settings.min_free_bytes,
            lock=lock,
            max_models=settings.max_models,
            max_models_bytes=settings.max_models_bytes,
            max_versions=settings.max_model_versions,
            is_read_only=settings.is_replica,
        )
        self.store = ModelStore(
            folder,
            max_cached_models=settings.max_cached_models,
            max_cached_bytes=settings.max_cached_bytes,
            available_bytes=get_available_bytes,
            total_bytes=get_total_bytes(),
        )
        job_parts = _make_job_parts(settings)
        self.executor = job_parts.executor
        self.registry = _make_registry(self.store, job_parts, settings)
        limits = JobLimits(settings.client_active_jobs, settings.client_job_timesteps, settings.client_job_seconds)
        self._client_jobs = ClientJobs(limits, self.registry.is_active) if settings.limits_clients else None
        self.short_tasks = ShortTasks(self.executor, settings.task_seconds, self.closing)
        # Separate from the tasks above, so that plans never wait for evaluations and films, nor these for plans. As
        # many plans may wait as jobs, in threads of their own, so that a slow environment delays no other request.
        n_waiting = settings.max_running_jobs + settings.max_queued_jobs
        self._planner = Planner(
            ShortTasks(
                self.executor,
                settings.task_seconds,
                self.closing,
                max_running=_MAX_RUNNING_PLANS,
                max_waiting=n_waiting,
            ),
            reward_functions,
        )
        self.planning_limiter = CapacityLimiter(_MAX_RUNNING_PLANS + n_waiting)
        self.sweeps = Conductor(job_parts.journal, self.registry, self.store, self, settings.max_models)
        self.player = ModelPlayer(self.store, self.short_tasks)
        self.promotion = ModelPromotion(self.store, self.player)
        self.exporter = ModelExporter(self.store, self.short_tasks)
        self.catalogue = Catalogue(self.short_tasks, reward_functions)
        self.streams = EventStreams(self.closing)
        self.readiness = Readiness(self.store, self.closing, self.mirror)
        self.metrics = Metrics(self.store, self.registry, self.readiness, settings.role)
        self.batch_limiter = CapacityLimiter(_MAX_RUNNING_BATCHES)
        self.drawing_limiter = CapacityLimiter(1)
        self.readiness_limiter = CapacityLimiter(1)
        self._uploads = threading.BoundedSemaphore(_MAX_VERIFIED_UPLOADS)

    def start_job(
        self,
        request: TrainRequest,
        client: str | None = None,
        sweep_id: str | None = None,
        init_sha256: str | None = None,
    ) -> Job:
        """Plan a training job and queue it. It may take seconds, so call it in a thread of ``planning_limiter``.

        :param client: The address that it is counted for; None for the operator's own, which are not.
        :param sweep_id: The sweep that it belongs to; None if to none.
        :param init_sha256: The file that ``init_model`` named for the sweep; None takes what it names now.
        :raises InvalidRequestError: If the request names what does not exist or combines what does not fit.
        :raises ConflictError: If an active job will save under the same name.
        :raises ServiceError: Whatever ``JobRegistry.submit`` and ``ShortTasks.run`` raise.
        """
        if client is None or self._client_jobs is None:
            return self._start_job(request, sweep_id, init_sha256)
        limits = self._client_jobs.limits
        return self._client_jobs.start(client, partial(self._start_job, request, sweep_id, init_sha256, limits))

    def check_place(self) -> None:
        """Refuse another job at once if those that run, wait and are being planned are enough.

        :raises QueueFullError: If they are.
        """
        self.registry.check_place(self._count_plans())

    def check_plans(self) -> None:
        """Refuse a sweep at once if so much is being planned that it would wait; its jobs wait for places themselves.

        :raises QueueFullError: If that is so.
        """
        n_plans = self._count_plans()
        if n_plans >= self.planning_limiter.total_tokens:
            raise QueueFullError(f"{n_plans} jobs and sweeps are being planned, the most that may; try again later.")

    def _count_plans(self) -> int:
        planned = self.planning_limiter.statistics()
        return planned.borrowed_tokens + planned.tasks_waiting

    def _start_job(
        self, request: TrainRequest, sweep_id: str | None, init_sha256: str | None, limits: JobLimits | None = None
    ) -> Job:
        self.registry.check_room(request.model_name)
        return self.registry.submit(self.plan(request, init_sha256, limits)._replace(sweep_id=sweep_id))

    def resume_job(self, job_id: str, client: str | None = None) -> Job:
        """Queue a job again that was stopped or failed, perhaps with an earlier server.

        :param client: As in ``start_job``.
        :raises NotFoundError: If it never existed or has been forgotten.
        :raises ConflictError: If it cannot go on, or what it was trained with is no longer there.
        :raises ServiceError: Whatever ``JobRegistry.resume`` raises.
        """
        if client is None or self._client_jobs is None:
            return self._resume_job(job_id)
        self._client_jobs.limits.check(self.registry.get(job_id).config)
        return self._client_jobs.start(client, partial(self._resume_job, job_id))

    def _resume_job(self, job_id: str) -> Job:
        job = self.registry.get(job_id)
        self.registry.resume(job, self._planner.find_rewards(job.config))
        return job

    def plan(
        self, request: TrainRequest, init_sha256: str | None = None, limits: JobLimits | None = None
    ) -> TrainingPlan:
        """Fill in and check a request without starting its job. It may take seconds, as ``start_job`` may.

        :param init_sha256: As in ``start_job``.
        :param limits: What the job may take; None for as much as it asks.
        :raises InvalidRequestError: If the request names what does not exist or combines what does not fit.
        :raises ServiceError: Whatever ``ShortTasks.run`` raises.
        """
        restricted = request if limits is None else limits.restrict(request)
        meta, sha256 = self._read_init_model(request.init_model, init_sha256)
        plan = self._planner.plan(restricted, meta)
        if limits is not None:
            limits.check(plan.config)  # the request need not say how long a rollout is
        origins = plan.config_origins
        if restricted.max_seconds != request.max_seconds:
            origins = {**origins, "max_seconds": "default"}
        return plan._replace(init_sha256=sha256, config_origins=origins)

    def plan_config(self, request: TrainRequest, client: str | None, init_sha256: str | None = None) -> TrainConfig:
        """Return the configuration that a client's job would have.

        :param init_sha256: As in ``start_job``.
        :raises ServiceError: Whatever ``start_job`` raises of a request.
        """
        limits = None if client is None or self._client_jobs is None else self._client_jobs.limits
        return self.plan(request, init_sha256, limits).config

    def _read_init_model(self, name: str | None, sha256: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
        """Return what a model says of itself that training is to begin from, and the SHA-256 of its file."""
        if name is None:
            return None, None
        reference: str | None = name
        # Once more, as it may be replaced between the two looks, and its file then be an earlier version's.
        for _ in range(2):
            if sha256 is not None:
                reference = self.store.folder.find_reference(name, sha256)
            if reference is None:
                break
            try:
                file = self.store.inspect_file(reference)
                if sha256 in (None, file.sha256):
                    meta = (file.model or self.store.get(reference)).meta
                    if (content := self.store.folder.find_content(reference, file.sha256)) is not None:
                        check_moments(from_bytes(content, with_optimizer=True))
                    return meta, file.sha256
            except (NotFoundError, ConflictError) as error:
                raise InvalidRequestError(f"init_model '{name}' cannot be trained on: {error.detail}") from error
            except ModelFileError as error:
                raise InvalidRequestError(f"init_model '{name}' cannot be trained on: {error}") from error
        raise InvalidRequestError(
            f"init_model '{name}' was deleted or replaced since the sweep was accepted, and no version of it is "
            "that file; start a new sweep with a model that is there."
        )

    def begin(self) -> None:
        """Follow the jobs again that went on without their server, and get ready for others."""
        self.registry.rejoin(self._planner.find_rewards)
        if self.settings.preload:
            self.executor.warm_up()

    def begin_close(self) -> None:
        """Refuse new work, and have the jobs stop and save; ``close`` waits for them."""
        self.closing.set()
        # Before the jobs end, so that their sweeps do not take that for a stop by hand.
        self.sweeps.begin_close()
        self.executor.drain()
        self.registry.stop_all()

    def close(self) -> None:
        """Stop the jobs, let them save, and end whatever still runs. A second call does nothing."""
        self.begin_close()
        self.sweeps.close()
        self.registry.shutdown(self.settings.shutdown_grace_seconds)
        self.executor.close()
        if self.mirror is not None:
            self.mirror.close()

    def load_model(self, model_name: str) -> ServedModel:
        """Return a model that is ready for inference, from memory or from its file.

        :raises NotFoundError: If there is no such model; the message names a job that will save it.
        :raises ConflictError: If its file cannot be used.
        """
        try:
            return self.store.get(model_name)
        except NotFoundError as error:
            job = self.registry.find_active(model_name)
            if job is None or job.config.model_name != model_name:  # one that differs in case is active as well
                raise
            raise NotFoundError(
                f"there is no model '{model_name}' yet: job {job.job_id} is {job.status} and saves it when it "
                "completes."
            ) from error

    def roll_back_model(
        self, model_name: str, version: int | None, check: Callable[[], None] = lambda: None
    ) -> RollbackResponse:
        """Make an earlier version of a model the newest again.

        :param check: Called once nobody else can replace the newest; raises if it is not to be replaced.
        :raises ConflictError: If an active job or an upload will save under its name.
        :raises ServiceError: Whatever ``ModelPromotion.roll_back`` raises.
        """
        with self.registry.reserve_name(model_name), self._uploads:
            check()
            return self.promotion.roll_back(model_name, version)

    def film_job(
        self,
        job_id: str,
        video_format: VideoFormat,
        seed: int,
        deterministic: bool,
        max_steps: int,
        of: str | None = None,
    ) -> tuple[Film, int | None]:
        """Film one episode of the newest policy of a job: the one that it has saved, or else its latest checkpoint's.

        :param of: Digest of a film that was made before: it comes again, even if there is a newer policy by now.
        :return: The film, and the simulator steps of the checkpoint; None if the saved policy plays, or for ``of``.
        :raises NotFoundError: If there is no such job, or the film was not kept.
        :raises ConflictError: If nothing of it was kept yet, or it cannot be played.
        :raises ServiceError: Whatever ``ModelPlayer.film`` raises.
        """
        job = self.registry.get(job_id)
        if of is not None and (made := self.player.find_film(of)) is not None:
            return made, None
        film, timesteps = self._film_newest(job, video_format, seed, deterministic, max_steps)
        if of not in (None, film.digest):
            raise NotFoundError(f"the film {of} was not kept; leave out `of` for one of the newest policy.")
        return film, timesteps

    def _film_newest(
        self, job: Job, video_format: VideoFormat, seed: int, deterministic: bool, max_steps: int
    ) -> tuple[Film, int | None]:
        status = job.describe()
        saved = None if status.model_name is None else self.registry.find_its_model(job)
        if saved is not None:  # perhaps an earlier version by now
            return self.player.film(saved, video_format, seed, deterministic, max_steps), None
        kept = self.registry.read_checkpoint_model(job)
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
        setup = job.config.env_setup
        return self.player.film_content(content, setup, video_format, seed, deterministic, max_steps), timesteps

    def save_upload(self, model_name: str, content: bytes, overwrite: bool, check: Callable[[], None]) -> ModelCard:
        """Verify a model file, save it and serve it; return its card.

        :param overwrite: Whether it may replace a model of that name.
        :param check: Called once nobody else can replace that model; raises if it is not to be replaced.
        :raises InvalidRequestError: If the file cannot be used; nothing is replaced.
        :raises ConflictError: If the name is taken, or an active job will save under it.
        :raises StorageLowError: If it does not fit on the disk or into the folder.
        :raises StorageError: If it cannot be written to the disk.
        """
        with self.registry.reserve_name(model_name):
            if not overwrite and self.store.exists(model_name):
                raise ConflictError(
                    f"a model '{model_name}' already exists; choose another name or send overwrite=true."
                )
            check()
            self.store.folder.check_space(len(content), model_name)
            try:
                with self._uploads:
                    check_moments(from_bytes(content, with_optimizer=True))
                    self.store.publish(model_name, content)
            except ModelFileError as error:
                raise InvalidRequestError(f"this model file cannot be used: {error}") from error
            return make_card(self.store, model_name)  # before anybody else can delete it


class _JobParts(NamedTuple):
    """What runs jobs, and what remembers them.

    :param obstacle: Why the journal is in memory only; None if it is not, or has nothing to remember.
    """

    executor: Executor
    journal: JobJournal
    obstacle: str | None = None

    @property
    def keeper(self) -> Keeper | None:
        """The executor if its jobs outlive the server; without a usable journal the next one would know of none."""
        return _find_keeper(self.executor) if self.obstacle is None else None


def _make_job_parts(settings: Settings) -> _JobParts:
    if settings.is_replica:  # it has no jobs, and the jobs' file is the trainer's
        return _JobParts(NoExecutor(ReadOnlyRule(settings).describe()), JobJournal())
    executor = make_executor(settings.executor, settings.log_style, _make_ray_options(settings))
    journal, obstacle = open_journal(settings.models_dir, keeps_running=_find_keeper(executor) is not None)
    return _JobParts(executor, journal, obstacle)


def _find_keeper(executor: Executor) -> Keeper | None:
    return executor if isinstance(executor, RayExecutor) and executor.can_keep else None


def _make_ray_options(settings: Settings) -> RayOptions:
    is_shared = settings.executor == "ray" and settings.ray_address is not None
    return RayOptions(
        settings.ray_address,
        settings.ray_gpus_per_job,
        settings.ray_wait_seconds,
        settings.env_modules,
        settings.ray_lease_seconds,
        (read_folder_id(settings.models_dir) if is_shared else None) or "",
    )


def _make_registry(store: ModelStore, parts: _JobParts, settings: Settings) -> JobRegistry:
    checkpoints = None if settings.is_replica else CheckpointFolder(settings.models_dir, settings.max_models_bytes)
    return JobRegistry(
        store,
        parts.executor,
        max_running=settings.max_running_jobs,
        max_queued=settings.max_queued_jobs,
        max_kept=settings.max_kept_jobs,
        stall_seconds=settings.stall_seconds,
        checkpoints=checkpoints,
        tensorboard_dir=settings.tensorboard_dir,
        max_kept_days=settings.max_kept_days,
        recorder=JobRecorder(parts.journal, parts.obstacle),
        # On a cluster, each declares one processor; here they share the machine's.
        n_threads_per_job=1 if settings.executor == "ray" else None,
        keeper=parts.keeper,
    )
