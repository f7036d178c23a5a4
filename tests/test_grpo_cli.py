"""The commands of the library."""

import errno
import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium import spaces
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import unwrap_vec_normalize

from grpo import GRPO
from grpo_cli import main
from grpo_core.saving import model_file
from tests.conftest import RegisterEnv
from tests.environments import LineEnv, SpaceEnv
from tests.models import forge, make_model
from tests.support import wait_until

ROOT = Path(__file__).parent.parent
MY_ENVS = """
import gymnasium as gym
from tests.environments import LineEnv

gym.register("MyLine-v0", LineEnv)
"""


def run(python: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run ``python grpo.py`` in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    command = [python, str(ROOT / "grpo.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def read_meta(path: Path) -> dict[str, object]:
    return model_file.from_bytes(path.read_bytes()).meta


def get_hyperparameters(path: Path) -> dict[str, object]:
    hyperparameters = read_meta(path)["hyperparameters"]
    assert isinstance(hyperparameters, dict)
    return hyperparameters


def test_a_newcomer_trains_evaluates_films_and_describes_a_policy(
    python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = run(python, "train", "--env", "CartPole-v1", "--seed", "3", "--output", "cartpole", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "for 20,000 steps with the preset of CartPole-v1, seed 3" in trained.stdout
    assert "saved cartpole.zip" in trained.stdout

    model, film = str(tmp_path / "cartpole"), tmp_path / "new" / "e.gif"
    assert main(["evaluate", "--model", model, "--episodes", "5"]) == 0
    policy, at_random = map(float, re.findall(r"mean reward +(\S+) +(\S+)", capsys.readouterr().out)[0])
    assert policy > 400 > 100 > at_random

    assert main(["enjoy", "--model", f"{model}.zip", "--output", str(film), "--max-steps", "8"]) == 0
    assert "8 steps, reward 8.00" in capsys.readouterr().out
    assert film.read_bytes().startswith(b"GIF89a")

    assert main(["info", "--model", model]) == 0
    described = capsys.readouterr().out
    assert '"CartPole-v1"' in described
    assert re.search(r"group_size +2$", described, flags=re.MULTILINE)


def test_the_command_line_trains_the_same_model_as_the_library(tmp_path: Path) -> None:
    assert main(["train", "--env=CartPole-v1", "-n=512", "--seed=5", "--eval-episodes=0", f"-o={tmp_path / 'm'}"]) == 0
    preset: dict[str, Any] = {"n_steps": 256, "group_size": 2, "horizon": 32, "baseline": "adaptive"}
    rate = LinearSchedule(0.0006, 0.0, 1.0)
    by_hand = GRPO("MlpPolicy", "CartPole-v1", rate, seed=5, device="cpu", **preset)
    by_hand.learn(512)
    by_hand.save(tmp_path / "by_hand")
    ours, theirs = (model_file.from_bytes((tmp_path / f"{name}.zip").read_bytes()) for name in ("m", "by_hand"))
    assert ours.weights.keys() == theirs.weights.keys()
    assert all((ours.weights[name] == theirs.weights[name]).all() for name in ours.weights)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--learning-rate", "0.01"], {"learning_rate": 0.01}),
        (["--learning-rate", "lin_0.01"], {"learning_rate": {"linear": [0.01, 0.0, 1.0]}}),
        (["--group-size", "4", "--horizon", "16"], {"group_size": 4, "horizon": 16}),
        (["-params", "kl_coef=0.1", "baseline=group"], {"kl_coef": 0.1, "baseline": "group"}),
        (["--kl-coef", "0.1", "--ref-sync-steps", "none"], {"kl_coef": 0.1, "ref_sync_steps": None}),
        (
            ["--baseline", "none", "-params", "advantage_scaling=none"],
            {"baseline": "none", "advantage_scaling": "none"},
        ),
        (
            ["-params", "gamma=0.8", "n_epochs=3", "-params", "kl_coef=0.1"],
            {"gamma": 0.8, "n_epochs": 3, "kl_coef": 0.1},
        ),
        (["-params", "common_random_numbers=true", "target_kl=None"], {"common_random_numbers": True}),
        (["--env", "Pendulum-v1"], {"gamma": 0.98, "restart_probability": 0.7}),
        (["--env", "Pendulum-v1", "--gamma", "0.9"], {"gamma": 0.9, "restart_probability": 0.7}),
        (["--env", "Pendulum-v1", "--preset", "none"], {"gamma": 0.99, "restart_probability": 0.0}),
        (["--env", "Acrobot-v1", "--preset", "MountainCar-v0"], {"gae_lambda": 0.98}),
    ],
)
def test_options_reach_the_algorithm(options: list[str], expected: dict[str, object], tmp_path: Path) -> None:
    output = tmp_path / "m.zip"
    arguments = ["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-o", str(output), *options]
    assert main(arguments) == 0
    assert get_hyperparameters(output).items() >= expected.items()


def test_classes_of_the_network_are_named(tmp_path: Path) -> None:
    network = "policy_kwargs={'net_arch': [8], 'activation_fn': 'ReLU', 'optimizer_class': 'SGD'}"
    output = tmp_path / "m.zip"
    options = ["-n", "1", "--eval-episodes", "0", "-o", str(output), "-params", network]
    assert main(["train", "--env", "CartPole-v1", *options]) == 0
    described = read_meta(output)["network"]
    assert isinstance(described, dict)
    assert (described["net_arch"], described["activation"], described["optimizer_class"]) == (
        {"pi": [8], "vf": [8]},
        "ReLU",
        "SGD",
    )


def test_normalisation_is_asked_for_by_name(tmp_path: Path) -> None:
    output = tmp_path / "m.zip"
    options = ["-n", "1", "--eval-episodes", "1", "-o", str(output), "-params", "normalize={'norm_reward': False}"]
    assert main(["train", "--env", "CartPole-v1", *options]) == 0
    env = GRPO.load(output, env=gym.make("CartPole-v1")).get_env()
    vec_normalize = None if env is None else unwrap_vec_normalize(env)
    assert vec_normalize is not None
    assert (vec_normalize.norm_obs, vec_normalize.norm_reward) == (True, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--env", "MountainCarContinuous-v0"], (True, True)),  # its preset says so
        (["--env", "MountainCarContinuous-v0", "-params", "normalize=false"], None),
        (["--env", "MountainCar-v0"], (True, False)),
        (["--env", "CartPole-v1"], None),
        (["--env", "CartPole-v1", "-params", "normalize={}"], (True, True)),
        (["--env", "CartPole-v1", "--wrapper", "normalize"], (True, True)),
        (["--env", "CartPole-v1", "--wrapper", '{"name": "normalize", "norm_reward": false}'], (True, False)),
        (["--env", "Keys-v0"], (True, True)),
        (["--env", "Places-v0"], (False, True)),  # a general preset: these observations cannot be normalised
    ],
)
def test_what_normalises_is_in_the_file(
    options: list[str], expected: tuple[bool, bool] | None, tmp_path: Path, register_env: RegisterEnv
) -> None:
    push = spaces.Box(-1.0, 1.0, (1,))
    place, speed = spaces.Discrete(3), spaces.Box(-1.0, 1.0, (2,))
    register_env(lambda: SpaceEnv(spaces.Dict({"place": place, "speed": speed}), push), "Keys-v0")
    register_env(lambda: SpaceEnv(spaces.Dict({"place": place}), push), "Places-v0")
    output = tmp_path / "m.zip"
    assert main(["train", "-n", "1", "--eval-episodes", "0", "-o", str(output), *options]) == 0
    described: Any = read_meta(output).get("normalization")
    assert expected == (None if described is None else (described["norm_obs"], described["norm_reward"]))


def test_a_reward_shipped_for_cartpole_takes_no_preset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "m.zip"
    options = ["-n", "1", "--eval-episodes", "0", "-o", str(output), "--reward-function", "simple_cartpole"]
    assert main(["train", "--env", "CartPole-v1", *options]) == 0
    assert "with no preset" in capsys.readouterr().out
    assert read_meta(output)["reward_function"] == "simple_cartpole"


def test_the_file_goes_into_the_log_folder_under_the_name_of_the_environment(tmp_path: Path) -> None:
    options = ["-n", "1", "--eval-episodes", "0", "-f", str(tmp_path / "logs"), "-tb", str(tmp_path / "tb")]
    assert main(["train", "--env", "CartPole-v1", *options]) == 0
    assert (tmp_path / "logs" / "CartPole-v1.zip").is_file()
    assert list((tmp_path / "tb" / "GRPO_1").iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--learning-rate", "fast"],
            "learning_rate='fast' is not allowed: write a number, or lin_NUMBER, which falls",
        ),
        (["--learning-rate", "lin_fast"], "a schedule is written lin_NUMBER"),
        (["--n-steps", "100"], "use n_steps=128"),
        (["-params", "learnin_rate=1"], "did you mean learning_rate=...?"),
        (["-params", "gamma=0.9", "gamma=0.7"], "gamma=0.7 is not allowed: gamma is already set to 0.9; leave one out"),
        (["--gamma", "0.8", "-params", "gamma=0.7"], "gamma is already set to 0.8; leave one out"),
        (["--env-kwargs", "size=1", "size=2"], "--env-kwargs size=2 is not allowed: it sets size for the second time"),
        (["-params", "gamma"], "does not set a hyperparameter of GRPO as NAME=VALUE"),
        (["-params", "seed=1"], "--hyperparams seed=1 does not set a hyperparameter"),
        (["-params", "gamma=__import__('os')"], "is not allowed: it must lie in [0, 1]"),
        (["-params", "policy=Foo"], "policy='Foo' is not allowed: use one of MlpPolicy"),
        (["-params", "normalize=5"], "normalize=5 does not fit CartPole-v1"),
        (["-params", "normalize=true", "--wrapper", "normalize"], "are both there; give one of them"),
        (["--env-kwargs", "sutton_barto_reward={1}"], "has a value that JSON, and so a model file, cannot hold"),
        (["--env-kwargs", "sutton_barto_reward=1e999"], "has a value that JSON, and so a model file, cannot hold"),
        (["-o", "m.pt"], "--output m.pt would be taken for an export; name it m.zip"),
        (["--preset", "Foo"], "--preset Foo is not known; choose none, Acrobot-v1, Ant-v5, CartPole-v1"),
        (["--env", "CartPol-v1"], "--env CartPol-v1 cannot be made: it is not registered; did you mean CartPole-v"),
        (["--env", "no_such_module:Docking-v0"], "the module 'no_such_module' is missing; if a package of that name"),
        (["--env", "a:b:c"], "--env a:b:c cannot be made: "),
        (["--env", ".foo:Bar-v0"], "'.foo' before the colon is not the name of a module"),
        (["--env-module", "no-such-module"], "--env-module no-such-module cannot be imported"),
        (["--env", "Docking-v0"], "it is not registered; if a module of yours registers it, add --env-module"),
        (["--env", "Acrobot-v1", "--reward-function", "simple_cartpole"], "take --reward-function environment"),
        (
            ["--env", "FrozenLake-v1", "--env-kwargs", "map_name=9x9"],
            "--env FrozenLake-v1 cannot be made: KeyError '9x9'; see --env-kwargs",
        ),
        (["-o", "a" * 252], "cannot be written (File name too long); name another place"),
        (
            ["--env-module", "./my_envs"],
            "--env-module './my_envs' is not the name of a module; write it as in an import",
        ),
        (["--env-module", ""], "--env-module '' is not the name of a module"),
        (["--env-module", "my_envs.py"], "write it as in an import, without '.py'"),
        (["--env-module", "no_such_module"], "--env-module no_such_module cannot be imported"),
    ],
)
def test_a_usage_error_names_a_remedy(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert main(["train", "--env", "CartPole-v1", "-n", "1", "-o", str(tmp_path / "m.zip"), *options]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_module_before_the_colon_is_found_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = "gymnasium.envs.classic_control:CartPoleEnv"
    (tmp_path / "envs_of_this_folder.py").write_text(f"import gymnasium\ngymnasium.register('Here-v0', '{entry}')\n")
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(Path.cwd()))])
    monkeypatch.chdir(tmp_path)
    try:
        options = ["--preset", "none", "--eval-episodes", "0", "-o", "m.zip"]
        assert main(["train", "--env", "envs_of_this_folder:Here-v0", "-n", "32", *options]) == 0
    finally:
        gym.registry.pop("Here-v0", None)
        sys.modules.pop("envs_of_this_folder", None)


@pytest.mark.parametrize("name", ["enjoy", "play"])
def test_usage_shows_the_name_that_was_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    assert f" {name} [-h]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-n", "0"], "'0' is not a whole number from 1 to"),
        (["--seed", "4294967296"], "'4294967296' is not a whole number from 0 to 4294967295"),
        (["--device", "gpu"], "'gpu' is none of auto, cpu, cuda and cuda:N"),
        (["--reward-function", "mine"], "choose from"),
        (["--baseline", "mean"], "invalid choice: 'mean'"),
        (["-o", "m.zip", "-f", "logs"], "argument -f/--log-folder: not allowed with argument -o/--output"),
        (["--total", "5"], "unrecognized arguments: --total; did you mean"),
        (["--lr", "0.1"], "unrecognized arguments: --lr; did you mean '--learning-rate'?"),
    ],
)
def test_an_option_outside_its_range_is_a_usage_error(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--env", "CartPole-v1", *options])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_environments_of_a_module_in_the_current_folder_are_found(python: str, tmp_path: Path) -> None:
    (tmp_path / "my_envs.py").write_text(MY_ENVS)
    options = ["--env-module", "my_envs", "-n", "64", "--eval-episodes", "2"]
    trained = run(python, "train", "--env", "MyLine-v0", *options, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "2 episodes of MyLine-v0" in trained.stdout
    assert "no time limit: episodes are cut after 10,000 steps" in trained.stdout
    assert read_meta(tmp_path / "MyLine-v0.zip")["env_name"] == "MyLine-v0"


@pytest.mark.parametrize("env_name", ["CartPole", "gymnasium:CartPole-v1"])
def test_an_id_is_resolved_before_its_preset_is_chosen(
    env_name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.zip"
    options = ["--env", env_name, "-n", "1", "--eval-episodes", "0", "-o", str(output)]
    assert main(["train", *options, "--env-kwargs", "size=9"]) == 2
    assert "unexpected keyword argument 'size'" in capsys.readouterr().err
    assert main(["train", *options, "--env-kwargs", "sutton_barto_reward=true"]) == 0
    assert "training on CartPole-v1 for 1 steps with the preset of CartPole-v1" in capsys.readouterr().out
    assert read_meta(output)["env_name"] == "CartPole-v1"


def test_a_bar_is_shown_when_asked_for_and_not_in_a_pipe(
    python: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-f", str(tmp_path)]
    assert main(options) == 0
    assert "100%" not in capsys.readouterr().out
    # Not in this process, where warnings that tqdm gives of its bar are errors.
    assert "100%" in run(python, *options, "--progress", cwd=tmp_path).stdout


def test_a_bar_without_its_packages_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("grpo_cli.options.find_spec", lambda name: None if name == "rich" else object())
    assert main(["train", "--env", "CartPole-v1", "--progress"]) == 2
    assert "--progress needs tqdm and rich: pip install tqdm rich, or leave it out." in capsys.readouterr().err


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_keeps_what_was_learned(signal_number: int, python: str, tmp_path: Path) -> None:
    command = [python, "-u", str(ROOT / "grpo.py"), "train", "--env", "CartPole-v1", "-n", "100000000"]
    output = tmp_path / "out.txt"
    with output.open("w") as file, subprocess.Popen(command, cwd=tmp_path, stdout=file, stderr=file) as process:
        wait_until(lambda: "training on" in output.read_text())
        for _ in range(1 if signal_number == signal.SIGINT else 2):  # supervisors repeat theirs
            process.send_signal(signal_number)
        assert process.wait() == 128 + signal_number, output.read_text()
    assert "interrupted: the file holds the policy so far" in output.read_text()
    assert read_meta(tmp_path / "CartPole-v1.zip")["env_name"] == "CartPole-v1"


def test_an_interrupt_that_comes_during_the_save_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(descriptor: int) -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupt)
    output = tmp_path / "m.zip"
    assert main(["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-o", str(output)]) == 130
    assert read_meta(output)["env_name"] == "CartPole-v1"
    assert "interrupted: the file holds the policy of the whole training" in capsys.readouterr().out


def test_a_file_that_is_there_but_not_confirmed_is_not_written_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(folder: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("grpo_core.saving.atomic_write.sync_folder", refuse)
    output = tmp_path / "m.zip"
    assert main(["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-o", str(output)]) == 0
    said = capsys.readouterr()
    assert (f"saved {output}" in said.out, "move it" in said.err) == (True, False)


def train_until(error: Exception, n_steps: int, output: Path, register_env: RegisterEnv) -> None:
    """Train in an environment that fails after a number of steps."""
    steps = itertools.count()

    def fail_late() -> None:
        if next(steps) == n_steps:
            raise error

    sizes = ["-n", "256", "--n-steps", "32", "--horizon", "4", "--eval-episodes", "0", "--preset", "none"]
    with pytest.raises(type(error), match=str(error)):
        main(["train", "--env", register_env(lambda: LineEnv(fail_late)), *sizes, "-o", str(output)])


def test_an_error_during_the_training_keeps_what_was_learned(
    tmp_path: Path, register_env: RegisterEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "m.zip"
    train_until(RuntimeError("sensor lost"), 80, output, register_env)
    said = capsys.readouterr().err
    assert "grpo: the training was ended by RuntimeError after " in said
    assert f"{output} holds the policy so far" in said
    assert read_meta(output)["n_updates"] == 20


def test_an_error_before_anything_was_learned_replaces_no_file(tmp_path: Path, register_env: RegisterEnv) -> None:
    output = tmp_path / "m.zip"
    output.write_bytes(b"a good one")
    train_until(RuntimeError("no sensor"), 1, output, register_env)
    assert output.read_bytes() == b"a good one"


def test_a_place_that_refuses_the_file_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    output = tmp_path / "models" / "m.zip"
    assert main(["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-o", str(output)]) == 1
    (kept,) = (tmp_path / "temporary").glob("m-*.zip")
    said = capsys.readouterr()
    assert f"--output {output} cannot be written (Disk quota exceeded); the policy is in {kept}, move it" in said.err
    assert f"saved {kept}" in said.out
    assert read_meta(kept)["env_name"] == "CartPole-v1"


def test_a_file_without_an_environment_needs_one_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    assert main(["evaluate", "--model", str(tmp_path / "m.zip")]) == 2
    assert "say which with --env" in capsys.readouterr().err
    assert main(["evaluate", "--model", str(tmp_path / "m.zip"), "--env", "CartPole-v1", "--episodes", "1"]) == 0


def test_a_file_cannot_have_a_module_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.zip").write_bytes(make_model("CartPole-v1").to_bytes(env_name="antigravity:CartPole-v1"))
    assert main(["evaluate", "--model", str(tmp_path / "m.zip")]) == 2
    assert "does not name a registered environment" in capsys.readouterr().err
    assert "antigravity" not in sys.modules


def test_a_policy_is_not_played_in_an_environment_with_other_spaces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    assert main(["evaluate", "--model", str(tmp_path / "m.zip"), "--env", "Pendulum-v1"]) == 2
    assert "--env Pendulum-v1 cannot be played: the policy's observations are" in capsys.readouterr().err


def test_a_damaged_or_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.zip").write_bytes(b"no zip")
    for name in ("m.zip", "gone"):
        assert main(["info", "--model", str(tmp_path / name)]) == 2
        assert f"--model {tmp_path / name} cannot be read" in capsys.readouterr().err


def test_an_export_is_told_from_a_model_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "balance.pt"]) == 2
    said = capsys.readouterr().err
    assert "balance.pt is an export" in said
    assert "name the model file that it was made from, such as balance.zip" in said


def test_a_film_needs_no_screen(python: str, tmp_path: Path) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    command = [python, str(ROOT / "grpo.py"), "play", "m.zip", "--env", "CartPole-v1", "--output", "m.gif"]
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "XDG_RUNTIME_DIR")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    filmed = subprocess.run(
        [*command, "--max-steps", "2"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (filmed.returncode, filmed.stderr) == (0, "")


def test_control_characters_of_a_file_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.zip").write_bytes(make_model("CartPole-v1").to_bytes(env_name="\x1b]0;title\x07"))
    assert main(["info", "--model", str(tmp_path / "m.zip")]) == 0
    said = capsys.readouterr().out
    assert json.dumps("\x1b]0;title\x07") in said
    assert "\x1b" not in said


def test_a_model_file_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "m.zip")
    make_model("CartPole-v1").save(path)
    assert main(["info", path]) == main(["--model", path, "info"]) == 0
    first, second = capsys.readouterr().out.split("file  ")[1:]
    assert first == second
    assert main(["info"]) == main(["info", path, "--model", path]) == main(["info", "."]) == 2
    none, two, folder = capsys.readouterr().err.splitlines()
    assert "no model file is named; write its path after the command" in none
    assert "two model files are named" in two
    assert "--model . cannot be read" in folder


def test_describing_a_model_imports_nothing_that_trains(tmp_path: Path) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    command = [sys.executable, "-X", "importtime", str(ROOT / "grpo.py"), "info", str(tmp_path / "m.zip")]
    described = subprocess.run(command, capture_output=True, text=True)
    assert described.returncode == 0
    imported = {line.rpartition("|")[2].strip() for line in described.stderr.splitlines()}
    assert "gymnasium" in imported
    assert not {"torch", "stable_baselines3", "pandas", "matplotlib"} & imported


def test_a_window_needs_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    monkeypatch.setattr(sys, "platform", "linux")
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    command = ["play", str(tmp_path / "m.zip"), "--env", "CartPole-v1", "--max-steps", "2"]
    assert main(command) == 2
    assert "film the episode instead: --output episode.gif" in capsys.readouterr().err
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    assert main(command) == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--output", "taken.txt/m.zip"], "--output cannot write to the folder taken.txt (File exists)"),
        (["--output", "taken.txt/"], "--output cannot write to the folder taken.txt (File exists)"),
        (["--output", "folder"], "--output folder/CartPole-v1.zip is a folder; name a file in it"),
        (["-tb", "taken.txt"], "--tensorboard-log cannot write to the folder taken.txt (File exists)"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_training(
    options: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.txt").touch()
    (tmp_path / "folder" / "CartPole-v1.zip").mkdir(parents=True)
    assert main(["train", "--env", "CartPole-v1", "-n", "1", *options]) == 2
    printed, complaint = capsys.readouterr()
    assert printed == ""
    assert complaint.startswith(f"grpo: {said}")


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("new/", "new/CartPole-v1.zip"),
        ("there", "there/CartPole-v1.zip"),
        (".", "CartPole-v1.zip"),
        ("there/..", "CartPole-v1.zip"),
        ("both", "both.zip"),
    ],
)
def test_a_folder_as_output_gets_a_file_with_the_name_of_the_environment(
    place: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    (tmp_path / "both").mkdir()
    (tmp_path / "both.zip").write_bytes(b"an earlier one")
    assert main(["train", "--env", "CartPole-v1", "-n", "1", "--eval-episodes", "0", "-o", place]) == 0
    assert read_meta(tmp_path / expected)["env_name"] == "CartPole-v1"


def test_runs_of_another_program_do_not_keep_the_log_away(tmp_path: Path) -> None:
    (tmp_path / "runs" / "GRPO").mkdir(parents=True)
    options = ["-n", "1", "--eval-episodes", "0", "-f", str(tmp_path), "-tb", str(tmp_path / "runs")]
    assert main(["train", "--env", "CartPole-v1", *options]) == 0
    assert list((tmp_path / "runs" / "GRPO_1").iterdir())


@pytest.mark.parametrize("suffix", [".gif", ".mp4"])
def test_a_film_that_cannot_be_written_leaves_the_one_that_was_there(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    film = tmp_path / "films" / f"e{suffix}"
    film.parent.mkdir()
    film.write_bytes(b"a good one")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256, limits[1]))  # stands for a disk that is full
    try:
        assert main(["play", str(tmp_path / "m.zip"), "--env", "CartPole-v1", "--output", str(film)]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"--output {film} cannot be written: " in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in film.parent.iterdir()} == {film.name: b"a good one"}


def test_a_film_of_an_unknown_kind_is_refused_before_it_is_played(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model("CartPole-v1").save(tmp_path / "m.zip")
    options = ["--env", "CartPole-v1", "--output", str(tmp_path / "e.avi")]
    assert main(["play", "--model", str(tmp_path / "m.zip"), *options]) == 2
    assert "end its name in .gif or .mp4" in capsys.readouterr().err


def test_an_environment_without_pictures_is_reported(
    tmp_path: Path, register_env: RegisterEnv, capsys: pytest.CaptureFixture[str]
) -> None:
    name = register_env(LineEnv, max_episode_steps=5)
    output = tmp_path / "m.zip"
    assert main(["train", "--env", name, "-n", "1", "--eval-episodes", "0", "-o", str(output)]) == 0
    assert main(["enjoy", "--model", str(output), "--output", str(tmp_path / "e.gif")]) == 2
    assert "--env Line-v0 cannot be watched: it has no render mode 'rgb_array'" in capsys.readouterr().err


def test_an_environment_that_asserts_its_render_mode_is_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def make(**arguments: Any) -> LineEnv:
        if arguments.get("render_mode") is not None:
            raise AssertionError  # as an assert does, which has a text under pytest
        return LineEnv()

    gym.register("Blind-v0", make)
    try:
        make_model("Blind-v0").save(tmp_path / "m.zip")
        command = ["play", str(tmp_path / "m.zip"), "--env", "Blind-v0", "--output", str(tmp_path / "e.gif")]
        assert main(command) == 2
    finally:
        gym.registry.pop("Blind-v0")
    said = capsys.readouterr().err
    assert said == "grpo: --env Blind-v0 cannot be played in render mode 'rgb_array': AssertionError\n"


def test_arguments_and_wrappers_are_kept_in_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "lake.zip")
    options = ["--env-kwargs", "map_name=8x8", "--wrapper", "flatten", "--wrapper", '{"name": "frame_stack", "n": 2}']
    sizes = ["-n", "64", "--n-steps", "128", "--eval-episodes", "1"]
    assert main(["train", "--env", "FrozenLake-v1", *sizes, *options, "--output", output]) == 0
    meta = model_file.from_bytes(Path(output).read_bytes()).meta
    wrappers = [{"name": "flatten"}, {"name": "frame_stack", "n": 2}]
    assert (meta["env_kwargs"], meta["wrappers"]) == ({"map_name": "8x8"}, wrappers)
    assert main(["evaluate", "--model", output, "--episodes", "1"]) == 0
    capsys.readouterr()
    for forged in ({"env_kwargs": {"xml_file": "a"}}, {"wrappers": ["os"]}):
        Path(output).write_bytes(forge(Path(output).read_bytes(), **forged))
        assert main(["evaluate", "--model", output, "--episodes", "1"]) == 2
        assert "does not say how to make its environment" in capsys.readouterr().err


def test_single_arguments_of_the_file_are_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model("FrozenLake8x8-v1")
    output = tmp_path / "lake.zip"
    output.write_bytes(model.to_bytes(env_name="FrozenLake-v1", env_kwargs={"map_name": "8x8", "is_slippery": True}))
    options = ["evaluate", str(output), "-n", "1", "--env-kwargs", "is_slippery=false"]
    for env_name in ([], ["--env", "FrozenLake"], ["--env", "FrozenLake-v1"]):
        assert main([*options, *env_name]) == 0
        said = capsys.readouterr().out
        assert said.startswith('1 episodes of FrozenLake-v1 with {"map_name": "8x8", "is_slippery": false} from seed 0')
    output.write_bytes(forge(output.read_bytes(), env_kwargs={"xml_file": "a"}))
    assert main([*options, "map_name=8x8"]) == 0
    assert 'with {"is_slippery": false, "map_name": "8x8"} from' in capsys.readouterr().out


def test_another_environment_takes_no_arguments_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "lake.zip"
    content = make_model("FrozenLake-v1").to_bytes(env_name="Lake-v0", env_kwargs={"n_fish": 3})
    output.write_bytes(content)
    assert main(["evaluate", str(output), "--env", "FrozenLake-v1", "-n", "1"]) == 0
    assert capsys.readouterr().out.startswith("1 episodes of FrozenLake-v1 from seed 0")


def test_an_environment_without_a_preset_gets_a_general_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # An episode of an untrained policy may last longer than 10,000 steps, which is warned of.
    limits = ["--n-steps", "64", "--hyperparams", "horizon=32"]
    options = [*limits, "--eval-episodes", "0", "--output", str(tmp_path / "m.zip")]
    assert main(["train", "--env", "CliffWalking-v1", "-n", "64", *options]) == 0
    assert "with the preset general-discrete" in capsys.readouterr().out
    assert main(["train", "--env", "CliffWalking-v1", "-n", "64", "--group-mode", "episode", *options]) == 0
    assert "with the preset general-discrete-episodes" in capsys.readouterr().out
    assert main(["train", "--env", "Blackjack-v1", "-n", "64"]) == 2
    assert capsys.readouterr().err.endswith("Or add --wrapper flatten\n")
    assert main(["train", "--env", "MiniGrid-Maze-v0", "-n", "64"]) == 2
    assert "add --env-module minigrid, after: pip install minigrid" in capsys.readouterr().err


def test_a_long_training_gets_the_general_preset_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPO, "learn", lambda model, *arguments, **options: model)
    options = ["--preset", "general", "--eval-episodes", "0", "--output", str(tmp_path / "m.zip")]
    assert main(["train", "--env", "Pendulum-v1", "-n", "500000", *options]) == 0
    assert "with the preset general-continuous-long" in capsys.readouterr().out


def test_a_policy_is_exported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model("CartPole-v1")
    model.save(tmp_path / "m.zip")
    assert main(["export", "--model", str(tmp_path / "m"), "--output", str(tmp_path / "new" / "m.pt")]) == 0
    assert f"saved {tmp_path / 'new' / 'm.pt'}" in capsys.readouterr().out
    assert (tmp_path / "new" / "m.pt").read_bytes().startswith(b"PK")
    assert main(["export", str(tmp_path / "m"), "--output", str(tmp_path / "again.pt")]) == 0
    assert main(["export", "--output", str(tmp_path / "again.pt")]) == 2
    assert "no model file is named" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("env_id", "options", "complaint"),
    [
        (
            "CartPole-v1",
            ["--output", "m.zip"],
            "--output m.zip cannot be used: 'm.zip' does not say which format to export to",
        ),
        ("Pendulum-v1", ["--output", "m.pt", "--masks"], "--masks cannot be used: action space Box"),
    ],
)
def test_an_export_that_cannot_be_says_what_could(
    env_id: str,
    options: list[str],
    complaint: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make_model(env_id).save(tmp_path / "m.zip")
    before = (tmp_path / "m.zip").read_bytes()
    assert main(["export", "--model", "m.zip", *options]) == 2
    assert complaint in capsys.readouterr().err
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("m.zip", before)]
