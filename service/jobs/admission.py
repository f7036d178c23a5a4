"""The admission of jobs: from a request to a job in the queue."""

import hashlib
from functools import partial
from typing import Any

from anyio import CapacityLimiter

from grpo_core.saving.model_file import ModelFileError
from grpo_core.saving.moments import verify_trainable
from service.errors import InvalidRequestError, NotFoundError, QueueFullError
from service.jobs.client_jobs import ClientJobs, JobLimits
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.schemas.training import TrainRequest
from service.training.planning.plan import TrainingPlan
from service.training.planning.planner import Planner


class JobAdmission:
    """Plans jobs, and queues those that are allowed. Safe to use from any thread.

    :param planner: Checks requests and fills them in.
    :param registry: Queues the jobs.
    :param store: Where the models are that jobs begin from.
    :param limits: What one client may take; None for as much as it likes.
    :param max_planned: Largest number of requests that are planned or wait for it.
    """

    def __init__(
        self, planner: Planner, registry: JobRegistry, store: ModelStore, limits: JobLimits | None, max_planned: int
    ) -> None:
        self._planner, self._registry, self._store = planner, registry, store
        self._client_jobs = None if limits is None else ClientJobs(limits, registry.is_active)
        #: Threads in which requests are planned, so that a slow environment delays nothing else.
        self.planning_limiter = CapacityLimiter(max_planned)

    def start_job(
        self,
        request: TrainRequest,
        client: str | None = None,
        sweep_id: str | None = None,
        init_sha256: str | None = None,
    ) -> Job:
        """Plan a training job and queue it. It may take seconds, so call it in a thread of ``planning_limiter``.

        :param client: The address that it is counted for; None for the operator's own, which are not.
        :param sweep_id: Its sweep; None if it belongs to none.
        :param init_sha256: The file that ``init_model`` named for the sweep; None takes what it names now.
        :raises InvalidRequestError: If the request names what does not exist or combines what does not fit.
        :raises ConflictError: If an active job will save under the same name.
        :raises ServiceError: Whatever ``JobRegistry.submit`` and ``ShortTasks.run`` raise.
        """

        def start() -> Job:
            self._registry.check_can_submit(request.model_name)
            return self._registry.submit(self.plan(request, client, sweep_id, init_sha256))

        if client is None or self._client_jobs is None:
            return start()
        return self._client_jobs.start(client, start)

    def check_queue(self) -> None:
        """Refuse another job at once if enough jobs run, wait and are being planned.

        :raises QueueFullError: If they are.
        """
        self._registry.check_queue(self._count_plans())

    def check_planning(self) -> None:
        """Refuse a sweep at once if its planning would have to wait; its jobs wait for places themselves.

        :raises QueueFullError: If that is so.
        """
        n_plans = self._count_plans()
        if n_plans >= self.planning_limiter.total_tokens:
            raise QueueFullError(f"{n_plans} jobs and sweeps are being planned, the most at a time; try again later.")

    def _count_plans(self) -> int:
        planned = self.planning_limiter.statistics()
        return planned.borrowed_tokens + planned.tasks_waiting

    def resume_job(self, job_id: str, client: str | None = None) -> Job:
        """Queue a job again that was stopped or failed, perhaps with an earlier server.

        :param client: As in ``start_job``.
        :raises NotFoundError: If it never existed or has been forgotten.
        :raises ConflictError: If it cannot go on, or what it was trained with is no longer there.
        :raises ServiceError: Whatever ``JobRegistry.resume`` raises.
        """
        if client is None or self._client_jobs is None:
            return self._resume_job(job_id)
        self._client_jobs.limits.check(self._registry.get(job_id).config)
        return self._client_jobs.start(client, partial(self._resume_job, job_id))

    def _resume_job(self, job_id: str) -> Job:
        job = self._registry.get(job_id)
        return self._registry.resume(job, self._planner.find_rewards(job.config))

    def plan(
        self,
        request: TrainRequest,
        client: str | None = None,
        sweep_id: str | None = None,
        init_sha256: str | None = None,
    ) -> TrainingPlan:
        """Fill in and check a request without starting its job; for parameters and errors, see ``start_job``."""
        limits = None if client is None or self._client_jobs is None else self._client_jobs.limits
        restricted = request if limits is None else limits.restrict(request)
        meta, sha256 = self._read_init_model(request.init_model, init_sha256)
        plan = self._planner.plan(restricted, meta)
        if limits is not None:
            limits.check(plan.config)  # the request need not say how long a rollout is
        origins = plan.config_origins
        if restricted.max_seconds != request.max_seconds:
            origins = {**origins, "max_seconds": "default"}
        return plan._replace(config_origins=origins, sweep_id=sweep_id, init_sha256=sha256)

    def _read_init_model(self, name: str | None, sha256: str | None) -> tuple[dict[str, Any] | None, str | None]:
        """Return the description of the model that training is to begin from, and the SHA-256 of its file."""
        if name is None:
            return None, None
        folder = self._store.folder
        try:
            # An alias may still name a version of it.
            if sha256 is None and not folder.exists(name.partition("@")[0]):
                raise folder.make_not_found(name)
            content = folder.read(name)[1] if sha256 is None else folder.find_content(name, sha256)
            if content is None:
                raise InvalidRequestError(
                    f"init_model '{name}' was deleted or replaced since the sweep was accepted, and no version of it "
                    "is that file; start a new sweep with a model that is there."
                )
            return verify_trainable(content).meta, hashlib.sha256(content).hexdigest()
        except NotFoundError as error:
            raise InvalidRequestError(f"init_model '{name}' cannot be trained on: {error.detail}") from error
        except ModelFileError as error:
            raise InvalidRequestError(f"init_model '{name}' cannot be trained on: {error}") from error

    def rejoin_jobs(self) -> None:
        """Follow the jobs that went on without their server."""
        self._registry.rejoin(self._planner.find_rewards)
