"""Worker processes and the forkserver end with the server, and never run its start script again."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tests.support import PATIENCE_SECONDS, PATIENT_VARIABLES, is_alive, wait_until

ROOT = Path(__file__).parents[3]

# Without a guard: importing it runs it.
_START_SCRIPT = """
import sys
import time
from pathlib import Path

import gymnasium as gym
from fastapi.testclient import TestClient
from gymnasium.envs.classic_control import CartPoleEnv

from api import REWARD_FUNCTIONS, create_app

with Path("runs.txt").open("a") as file:
    file.write("run ")


class Mine(CartPoleEnv):
    pass


def my_reward(state, action, next_state):
    return PAID + next_state[:, :1] * 0


PAID = 3.0
gym.register("Mine-v0", entry_point=Mine, max_episode_steps=20)
REWARD_FUNCTIONS["my_reward"] = my_reward
with TestClient(create_app(), base_url="http://localhost") as client:
    body = {"env_name": "Mine-v0", "total_timesteps": 64, "model_name": "m", "reward_function_type": "my_reward"}
    job_id = client.post("/train", json=body).json()["job_id"]
    while (job := client.get(f"/training/{job_id}/status").json())["status"] in ("queued", "running"):
        time.sleep(0.05)
    assert job["metrics"]["rollout/reward_mean"] == PAID, job
    assert client.post("/models/m/evaluate", json={"n_episodes": 1}).json()["evaluation"]["mean_length"] <= 20
assert "torch" not in sys.modules
print("done")
"""

_WARM_UP = """
import time

from service.logs import LogStyle
from service.workers.processes import ProcessExecutor

ProcessExecutor(LogStyle()).warm_up()
print("warm", flush=True)
time.sleep(1000)
"""

# Native code that never gives the interpreter's lock back.
_HANG = """
import ctypes
import os
import subprocess
import time

import gymnasium as gym

from service.logs import LogStyle
from service.workers.processes import ProcessExecutor
from service.workers.task import Task
from tests.support import Recorder


def make_hanging():
    names = "PYTHONPATH", "PYTHONSAFEPATH", "GRPO_FORKSERVER_START"
    subprocess.Popen(["sleep", "1000"], stdout=subprocess.DEVNULL)
    print("hanging", *map(os.environ.get, names), flush=True)
    ctypes.PyDLL(None).pause()


gym.register("Hanging-v0", entry_point=make_hanging)
task = Task("service.environments.inspection:inspect_environment", ("Hanging-v0",), "Hanging-v0")
run = ProcessExecutor(LogStyle()).start(task, Recorder())
time.sleep(1000)
"""

StartScript = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start_script(tmp_path: Path) -> Iterator[StartScript]:
    """Run a script from another folder than the project's, and end its remaining processes after the test."""
    processes: list[subprocess.Popen[str]] = []

    def start(text: str, *flags: str) -> subprocess.Popen[str]:
        script = tmp_path / "start_script.py"
        script.write_text(f"import sys\nsys.path.append({str(ROOT)!r})\n{text}")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPO_")}
        processes.append(
            subprocess.Popen(
                [sys.executable, *flags, str(script)],
                cwd=tmp_path,
                env={**environment, **PATIENT_VARIABLES, "TMPDIR": str(tmp_path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_workers_know_the_definitions_of_the_start_script_without_running_it_again(
    start_script: StartScript, tmp_path: Path
) -> None:
    script = start_script(_START_SCRIPT)
    output, _ = script.communicate(timeout=PATIENCE_SECONDS)
    assert (script.returncode, output) == (0, "done\n")
    assert (tmp_path / "runs.txt").read_text() == "run "


@pytest.mark.parametrize("delay_seconds", [0.0, 0.05, 0.3, 1.0])
def test_a_server_killed_while_the_forkserver_imports_leaves_no_process(
    start_script: StartScript, delay_seconds: float, tmp_path: Path
) -> None:
    server = start_script(_WARM_UP)
    assert read_line(server) == "warm"
    # No condition to wait for: any moment during the imports will do.
    time.sleep(delay_seconds)
    kill_and_check(server)
    assert list(tmp_path.glob("pymp-*")) == []


def test_a_server_killed_while_a_worker_holds_the_interpreter_leaves_no_process(
    start_script: StartScript, tmp_path: Path
) -> None:
    server = start_script(_HANG)
    # Processes that environments start do not inherit the forkserver's variables.
    assert read_line(server) == "hanging None None None"
    (forkserver,) = [child for child in psutil.Process(server.pid).children() if child.children()]
    assert "libtorch_python" in Path(f"/proc/{forkserver.pid}/maps").read_text()
    kill_and_check(server)
    assert list(tmp_path.glob("pymp-*")) == []


def test_a_worker_does_for_itself_what_the_forkserver_could_not(start_script: StartScript) -> None:
    server = start_script(_HANG, "-E")  # with which Python looks at no PYTHONPATH
    assert read_line(server) == "hanging None None None"
    (forkserver,) = [child for child in psutil.Process(server.pid).children() if child.children()]
    (worker,) = forkserver.children()
    assert worker.nice() > forkserver.nice()
    kill_and_check(server)


def kill_and_check(server: subprocess.Popen[str]) -> None:
    children = psutil.Process(server.pid).children(recursive=True)
    assert children
    server.send_signal(signal.SIGKILL)
    try:
        wait_until(lambda: not any(map(is_alive, children)))
    finally:
        for child in filter(is_alive, children):
            child.kill()
