"""Fixtures that several test modules use."""

import gc
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import hypothesis
import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api import create_app
from service.settings import Settings
from tests.environments import Gate
from tests.even_workers import BRIEF_VALUES
from tests.preloaded import preload
from tests.suites import DEVICE
from tests.support import PATIENCE_SECONDS, PATIENT, PATIENT_BUDGET

RegisterEnv = Callable[..., str]

# What takes seconds, by the beginning of its id. It begins with the longest, so that none is left over at the end.
SLOW_TESTS = (
    "tests/docs/test_documents.py::test_examples_run_as_written",
    "tests/docs/test_documents.py::test_a_tutorial_runs",
    "tests/docs/test_documents.py::test_the_notebook_runs",
    "tests/test_run_api.py",
    "tests/test_wheel.py",
    "tests/chaos",
    "tests/service/workers",
    "tests/service/jobs/test_resuming.py",
    "tests/soak",
    "tests/load",
    "tests/fuzz",
    "tests/api",
    "tests/sb3",
    "tests/gpu",
    "tests/service/dashboard/test_dashboard.py",
    "tests/service/http/test_documentation_pages.py",
    "tests/service/http/test_schema.py",
    "tests/benchmarks",
    "tests/test_grpo_cli.py",
    "tests/deploy/test_deploy.py",
    "tests/service/models/playing/test_player.py",
    "tests/service/models/test_replacement.py",
    "tests/service/dashboard/test_mount.py::TestOpening",
    "tests/service/http/routes/test_training.py",
    "tests/service/http/test_request_guard.py",
    "tests/service/jobs/views/test_events.py::TestALiveStream",
    "tests/service/monitoring/test_prometheus.py",
    "tests/grpo/test_learning.py::test_it_learns",
    "tests/grpo/test_seeds.py::test_the_same_seed_gives_the_same_weights_while",
    "tests/docs/test_documents.py::test_the_metrics_page",
    "tests/grpo_core/fast/test_batched_collector.py",
    "tests/service/inference/test_batch.py",
    "tests/service/models/test_card.py",
    "tests/service/training/planning/test_memory_limits.py",
    "tests/test_imports.py::test_serving_a_model",
    "tests/test_imports.py::test_planning",
    "tests/grpo_client",
    "tests/service/training/evaluation/test_periodic_evaluation.py",
    "tests/service/training/test_train.py::TestTraining",
    "tests/grpo_core/saving/test_model_file.py::test_no_flipped",
    "tests/grpo_core/fast/test_learner.py",
    "tests/grpo_core/fast/test_physics.py",
    "tests/grpo_core/groups/test_collector.py::test_the_kept_step",
    "tests/grpo_core/banks/test_bank.py::test_workers_do",
    "tests/grpo_core/restoring/test_simulator.py::test_atari",
    "tests/grpo_core/test_film.py::test_a_film_that_would_be_too_large",
    "tests/sb3/test_save_load.py::test_a_model_that_no_server",
)

# Where it is the point how environments are proven to be restored, and at what price.
FULL_PROOFS = (
    "tests/grpo_core/restoring",
    "tests/grpo_core/banks",
    "tests/grpo_core/environments",
    "tests/sb3/test_outside.py",
    "tests/test_golden.py",
)

# Where it is the point what the values of a trained policy are worth.
FULL_VALUES = (
    "tests/service/training",
    "tests/grpo_core/values",
    "tests/test_golden.py",
    "tests/benchmarks",
    "tests/api/test_inference.py::test_a_value_foretells_what_follows",
)

torch.set_num_threads(1)
# Every application makes objects by the ten thousand, and each search for unreachable ones would walk all of them.
gc.set_threshold(20_000, 10, 10)
if DEVICE == "cpu":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a machine with a GPU is to run the tests as any other does
# What a shell starts in the background ignores Ctrl-C and Ctrl-\, and under nohup a hang-up, and so would every program
# that a test starts and ends by these.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)
# A shared machine may stall any example, and what makes them up, for longer than Hypothesis allows by default.
hypothesis.settings.register_profile("patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the slow tests, and put them first."""

    def get_place(item: pytest.Item) -> int:
        return next((i for i, slow in enumerate(SLOW_TESTS) if item.nodeid.startswith(slow)), len(SLOW_TESTS))

    for item in items:
        if get_place(item) < len(SLOW_TESTS) or "python" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    items.sort(key=get_place)


def pytest_collection_finish() -> None:
    """Keep what lives as long as the tests, modules and tests alike, out of every search for unreachable objects."""
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Spell out what was captured of broken text: it is sent between processes in UTF-8."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep settings of whoever runs the tests out of them."""
    for name in os.environ:
        if name.startswith("GRPO_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _brief_proofs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prove environments in one round of short branches: six rounds take ten times as long as a test's training.

    And let no clock say that restoring costs too much, which changes how a group is trained.
    """
    if not request.node.nodeid.startswith(FULL_PROOFS):
        monkeypatch.setattr("grpo_core.restoring.proving.proof._MAX_ROUNDS", 0)
        monkeypatch.setattr("grpo_core.restoring.proving.report._MAX_RATIO", 1_000.0)


@pytest.fixture(autouse=True)
def _brief_values(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fit the values of a trained policy to few steps: it takes several times as long as a test's training."""
    if not request.node.nodeid.startswith(FULL_VALUES):
        for name, number in BRIEF_VALUES.items():
            monkeypatch.setattr(name, number)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Python whose programs start at once."""
    with preload(tmp_path_factory.mktemp("preloaded")) as program:
        yield str(program)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A Ray cluster of one node on this machine, with more processors to hand out than there are."""
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # as service.workers.cluster does
    ray = pytest.importorskip("ray")
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        configure_logging=False,
        log_to_driver=False,
    )
    yield
    ray.shutdown()


@pytest.fixture
def overrides() -> dict[str, Any]:
    """Settings that a test changes, by parametrizing this name."""
    return {}


@pytest.fixture
def ample_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be cut short or given up because the machine is busy: it would look, or end, another way."""
    for name in (
        "http.limits.bodies._BODY_DEADLINE_SECONDS",
        "http.serving.connections.PATIENCE_SECONDS",
        "jobs.records.recorder._PATIENCE_SECONDS",
        "jobs.runner._STOP_PATIENCE_SECONDS",
    ):
        monkeypatch.setattr(f"service.{name}", PATIENCE_SECONDS)
    for name in ("final_evaluation", "value_check"):
        monkeypatch.setattr(f"service.training.evaluation.{name}._BUDGET", PATIENT_BUDGET)


@pytest.fixture
def settings(tmp_path: Path, overrides: dict[str, Any], ample_time: None) -> Settings:
    """Settings of a service with a models folder of its own."""
    # Two slots whatever the machine: some tests hold one job back while another runs.
    # And threads, for the environments and rewards of tests are not to be imported from anywhere.
    fields: dict[str, Any] = {"models_dir": tmp_path / "models", "max_running_jobs": 2, "executor": "thread"}
    fields["tensorboard_dir"] = tmp_path / "runs"
    return Settings(**fields | PATIENT | overrides)


@pytest.fixture
def app(settings: Settings) -> FastAPI:
    """A service."""
    return create_app(settings)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """A client of a running service; bugs come back as answers, as they do over a network."""
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def register_env() -> Iterator[RegisterEnv]:
    """Register an environment, built by a function, until the test is over."""
    names = []

    def register(
        make_env: Callable[[], gym.Env[Any, Any]],
        name: str = "Line-v0",
        max_episode_steps: Any = None,
        reward_threshold: Any = None,
    ) -> str:
        gym.register(
            name,
            entry_point=lambda **_: make_env(),
            max_episode_steps=max_episode_steps,
            reward_threshold=reward_threshold,
        )
        names.append(name)
        return name

    yield register
    for name in names:
        gym.registry.pop(name, None)


@pytest.fixture
def gate(client: TestClient) -> Iterator[Gate]:
    """A gate that opens for good before the service is shut down, so that no job is left waiting at it."""
    gate = Gate()
    yield gate
    gate.admit()


@pytest.fixture
def untouched_loggers() -> Iterator[None]:
    """Undo what a test does to logging: a handler it leaves behind would write to a stream that is closed by then."""
    names = ("", "grpo", "uvicorn", "py.warnings", "engineio.server", "socketio.server")
    before = [
        (logging.getLogger(name), logging.getLogger(name).handlers[:], logging.getLogger(name).level) for name in names
    ]
    yield
    logging.captureWarnings(False)
    for logger, handlers, level in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
