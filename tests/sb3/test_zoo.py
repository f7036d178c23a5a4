"""GRPO in RL Baselines3 Zoo, with the presets as its configuration file."""

import importlib.util
import io
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

import grpo_zoo
from grpo import GRPO
from grpo_zoo import complete_arguments
from tests.suites import DEVICE

ROOT = Path(__file__).parent.parent.parent
PRESETS = str(files("grpo_core.options") / "presets.yml")
HAS_ZOO = importlib.util.find_spec("rl_zoo3") is not None
needs_zoo = pytest.mark.skipif(not HAS_ZOO, reason="rl_zoo3 is not installed")


def run_zoo(python: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [python, "-m", "grpo_zoo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.mark.parametrize(
    ("given", "completed"),
    [
        (["--env", "A"], ["train", "--env", "A", "--algo", "grpo", "--conf-file", PRESETS]),
        (["train", "--algo=grpo"], ["train", "--algo=grpo", "--conf-file", PRESETS]),
        (["--algo", "grpo", "-conf", "my.yml"], ["train", "--algo", "grpo", "-conf", "my.yml"]),
        (["--conf-file=my.yml"], ["train", "--conf-file=my.yml", "--algo", "grpo"]),
        (["--algo", "ppo"], ["train", "--algo", "ppo"]),
        (["enjoy", "--env", "A"], ["enjoy", "--env", "A", "--algo", "grpo"]),
    ],
)
def test_what_is_left_out_of_the_command_line_is_completed(given: list[str], completed: list[str]) -> None:
    assert complete_arguments(given) == completed


@pytest.mark.skipif(HAS_ZOO, reason="rl_zoo3 is installed")
def test_without_the_zoo_it_says_what_to_install(python: str) -> None:
    answer = run_zoo(python, "--algo", "grpo")
    assert answer.returncode == 1
    assert "pip install rl_zoo3" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_the_zoo_normalises_itself_and_is_not_warned_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1"))
    content = GRPO("MlpPolicy", env, device=DEVICE).to_bytes()

    def enjoy() -> None:
        GRPO.load(io.BytesIO(content), device=DEVICE).predict(np.zeros(4, np.float32))

    monkeypatch.setitem(sys.modules, "rl_zoo3", SimpleNamespace(ALGOS={}))
    monkeypatch.setitem(sys.modules, "rl_zoo3.enjoy", SimpleNamespace(enjoy=enjoy))
    monkeypatch.setattr(sys, "argv", ["grpo_zoo", "enjoy"])
    assert grpo_zoo.main() == 0


@needs_zoo
def test_the_zoo_trains_saves_and_plays_a_preset(python: str, tmp_path: Path) -> None:
    common = ["--algo", "grpo", "--env", "CartPole-v1", "-f", str(tmp_path), "--device", "cpu", "-n"]
    trained = run_zoo(python, *common, "256", "--seed", "1", "--eval-freq", "128", "--eval-episodes", "1")
    assert trained.returncode == 0, trained.stderr
    folder = tmp_path / "grpo" / "CartPole-v1_1"
    config = yaml.load((folder / "CartPole-v1" / "config.yml").read_text(), yaml.UnsafeLoader)
    preset = yaml.safe_load(Path(PRESETS).read_text())["CartPole-v1"]
    assert dict(config) == preset
    model = GRPO.load(folder / "CartPole-v1", device=DEVICE)
    assert (model.group_size, model.horizon, model.n_steps) == (2, 32, 256)
    assert (folder / "best_model.zip").exists()
    played = run_zoo(python, "enjoy", *common, "50", "--no-render")
    assert played.returncode == 0, played.stderr


@needs_zoo
def test_options_beyond_ppos_reach_the_model_and_training_goes_on_from_a_file(python: str, tmp_path: Path) -> None:
    common = ["--env", "Pendulum-v1", "-f", str(tmp_path), "--device", "cpu", "--eval-freq", "-1"]
    small = ["-params", "n_steps:64", "horizon:8", "kl_coef:0.1", "baseline:'leave_one_out'", "learning_rate:0.01"]
    first = run_zoo(python, *common, "-n", "64", *small)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "grpo" / "Pendulum-v1_1" / "Pendulum-v1.zip"
    model = GRPO.load(path, device=DEVICE)
    assert (model.horizon, model.kl_coef, model.baseline, model.learning_rate) == (8, 0.1, "leave_one_out", 0.01)
    assert (model.restart_probability, model.group_size) == (0.5, 4)
    second = run_zoo(python, *common, "-n", "64", *small, "-i", str(path))
    assert second.returncode == 0, second.stderr
    continued = GRPO.load(tmp_path / "grpo" / "Pendulum-v1_2" / "Pendulum-v1", device=DEVICE)
    assert continued._n_updates > model._n_updates
