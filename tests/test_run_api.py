"""The start script: a real process that serves, ends cleanly and refuses settings that cannot work."""

import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import pytest
import uvicorn

import run_api
from benchmarks.lib.server import hold_port
from grpo import GRPO
from tests.support import PATIENCE_SECONDS, PATIENT_VARIABLES, is_alive, wait_until

ROOT = Path(__file__).parent.parent
KEY = "a key of 22 characters"
# For a server that a failed test left behind; one that does not end by then is killed.
_END_SECONDS = 20.0

pytestmark = pytest.mark.usefixtures("untouched_loggers")

StartServer = Callable[..., subprocess.Popen[str]]


def run_script(*arguments: str, **variables: str) -> subprocess.Popen[str]:
    return run_program("run_api.py", *arguments, cwd=ROOT, **variables)


def run_program(
    *arguments: str, cwd: Path = ROOT, python: str = sys.executable, **variables: str
) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
    return subprocess.Popen(
        [python, *arguments],
        cwd=cwd,
        # A line per request would fill the pipe, which nobody reads meanwhile, and then the server would wait.
        env={**environment, **PATIENT_VARIABLES, "GRPO_LOG_LEVEL": "warning", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def start_server(start_program: StartServer) -> StartServer:
    """Start the script, and end it when the test is over."""
    return lambda *arguments, **variables: start_program("run_api.py", *arguments, **variables)


@pytest.fixture
def start_program() -> Iterator[StartServer]:
    """Start Python with arguments, and end it when the test is over."""
    processes = []

    def start(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        processes.append(run_program(*arguments, **options))
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)  # which the fixture ``python`` hands on
            with suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)
            process.kill()
        process.communicate()


@pytest.fixture
def start_ready(start_program: StartServer, python: str) -> StartServer:
    """Start the script from a Python that has imported torch, where the process itself is not looked at."""
    return partial(start_program, str(ROOT / "run_api.py"), python=python)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that nobody else listens at."""
    with hold_port() as port:
        yield port


def call(port: int, path: str, body: dict[str, Any] | None = None) -> Any:
    content = None if body is None else json.dumps(body).encode()
    request = Request(f"http://127.0.0.1:{port}{path}", content, {"Content-Type": "application/json"})
    with urlopen(request, timeout=PATIENCE_SECONDS) as response:
        return json.load(response)


def answers(port: int) -> bool:
    try:
        return bool(call(port, "/health")["status"] == "healthy")
    except OSError:
        return False


def wait_for_family(server: subprocess.Popen[str], n_processes: int) -> list[psutil.Process]:
    """Wait until the process that planned a job is gone, and list those that are left but for the server's own."""
    process = psutil.Process(server.pid)
    wait_until(lambda: len(process.children(recursive=True)) == n_processes)
    return process.children(recursive=True)


def end(process: subprocess.Popen[str], signal_number: signal.Signals) -> tuple[int, str]:
    process.send_signal(signal_number)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, errors


@pytest.mark.parametrize(
    ("signal_number", "executor"),
    [
        (signal.SIGTERM, "process"),
        (signal.SIGINT, "thread"),
        (signal.SIGHUP, "process"),
        (signal.SIGQUIT, "thread"),
    ],
)
def test_a_signal_ends_the_server_cleanly_and_keeps_the_policy_in_training(
    start_server: StartServer,
    start_ready: StartServer,
    port: int,
    tmp_path: Path,
    signal_number: signal.Signals,
    executor: str,
) -> None:
    start = start_server if executor == "process" else start_ready
    server = start("--port", str(port), "--models-dir", str(tmp_path / "models"), GRPO_EXECUTOR=executor)
    wait_until(lambda: answers(port))
    started = call(port, "/train", {"total_timesteps": 10_000_000, "model_name": "m"})
    status_path = f"/training/{started['job_id']}/status"
    wait_until(lambda: call(port, status_path)["current_timesteps"] > 100)
    assert not (tmp_path / "models" / "m.zip").exists()
    # The forkserver, the worker, and what Python starts to clean up after them.
    workers = wait_for_family(server, 3) if executor == "process" else []
    # As whoever ends a service does, or a key pressed in a terminal: all processes hear of it.
    for worker in workers:
        worker.send_signal(signal_number)
    status, errors = end(server, signal_number)
    assert status == 0, errors
    wait_until(lambda: not any(map(is_alive, workers)))
    assert "Traceback" not in errors
    left = {file.name for file in (tmp_path / "models").iterdir()}
    # What was taken before the stop may be there, and whose job the model is of.
    assert left - {".checkpoints", ".versions"} == {".jobs.sqlite3", ".lock", "m.zip"}
    assert GRPO.load(tmp_path / "models" / "m.zip").num_timesteps > 100


_ENDING = """
import ctypes, pathlib, threading, time

def end():
    while not pathlib.Path("now").exists():
        time.sleep(0.02)
    main_thread = ctypes.c_ulong(threading.main_thread().ident)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(main_thread, ctypes.py_object(SystemExit))

threading.Thread(target=end, daemon=True).start()
"""


def test_an_exception_in_the_main_thread_keeps_the_policy_in_training(
    start_ready: StartServer, port: int, tmp_path: Path
) -> None:
    (tmp_path / "ending.py").write_text(_ENDING)
    server = start_ready("--port", str(port), "--env-module", "ending", cwd=tmp_path, GRPO_EXECUTOR="thread")
    wait_until(lambda: answers(port))
    started = call(port, "/train", {"total_timesteps": 10_000_000, "model_name": "m"})
    wait_until(lambda: call(port, f"/training/{started['job_id']}/status")["current_timesteps"] > 100)
    (tmp_path / "now").touch()
    server.communicate(timeout=PATIENCE_SECONDS)
    assert GRPO.load(tmp_path / "models" / "m.zip").num_timesteps > 100


# The forkserver imports for as long as the server lives.
_LONG_IMPORTS = """
import os, pathlib, sys, time

if "multiprocessing.forkserver" in " ".join(sys.orig_argv):
    pathlib.Path(__file__).with_name("importing").touch()
    server = os.getppid()
    while os.getppid() == server:
        time.sleep(0.02)
"""


def test_a_signal_to_all_processes_while_workers_get_ready_is_answered_and_ends_the_server(
    start_server: StartServer, port: int, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_LONG_IMPORTS)
    models_dir, variables = str(tmp_path / "models"), {"GRPO_EXECUTOR": "process", "PYTHONPATH": str(tmp_path)}
    server = start_server("--port", str(port), "--models-dir", models_dir, **variables)
    wait_until(lambda: answers(port))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /train HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n")
        # The forkserver begins its imports, and the request waits for them.
        wait_until((tmp_path / "importing").exists)
        for process in psutil.Process(server.pid).children():
            process.send_signal(signal.SIGTERM)
        status, errors = end(server, signal.SIGTERM)
        answer = connection.recv(10_000)
    assert status == 0, errors
    assert answer.startswith(b"HTTP/1.1 503"), answer
    assert b"connection: close" in answer
    assert b"urn:grpo:problem:draining" in answer
    assert "Traceback" not in errors


def test_jobs_survive_the_death_of_the_server(start_server: StartServer, port: int, tmp_path: Path) -> None:
    arguments = ("--port", str(port), "--models-dir", str(tmp_path / "models"))
    server = start_server(*arguments, GRPO_EXECUTOR="thread", GRPO_MAX_RUNNING_JOBS="1")
    wait_until(lambda: answers(port))
    completed = call(port, "/train", {"total_timesteps": 64, "model_name": "a"})["job_id"]
    wait_until(lambda: call(port, f"/training/{completed}/status")["status"] == "completed")
    before = [call(port, f"/training/{completed}/{part}") for part in ("status", "metrics")]
    running = call(port, "/train", {"total_timesteps": 10_000_000, "model_name": "b"})["job_id"]
    wait_until(lambda: call(port, f"/training/{running}/status")["current_timesteps"] > 0)
    queued = call(port, "/train", {"model_name": "c"})["job_id"]
    end(server, signal.SIGKILL)
    server = start_server(*arguments, GRPO_EXECUTOR="thread")
    wait_until(lambda: answers(port))
    assert [call(port, f"/training/{completed}/{part}") for part in ("status", "metrics")] == before
    for job_id, was in ((running, "running"), (queued, "queued")):
        status = call(port, f"/training/{job_id}/status")
        assert status["status"] == "failed"
        assert f"interrupted by restart: the server ended while the job was {was};" in status["error_message"]
        assert f"POST /training/{job_id}/resume" in status["error_message"]
        assert status["end_time"] is not None
        assert status["config"]["model_name"] in "bc"
    listed = [job["job_id"] for job in call(port, "/training/jobs")["jobs"]]
    assert listed == [completed, running, queued]
    assert call(port, "/training/latest/status")["job_id"] == queued
    _, errors = end(server, signal.SIGTERM)
    assert "2 jobs were interrupted" in errors


@pytest.mark.parametrize(
    "program", [["run_api.py", "--port"], ["-m", "uvicorn", "api:app", "--port"]], ids=lambda p: p[1]
)
def test_a_stream_that_is_open_does_not_hold_up_the_end(
    start_program: StartServer, python: str, port: int, tmp_path: Path, program: list[str]
) -> None:
    variables = {"GRPO_MODELS_DIR": str(tmp_path / "models"), "GRPO_EXECUTOR": "thread"}
    server = start_program(*program, str(port), python=python, **variables)
    wait_until(lambda: answers(port))
    request = {"total_timesteps": 10_000_000, "model_name": "m", "n_eval_episodes": 0}
    started = call(port, "/train", request)
    with urlopen(f"http://127.0.0.1:{port}/training/{started['job_id']}/events", timeout=PATIENCE_SECONDS) as stream:
        assert b"job.status" in stream.readline()
        wait_until(lambda: call(port, f"/training/{started['job_id']}/status")["current_timesteps"] > 0)
        server.send_signal(signal.SIGTERM)
        stream.read()  # to its end, without a wait of fifteen seconds for the next sign of life
        _, errors = server.communicate(timeout=PATIENCE_SECONDS)
    # Uvicorn raises the signal once more; only the start script turns that into a clean end.
    assert server.returncode in (0, -signal.SIGTERM), errors
    assert "timeout graceful shutdown exceeded" not in errors
    assert "Traceback" not in errors
    assert GRPO.load(tmp_path / "models" / "m.zip").num_timesteps > 0


@pytest.fixture
def start_hanging(
    start_server: StartServer, start_ready: StartServer, port: int, tmp_path: Path
) -> Callable[..., subprocess.Popen[str]]:
    """Start a server with a job that hangs; one that trains in threads is not the process that is returned."""

    def start(executor: str, grace_seconds: int = 1) -> subprocess.Popen[str]:
        (tmp_path / "hanging.py").write_text(
            "import pathlib, threading, gymnasium\n"
            "class Hanging(gymnasium.Env):\n"
            "    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,))\n"
            "    action_space = gymnasium.spaces.Discrete(2)\n"
            "    capture_state = restore_state = lambda self, *state: None\n"
            "    n_steps = 0\n"
            "    def reset(self, *, seed=None, options=None):\n"
            "        return self.observation_space.low, {}\n"
            "    def step(self, action):\n"
            "        self.n_steps += 1\n"
            "        if self.n_steps > 5_000:  # not before the server has heard of a step\n"
            "            pathlib.Path(__file__).with_name('hangs').touch()\n"
            "            threading.Event().wait()\n"
            "        return self.observation_space.low, 0.0, False, False, {}\n"
            "gymnasium.register('Hanging-v0', entry_point=Hanging)\n"
        )
        variables = {"GRPO_EXECUTOR": executor, "GRPO_SHUTDOWN_GRACE_SECONDS": str(grace_seconds)}
        variables |= {"GRPO_ENV_MODULES": "hanging", "PYTHONPATH": str(tmp_path)}
        start_it = start_server
        if executor == "thread":
            variables["GRPO_STALL_SECONDS"] = "2"
            start_it = start_ready
        server = start_it("--port", str(port), "--models-dir", str(tmp_path / "models"), **variables)
        wait_until(lambda: answers(port))
        request = {"env_name": "Hanging-v0", "group_mode": "episode", "horizon": 64}  # which is not proven

        def hangs() -> bool:
            if call(port, "/health")["active_jobs"] == 0 and not (tmp_path / "hangs").exists():
                call(port, "/train", request)  # the first, or one after another that was too slow to get there
            return (tmp_path / "hangs").exists()

        wait_until(hangs)
        return server

    return start


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_job_that_hangs_does_not_keep_the_server_alive(
    start_hanging: Callable[..., subprocess.Popen[str]], executor: str
) -> None:
    server = start_hanging(executor)
    workers = psutil.Process(server.pid).children(recursive=True)
    assert end(server, signal.SIGTERM)[0] == 0
    wait_until(lambda: not any(map(is_alive, workers)))


def test_a_thread_that_was_given_up_on_does_not_keep_the_server_alive(
    start_hanging: Callable[..., subprocess.Popen[str]], port: int
) -> None:
    server = start_hanging("thread")
    wait_until(lambda: bool(call(port, "/health")["active_jobs"] == 0))
    assert end(server, signal.SIGTERM)[0] == 0


def test_workers_die_with_a_server_that_is_killed(
    start_hanging: Callable[..., subprocess.Popen[str]], port: int
) -> None:
    server = start_hanging("process")
    started = call(port, "/train", {"total_timesteps": 10_000_000})
    wait_until(lambda: call(port, f"/training/{started['job_id']}/status")["current_timesteps"] > 100)
    workers = wait_for_family(server, 4)
    end(server, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)))


def test_a_second_signal_ends_the_server_at_once(
    start_hanging: Callable[..., subprocess.Popen[str]], port: int
) -> None:
    """The first one waits, for longer than the test would, until the job is done."""
    server = start_hanging("process", grace_seconds=1000)
    workers = psutil.Process(server.pid).children(recursive=True)
    server.send_signal(signal.SIGTERM)
    wait_until(lambda: not answers(port))
    status, errors = end(server, signal.SIGTERM)
    assert status == 128 + signal.SIGTERM, errors
    assert "Traceback" not in errors
    wait_until(lambda: not any(map(is_alive, workers)))


def test_a_second_server_on_the_same_folder_is_refused(start_server: StartServer, port: int, tmp_path: Path) -> None:
    models_dir = tmp_path / "models"
    first = start_server("--port", str(port), "--models-dir", str(models_dir))
    wait_until(lambda: answers(port))
    second = start_server("--port", "0", "--models-dir", str(models_dir))
    output, errors = second.communicate(timeout=PATIENCE_SECONDS)
    assert (second.returncode, output) == (2, "")
    assert errors.count("\n") == 1
    for part in (str(models_dir), f"process id {first.pid}", "GRPO_MODELS_DIR", "--port"):
        assert part in errors
    # The end of a server, however sudden, opens the folder to the next one.
    first.kill()
    first.wait()
    third = start_server("--port", str(port), "--models-dir", str(models_dir))
    wait_until(lambda: answers(port))
    assert end(third, signal.SIGTERM)[0] == 0


def test_the_log_is_json_from_the_first_line_to_the_last_if_it_is_asked_for(
    start_ready: StartServer, port: int, tmp_path: Path
) -> None:
    variables = {"GRPO_LOG_FORMAT": "json", "GRPO_LOG_LEVEL": "info"}
    server = start_ready("--port", str(port), "--models-dir", str(tmp_path / "models"), **variables)
    wait_until(lambda: answers(port))
    call(port, "/models")
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"no HTTP\r\n\r\n")
        connection.recv(1)
    status, errors = end(server, signal.SIGTERM)
    lines = [json.loads(line) for line in errors.splitlines()]
    assert status == 0
    assert [line["route"] for line in lines if line["event"] == "request"] == ["/models"]
    assert "Invalid HTTP request received." in {line["event"] for line in lines}
    assert {line["logger"] for line in lines} == {"uvicorn.error", "grpo.service"}


def has_torch(process: psutil.Process) -> bool:
    return "libtorch_python" in Path(f"/proc/{process.pid}/maps").read_text()


def test_workers_are_made_ready_early_if_the_operator_wants_it(
    start_server: StartServer, port: int, tmp_path: Path
) -> None:
    server = start_server("--port", str(port), "--models-dir", str(tmp_path / "models"), GRPO_PRELOAD="1")
    wait_until(lambda: answers(port))
    process = psutil.Process(server.pid)
    wait_until(lambda: any(map(has_torch, process.children())))
    assert not has_torch(process)
    assert end(server, signal.SIGTERM)[0] == 0


def test_settings_come_from_the_environment_and_flags_go_before_them(
    start_ready: StartServer, port: int, tmp_path: Path
) -> None:
    models_dir = tmp_path / "models"
    start_ready("--models-dir", str(models_dir), GRPO_PORT=str(port), GRPO_MODELS_DIR=str(tmp_path / "unused"))
    wait_until(lambda: answers(port))
    assert models_dir.is_dir()
    assert not (tmp_path / "unused").exists()


_MY_ENVS = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

from api import REWARD_FUNCTIONS


class Mine(CartPoleEnv):
    pass


def my_reward(state, action, next_state):
    \"\"\"Pay one per step.\"\"\"
    return next_state[:, :1] * 0 + 1


gymnasium.register("Mine-v0", entry_point=Mine, max_episode_steps=20)
gymnasium.register("Named-v0", entry_point="my_envs:Mine", max_episode_steps=20)
REWARD_FUNCTIONS["my_reward"] = my_reward
"""


@pytest.mark.parametrize("executor", ["process", "thread"])
def test_environments_and_rewards_of_a_module_in_the_current_folder_are_trained_played_and_listed(
    start_ready: StartServer, port: int, tmp_path: Path, executor: str
) -> None:
    (tmp_path / "my_envs.py").write_text(_MY_ENVS)
    # Started from elsewhere, where the script's own folder is not the current one.
    modules = ("--env-module", "my_envs", "--env-module", "json")
    server = start_ready("--port", str(port), *modules, cwd=tmp_path, GRPO_EXECUTOR=executor)
    wait_until(lambda: answers(port))
    request = {"env_name": "Mine-v0", "reward_function_type": "my_reward", "n_eval_episodes": 2}
    started = call(port, "/train", {**request, "model_name": "mine", "total_timesteps": 64})
    status_path = f"/training/{started['job_id']}/status"
    wait_until(lambda: call(port, status_path)["status"] not in ("queued", "running"))
    status = call(port, status_path)
    assert (status["status"], status["warnings"]) == ("completed", []), status["error_message"]
    assert call(port, "/models/mine/evaluate", {"n_episodes": 2})["evaluation"]["mean_length"] <= 20
    for env_name in ("Mine-v0", "Named-v0"):  # each is made, and proven to be restored
        described = call(port, f"/environments/{env_name}")
        assert (described["max_episode_steps"], described["restorable"]) == (20, True)
        assert "my_reward" in described["reward_functions"]
    listed = {row["name"]: row["description"] for row in call(port, "/reward-functions")["reward_functions"]}
    assert listed["my_reward"] == "Pay one per step."
    status_code, errors = end(server, signal.SIGTERM)
    assert status_code == 0, errors
    assert "Overriding" not in errors
    assert "Traceback" not in errors


def test_a_module_of_the_current_folder_takes_no_place_of_the_servers_own(
    start_program: StartServer, port: int, tmp_path: Path
) -> None:
    (tmp_path / "my_envs.py").write_text("import service.schemas, yaml\n")
    for name in ("yaml", "service"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('imported from the current folder')\n")
    server = start_program(str(ROOT / "run_api.py"), "--port", str(port), cwd=tmp_path, GRPO_ENV_MODULES="my_envs")
    wait_until(lambda: answers(port))
    assert call(port, "/environments/CartPole-v1")["restorable"]
    assert any(map(has_torch, psutil.Process(server.pid).children())), "its modules come first there as well"


@pytest.mark.parametrize("failure", ["raise ValueError('no licence')", "import sys; sys.exit(1)", "def"])
def test_a_module_that_fails_is_refused_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], failure: str
) -> None:
    (tmp_path / "failing_envs.py").write_text(failure)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["run_api.py", "--env-module", "failing_envs"])
    assert run_api.main() == 2
    errors = capsys.readouterr().err
    assert errors.startswith("grpo: the module 'failing_envs'")
    assert errors.count("\n") == 1
    assert str(tmp_path) not in errors


@pytest.mark.parametrize("variables", [{"GRPO_API_KEY": KEY}, {"GRPO_ALLOW_INSECURE": "1"}], ids=str)
def test_with_a_key_or_an_explicit_wish_others_are_served(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variables: dict[str, str]
) -> None:
    # What would listen is replaced: a test opens no port to other machines.
    served: list[uvicorn.Config] = []
    n_frozen = gc.get_freeze_count()

    def serve(server: uvicorn.Server) -> None:
        assert gc.get_freeze_count() > n_frozen
        server.started = True
        served.append(server.config)

    monkeypatch.setattr(uvicorn.Server, "run", serve)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["run_api.py", "--host", "0.0.0.0", "--models-dir", str(tmp_path / "models")])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_api.main() == 0
    (config,) = served
    assert (config.host, config.port) == ("0.0.0.0", 8000)
    assert not config.server_header


def test_a_refusal_is_the_exit_status_of_the_process(tmp_path: Path) -> None:
    process = run_script("--host", "0.0.0.0", GRPO_MODELS_DIR=str(tmp_path / "models"))
    output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert (process.returncode, output) == (2, "")
    assert "GRPO_API_KEY" in errors
    assert errors.count("\n") == 1
    assert not (tmp_path / "models").exists()


# The others run in this process, since a new one spends seconds on its imports.
@pytest.mark.parametrize(
    ("arguments", "variables", "remedies"),
    [
        (["--host", "0.0.0.0"], {}, ["GRPO_API_KEY", "GRPO_ALLOW_INSECURE"]),
        ([], {"GRPO_HOST": "::"}, ["GRPO_API_KEY"]),
        (["--models-dir", "models.txt"], {}, ["models.txt"]),
        (["--models-dir", "/proc/models"], {}, ["/proc/models cannot be created", "GRPO_MODELS_DIR"]),
        (["--models-dir", "models.txt/a\n\x1b[31m"], {}, ["models.txt/a\\n\\x1b[31m is a file"]),
        (["--models-dir="], {}, ["models_dir (GRPO_MODELS_DIR) must name a folder"]),
        ([], {"GRPO_ALLOWED_HOSTS": "http://a.example"}, ["allowed_hosts (GRPO_ALLOWED_HOSTS)", "without scheme"]),
        ([], {"GRPO_CORS_ORIGINS": "a.example"}, ["cors_origins (GRPO_CORS_ORIGINS)", "such as https://example.org"]),
        ([], {"GRPO_API_KEY": "short-secret"}, ["api_key", "16 characters"]),
        ([], {"GRPO_API_KEY_FILE": "nowhere.key"}, ["api_key_file nowhere.key", "No such file"]),
        ([], {"GRPO_PORT": "eighty"}, ["port (GRPO_PORT) must be a whole number"]),
        ([], {"GRPO_API_KEY_FILE": "/dev/zero"}, ["api_key_file /dev/zero", "not a regular file", "GRPO_API_KEY"]),
        (["--env-module", "not_there"], {}, ["not_there", "ModuleNotFoundError", "PYTHONPATH"]),
        (["--env-module", "os/path"], {}, ["os/path", "name of a module"]),
        ([], {"GRPO_ENV_MODULES": "json,my_envs.py:Env"}, ["my_envs.py:Env", "name of a module"]),
        (["--env-module", "json", "--env-module", "class"], {}, ["class", "name of a module"]),
        (["--port", "70000"], {}, ["port", "65535"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work_are_refused_in_a_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    variables: dict[str, str],
    remedies: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models.txt").write_text("not a folder")
    monkeypatch.setattr(sys, "argv", ["run_api.py", *arguments])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run_api.main() == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert all(remedy in errors for remedy in remedies)
    assert errors.startswith("grpo: ")
    assert errors.count("\n") == 1
    assert "short-secret" not in errors


def test_a_misspelt_variable_is_told_even_if_the_server_does_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_api.py", "--host", "0.0.0.0"])
    monkeypatch.setenv("GRPO_ALLOW_INSECUR", "1")
    assert run_api.main() == 2
    assert "GRPO_ALLOW_INSECUR is no setting; did you mean GRPO_ALLOW_INSECURE?" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--port", "eighty"], ["--prot", "8000"], ["extra"]], ids=str)
def test_flags_that_make_no_sense_are_refused_with_the_way_to_the_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_api.py", *arguments])
    with pytest.raises(SystemExit) as end_of_process:
        run_api.main()
    assert end_of_process.value.code == 2
    assert "see 'run_api.py --help'" in capsys.readouterr().err


def test_a_port_that_is_taken_ends_it_with_an_error(port: int, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", port)):
        process = run_script("--port", str(port), "--models-dir", str(tmp_path / "models"))
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2
    assert errors.count("\n") == 1
    for part in (f"port {port} of 127.0.0.1", "address already in use", "--port", "GRPO_PORT"):
        assert part in errors


def test_it_says_where_the_dashboard_is(start_ready: StartServer, tmp_path: Path) -> None:
    server = start_ready("--port", "0", "--models_dir", str(tmp_path / "models"), GRPO_LOG_LEVEL="info")
    assert server.stderr is not None
    line = next(line for line in server.stderr if "dashboard" in line)
    (url,) = re.findall(r"http://localhost:\d+/dashboard", line)
    with urlopen(url) as page:
        assert page.status == 200
