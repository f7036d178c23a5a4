"""Train policies as configurations say."""

import math
import os
import random
import tempfile
import threading
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo_core.actor.actor import ACTIVATIONS
from grpo_core.options.rewards import REWARD_FUNCTIONS, RewardFunction
from grpo_core.saving import model_file
from grpo_core.saving.space_json import space_from_json
from grpo_core.shards.pool import RolloutWorkersError
from service.schemas.training import Activation, TrainConfig
from service.training.order import TrainingOrder
from service.training.train import train_policy
from tests.conftest import RegisterEnv
from tests.environments import LineEnv, SpaceEnv
from tests.models import change_hyperparameters
from tests.support import LIVE_METRICS, Recorder, make_plan

pytestmark = pytest.mark.usefixtures("ample_time")


def resolve(**request: Any) -> TrainConfig:
    return make_plan(**request).config


def train(config: TrainConfig, reward_function: RewardFunction | None = None) -> tuple[model_file.ModelContent, bytes]:
    content = train_policy(TrainingOrder(config, reward_function), Recorder())
    return model_file.from_bytes(content), content


def assert_same_weights(one: model_file.ModelContent, other: model_file.ModelContent) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


class TestTraining:
    def test_it_reports_progress_and_metrics(self) -> None:
        recorder = Recorder()
        config = resolve(total_timesteps=256, n_steps=64, seed=0)
        train_policy(TrainingOrder(config, REWARD_FUNCTIONS["optimized_cartpole"]), recorder)
        assert recorder.steps == sorted(recorder.steps)
        assert recorder.steps[0] <= 1  # none yet while the untrained policy is evaluated
        assert 256 <= recorder.steps[-1] < 256 + 64
        assert set().union(*recorder.metrics) >= LIVE_METRICS
        assert all(np.isfinite(value) for metrics in recorder.metrics for value in metrics.values())

    def test_it_computes_in_one_thread(self) -> None:
        config = resolve(total_timesteps=32)
        torch.set_num_threads(2)
        try:
            train(config)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(1)

    def test_the_file_names_what_it_was_trained_with(self) -> None:
        config = resolve(env_name="Acrobot-v1", total_timesteps=32, seed=0)
        content, _ = train(config)
        assert content.meta["env_name"] == "Acrobot-v1"
        assert content.meta["config"] == config.model_dump()
        assert TrainConfig(**content.meta["config"]) == config

    @pytest.mark.parametrize("env_name", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
    def test_the_same_configuration_gives_the_same_file(self, env_name: str) -> None:
        config = resolve(env_name=env_name, total_timesteps=128, n_steps=64, seed=11, n_envs=2)
        assert train(config)[1] == train(config)[1]

    def test_another_seed_gives_another_policy(self) -> None:
        one, other = (train(resolve(total_timesteps=64, seed=seed))[0] for seed in (1, 2))
        assert not np.array_equal(one.weights["action_net.weight"], other.weights["action_net.weight"])

    def test_the_largest_seed_works(self) -> None:
        train(resolve(total_timesteps=64, seed=2**32 - 1, n_envs=3))

    def test_other_jobs_at_the_same_time_do_not_change_the_policy(self) -> None:
        config = resolve(total_timesteps=192, n_steps=64, seed=5)
        alone, _ = train(config)
        contents: dict[int, model_file.ModelContent] = {}

        def train_beside(seed: int) -> None:
            contents[seed] = train(config.model_copy(update={"seed": seed}))[0]

        threads = [threading.Thread(target=train_beside, args=(seed,)) for seed in (5, 6, 7)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert_same_weights(contents[5], alone)

    def test_global_random_generators_are_not_seeded(self) -> None:
        def capture() -> list[Any]:
            return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]

        config = resolve(total_timesteps=64, seed=3)
        states = []
        for seed in (1, 2):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            train(config)
            states.append(capture())
        assert all(one != other for one, other in zip(*states, strict=True))

    def test_a_tensorboard_log_that_cannot_be_written_is_named_with_its_setting(self, tmp_path: Path) -> None:
        (tmp_path / "runs").write_text("not a folder")
        run_dir = tmp_path / "runs" / "job"
        with pytest.raises(
            OSError, match=rf"{run_dir} cannot be written \(Not a directory\); set GRPO_TENSORBOARD_DIR"
        ):
            train_policy(TrainingOrder(resolve(total_timesteps=64), None, run_dir), Recorder())

    @pytest.fixture
    def temporary_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """An empty folder in which temporary files are created."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path

    def test_no_file_is_left_behind(self, temporary_folder: Path) -> None:
        train(resolve(total_timesteps=64))
        assert list(temporary_folder.iterdir()) == []

    def test_a_stop_returns_the_policy_so_far_at_the_next_step(self) -> None:
        recorder = Recorder(stop_after=70)
        content = train_policy(TrainingOrder(resolve(total_timesteps=10_000, n_steps=64, seed=0), None), recorder)
        assert recorder.steps[-1] == 70
        meta = model_file.from_bytes(content).meta
        assert meta["num_timesteps"] == 70
        assert meta["n_updates"] == 10  # one rollout of 64 steps was learned from, in 10 epochs

    @pytest.mark.parametrize("stops", [True, False])
    def test_the_environment_is_closed_at_the_end(self, register_env: RegisterEnv, stops: bool) -> None:
        closed: list[bool] = []
        n_built = 0
        n_steps = 0

        def on_step() -> None:
            nonlocal n_steps
            n_steps += 1
            if stops and n_steps > 40:
                raise RuntimeError("broken")

        def build() -> LineEnv:
            nonlocal n_built
            n_built += 1
            return LineEnv(on_step, on_close=lambda: closed.append(True))

        # Whole episodes, for which nothing is tried out.
        config = resolve(env_name=register_env(build), total_timesteps=64, n_envs=2, group_mode="episode", horizon=16)
        n_built = 0
        closed.clear()
        if stops:
            with pytest.raises(RuntimeError, match="broken"):
                train(config)
        else:
            train(config)
        assert len(closed) == n_built == 2 + 1  # one for the evaluations

    def test_a_reward_function_scores_batches_of_steps_and_the_policy_learns_from_it(self) -> None:
        shapes = []

        def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            shapes.append((state.shape[1:], action.shape[1:], next_state.shape[1:]))
            assert len(state) == len(action) == len(next_state)
            return action.float()

        recorder = Recorder()
        train_policy(TrainingOrder(resolve(total_timesteps=64, seed=0), reward), recorder)
        assert set(shapes) == {((4,), (1,), (4,))}
        assert 0.0 < recorder.metrics[0]["rollout/reward_mean"] < 1.0  # CartPole's own would be exactly 1

    @pytest.mark.parametrize("returned", [torch.zeros(3), torch.tensor(float("nan"))])
    def test_a_reward_function_that_returns_nonsense_ends_the_training(self, returned: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"reward"):
            train_policy(
                TrainingOrder(resolve(total_timesteps=64), lambda state, action, next_state: returned), Recorder()
            )

    def test_reward_functions_are_called_what_they_are_registered_as(self) -> None:
        functions: Any = {"up": lambda *step: step[1].float(), "down": lambda *step: -step[1].float()}
        plan, recorder = make_plan(functions, reward_functions={"up": 1, "down": 2}, total_timesteps=64), Recorder()
        content = model_file.from_bytes(train_policy(TrainingOrder(plan.config, plan.reward), recorder))
        assert recorder.metrics[0]["rewards/up_mean"] == -recorder.metrics[0]["rewards/down_mean"]
        assert content.meta["reward_function"] == ["up", "down"]

    def test_what_hangs_in_rollout_workers_ends_the_training_after_the_limit(self) -> None:
        trainer_pid = os.getpid()

        def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            if os.getpid() != trainer_pid:
                threading.Event().wait()
            return action.float()

        config = resolve(n_steps=256, n_rollout_workers=2)
        task = TrainingOrder(config, reward, stall_seconds=0.5).make_task()
        with pytest.raises(RolloutWorkersError, match=r"no step of the environment for 0.5 s"):
            task.run(Recorder())

    def test_a_figure_that_is_not_finite_does_not_cost_the_policy(self, monkeypatch: pytest.MonkeyPatch) -> None:
        figures = {"gamma": 0.5, "error": math.inf, "parts": [math.nan, 1]}
        monkeypatch.setattr("service.training.train.refit_values", lambda *arguments: figures)
        content, _ = train(resolve(total_timesteps=32, n_eval_episodes=1))
        assert content.meta["value_check"] == {"gamma": 0.5, "error": None, "parts": [None, 1]}

    def test_dense_rewards_do_without_the_value_network(self) -> None:
        dense, _ = train(resolve(total_timesteps=32), REWARD_FUNCTIONS["simple_cartpole"])
        other, _ = train(resolve(total_timesteps=32, reward_function_type="environment"))
        assert dense.meta["hyperparameters"]["baseline"] == "group"
        assert other.meta["hyperparameters"]["baseline"] == "adaptive"  # the preset's

    def test_the_networks_have_the_layers_asked_for(self) -> None:
        content, _ = train(resolve(total_timesteps=32, net_arch=[8, 4]))
        assert content.weights["mlp_extractor.policy_net.0.weight"].shape == (8, 4)
        assert content.weights["mlp_extractor.value_net.2.weight"].shape == (4, 8)
        assert content.weights["action_net.weight"].shape == (2, 4)


def test_every_setting_of_a_configuration_reaches_the_algorithm() -> None:
    settings = {**change_hyperparameters(), "seed": 11}
    learning_rate = settings.pop("learning_rate")
    others: dict[str, Any] = {
        "total_timesteps": 48,
        "learning_rate": learning_rate,
        "n_envs": 2,
        "net_arch": [5, 3],
        "activation": "elu",
        "log_std_init": -1.5,
        "normalize": {"norm_reward": False},
        "lr_schedule": "linear",
        "env_kwargs": {"sutton_barto_reward": True},
        "wrappers": [{"name": "time_aware"}],
    }
    config = resolve(**settings, **others, reward_functions={"environment": 0.5, "optimized_cartpole": 2})
    reward = [None, REWARD_FUNCTIONS["optimized_cartpole"]]
    meta = model_file.from_bytes(train_policy(TrainingOrder(config, reward), Recorder())).meta
    assert {name: meta["hyperparameters"][name] for name in settings} == settings
    assert meta["hyperparameters"]["learning_rate"] == {"linear": [learning_rate, 0.0, 1.0]}
    assert meta["hyperparameters"]["reward_weights"] == [0.5, 2.0]
    assert meta["reward_function"] == ["environment", "optimized_cartpole"]
    assert meta["network"]["net_arch"] == {"pi": [5, 3], "vf": [5, 3]}
    assert (meta["network"]["activation"], meta["network"]["log_std_init"]) == ("ELU", -1.5)
    assert (meta["n_envs"], meta["num_timesteps"] >= 48) == (2, True)
    normalization = meta["normalization"]
    assert (normalization["norm_obs"], normalization["norm_reward"], normalization["gamma"]) == (
        True,
        False,
        settings["gamma"],
    )
    assert (meta["env_kwargs"], meta["wrappers"]) == (others["env_kwargs"], others["wrappers"])
    assert space_from_json(meta["spaces"]["observation"]).shape == (5,)
    # The two lists leave out names and what cannot be chosen here.
    left_out = {"env_name", "preset", "reward_function_type", "reward_functions", "model_name", "device"}
    rules = {"eval_freq", "n_eval_episodes", "keep_best", "stop_reward", "patience", "max_seconds", "tensorboard_log"}
    rules |= {"checkpoint_every", "max_restarts", "init_model", "replace"}
    assert TrainConfig.model_fields.keys() == settings.keys() | others.keys() | left_out | rules


def test_a_constant_learning_rate_does_not_fall() -> None:
    content, _ = train(resolve(total_timesteps=32, lr_schedule="constant", learning_rate=0.01))
    assert content.meta["hyperparameters"]["learning_rate"] == 0.01


def test_every_activation_of_the_actor_has_a_name() -> None:
    assert {name.lower() for name in ACTIVATIONS} == set(get_args(Activation))


IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("space", "policy", "net_arch"),
    [
        (spaces.Discrete(3), "MlpPolicy", [64, 64]),
        (spaces.Box(-1.0, 1.0, (2, 3)), "MlpPolicy", [64, 64]),
        (IMAGE, "CnnPolicy", []),
        (spaces.Box(0, 255, (1, 36, 36), np.uint8), "CnnPolicy", []),
        (spaces.Box(0, 255, (8, 8, 3), np.uint8), "MlpPolicy", [64, 64]),  # too small for the convolutions
        (spaces.Box(0, 9, (36, 36, 3), np.uint8), "MlpPolicy", [64, 64]),  # no image, as SB3 sees it
        (spaces.Dict({"a": spaces.Discrete(2), "b": IMAGE}), "MultiInputPolicy", [64, 64]),
    ],
    ids=str,
)
def test_the_policy_suits_the_observations(
    register_env: RegisterEnv, space: spaces.Space[Any], policy: str, net_arch: list[int]
) -> None:
    env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))
    config = resolve(env_name=env_name, total_timesteps=8, n_steps=8, n_epochs=1, n_eval_episodes=0)
    content, _ = train(config)
    assert config.net_arch == net_arch
    assert content.meta["network"]["policy"] == policy
    assert content.meta["network"]["net_arch"] == {"pi": net_arch, "vf": net_arch}


def test_only_the_numbers_of_a_dict_are_normalised(register_env: RegisterEnv) -> None:
    space = spaces.Dict({"gear": spaces.Discrete(3), "image": IMAGE, "speed": spaces.Box(-1.0, 1.0, (2,))})
    env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))
    content, _ = train(resolve(env_name=env_name, total_timesteps=8, n_steps=8, n_epochs=1, normalize=True))
    assert content.meta["normalization"]["norm_obs_keys"] == ["speed"]
    assert content.normalization["obs/speed/count"] == pytest.approx(1 + 8, abs=0.01)  # a reset and the steps
