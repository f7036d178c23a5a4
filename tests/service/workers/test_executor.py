"""Trainings end alike in threads, in processes and on a cluster, and a process that dies harms nothing else."""

import ctypes
import functools
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import psutil
import pytest
import torch

from grpo_core.options.rewards import REWARD_FUNCTIONS
from service.context import REQUEST_ID
from service.jobs import runner as jobs
from service.jobs.job import Job
from service.jobs.registry import JobRegistry
from service.logs import LogStyle
from service.models.store import ModelStore
from service.schemas.jobs import EvaluationRow, JobStatus
from service.workers import forking, processes
from service.workers.executor import Executor, make_executor
from service.workers.processes import ProcessExecutor
from service.workers.threads import ThreadExecutor
from tests.environments import FloatArray, LineEnv
from tests.support import (
    OWN_PRELOAD,
    PATIENCE_SECONDS,
    RAY,
    be_patient,
    find_forkserver,
    is_alive,
    list_workers,
    make_plan,
    make_registry,
    open_model_store,
    wait_until,
)

ROOT = Path(__file__).parents[3]
EXECUTORS = ["thread", "process", RAY]
FORKING = ["process", RAY]
RegisterLine = Callable[..., str]

pytestmark = pytest.mark.usefixtures("ample_time")


def pay_seven(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    """A reward function from an operator's own module."""
    return torch.full((len(state), 1), 7.0)


def fail_in_a_folder() -> None:
    raise OSError(2, "No such file", "/home/someone/map.txt")


def hang() -> None:
    time.sleep(1000)


def touch_and_hang(path: str) -> None:
    Path(path).touch()
    hang()


def touch_and_wait(begun: Path, released: Path) -> None:
    begun.touch()
    wait_until(released.exists)


def start_child(path: str, then: Callable[[], None]) -> None:
    """Start a process, once, note its id, and go on."""
    if not Path(path).exists():
        child = subprocess.Popen(["sleep", "1000"])
        Path(path).with_suffix(".new").write_text(str(child.pid))
        Path(path).with_suffix(".new").rename(path)
    then()


def do_nothing() -> None:
    pass


def drop_output() -> None:
    sys.stdout = None


def write_to_sockets() -> None:
    """Write the length of a message and one letter to whatever connection is open."""
    for fd in range(3, 64):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, b"\0\0\0\1x")


def break_json() -> None:
    """Take away what writes messages."""
    vars(json)["dumps"] = None


def is_there(pid: int) -> bool:
    try:
        return is_alive(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def hold(event: threading.Event) -> None:
    event.wait()


def make_tiring_line(then: Callable[[], None] = hang) -> LineEnv:
    """Build a line that hangs at its hundredth step."""
    steps = iter(range(99))
    return LineEnv(on_step=lambda: then() if next(steps, None) is None else None)


def make_patient_cartpole() -> gym.Env[Any, Any]:
    """Build an environment in whose worker no evaluation is cut short: the file says how far it came."""
    be_patient()
    return gym.make("CartPole-v1").unwrapped


class EndlessLine(LineEnv):
    """A line that never ends."""

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _, _ = super().step(action)
        return observation, reward, False, False, {}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return open_model_store(tmp_path / "models")


@pytest.fixture
def open_registry(store: ModelStore, request: pytest.FixtureRequest) -> Iterator[Callable[..., JobRegistry]]:
    """Build registries, and end them when the test is over."""
    opened: list[tuple[JobRegistry, Executor]] = []

    def build(
        kind: Literal["thread", "process", "ray"] = "process",
        max_running: int = 2,
        stall_seconds: float = PATIENCE_SECONDS,
    ) -> JobRegistry:
        if kind == "ray":
            request.getfixturevalue("ray_cluster")
        executor = make_executor(kind, LogStyle())
        registry = make_registry(store, executor, max_running=max_running, stall_seconds=stall_seconds)
        opened.append((registry, executor))
        return registry

    yield build
    for registry, executor in opened:
        registry.shutdown(grace_seconds=10)
        executor.close()
        assert registry.count_active() == 0
    wait_until(lambda: list_workers() == [])


@pytest.fixture
def register_line() -> Iterator[RegisterLine]:
    """Register lines until the test is over."""
    names = []

    def register(name: str = "Line-v0", entry_point: Callable[..., LineEnv] = LineEnv, **arguments: Any) -> str:
        gym.register(name, entry_point=entry_point, kwargs=arguments)
        names.append(name)
        return name

    yield register
    for name in names:
        del gym.registry[name]


def submit(registry: JobRegistry, **request: Any) -> Job:
    known = {**REWARD_FUNCTIONS, "pay_seven": pay_seven}
    return registry.submit(make_plan(known, **{"total_timesteps": 32, "seed": 0, **request}))


def run(registry: JobRegistry, **request: Any) -> Job:
    job = submit(registry, **request)
    assert job.finished.wait(PATIENCE_SECONDS)
    return job


def submit_slow(registry: JobRegistry, register_line: RegisterLine, **request: Any) -> Job:
    """Start a job that goes on for hours and takes hardly any processor time, and wait for its first steps."""
    env_name = register_line("SlowLine-v0", on_step=functools.partial(time.sleep, 0.02))
    job = submit(registry, env_name=env_name, total_timesteps=10_000_000, **request)
    wait_until(lambda: job.describe().current_timesteps > 0)
    return job


def wait_for_update(job: Job) -> None:
    wait_until(lambda: "train/loss" in job.describe().metrics)


def wait_for_activity(job: Job) -> None:
    """Wait until a job has been heard of thirty times without a step of its training."""
    timesteps, n_heard, inactive_seconds = 0, 0, job.inactive_seconds

    def has_been_heard() -> bool:
        nonlocal timesteps, n_heard, inactive_seconds
        before, inactive_seconds = inactive_seconds, job.inactive_seconds
        if timesteps != (timesteps := job.describe().current_timesteps):
            n_heard = 0
        n_heard += inactive_seconds < before
        return n_heard == 30 or job.status.is_final

    wait_until(has_been_heard)
    assert job.status is JobStatus.RUNNING


def end_forkserver() -> None:
    if (forkserver := find_forkserver()) is not None:
        forkserver.kill()
        wait_until(lambda: not is_alive(forkserver))


def find_only_worker() -> psutil.Process:
    """Wait until those of earlier tests have ended."""
    wait_until(lambda: len(list_workers()) == 1)
    (worker,) = list_workers()
    return worker


def is_stall_message(message: str | None) -> bool:
    return message is not None and message.startswith("stalled: no simulator step") and "GRPO_STALL_SECONDS" in message


class TestAllAlike:
    @pytest.mark.parametrize("others", ["process", RAY])
    def test_a_job_gives_the_same_file_in_a_thread_elsewhere_and_next_to_others(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine, others: str
    ) -> None:
        env_name = register_line(entry_point=make_patient_cartpole)
        request = {"env_name": env_name, "total_timesteps": 300, "seed": 3, "model_name": "m", "n_eval_episodes": 2}
        # It draws numbers and updates its policy while the job beside it does.
        busy = {"env_name": register_line("Slow-v0", on_step=functools.partial(time.sleep, 0.002)), "n_steps": 32}
        hashes = []
        for executor in ("thread", others):
            registry = open_registry(executor, max_running=2)
            hashes.append(run(registry, **request).describe().sha256)
            other = submit(registry, **busy, total_timesteps=10_000_000)
            wait_for_update(other)
            hashes.append(run(registry, **request).describe().sha256)
            assert other.status is JobStatus.RUNNING
            registry.shutdown(grace_seconds=10)
        assert hashes[0] is not None
        assert len(set(hashes)) == 1

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_steps_and_metrics_arrive_during_training_and_a_stop_keeps_the_policy(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, executor: str
    ) -> None:
        job = submit(open_registry(executor), total_timesteps=10_000_000, model_name="m")
        wait_until(lambda: "train/approx_kl" in job.describe().metrics)
        seen = job.describe().current_timesteps
        assert job.status is JobStatus.RUNNING
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        status = job.describe()
        assert (status.status, status.model_name, status.error_message) == (JobStatus.STOPPED, "m", None)
        assert seen <= status.current_timesteps < 10_000_000
        assert store.get("m").meta["num_timesteps"] == status.current_timesteps

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_the_last_metrics_and_the_warnings_are_complete(
        self, open_registry: Callable[..., JobRegistry], executor: str
    ) -> None:
        # One step per branch and equal rewards leave nothing to learn in any of the eleven rollouts.
        silent = {"n_steps": 256, "horizon": 1, "gamma": 0.0, "reward_function_type": "pay_seven"}
        status = run(open_registry(executor), total_timesteps=11 * 256, **silent).describe()
        assert status.current_timesteps == 11 * 256
        assert status.metrics["rollout/reward_mean"] == 7.0
        assert status.metrics["train/n_updates"] == 11 * 10
        assert "the last 11 rollouts" in status.warnings[0]

    @pytest.mark.parametrize("executor", EXECUTORS)
    @pytest.mark.parametrize(
        ("fault", "message"),
        [
            (fail_in_a_folder, "FileNotFoundError: No such file"),
            (functools.partial(sys.exit, 3), "SystemExit: 3"),
        ],
    )
    def test_an_environments_error_fails_only_its_own_job(
        self,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        executor: str,
        fault: Callable[[], None],
        message: str,
    ) -> None:
        registry = open_registry(executor)
        job = run(registry, env_name=register_line(on_step=fault))
        told = job.describe().error_message
        assert job.status is JobStatus.FAILED
        assert told is not None
        assert told.partition(". ")[0] == message  # a note may say which call it was
        assert run(registry).status is JobStatus.COMPLETED

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_evaluations_arrive_and_so_does_the_rule_that_ends_the_job(
        self, open_registry: Callable[..., JobRegistry], store: ModelStore, executor: str
    ) -> None:
        request = {"total_timesteps": 50_000, "eval_freq": 100, "stop_reward": 5.0, "n_eval_episodes": 3}
        job = run(open_registry(executor), **request, model_name="m")
        status = job.describe()
        assert (status.status, status.ended_by, status.progress) == (JobStatus.COMPLETED, "stop_reward", 1.0)
        assert status.current_timesteps < 50_000
        assert status.evaluation == status.best_evaluation == job.history.list_evaluations()[-1]
        kept = store.get("m").meta["evaluation"]
        assert EvaluationRow(**kept, elapsed_seconds=status.evaluation.elapsed_seconds) == status.evaluation

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_a_long_evaluation_is_not_a_stall_and_a_stop_ends_it(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine, executor: str
    ) -> None:
        # A thousand episodes of a thousand steps.
        env_name = register_line(entry_point=EndlessLine, on_step=functools.partial(time.sleep, 0.001))
        request = {"eval_freq": 32, "n_eval_episodes": 1000, "n_steps": 32}
        job = submit(open_registry(executor), env_name=env_name, total_timesteps=10_000, **request)
        wait_for_activity(job)  # more often than an update has minibatches
        assert job.describe().current_timesteps <= 64
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        assert (job.status, job.describe().error_message) == (JobStatus.STOPPED, None)

    @pytest.mark.parametrize("executor", EXECUTORS)
    def test_a_long_update_is_not_a_stall(self, open_registry: Callable[..., JobRegistry], executor: str) -> None:
        request = {"n_steps": 512, "batch_size": 1, "total_timesteps": 512, "n_epochs": 100, "n_eval_episodes": 0}
        job = submit(open_registry(executor), **request)
        wait_for_activity(job)  # in some of the 50,000 minibatches
        assert "time/fps" in job.describe().metrics, "the rollout is not over"
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        assert (job.status, job.describe().error_message) == (JobStatus.STOPPED, None)


class TestWhatReachesAWorker:
    @pytest.mark.parametrize("executor", FORKING)
    def test_an_environment_that_only_the_server_has_registered(
        self,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        store: ModelStore,
        executor: str,
    ) -> None:
        env_name = register_line(observation_size=5)
        assert run(open_registry(executor), env_name=env_name, model_name="m").status is JobStatus.COMPLETED
        assert store.get("m").meta["env_name"] == env_name

    @pytest.mark.parametrize("executor", FORKING)
    def test_lambdas_and_classes_of_a_function(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine, executor: str
    ) -> None:
        class Mine(LineEnv):
            pass

        known = {"mine": lambda state, action, next_state: torch.full((len(state), 1), 3.0)}
        env_name = register_line(entry_point=lambda: Mine(on_step=lambda: None))
        registry = open_registry(executor)
        job = registry.submit(make_plan(known, env_name=env_name, total_timesteps=32, reward_function_type="mine"))
        assert job.finished.wait(PATIENCE_SECONDS)
        assert job.status is JobStatus.COMPLETED
        assert job.describe().metrics["rollout/reward_mean"] == 3.0

    def test_no_lock(self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine) -> None:
        event = threading.Event()
        event.set()
        env_name = register_line(on_step=lambda: hold(event))
        job = run(open_registry(), env_name=env_name)
        assert job.status is JobStatus.FAILED
        assert "env_name 'Line-v0' cannot be sent to a worker process" in (job.describe().error_message or "")
        assert run(open_registry("thread"), env_name=env_name).status is JobStatus.COMPLETED


class TestAProcess:
    @pytest.mark.parametrize("executor", FORKING)
    def test_a_crash_fails_only_its_own_job(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine, store: ModelStore, executor: str
    ) -> None:
        crashes: list[tuple[Callable[[], object], str]] = [
            (functools.partial(os._exit, 3), "exited with status 3"),
            (functools.partial(os._exit, 0), "exited with status 0"),
            (os.abort, "signal SIGABRT"),
            (functools.partial(ctypes.string_at, 0), "signal SIGSEGV"),
            (functools.partial(signal.raise_signal, signal.SIGKILL), "memory runs out"),
            (functools.partial(os.closerange, 3, 64), "closed file descriptors"),
            (write_to_sockets, "bytes that are not a worker's message"),
            (break_json, "could not report to the server"),
        ]
        registry = open_registry(executor)
        other = submit_slow(registry, register_line)
        for i, (fault, message) in enumerate(crashes):
            env_name = register_line(f"Crashing{i}-v0", on_step=fault)
            job = run(registry, env_name=env_name, model_name="m", max_restarts=0)
            status = job.describe()
            assert (status.status, status.model_name) == (JobStatus.FAILED, None), message
            assert message in (status.error_message or "")
            assert not store.exists("m")
            assert run(registry, n_eval_episodes=0).status is JobStatus.COMPLETED, message
            assert other.status is JobStatus.RUNNING, message

    def test_its_environment_may_take_its_output_away(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine
    ) -> None:
        env_name = register_line(on_step=drop_output)
        assert run(open_registry(), env_name=env_name).status is JobStatus.COMPLETED

    @pytest.mark.parametrize(
        ("then", "outcome"),
        [(do_nothing, JobStatus.COMPLETED), (os.abort, JobStatus.FAILED), (hang, JobStatus.STOPPED)],
        ids=["end", "crash", "kill"],
    )
    def test_the_processes_of_its_environment_end_with_it(
        self,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
        then: Callable[[], None],
        outcome: JobStatus,
    ) -> None:
        monkeypatch.setattr(jobs, "_STOP_PATIENCE_SECONDS", 0.5)
        note = tmp_path / "child"
        env_name = register_line(on_step=functools.partial(start_child, str(note), then))
        job = submit(open_registry(max_running=1), env_name=env_name, max_restarts=0)
        wait_until(note.exists)
        if then is hang:
            job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        assert job.status is outcome
        wait_until(lambda: not is_there(int(note.read_text())))

    def test_it_has_a_low_priority_and_ignores_signals_for_the_server(
        self,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(forking, "_PRELOAD", OWN_PRELOAD)
        end_forkserver()
        registry = open_registry()
        is_hanging = tmp_path / "hanging"
        job = submit(registry, env_name=register_line(on_step=functools.partial(touch_and_hang, str(is_hanging))))
        wait_until(is_hanging.exists)
        forkserver, worker = find_forkserver(), find_only_worker()
        assert forkserver is not None
        assert worker.nice() == min(19, psutil.Process().nice() + 15)
        assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text() == "500\n"
        assert os.getsid(worker.pid) == os.getsid(0), "in another session its niceness would count for nothing"
        assert os.getpgid(worker.pid) != os.getpgid(0), "interrupts from the keyboard would reach it"
        assert worker.net_connections(kind="inet") == []
        for process in (worker, forkserver):
            for number in (signal.SIGINT, signal.SIGTERM):
                process.send_signal(number)
        registry.shutdown(grace_seconds=0.2)
        status = job.describe()
        assert status.status is JobStatus.STOPPED
        assert "the server was shut down while" in (status.error_message or "")
        wait_until(lambda: not is_alive(worker))
        assert is_alive(forkserver)
        end_forkserver()  # for the next tests to have one of their own

    def test_a_lost_forkserver_is_replaced(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine
    ) -> None:
        registry = open_registry()
        running = submit_slow(registry, register_line, model_name="running")
        forkserver, worker = find_forkserver(), find_only_worker()
        assert forkserver is not None
        forkserver.kill()
        wait_until(lambda: not is_alive(forkserver))
        assert run(registry).status is JobStatus.COMPLETED
        running.stop()
        assert running.finished.wait(PATIENCE_SECONDS)
        assert (running.status, running.describe().model_name) == (JobStatus.STOPPED, "running")
        wait_until(lambda: not is_alive(worker))

    def test_a_forkserver_that_is_not_yet_known_to_be_gone_costs_no_restart(
        self, open_registry: Callable[..., JobRegistry], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fork, refusals = forking.fork, [ConnectionRefusedError()]

        def refuse_once(connection: Any) -> tuple[int, int]:
            if refusals:
                raise refusals.pop()
            return fork(connection)

        monkeypatch.setattr(processes, "fork", refuse_once)
        status = run(open_registry(), max_restarts=0).describe()
        assert (status.status, status.n_restarts) == (JobStatus.COMPLETED, 0)

    def test_two_executors_share_one_forkserver(
        self, open_registry: Callable[..., JobRegistry], register_line: RegisterLine
    ) -> None:
        one, other = open_registry(), open_registry()
        endless = submit_slow(other, register_line)
        forkserver = find_forkserver()
        executor = ProcessExecutor(LogStyle())
        executor.warm_up()
        executor.close()
        assert run(one).status is JobStatus.COMPLETED
        assert find_forkserver() == forkserver
        assert endless.status is JobStatus.RUNNING


class TestAHang:
    @pytest.mark.parametrize("executor", FORKING)
    def test_a_process_that_hangs_is_killed(
        self,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        executor: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        registry = open_registry(executor, max_running=1, stall_seconds=1.0)
        job = run(registry, env_name=register_line(entry_point=make_tiring_line), total_timesteps=1000)
        status = job.describe()
        assert status.status is JobStatus.FAILED
        assert status.current_timesteps < 100
        assert is_stall_message(status.error_message)
        assert f" may take longer. POST /training/{job.job_id}/resume " in (status.error_message or "")
        monkeypatch.setattr(registry._runner, "_stall_seconds", PATIENCE_SECONDS)
        assert run(registry).status is JobStatus.COMPLETED

    @pytest.mark.parametrize("executor", FORKING)
    def test_stopping_a_process_that_hangs_kills_it(
        self,
        executor: str,
        open_registry: Callable[..., JobRegistry],
        register_line: RegisterLine,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setattr(jobs, "_STOP_PATIENCE_SECONDS", 0.5)
        registry = open_registry(executor, max_running=1)
        is_hanging = tmp_path / "hanging"
        then = functools.partial(touch_and_hang, str(is_hanging))
        env_name = register_line(entry_point=functools.partial(make_tiring_line, then))
        job = submit(registry, env_name=env_name, total_timesteps=1000, n_eval_episodes=0)
        wait_until(is_hanging.exists)
        wait_until(lambda: job.has_stepped)
        job.stop()
        assert job.finished.wait(PATIENCE_SECONDS)
        status = job.describe()
        assert (status.status, status.model_name) == (JobStatus.STOPPED, None)
        assert "after the stop" in (status.error_message or "")
        assert run(registry).status is JobStatus.COMPLETED

    @pytest.mark.parametrize("executor", ["thread", *FORKING])
    def test_a_stop_before_the_first_step_ends_the_job_at_once_and_saves_nothing(
        self,
        executor: Any,
        open_registry: Callable[..., JobRegistry],
        store: ModelStore,
        register_line: RegisterLine,
        tmp_path: Path,
    ) -> None:
        begun, released = tmp_path / "begun", tmp_path / "released"
        registry = open_registry(executor, max_running=1)
        env_name = register_line(on_step=functools.partial(touch_and_wait, begun, released))
        job = submit(registry, env_name=env_name, model_name="m")
        wait_until(begun.exists)
        job.stop()
        assert job.finished.is_set(), "as one that is queued"
        status = job.describe()
        assert (status.status, status.ended_by, status.error_message) == (JobStatus.STOPPED, "stop", None)
        released.touch()
        assert run(registry).status is JobStatus.COMPLETED
        assert not store.exists("m")

    def test_a_thread_that_hangs_is_abandoned_and_frees_its_slot(
        self, store: ModelStore, register_line: RegisterLine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        event = threading.Event()
        executor = ThreadExecutor()
        # Long enough for a busy machine to get as far as the step that hangs.
        registry = make_registry(store, executor, max_running=1, stall_seconds=3.0)
        env_name = register_line(on_step=lambda: hold(event))
        job = run(registry, env_name=env_name, total_timesteps=10_000_000, model_name="m")
        failed = job.describe()
        assert failed.status is JobStatus.FAILED
        assert is_stall_message(failed.error_message)
        monkeypatch.setattr(registry._runner, "_stall_seconds", PATIENCE_SECONDS)
        assert run(registry).status is JobStatus.COMPLETED
        assert executor.is_busy
        event.set()
        wait_until(lambda: not executor.is_busy)
        assert job.describe() == failed
        assert not store.exists("m")
        registry.shutdown(grace_seconds=10)


def test_the_server_does_not_import_torch() -> None:
    program = "import sys, service.workers.executor; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 0


def test_a_workers_log_lines_carry_the_ids_of_request_and_job(
    open_registry: Callable[..., JobRegistry], register_line: RegisterLine, capfd: pytest.CaptureFixture[str]
) -> None:
    end_forkserver()  # so that another one writes to this test's captured output
    registry, env_name = open_registry(), register_line(on_step=fail_in_a_folder)
    token = REQUEST_ID.set("who-asked")
    try:
        job = run(registry, env_name=env_name)
    finally:
        REQUEST_ID.reset(token)
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "a task failed in its worker" in line]
    assert "warning grpo.service:" in line
    assert f"request_id=who-asked job_id={job.job_id}" in line
    assert "/home/someone/map.txt'\\nLineEnv.step(np.int64(0)) raised it" in line
