"""Limits on each client's jobs and on their length, for servers that strangers can reach."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass

from service.errors import InvalidRequestError, QueueFullError
from service.jobs.job import Job
from service.schemas.training import TrainConfig, TrainRequest


@dataclass(frozen=True)
class JobLimits:
    """Limits of one client.

    :param n_active: Jobs that may run or wait at a time, > 0.
    :param max_timesteps: Simulator steps of one job, > 0.
    :param max_seconds: Seconds of one job's training, > 0.
    """

    n_active: int
    max_timesteps: int
    max_seconds: float

    def restrict(self, request: TrainRequest) -> TrainRequest:
        """Return a request for a job that takes no longer than one may.

        :raises InvalidRequestError: If it asks for more.
        """
        self.check(request)
        if request.max_seconds is not None:
            return request
        return request.model_copy(update={"max_seconds": self.max_seconds})

    def check(self, request: TrainRequest | TrainConfig) -> None:
        """Refuse what takes longer than one job may.

        :param request: A request, or the configuration made of it: only that says how long a rollout is.
        :raises InvalidRequestError: If it asks for more.
        """
        if request.total_timesteps > self.max_timesteps:
            raise InvalidRequestError(
                f"total_timesteps {request.total_timesteps} is more than the {self.max_timesteps} that a job may take "
                "here (GRPO_CLIENT_JOB_TIMESTEPS); ask for fewer."
            )
        if isinstance(request, TrainConfig) and request.n_steps * request.n_envs > self.max_timesteps:
            raise InvalidRequestError(
                f"n_steps {request.n_steps} with n_envs {request.n_envs} makes rollouts of more than the "
                f"{self.max_timesteps} steps that a job may take here (GRPO_CLIENT_JOB_TIMESTEPS), and a rollout is "
                "always completed; set a smaller n_steps."
            )
        if request.max_seconds is not None and request.max_seconds > self.max_seconds:
            raise InvalidRequestError(
                f"max_seconds {request.max_seconds:g} is more than the {self.max_seconds:g} that a job may take here "
                "(GRPO_CLIENT_JOB_SECONDS); ask for fewer."
            )


class ClientJobs:
    """Counts the jobs of each client that are being planned, wait or run. Safe to use from any thread.

    :param limits: What each client may take.
    :param is_active: Tells whether a job runs or waits, by its id.
    """

    def __init__(self, limits: JobLimits, is_active: Callable[[str], bool]) -> None:
        self.limits, self._is_active = limits, is_active
        # Guards everything below.
        self._lock = threading.Lock()
        self._starting: Counter[str] = Counter()
        self._active: dict[str, set[str]] = defaultdict(set)

    def start(self, client: str, start: Callable[[], Job]) -> Job:
        """Start a job of a client, or resume one.

        :param start: Does so, and returns the job.
        :raises QueueFullError: If the client has enough of them.
        """
        with self._lock:
            self._forget_ended()
            n_jobs = len(self._active.get(client, ())) + self._starting[client]
            if n_jobs >= self.limits.n_active:
                raise QueueFullError(
                    f"{n_jobs} of your jobs are running or queued, as many as one client may have "
                    "(GRPO_CLIENT_ACTIVE_JOBS); try again when one has ended."
                )
            self._starting[client] += 1
        try:
            job = start()
            with self._lock:
                self._active[client].add(job.job_id)
        finally:
            with self._lock:
                self._starting[client] -= 1
                if not self._starting[client]:
                    del self._starting[client]
        return job

    def _forget_ended(self) -> None:
        for client, job_ids in list(self._active.items()):
            job_ids -= {job_id for job_id in job_ids if not self._is_active(job_id)}
            if not job_ids:
                del self._active[client]
