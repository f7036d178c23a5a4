"""What several test modules use."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi._compat import v2 as fastapi_fields
from fastapi.testclient import TestClient
from pydantic import TypeAdapter

from api import create_app
from grpo_core.options.rewards import REWARD_FUNCTIONS, RewardFunction
from service.http.serving.connections import Connection
from service.http.serving.sockets import Socket
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.journal import JobJournal
from service.jobs.records.recorder import JobRecorder
from service.jobs.registry import JobRegistry
from service.jobs.runner import JobRunner
from service.models.files.folder import ModelFolder
from service.models.store import ModelStore
from service.schemas.jobs import EndedBy, EvaluationRow, FinalEvaluation
from service.schemas.training import TrainRequest
from service.settings import Settings
from service.training.evaluation import final_evaluation, value_check
from service.training.evaluation.work_time import TimeBudget
from service.training.order import TrainingOrder
from service.training.planning.plan import TrainingPlan
from service.training.planning.planner import Planner
from service.workers import forking, threads
from service.workers.executor import Executor
from service.workers.short_tasks import ShortTasks
from service.workers.task import Keeper, Task
from service.workers.threads import ThreadExecutor

# What takes milliseconds may take minutes where much else runs; pytest's own limit is longer still.
PATIENCE_SECONDS = 300.0
# Between two looks: most conditions are a request, which costs more than what is waited for if it is sent too often.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.005, 0.08
#: Limits of a service under test that nothing reaches but what hangs; the same for a server in its own process.
PATIENT: dict[str, Any] = {
    name: PATIENCE_SECONDS for name in ("task_seconds", "stall_seconds", "shutdown_grace_seconds")
}
PATIENT_VARIABLES = {f"GRPO_{name.upper()}": str(seconds) for name, seconds in PATIENT.items()}
#: Cuts no evaluation short because the machine is busy.
PATIENT_BUDGET = TimeBudget(share=0.0, least_seconds=PATIENCE_SECONDS, most_seconds=PATIENCE_SECONDS)
FINAL_STATUSES = {"completed", "failed", "stopped"}
# What every training logs while it goes on.
LIVE_METRICS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/zero_std_group_fraction",
    "time/fps",
    "train/entropy_loss",
    "train/clip_fraction",
}
PROBLEM_FIELDS = {"type", "title", "status", "detail", "instance"}

#: The executor of a test that runs only where Ray is installed; the fixture ``ray_cluster`` has to be there.
RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(
        find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"
    ),
)

# Jobs in threads give way to requests, and so to whatever runs beside a test: they would starve, and the test with them
# whenever one of them holds the interpreter's lock.
let_requests_go_first = threads._let_requests_go_first
vars(threads)["_let_requests_go_first"] = lambda: None
# So do workers.
OWN_PRELOAD = forking._PRELOAD
vars(forking)["_PRELOAD"] = "tests.even_workers"


def open_model_store(models_dir: Path, max_versions: int = 1) -> ModelStore:
    """Open the store of a models folder, with memory for all that a test puts into it."""
    return ModelStore(
        ModelFolder(models_dir, max_versions=max_versions),
        max_cached_models=64,
        max_cached_bytes=2**29,
        available_bytes=lambda: 2**40,
        total_bytes=2**34,
    )


def make_registry(
    store: ModelStore,
    executor: Executor,
    recorder: JobRecorder | None = None,
    *,
    max_running: int = 2,
    max_queued: int = 8,
    max_kept: int = 100,
    stall_seconds: float = PATIENCE_SECONDS,
    n_threads_per_job: int | None = None,
    keeper: Keeper | None = None,
) -> JobRegistry:
    """Make a registry as a server does; without a recorder, its jobs are in memory only."""
    recorder = recorder or JobRecorder(JobJournal())
    checkpoints = CheckpointFolder(store.folder.path, lambda job_id: registry.is_active(job_id))
    runner = JobRunner(
        store,
        executor,
        recorder,
        max_running=max_running,
        stall_seconds=stall_seconds,
        n_threads_per_job=n_threads_per_job,
        keeper=keeper,
    )
    registry = JobRegistry(store, runner, recorder, checkpoints, max_queued=max_queued, max_kept=max_kept)
    return registry


def wait_until(condition: Callable[[], bool], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Poll a condition until it holds.

    :raises TimeoutError: If it does not hold in time.
    """
    deadline, pause = time.monotonic() + timeout_seconds, _FIRST_PAUSE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not so after {timeout_seconds} s")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


# FastAPI makes some four hundred of them for every application, and most tests of the service have one of their own.
_ADAPTERS: dict[Any, tuple[Any, Any]] = {}


def _make_adapter(annotated: Any, config: Any = None) -> Any:
    """Make what checks values of a type, or return the one of before."""
    key = annotated.__origin__, repr(annotated.__metadata__), repr(config)
    if key not in _ADAPTERS:
        # With the type, so that no other object takes an address that the key holds.
        _ADAPTERS[key] = TypeAdapter(annotated, config=config), annotated
    return _ADAPTERS[key][0]


vars(fastapi_fields)["TypeAdapter"] = _make_adapter


def be_patient() -> None:
    """Let this process cut no evaluation short; what environments call in a worker."""
    final_evaluation._BUDGET = value_check._BUDGET = PATIENT_BUDGET


def spell(value: object) -> str:
    """Write a value into a test's id without addresses: processes that share the tests have to agree on it."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


def make_client(settings: Settings) -> TestClient:
    """Build a client of a service of its own; bugs come back as answers, as they do over a network."""
    return TestClient(create_app(settings), base_url="http://localhost", raise_server_exceptions=False)


@contextmanager
def serve(app: FastAPI) -> Iterator[int]:
    """Serve an application over real sockets on loopback, and yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app,
        http=Connection,
        ws=Socket,
        log_level="critical",
        lifespan="on",
        timeout_keep_alive=int(PATIENCE_SECONDS),
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        wait_until(lambda: server.started)
        yield listener.getsockname()[1]
    finally:
        if service := getattr(app.state, "service", None):  # some tests serve applications of their own
            service.closing.set()  # as a signal would, of which a thread hears nothing
        server.should_exit = True
        thread.join()
        listener.close()


def train(client: TestClient, **request: Any) -> str:
    """Start a job and return its id."""
    response = client.post("/train", json=request)
    assert response.status_code == 200, response.text
    job_id: str = response.json()["job_id"]
    return job_id


def get_status(client: TestClient, job_id: str) -> dict[str, Any]:
    """Ask for a job's status."""
    response = client.get(f"/training/{job_id}/status")
    assert response.status_code == 200, response.text
    status: dict[str, Any] = response.json()
    return status


def wait_for_end(client: TestClient, job_id: str) -> dict[str, Any]:
    """Wait until a job has ended and return its final status."""
    wait_until(lambda: get_status(client, job_id)["status"] in FINAL_STATUSES)
    return get_status(client, job_id)


def train_to_end(client: TestClient, **request: Any) -> dict[str, Any]:
    """Run a job to its end and return its final status."""
    return wait_for_end(client, train(client, **request))


def make_plan(known: Mapping[str, RewardFunction] = REWARD_FUNCTIONS, /, **request: Any) -> TrainingPlan:
    """Plan a job as a service with threads does, and with the reward functions that are known by name."""
    short_tasks = ShortTasks(ThreadExecutor(), PATIENCE_SECONDS, threading.Event())
    return Planner(short_tasks, known).plan(TrainRequest.model_validate(request))


def make_training_task(**request: Any) -> Task:
    """Plan a job, and return the task that trains it."""
    plan = make_plan(**request)
    return TrainingOrder(plan.config, plan.reward).make_task()


def find_forkserver() -> psutil.Process | None:
    """Find the process that workers of this one are forked from."""
    children = filter(is_alive, psutil.Process().children())
    return next((child for child in children if "multiprocessing.forkserver" in " ".join(child.cmdline())), None)


def list_workers() -> list[psutil.Process]:
    """List the worker processes of this one that have not ended."""
    forkserver = find_forkserver()
    workers = [] if forkserver is None else forkserver.children()
    return [worker for worker in workers if is_alive(worker)]


def is_alive(process: psutil.Process) -> bool:
    """Say whether a process has not ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def make_evaluation(timesteps: int, mean_reward: float = 1.0) -> EvaluationRow:
    """Make up what two episodes of one reward say of a policy."""
    return EvaluationRow(
        timesteps=timesteps,
        elapsed_seconds=1.5,
        n_episodes=2,
        mean_reward=mean_reward,
        std_reward=0.0,
        mean_reward_ci95=(mean_reward, mean_reward),
        min_reward=mean_reward,
        max_reward=mean_reward,
        mean_length=5.0,
        success_rate=None,
        success_rate_ci95=None,
    )


def make_final_evaluation(mean_reward: float) -> FinalEvaluation:
    """Make up what two episodes of one reward say of the policy that is saved."""
    figures = make_evaluation(100, mean_reward).model_dump(exclude={"elapsed_seconds"})
    return FinalEvaluation(**figures, seconds=0.1, complete=True)


@dataclass
class Recorder:
    """Records everything that a training reports."""

    steps: list[int] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    final_evaluations: list[Mapping[str, Any]] = field(default_factory=list)
    checkpoints: list[tuple[Mapping[str, Any], bytes]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    ended_by: list[EndedBy] = field(default_factory=list)
    stop_after: float = float("inf")
    _stop: Callable[[], None] = lambda: None

    def attach_stop(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def advance(self, current_timesteps: int) -> None:
        self.steps.append(current_timesteps)
        if current_timesteps >= self.stop_after:
            self._stop()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)

    def publish_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        self.evaluations.append(evaluation)

    def publish_final_evaluation(self, evaluation: Mapping[str, Any]) -> None:
        self.final_evaluations.append(evaluation)

    def publish_checkpoint(self, described: Mapping[str, Any], content: bytes) -> None:
        self.checkpoints.append((described, content))

    def publish_warning(self, warning: str) -> None:
        self.warnings.append(warning)

    def publish_ended_by(self, ended_by: EndedBy) -> None:
        self.ended_by.append(ended_by)
