"""What the page of a model offers to copy works as it is written."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fastapi import FastAPI
from gymnasium import spaces

from grpo import GRPO
from service.dashboard.models.use_panel import list_recipes
from tests.environments import SpaceEnv
from tests.support import serve

# One that a shell and a string could misread.
PARTS = spaces.Dict({"a'\"$(exit 9)`": spaces.Box(-1.0, 1.0, (2, 2)), "é😀": spaces.Discrete(3)})
OBSERVATION_SPACES = {
    "numbers": spaces.Box(-1.0, 1.0, (4,)),
    "discrete": spaces.Discrete(5),
    "many": spaces.Box(0, 255, (12, 4), np.uint8),
    "dict": PARTS,
}


@pytest.fixture(params=OBSERVATION_SPACES)
def space(request: pytest.FixtureRequest) -> spaces.Space[object]:
    """A space to observe."""
    space: spaces.Space[object] = OBSERVATION_SPACES[request.param]
    return space


@pytest.fixture
def model(space: spaces.Space[object], app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GRPO:
    """A served model, whose files lie in the current folder."""
    policy = "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    model = GRPO(policy, SpaceEnv(space, spaces.Discrete(2)), n_steps=8, group_size=2, horizon=2, seed=0)
    app.state.service.store.publish("m", model.to_bytes())
    monkeypatch.chdir(tmp_path)
    model.save("m.zip")
    return model


def run_python(code: str, capsys: pytest.CaptureFixture[str]) -> str:
    exec(code, {})
    return capsys.readouterr().out


@pytest.mark.parametrize("title", ["curl", "Python, from this server"])
def test_recipes_that_ask_the_server_are_answered(
    model: GRPO, space: spaces.Space[object], app: FastAPI, title: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serve(app) as port:
        code = list_recipes("m", space, f"http://127.0.0.1:{port}", needs_key=False)[title]
        if title != "curl":
            assert run_python(code, capsys) in ("0\n", "1\n")
            return
        if shutil.which("curl") is None:
            pytest.skip("curl is not installed")
        code = code.replace("python3", sys.executable)
        answer = subprocess.run(["sh", "-ec", code], capture_output=True, text=True, check=True)
        assert answer.stdout.startswith(('{"action":0', '{"action":1'))


@pytest.mark.filterwarnings("ignore:`torch.jit.load` is deprecated:DeprecationWarning")
def test_recipes_without_a_server_choose_an_action(
    model: GRPO, space: spaces.Space[object], capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = list_recipes("m", space, "http://localhost", needs_key=False)
    chosen = run_python(recipes["Python, without a server"], capsys)
    assert chosen in ("[0]\n", "[1]\n")
    model.export("m.pt")
    assert run_python(recipes["TorchScript, without this library"], capsys) == chosen
    pytest.importorskip("onnx", reason="onnx is not installed: pip install -r requirements-dev.txt")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed, see requirements-dev.txt")
    model.export("m.onnx")
    assert run_python(recipes["ONNX, without this library"], capsys) == chosen


def test_a_key_is_not_written_down() -> None:
    recipes = list_recipes("m", OBSERVATION_SPACES["numbers"], "http://localhost:8000", needs_key=True)
    assert '-H "Authorization: Bearer $GRPO_API_KEY"' in recipes["curl"]
    assert 'api_key=getpass("API key: ")' in recipes["Python, from this server"]
    assert "GRPO_API_KEY" not in list_recipes("m", OBSERVATION_SPACES["numbers"], "http://h", needs_key=False)["curl"]
