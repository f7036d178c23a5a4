"""Imports go one way, as the orders have it, and the server imports nothing that trains and no environment."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import gymnasium as gym
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from tests.models import make_model
from tests.support import PATIENCE_SECONDS

ROOT = Path(__file__).parent.parent
ORDER = ["grpo_terminal", "grpo_core", "grpo", "grpo_cli", "grpo_zoo", "service", "api", "run_api"]
# The rooms of the service, those in front last; rooms of one line do not know each other.
SERVICE_ORDER = [
    {"context", "restart_pause"},
    {"errors", "logs"},
    {"settings", "schemas"},
    {"spaces", "extensions"},
    {"workers"},
    {"environments"},
    {"training"},
    {"models"},
    {"inference", "jobs", "replicas"},
    {"sweeps"},
    {"monitoring"},
    {"app"},
    {"http"},
    {"dashboard"},
]
# The rooms of the library, each of which imports only from those before it.
LIBRARY_ORDER = [
    "spaces",
    "npy",
    "process",
    "suggestions",
    "replaced_methods",
    "actor",
    "options",
    "environments",
    "restoring",
    "banks",
    "groups",
    "update",
    "saving",
    "shards",
    "export",
    "algorithm",
    "checkpoints",
    "success",
    "evaluation",
    "values",
    "film",
    "fast",
]
TRAINING_PACKAGES = ["torch", "stable_baselines3", "pandas", "matplotlib"]
WEB_PACKAGES = {
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "pydantic_settings",
    "fastapi_offline",
    "cachetools",
    "nicegui",
}


def list_imports(file: Path) -> Iterator[str]:
    """List the packages that a module imports when it is imported, or later.

    What it does as a script does not count: nothing that imports it runs that, so that no circle can come of it.
    """
    statements = [node for node in ast.parse(file.read_text()).body if not is_script_guard(node)]
    for node in ast.walk(ast.Module(statements, [])):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def list_library_imports(file: Path) -> Iterator[str]:
    """List the rooms of ``grpo_core`` that a module imports from; of none of them it imports by another way."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "grpo_core":
            parts = node.module.split(".")[1:]
            yield from [parts[0]] if parts else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            assert not any(alias.name.startswith("grpo_core") for alias in node.names), f"{file.name}: import a name"


def is_script_guard(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'"


def list_files(room: str) -> list[Path]:
    return [*(ROOT / room).glob("**/*.py"), *([ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else [])]


def test_every_room_imports_only_from_the_rooms_behind_it() -> None:
    for level, room in enumerate(ORDER):
        files = list_files(room)
        assert files, room
        for file in files:
            outer = set(ORDER[level + 1 :]) & set(list_imports(file))
            assert not outer, f"{file.name} imports {outer}"


def test_every_room_of_the_library_is_in_the_order() -> None:
    rooms = {path.stem for path in (ROOT / "grpo_core").iterdir() if path.is_dir() or path.suffix == ".py"}
    assert rooms - {"__init__", "__pycache__"} == set(LIBRARY_ORDER)


@pytest.mark.parametrize("room", LIBRARY_ORDER)
def test_every_room_of_the_library_imports_only_from_the_rooms_behind_it(room: str) -> None:
    allowed = {*LIBRARY_ORDER[: LIBRARY_ORDER.index(room) + 1], "__version__"}
    files = list_files(f"grpo_core/{room}")
    assert files
    for file in files:
        outer = set(list_library_imports(file)) - allowed
        assert not outer, f"{file} imports {outer}"


def test_what_is_fast_is_imported_in_two_places() -> None:
    importers = {
        file.relative_to(ROOT).as_posix()
        for room in ORDER
        for file in list_files(room)
        if "fast" in set(list_library_imports(file)) and "grpo_core/fast" not in file.as_posix()
    }
    assert importers == {"grpo.py", "service/training/evaluation/evaluator.py"}


def test_every_room_of_the_service_imports_only_from_the_rooms_behind_it() -> None:
    levels = {room: level for level, rooms in enumerate(SERVICE_ORDER) for room in rooms}
    rooms = {file.stem if file.is_file() else file.name for file in (ROOT / "service").iterdir()}
    assert rooms - {"__init__", "__pycache__"} == levels.keys()
    for room, level in levels.items():
        for file in list_files(f"service/{room}"):
            for other in list_rooms(file, "service") - {room}:
                assert levels[other] < level, f"{file} imports {other}"


def list_rooms(file: Path, package: str) -> set[str]:
    """List the rooms of a package that a module imports from, at once or later."""
    names = [node.module for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[1] for name in names if name and name.startswith(f"{package}.")}


@pytest.mark.parametrize("package", ["benchmarks", "grpo_cli", "grpo_client", "grpo_core", "service"])
def test_in_no_folder_do_files_and_folders_import_each_other_in_a_circle(package: str) -> None:
    modules = {file: set(list_modules(file)) for file in list_files(package)}
    for folder in {file.parent for file in modules}:
        within = {file: names for file, names in modules.items() if file.is_relative_to(folder)}
        graph: dict[str, set[str]] = {}
        for file, names in within.items():
            own = file.relative_to(folder).parts[0].removesuffix(".py")
            prefix = ".".join(folder.relative_to(ROOT).parts) + "."
            inner = {name.removeprefix(prefix).split(".")[0] for name in names if name.startswith(prefix)}
            graph.setdefault(own, set()).update(inner - {own})
        TopologicalSorter({name: inner for name, inner in graph.items() if name != "__init__"}).prepare()


def list_modules(file: Path) -> Iterator[str]:
    """List what a module imports, at once or later, by whole names; what only types need does not count."""
    nodes: list[ast.AST] = [ast.parse(file.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            nodes += ast.iter_child_nodes(node)


@pytest.mark.parametrize("package", ["grpo_cli", "grpo_client", "grpo_core", "service"])
def test_a_folders_map_names_all_that_is_in_it_and_nothing_else(package: str) -> None:
    for file in list_files(package):
        items = (ast.get_docstring(ast.parse(file.read_text())) or "").partition("\n\n- ")[2]
        if file.name == "__init__.py" and items:
            named = set(re.findall(r"``([a-z_]+)``", items))
            here = {path.stem for path in file.parent.iterdir()} - {"__init__", "__pycache__"}
            below = {path.stem for path in file.parent.glob("*/*.py")}
            assert here <= named <= here | below, f"{file}: {here ^ named}"


def test_the_table_of_hyperparameters_is_read_without_torch() -> None:
    code = "import sys, grpo_core.options.checks; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_client_stands_alone() -> None:
    for file in list_files("grpo_client"):
        assert not set(ORDER) & set(list_imports(file)) - {"grpo_terminal"}, file.name
    for room in ORDER:
        for file in list_files(room):
            assert "grpo_client" not in set(list_imports(file)), file.name


def test_the_library_has_no_web_dependency() -> None:
    for room in ("grpo_core", "grpo", "grpo_cli", "grpo_zoo"):
        for file in list_files(room):
            assert not WEB_PACKAGES & set(list_imports(file)), file.name


def test_only_the_settings_read_the_process_environment() -> None:
    for room in ORDER:
        for file in list_files(room):
            # Three pass on what the forkserver and Ray are told in no other way. One looks for a display.
            passing = ("forking.py", "preload.py", "ray_connection.py")
            if file.name not in ("settings.py", "run_api.py", *passing, "play.py"):
                source = file.read_text()
                assert "os.environ" not in source, file.name
                assert "getenv" not in source, file.name


def run_server(statements: str, tmp_path: Path) -> list[str]:
    """Talk to a service in a process of its own, in which it is the first to import; return which packages that took.

    :param statements: What is done with its ``client``.
    """
    script = f"""
import sys
import time
from pathlib import Path

import gymnasium
from fastapi.testclient import TestClient

from api import REWARD_FUNCTIONS, create_app
from service.settings import Settings

sys.path.append({str(tmp_path)!r})
gymnasium.register("Own-v0", entry_point="own_env:OwnEnv", max_episode_steps=20)
REWARD_FUNCTIONS["my_reward"] = lambda state, action, next_state: next_state[:, :1]
settings = Settings(models_dir=Path({str(tmp_path)!r}) / "models", executor="process", task_seconds={PATIENCE_SECONDS})
with TestClient(create_app(settings), base_url="http://localhost") as client:
    {statements}
    print([name for name in {[*TRAINING_PACKAGES, "own_env"]} if name in sys.modules])
"""
    (tmp_path / "own_env.py").write_text(
        "from gymnasium.envs.classic_control import CartPoleEnv\n\nclass OwnEnv(CartPoleEnv):\n    pass\n"
    )
    process = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    imported: list[str] = ast.literal_eval(process.stdout)
    return imported


def test_serving_a_model_imports_nothing_of_what_trains(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "m.zip").write_bytes(make_model("CartPole-v1").to_bytes(env_name="CartPole-v1"))
    (tmp_path / "models" / "normalised.zip").write_bytes(
        GRPO("MlpPolicy", VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))).to_bytes()
    )
    statements = """
    for name, n_numbers in (("m", 4), ("normalised", 3)):
        for deterministic in (True, False):
            body = {"model_name": name, "observation": [0.1] * n_numbers, "deterministic": deterministic}
            assert client.post("/inference", json=body).status_code == 200
    for path in ("/", "/health", "/models", "/training/jobs", "/docs", "/openapi.json", "/models/m", "/environments"):
        assert client.get(path).status_code == 200, path
    assert client.post("/models/m/evaluate", json={"n_episodes": 1}).status_code == 200
    assert client.get("/models/m/video?max_steps=2").status_code == 200
    assert client.get("/models/m/export?format=torchscript").status_code == 200
    assert client.post("/train", json={"total_timesteps": 0}).status_code == 422
    assert client.delete("/models/m").status_code == 200
    """
    assert run_server(statements.strip(), tmp_path) == []


def test_planning_training_playing_and_describing_import_nothing_of_it_either(tmp_path: Path) -> None:
    statements = """
    body = {"env_name": "Own-v0", "total_timesteps": 64, "reward_function_type": "my_reward", "model_name": "m"}
    body |= {"eval_freq": 64, "n_eval_episodes": 1}
    job_id = client.post("/train", json=body).json()["job_id"]
    while (job := client.get(f"/training/{job_id}/status").json())["status"] in ("queued", "running"):
        time.sleep(0.05)
    assert (job["status"], job["evaluation"]["n_episodes"]) == ("completed", 1), job
    assert client.post("/train", json={"env_name": "Own-v0", "n_steps": 33}).status_code == 400
    assert client.post("/models/m/evaluate", json={"n_episodes": 1}).status_code == 200
    assert client.get("/models/m/video?max_steps=2").status_code == 200
    assert client.get("/environments/Own-v0").json()["restorable"]
    for path in ("/models/m", "/environments", "/reward-functions", "/training/jobs", "/metrics", "/dashboard"):
        assert client.get(path).status_code == 200, path
    """
    assert run_server(statements.strip(), tmp_path) == []
