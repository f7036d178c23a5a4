"""Model files: what they keep, how training goes on from them, and what is not loaded."""

import functools
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo import GRPO
from grpo_core.options.rewards import RewardFunction, optimized_cartpole
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ForeignModelError, ModelFileError
from grpo_core.saving.model_state import restore_normalization
from tests.grpo.small_models import SMALL, build, normalized
from tests.weights import copy_weights, is_same

ROOT = Path(__file__).parents[2]


def test_save_appends_zip_makes_folders_and_replaces(tmp_path: Path) -> None:
    model = build()
    for _ in range(2):
        model.save(tmp_path / "new" / "model")
    model.save(str(tmp_path / "other.zip"))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.zip"]
    assert (tmp_path / "other.zip").exists()
    for path in (tmp_path / "new" / "model", str(tmp_path / "new" / "model.zip")):
        assert is_same(copy_weights(GRPO.load(path)), copy_weights(model))


def test_a_model_can_be_saved_to_an_open_file_and_loaded_from_one() -> None:
    model, file = build(), io.BytesIO()
    model.save(file)
    file.seek(0)
    assert is_same(copy_weights(GRPO.load(file)), copy_weights(model))


@pytest.mark.parametrize("option", ["exclude", "include"])
def test_exclude_and_include_are_refused(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not supported"):
        build().save(tmp_path / "model", **{option: ["policy"]})
    assert list(tmp_path.iterdir()) == []


def my_reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return next_state[:, :1]


FRESH_PROCESS = """
import json, sys
import numpy as np
from grpo import GRPO
model = GRPO.load(sys.argv[1])
observations = np.array(json.loads(sys.argv[2]), dtype=np.float32)
actions, _ = model.predict(observations, deterministic=True)
probs = model.make_actor().action_probs(observations)
print(json.dumps({"actions": actions.tolist(), "probs": probs.tolist(), "env": model.get_env() is not None}))
"""


def test_a_fresh_process_loads_it_without_environment_or_reward_function(python: str, tmp_path: Path) -> None:
    model = build(reward_function=my_reward, learning_rate=0.01)
    model.learn(64)
    model.save(tmp_path / "model")
    observations = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    run = subprocess.run(
        [python, "-c", FRESH_PROCESS, str(tmp_path / "model"), json.dumps(observations.tolist())],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout)
    expected, _ = model.predict(observations, deterministic=True)
    probs = model.make_actor().action_probs(observations)
    assert probs is not None
    assert len(set(answer["actions"])) == 2, "observations that tell the actions apart"
    assert answer == {"actions": expected.tolist(), "probs": probs.tolist(), "env": False}


def test_loading_restores_counters_hyperparameters_optimizer_and_weights() -> None:
    model = build(learning_rate=LinearSchedule(0.01, 0.001, 1.0), ent_coef=0.01)
    model.learn(64)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    assert is_same(copy_weights(model), copy_weights(loaded))
    assert (loaded.num_timesteps, loaded._n_updates) == (model.num_timesteps, model._n_updates)
    assert loaded.rng.bit_generator.state == model.rng.bit_generator.state
    names = ("n_steps", "batch_size", "n_epochs", "ent_coef", "group_size", "horizon", "baseline", "seed")
    assert {name: getattr(loaded, name) for name in names} == {name: getattr(model, name) for name in names}
    assert loaded.lr_schedule(0.5) == model.lr_schedule(0.5)


def test_loading_restores_the_optimizers_state_exactly() -> None:
    model = build()
    model.learn(64)
    state: Any = model.get_parameters()["policy.optimizer"]["state"]
    loaded: Any = GRPO.load(io.BytesIO(model.to_bytes())).get_parameters()["policy.optimizer"]["state"]
    assert loaded.keys() == state.keys()
    assert len(state) == len(list(model.policy.parameters()))
    for index, tensors in state.items():
        assert loaded[index].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert loaded[index][name].shape == tensor.shape, name
            assert torch.equal(loaded[index][name], tensor), name


def test_training_goes_on_from_a_file_and_twice_the_same_way() -> None:
    model = build(learning_rate=0.01)
    model.learn(64)
    content = model.to_bytes()
    weights = []
    for _ in range(2):
        loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
        loaded.learn(64, reset_num_timesteps=False)
        assert loaded.num_timesteps >= model.num_timesteps + 64
        weights.append(copy_weights(loaded))
    assert is_same(*weights)
    assert not is_same(weights[0], copy_weights(model))


def test_a_restored_optimizer_steps_as_the_original_does() -> None:
    model = build()
    model.learn(64)
    loaded = GRPO.load(io.BytesIO(model.to_bytes()))
    for one in (model, loaded):
        for group in one.policy.optimizer.param_groups:
            group["lr"] = 0.01  # train() sets it anew before every update
        one.policy.optimizer.zero_grad()
        values, log_prob, _ = one.policy.evaluate_actions(torch.ones(3, 4), torch.tensor([0, 1, 1]))
        torch.autograd.backward(values.sum() + log_prob.sum())
        one.policy.optimizer.step()
    assert is_same(copy_weights(model), copy_weights(loaded))


def test_what_is_passed_to_load_replaces_what_was_saved() -> None:
    content = build().to_bytes()
    loaded = GRPO.load(io.BytesIO(content), learning_rate=0.5, custom_objects={"clip_range": 0.4})
    assert (loaded.learning_rate, loaded.clip_range) == (0.5, 0.4)
    assert loaded.lr_schedule(1.0) == 0.5


def test_a_seed_passed_to_load_decides_what_follows() -> None:
    content = build().to_bytes()
    draws = [GRPO.load(io.BytesIO(content), seed=seed).rng.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_an_unknown_argument_of_load_is_refused_by_name() -> None:
    said = r"\['learning_speed'\] cannot be changed on load.*; did you mean 'learning_rate'\?$"
    with pytest.raises(ValueError, match=said):
        GRPO.load(io.BytesIO(build().to_bytes()), learning_speed=0.1)
    with pytest.raises(ValueError, match=r"\['xyz'\] cannot be changed on load.*of the saved model\.$"):
        GRPO.load(io.BytesIO(build().to_bytes()), xyz=4)


class MyReward:
    def __call__(self, state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return my_reward(state, action, next_state)


@pytest.mark.parametrize(
    "reward_function", [my_reward, MyReward(), functools.partial(my_reward)], ids=["function", "object", "partial"]
)
def test_a_model_that_lost_its_reward_function_does_not_learn_from_another(reward_function: RewardFunction) -> None:
    content = build(reward_function=reward_function).to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match=r"reward_function '\w+', which a model file does not hold; pass it to"):
        loaded.learn(32)
    loaded.reward_function = my_reward
    loaded.learn(32)
    GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"), reward_function=my_reward).learn(32)


def test_a_lost_reward_function_is_still_lost_after_the_next_save() -> None:
    content = GRPO.load(io.BytesIO(build(reward_function=my_reward).to_bytes())).to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="my_reward"):
        loaded.learn(32)


def test_a_shipped_reward_function_is_found_again_by_its_name() -> None:
    content = build(reward_function=optimized_cartpole).to_bytes()
    assert GRPO.load(io.BytesIO(content)).reward_function is optimized_cartpole


def test_parameters_are_taken_from_a_model_file(tmp_path: Path) -> None:
    model, other = build(learning_rate=0.01), build(seed=1)
    model.learn(64)
    model.save(tmp_path / "model")
    other.set_parameters(str(tmp_path / "model"))
    assert is_same(copy_weights(model), copy_weights(other))
    other.learn(32)


def test_a_model_of_another_algorithm_is_not_loaded(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, policy_kwargs=SMALL, device="cpu").save(tmp_path / "ppo")
    with pytest.raises(ForeignModelError, match="pickles"):
        GRPO.load(tmp_path / "ppo")


def test_a_damaged_file_is_not_loaded(tmp_path: Path) -> None:
    content = build().to_bytes()
    (tmp_path / "model.zip").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelFileError):
        GRPO.load(tmp_path / "model.zip")


@pytest.mark.parametrize("lost", ["hyperparameters", "rng_state", "stats_window_size", "reward_function"])
def test_a_file_whose_metadata_lacks_a_part_is_not_loaded(lost: str) -> None:
    content = model_file.from_bytes(build().to_bytes())
    meta = {name: value for name, value in content.meta.items() if name != lost}
    with pytest.raises(ModelFileError):
        GRPO.load(io.BytesIO(model_file.to_bytes(meta, content.weights, {})))


def test_a_model_without_an_environment_says_what_is_missing() -> None:
    loaded = GRPO.load(io.BytesIO(build().to_bytes()))
    with pytest.raises(ValueError, match=r"no environment to train in; call set_env\(env\)"):
        loaded.learn(32)
    loaded.set_env(gym.make("CartPole-v1"))
    loaded.learn(32)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.zip"):
        GRPO.load(tmp_path / "nowhere")


def test_provenance_is_kept_in_the_file() -> None:
    with pytest.raises(TypeError):
        build().to_bytes(env=object())  # what JSON cannot spell
    assert b'"env_id": "CartPole-v1"' in build().to_bytes(env_id="CartPole-v1")


def test_a_reward_function_that_borrows_a_shipped_name_is_not_taken_for_it() -> None:
    def simple_cartpole(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return -torch.ones(len(state), 1)

    loaded = GRPO.load(io.BytesIO(build(reward_function=simple_cartpole).to_bytes()), env=gym.make("CartPole-v1"))
    assert loaded.reward_function is None
    with pytest.raises(ValueError, match="another simple_cartpole"):
        loaded.learn(32)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"group_mode": "action"},
        {"group_mode": "episode"},
        {"importance_level": "branch", "restart_probability": 0.5, "filter_zero_std_groups": True},
        {"clip_range_high": LinearSchedule(0.4, 0.1, 1.0), "common_random_numbers": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("is_normalized", [False, True])
def test_a_loaded_model_goes_on_bit_by_bit_as_the_saved_one(changes: dict[str, Any], is_normalized: bool) -> None:
    def make_env() -> Any:
        return normalized("CartPole-v1") if is_normalized else make_vec_env("CartPole-v1", 2, vec_env_cls=DummyVecEnv)

    model = build(make_env(), learning_rate=0.01, **changes)
    model.learn(128)
    content = model.to_bytes()
    fresh = make_env()
    if is_normalized:
        restore_normalization(fresh, model_file.from_bytes(content))
    model.set_env(fresh)
    fresh.seed(0 + model.num_timesteps)
    loaded = GRPO.load(io.BytesIO(content), env=make_env())
    for one in (model, loaded):
        one.learn(256, reset_num_timesteps=False)
    assert model.num_timesteps == loaded.num_timesteps
    assert is_same(copy_weights(model), copy_weights(loaded))


@pytest.mark.parametrize("weights", [None, [2.0, 0.5]])
def test_several_reward_functions_may_be_lost_and_given_again(weights: list[float] | None) -> None:
    content = build(reward_function=[my_reward, None], reward_weights=weights).to_bytes()
    loaded = GRPO.load(io.BytesIO(content), env=gym.make("CartPole-v1"))
    assert loaded.reward_weights == weights
    with pytest.raises(
        ValueError, match=r"reward_function '\['my_reward', 'environment'\]', which a model file does not"
    ):
        loaded.learn(32)
    again = GRPO.load(io.BytesIO(loaded.to_bytes()), env=gym.make("CartPole-v1"))
    again.reward_function = [my_reward, None]
    again.learn(32)
    rollout = again.rollout_buffer
    first, second = weights or [1.0, 1.0]
    np.testing.assert_allclose(
        rollout.rewards[rollout.step_mask],
        first * rollout.next_observations[rollout.step_mask][:, 0] + second,
        rtol=1e-5,
    )


def test_a_function_of_the_users_that_is_called_environment_is_lost_too() -> None:
    def environment(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
        return state[:, 0]

    model = build(reward_function=[environment, None])
    loaded = GRPO.load(io.BytesIO(model.to_bytes()), env=gym.make("CartPole-v1"))
    with pytest.raises(ValueError, match="another environment"):
        loaded.learn(32)
