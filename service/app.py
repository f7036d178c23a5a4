"""The service: its parts, and the operations of routes and dashboard that need several of them."""

import threading
from collections.abc import Mapping
from typing import NamedTuple

from anyio import CapacityLimiter

from grpo_core.options.rewards import RewardFunction
from service.environments.catalogue import Catalogue
from service.errors import NotFoundError
from service.jobs.admission import JobAdmission
from service.jobs.client_jobs import JobLimits
from service.jobs.job import Job
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.journal import JobJournal, open_journal
from service.jobs.records.recorder import JobRecorder
from service.jobs.registry import JobRegistry
from service.jobs.runner import JobRunner
from service.jobs.views.events import EventStreams
from service.jobs.views.films import JobFilms
from service.models.exporter import ModelExporter
from service.models.files.folder import ModelFolder
from service.models.files.identity import read_folder_id
from service.models.files.lock import FolderLock
from service.models.playing.player import ModelPlayer
from service.models.promotion import ModelPromotion
from service.models.replacement import ModelReplacement
from service.models.served import ServedModel
from service.models.store import ModelStore
from service.monitoring.memory import get_available_bytes, get_total_bytes
from service.monitoring.prometheus import Metrics
from service.monitoring.readiness import Readiness
from service.replicas.mirror import Mirror
from service.replicas.read_only import ReadOnlyRule
from service.settings import Settings
from service.sweeps.registry import SweepRegistry
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
        self.short_tasks = ShortTasks(self.executor, settings.task_seconds, self.closing)
        planning = ShortTasks(  # of their own, so that plans never wait for evaluations and films, nor these for plans
            self.executor,
            settings.task_seconds,
            self.closing,
            max_running=_MAX_RUNNING_PLANS,
            max_waiting=_count_waiting_plans(settings),
        )
        self.admission = JobAdmission(
            Planner(planning, reward_functions),
            self.registry,
            self.store,
            _make_job_limits(settings) if settings.limits_clients else None,
            max_planned=_MAX_RUNNING_PLANS + _count_waiting_plans(settings),
        )
        self.sweeps = SweepRegistry(job_parts.journal, self.registry, self.store, self.admission, settings.max_models)
        self.player = ModelPlayer(self.store, self.short_tasks)
        self.films = JobFilms(self.registry, self.store, self.player)
        self.promotion = ModelPromotion(self.store, self.player)
        self.replacement = ModelReplacement(self.store, self.registry.reserve_name)
        self.exporter = ModelExporter(self.store, self.short_tasks)
        self.catalogue = Catalogue(self.short_tasks, reward_functions)
        self.streams = EventStreams(self.closing)
        self.readiness = Readiness(self.store, self.closing, self.mirror)
        self.metrics = Metrics(self.store, self.registry, self.readiness, settings.role)
        self.batch_limiter = CapacityLimiter(_MAX_RUNNING_BATCHES)
        self.drawing_limiter = CapacityLimiter(1)
        self.readiness_limiter = CapacityLimiter(1)

    def begin(self) -> None:
        """Follow the jobs again that went on without their server, and get ready for others."""
        self.admission.rejoin_jobs()
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
            job = self.find_trainer(model_name)
            if job is None:
                raise
            raise NotFoundError(
                f"there is no model '{model_name}' yet: job {job.job_id} is {job.status} and saves it when it "
                "completes."
            ) from error

    def find_trainer(self, model_name: str) -> Job | None:
        """Return the active job that will save a model; None without one."""
        job = self.registry.find_active(model_name)
        # One whose name differs in case is active as well.
        return job if job is not None and job.config.model_name == model_name else None


def _count_waiting_plans(settings: Settings) -> int:
    """Allow as many waiting plans as jobs."""
    return settings.max_running_jobs + settings.max_queued_jobs


def _make_job_limits(settings: Settings) -> JobLimits:
    return JobLimits(settings.client_active_jobs, settings.client_job_timesteps, settings.client_job_seconds)


class _JobParts(NamedTuple):
    """The parts that run jobs and remember them.

    :param obstacle: Why the journal is in memory only; None if it is not, or has nothing to remember.
    """

    executor: Executor
    journal: JobJournal
    obstacle: str | None = None

    @property
    def keeper(self) -> Keeper | None:
        """The executor if its jobs outlive the server; without a journal the next server would not know of them."""
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
        address=settings.ray_address,
        gpus_per_job=settings.ray_gpus_per_job,
        wait_seconds=settings.ray_wait_seconds,
        env_modules=settings.env_modules,
        lease_seconds=settings.ray_lease_seconds,
        server_id=(read_folder_id(settings.models_dir) if is_shared else None) or "",
    )


def _make_registry(store: ModelStore, parts: _JobParts, settings: Settings) -> JobRegistry:
    recorder = JobRecorder(parts.journal, parts.obstacle)
    runner = JobRunner(
        store,
        parts.executor,
        recorder,
        max_running=settings.max_running_jobs,
        stall_seconds=settings.stall_seconds,
        tensorboard_dir=settings.tensorboard_dir,
        # On a cluster, each declares one processor; here they share the machine's.
        n_threads_per_job=1 if settings.executor == "ray" else None,
        keeper=parts.keeper,
    )
    checkpoints = CheckpointFolder(
        settings.models_dir, lambda job_id: registry.is_active(job_id), settings.max_models_bytes
    )
    registry = JobRegistry(
        store,
        runner,
        recorder,
        checkpoints,
        max_queued=settings.max_queued_jobs,
        max_kept=settings.max_kept_jobs,
        max_kept_days=settings.max_kept_days,
    )
    return registry
