"""A training that is kept in a file."""

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv

from grpo import GRPO
from grpo_core.checkpoints import checkpoint, training_file
from grpo_core.checkpoints.checkpoint import CheckpointError
from grpo_core.checkpoints.training_file import KeepCheckpoint, resume_training
from grpo_core.options.rewards import REWARD_FUNCTIONS
from grpo_core.saving.atomic_write import UnconfirmedWriteError
from grpo_core.saving.model_file import ModelFileError
from tests.suites import DEVICE

TOTAL = 600


class Crash(BaseCallback):
    """Ends training as a power cut would."""

    def _on_step(self) -> bool:
        if self.num_timesteps >= 400:
            raise KeyboardInterrupt
        return True


def make_model(**arguments: Any) -> GRPO:
    return GRPO("MlpPolicy", "CartPole-v1", seed=1, device=DEVICE, **arguments)


def crash(path: Path, **settings: Any) -> GRPO:
    model = make_model()
    with pytest.raises(KeyboardInterrupt):
        model.learn(TOTAL, [KeepCheckpoint(path, **settings), Crash()])
    return model


@pytest.mark.parametrize("settings", [{"every_steps": 150}, {"every_seconds": 0.0}], ids=["steps", "seconds"])
def test_a_training_goes_on_from_its_file_to_the_same_weights(tmp_path: Path, settings: dict[str, Any]) -> None:
    path = tmp_path / "training.zip"
    crash(path, **settings)
    whole, resumed = make_model().learn(TOTAL), make_model()
    n_left = resume_training(resumed, path)
    assert 0 < n_left <= TOTAL - 150
    assert resumed.num_timesteps == TOTAL - n_left
    resumed.learn(n_left, KeepCheckpoint(path, **settings), reset_num_timesteps=False)
    assert resumed.to_bytes() == whole.to_bytes()
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_kept_every_so_many_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []

    def to_bytes(model: GRPO) -> bytes:
        taken.append(model.num_timesteps)
        return b""

    monkeypatch.setattr(checkpoint, "to_bytes", to_bytes)
    make_model().learn(TOTAL, KeepCheckpoint(tmp_path / "training.zip", every_steps=250))
    assert [timesteps // 250 for timesteps in taken] == [1, 2]


def test_a_missing_folder_is_made_before_there_is_anything_to_lose(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / "training.zip"
    crash(path, every_steps=10_000)
    assert path.parent.is_dir()
    crash(path, every_steps=150)
    assert path.is_file()


@pytest.mark.parametrize("part", ["weights", "moments"])
def test_what_could_not_be_read_again_does_not_replace_what_can(tmp_path: Path, part: str) -> None:
    path = tmp_path / "training.zip"
    model = crash(path, every_steps=150)
    kept, (weight, moments) = path.read_bytes(), next(iter(model.policy.optimizer.state.items()))
    with torch.no_grad():
        (weight if part == "weights" else moments["exp_avg_sq"])[0] = torch.inf
    keep = KeepCheckpoint(path, every_seconds=0.0)
    keep.init_callback(model)
    with pytest.warns(UserWarning, match=rf"training\.zip keeps no step .* the {part} of .* NaN or infinite"):
        keep.on_rollout_start()
    assert path.read_bytes() == kept


@pytest.mark.parametrize(
    ("error", "warning"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "keeps no step .*No space left"),
        (UnconfirmedWriteError(errno.EIO, "Input/output error"), "may not keep step .*Input/output error"),
    ],
)
def test_a_disk_that_refuses_a_checkpoint_does_not_end_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, warning: str
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise error

    monkeypatch.setattr(training_file, "write_atomic", refuse)
    model = make_model()
    with pytest.warns(UserWarning, match=rf"training\.zip {warning}"):
        model.learn(TOTAL, KeepCheckpoint(tmp_path / "training.zip", every_steps=400))
    assert model.num_timesteps >= TOTAL


def test_an_update_that_was_cut_short_is_not_kept(tmp_path: Path) -> None:
    path, model = tmp_path / "training.zip", make_model()

    def stop() -> None:
        if model.num_timesteps >= 400:
            model.stop()

    model.after_minibatch = stop
    model.learn(TOTAL, KeepCheckpoint(path, every_seconds=0.0))
    whole, resumed = make_model().learn(TOTAL), make_model()
    resumed.learn(resume_training(resumed, path), reset_num_timesteps=False)
    assert resumed.to_bytes() == whole.to_bytes()


def test_it_says_why_it_goes_on_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    arguments: dict[str, Any] = {"group_mode": "episode", "horizon": None, "n_steps": 64}
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    GRPO("MlpPolicy", env, seed=1, device=DEVICE, **arguments).learn(300, KeepCheckpoint(path, every_steps=64))
    env.close()
    with pytest.warns(UserWarning, match=r"goes on from step .*, but not exactly as before: .*in other processes"):
        resume_training(make_model(**arguments), path)


def replace_optimizer(model: GRPO) -> GRPO:
    model.policy.optimizer = torch.optim.RMSprop(model.policy.parameters())
    return model


def test_it_says_that_the_moments_of_a_replaced_optimizer_are_lost(tmp_path: Path) -> None:
    path, resumed = tmp_path / "training.zip", replace_optimizer(make_model())
    replace_optimizer(make_model()).learn(TOTAL, KeepCheckpoint(path, every_steps=150))
    with pytest.warns(UserWarning, match="not exactly as before: the optimizer was put in place"):
        n_left = resume_training(resumed, path)
    resumed.learn(n_left, reset_num_timesteps=False)


def test_a_compiled_policy_with_a_reference_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"

    def make_compiled() -> GRPO:
        model = make_model(kl_coef=0.1)
        hidden: Any = model.policy.mlp_extractor
        hidden.policy_net = torch.compile(hidden.policy_net, backend="eager")
        return model

    whole, resumed = make_compiled(), make_compiled()
    whole.learn(TOTAL, KeepCheckpoint(path, every_steps=400))
    n_left = resume_training(resumed, path)
    assert 0 < n_left < TOTAL
    assert resumed.learn(n_left, reset_num_timesteps=False).to_bytes() == whole.to_bytes()


def test_a_file_of_another_training_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "training.zip"
    crash(path, every_steps=150)
    with pytest.raises(CheckpointError, match=r"gamma=0\.9, .* gamma=0\.99;"):
        resume_training(make_model(gamma=0.9), path)
    for arguments, name in (
        ({"policy_kwargs": {"activation_fn": torch.nn.ReLU}}, "network"),
        ({"reward_function": REWARD_FUNCTIONS["simple_cartpole"]}, "reward_function"),
    ):
        with pytest.raises(CheckpointError, match=f"the model has {name}="):
            resume_training(make_model(**arguments), path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="damaged"):
        resume_training(make_model(), path)
    with path.open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match=f"{path} has {2**40} bytes"):
        resume_training(make_model(), path)


@pytest.mark.parametrize(("settings", "said"), [({"every_steps": 0}, "every_steps=0"), ({"every_seconds": -1.0}, "-1")])
def test_settings_out_of_their_range_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        KeepCheckpoint(tmp_path / "training.zip", **settings)


def test_one_that_is_told_of_no_rollouts_is_refused(tmp_path: Path) -> None:
    keep = KeepCheckpoint(tmp_path / "training.zip", every_steps=100)
    with pytest.raises(ValueError, match="such as EveryNTimesteps or EvalCallback, is not told; give it to learn"):
        make_model().learn(TOTAL, EveryNTimesteps(TOTAL, keep))


def test_models_and_checkpoints_are_told_apart(tmp_path: Path) -> None:
    crash(tmp_path / "training.zip", every_steps=100)
    make_model().save(tmp_path / "model.zip")
    with pytest.raises(CheckpointError, match=r"is a model, not a checkpoint; GRPO.load\(path, env=env\) reads it"):
        resume_training(make_model(), tmp_path / "model.zip")
    with pytest.raises(ModelFileError, match=r"training checkpoint, not a model; .* resume_training\(model, path\)"):
        GRPO.load(tmp_path / "training.zip")


def test_the_steps_may_be_a_number_of_torchs(tmp_path: Path) -> None:
    total: Any = torch.tensor(TOTAL)
    make_model().learn(total, KeepCheckpoint(tmp_path / "training.zip", every_steps=100))
    resumed = make_model()
    assert resume_training(resumed, tmp_path / "training.zip") == TOTAL - resumed.num_timesteps
