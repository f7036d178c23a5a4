"""Jobs of ``POST /train`` in a service of this process, and how long they take."""

import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from fastapi.testclient import TestClient

from api import REWARD_FUNCTIONS, create_app
from grpo import GRPO
from service.environments.build import build_vec_env
from service.schemas.training import TrainRequest
from service.settings import Settings
from service.training.build_model import build_model
from service.training.planning.plan import TrainingPlan
from service.training.planning.planner import Planner
from service.workers.short_tasks import ShortTasks
from service.workers.threads import ThreadExecutor

_POLL_SECONDS = 0.2


class HttpTraining(NamedTuple):
    """Times of a job, counted from its request.

    :param answer_seconds: Until the request was answered.
    :param total_seconds: Until the job was completed and its policy saved.
    """

    answer_seconds: float
    total_seconds: float


@contextmanager
def serve() -> Iterator[tuple[TestClient, Path]]:
    """Start the service in this process; yield a client and the folder of its model files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with TestClient(create_app(Settings(models_dir=folder)), base_url="http://localhost") as client:
            yield client, folder


def train_over_http(client: TestClient, request: Mapping[str, Any]) -> HttpTraining:
    """Train a job, and time it; its status tells the end exactly, however rarely it is polled."""
    sent_at = datetime.now(UTC)
    response = client.post("/train", json=request)
    answered_at = datetime.now(UTC)
    response.raise_for_status()
    ended_at = datetime.fromisoformat(wait_for(client, response.json()["job_id"])["end_time"])
    return HttpTraining((answered_at - sent_at).total_seconds(), (ended_at - sent_at).total_seconds())


def wait_for(client: TestClient, job_id: str) -> dict[str, Any]:
    """Wait until a job is completed, and return its status.

    :raises RuntimeError: If it fails or is stopped.
    """
    while True:
        status: dict[str, Any] = client.get(f"/training/{job_id}/status").json()
        if status["status"] == "completed":
            return status
        if status["status"] in ("failed", "stopped"):
            raise RuntimeError(f"job {job_id} {status['status']}: {status['error_message']}")
        time.sleep(_POLL_SECONDS)


def make_plan(request: Mapping[str, Any]) -> TrainingPlan:
    """Plan what ``POST /train`` would train, in this process."""
    short_tasks = ShortTasks(ThreadExecutor(), 60.0, threading.Event())
    return Planner(short_tasks, REWARD_FUNCTIONS).plan(TrainRequest(**request))


def make_service_model(request: Mapping[str, Any]) -> GRPO:
    """Build what ``POST /train`` would train."""
    config, reward, *_ = make_plan(request)
    return build_model(config, build_vec_env(config.env_setup, config.n_envs), reward)
