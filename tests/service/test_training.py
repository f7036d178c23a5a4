"""Requests become complete configurations or clear refusals, and configurations become policies."""

import random
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo_core import model_file
from grpo_core.rewards import REWARD_FUNCTIONS, RewardFunction
from service.errors import InvalidRequestError
from service.jobs import Job
from service.schemas import TrainConfig, TrainRequest
from service.training import resolve_config, train_policy
from tests.conftest import RegisterEnv
from tests.support import ForgetfulEnv, LineEnv

REQUIRED_METRICS = {
    "rollout/ep_rew_mean",
    "rollout/ep_len_mean",
    "rollout/zero_std_group_fraction",
    "time/fps",
    "train/entropy_loss",
    "train/clip_fraction",
}


@dataclass
class Recorder:
    """Notes all that a training tells."""

    steps: list[int] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    stop_after: float = float("inf")
    _stop: Callable[[], None] = lambda: None

    def attach(self, stop: Callable[[], None]) -> None:
        self._stop = stop

    def advance(self, current_timesteps: int) -> None:
        self.steps.append(current_timesteps)
        if current_timesteps >= self.stop_after:
            self._stop()

    def publish_metrics(self, metrics: Mapping[str, float]) -> None:
        self.metrics.append(metrics)


def resolve(**request: Any) -> TrainConfig:
    return resolve_config(TrainRequest(**request), REWARD_FUNCTIONS)


def train(config: TrainConfig, reward_function: RewardFunction | None = None) -> tuple[model_file.ModelContent, bytes]:
    content = train_policy(config, reward_function, Recorder())
    return model_file.from_bytes(content), content


def assert_same_weights(one: model_file.ModelContent, other: model_file.ModelContent) -> None:
    assert one.weights.keys() == other.weights.keys()
    assert all(np.array_equal(one.weights[name], other.weights[name]) for name in one.weights)


class TestResolvingTheConfiguration:
    def test_an_empty_request_becomes_a_complete_configuration(self) -> None:
        config = resolve()
        assert config.model_name.startswith("CartPole-v1-")
        assert config.device == ("cuda" if torch.cuda.is_available() else "cpu")
        assert 0 <= config.seed < 2**32
        drawn = {"model_name", "device", "seed"}
        assert config.model_dump(exclude=drawn) == {
            "env_name": "CartPole-v1",
            "total_timesteps": 10_000,
            "learning_rate": 3e-4,
            "n_steps": 32,
            "batch_size": 64,
            "n_epochs": 10,
            "reward_function_type": "optimized_cartpole",
            "n_envs": 1,
            "group_size": 2,
            "horizon": 16,
            "gamma": 0.99,
            "net_arch": [64, 64],
        }

    def test_two_requests_draw_different_names_and_seeds(self) -> None:
        one, other = resolve(), resolve()
        assert one.model_name != other.model_name
        assert one.seed != other.seed

    def test_what_the_request_says_is_kept(self) -> None:
        request: dict[str, Any] = {
            "env_name": "Acrobot-v1",
            "total_timesteps": 7,
            "learning_rate": 0.5,
            "n_steps": 64,
            "batch_size": 3,
            "n_epochs": 2,
            "reward_function_type": "environment",
            "model_name": "mine",
            "seed": 0,
            "n_envs": 3,
            "group_size": 4,
            "horizon": 8,
            "gamma": 0.0,
            "device": "cpu",
            "net_arch": [],
        }
        assert resolve(**request).model_dump() == request

    def test_a_configuration_is_a_request_for_itself(self) -> None:
        config = resolve(env_name="Pendulum-v1")
        assert resolve(**config.model_dump()) == config

    @pytest.mark.filterwarnings("ignore:.*The environment CartPole-v0 is out of date")
    @pytest.mark.parametrize(
        ("env_name", "reward_name"),
        [
            ("CartPole-v1", "optimized_cartpole"),
            ("CartPole-v0", "optimized_cartpole"),
            ("Acrobot-v1", "environment"),
            ("Pendulum-v1", "environment"),
            ("FrozenLake-v1", "environment"),
        ],
    )
    def test_cartpole_is_rewarded_by_the_named_function_and_others_by_themselves(
        self, env_name: str, reward_name: str
    ) -> None:
        assert resolve(env_name=env_name).reward_function_type == reward_name

    def test_a_reward_function_of_ones_own_is_allowed_everywhere(self) -> None:
        def my_reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            return action

        request = TrainRequest(env_name="Acrobot-v1", reward_function_type="my_reward")
        assert resolve_config(request, {"my_reward": my_reward}).reward_function_type == "my_reward"

    # Branch steps are n_steps / group_size; the horizon is the divisor of them whose ratio to 16 is smallest.
    @pytest.mark.parametrize(
        ("n_steps", "group_size", "horizon"),
        [
            (32, 2, 16),  # 16
            (64, 4, 16),  # 16
            (16_384, 2, 16),  # 8192
            (8, 2, 4),  # 4
            (2, 2, 1),  # 1
            (20, 2, 10),  # 10
            (40, 2, 20),  # 20: 10 is 1.6 times too short, 20 only 1.25 times too long
            (52, 2, 13),  # 26: 13 is 1.23 times too short, 26 1.6 times too long
            (34, 2, 17),  # 17
            (46, 2, 23),  # 23, a prime
            (200, 2, 20),  # 100: 10 and 25 are 1.6 and 1.56 times off, 20 only 1.25
        ],
    )
    def test_the_horizon_is_a_fitting_one_close_to_sixteen(self, n_steps: int, group_size: int, horizon: int) -> None:
        assert resolve(n_steps=n_steps, group_size=group_size).horizon == horizon

    def test_a_generated_name_can_name_a_model_whatever_the_environment_is_called(
        self, register_env: RegisterEnv
    ) -> None:
        for env_name in ("testing/Line-v0", "..Line-v0", "_Line-v0", "-Line-v0", f"{'L' * 120}-v0"):
            generated = resolve(env_name=register_env(LineEnv, env_name)).model_name
            assert TrainRequest(model_name=generated).model_name == generated

    # No machine of the test run needs to have CUDA, so what torch reports is replaced; nothing is trained on it.
    @pytest.mark.parametrize(
        ("has_cuda", "asked", "chosen"),
        [(True, "auto", "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda"), (False, "auto", "cpu")],
    )
    def test_cuda_is_taken_where_it_is_present_and_wanted(
        self, monkeypatch: pytest.MonkeyPatch, has_cuda: bool, asked: str, chosen: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
        assert resolve(device=asked).device == chosen

    def test_cuda_is_refused_where_it_is_absent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # see above
        with pytest.raises(InvalidRequestError, match="send 'auto' or 'cpu'"):
            resolve(device="cuda")


class TestRefusals:
    def test_an_unknown_environment_is_refused_with_names_like_it(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"'CartPole-v9' is not .* did you mean .*'CartPole-v1'"):
            resolve(env_name="CartPole-v9")

    def test_an_environment_like_no_other_is_refused_with_where_to_look(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"gymnasium\.registry"):
            resolve(env_name="zzzzzzzzzzzz")

    def test_an_environment_without_its_dependencies_is_refused(self, register_env: RegisterEnv) -> None:
        def make_env() -> gym.Env[Any, Any]:
            raise gym.error.DependencyNotInstalled("some library in /home/someone/lib")

        with pytest.raises(InvalidRequestError, match="DependencyNotInstalled") as refusal:
            resolve(env_name=register_env(make_env))
        assert "/home" not in refusal.value.detail

    def test_an_environment_whose_constructor_exits_is_refused(self, register_env: RegisterEnv) -> None:
        def make_env() -> gym.Env[Any, Any]:
            raise SystemExit(3)

        with pytest.raises(InvalidRequestError, match="SystemExit"):
            resolve(env_name=register_env(make_env))

    def test_an_environment_that_cannot_be_restored_is_refused_with_the_remedy(self, register_env: RegisterEnv) -> None:
        with pytest.raises(InvalidRequestError, match=r"ForgetfulEnv cannot be restored .* capture_state\(\)"):
            resolve(env_name=register_env(ForgetfulEnv))

    def test_an_observation_that_is_no_array_is_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="observation space"):
            resolve(env_name="Blackjack-v1")

    def test_an_action_without_bounds_is_refused(self, register_env: RegisterEnv) -> None:
        def make_env() -> gym.Env[Any, Any]:
            env = LineEnv()
            env.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
            return env

        with pytest.raises(InvalidRequestError, match="finite bounds"):
            resolve(env_name=register_env(make_env))

    def test_an_unknown_reward_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(InvalidRequestError, match="'environment', 'optimized_cartpole', 'simple_cartpole'"):
            resolve(reward_function_type="best_cartpole")

    @pytest.mark.parametrize("name", ["optimized_cartpole", "simple_cartpole"])
    def test_a_cartpole_reward_is_refused_elsewhere(self, name: str) -> None:
        with pytest.raises(InvalidRequestError, match=r"cannot score Acrobot-v1; .* 'environment'"):
            resolve(env_name="Acrobot-v1", reward_function_type=name)

    @pytest.mark.parametrize(
        "request_",
        [
            {"n_steps": 33},
            {"n_steps": 2, "group_size": 4},
            {"n_steps": 100, "group_size": 256},
            {"n_steps": 32, "horizon": 5},
            {"n_steps": 32, "horizon": 32},
            {"n_steps": 16_383, "group_size": 2},
            {"n_steps": 48, "group_size": 4, "horizon": 16},
        ],
    )
    def test_a_rollout_of_broken_groups_is_refused_with_a_length_that_works(self, request_: dict[str, int]) -> None:
        with pytest.raises(InvalidRequestError, match=f"n_steps={request_['n_steps']} ") as refusal:
            resolve(**request_)
        suggested = int(refusal.value.detail.rpartition("n_steps=")[2].split()[0].rstrip(",."))
        assert resolve(**{**request_, "n_steps": suggested}).n_steps == suggested

    def test_no_length_beyond_the_limit_is_suggested(self) -> None:
        with pytest.raises(InvalidRequestError) as refusal:
            resolve(n_steps=16_384, group_size=256, horizon=16_384)
        for suggested in refusal.value.detail.split("take n_steps=")[1:]:
            assert int(suggested.split()[0].rstrip(",.")) <= 16_384

    def test_a_rollout_that_would_fill_the_memory_is_refused(self, register_env: RegisterEnv) -> None:
        # 64 * 16384 steps of 2 * 1000 observed numbers and 2 logits, 4 bytes each, are 8008 MiB; 65536 branches of 16
        # steps take 1 KiB each on top.
        env_name = register_env(lambda: LineEnv(observation_size=1000))
        with pytest.raises(InvalidRequestError, match="8072 MiB per rollout, at most 256"):
            resolve(env_name=env_name, n_envs=64, n_steps=16_384)

    def test_a_minibatch_that_would_fill_the_memory_is_refused(self) -> None:
        # 65536 steps through two networks of 4096 units, forth and back, 4 bytes each, are 4096 MiB.
        request = {"n_envs": 4, "n_steps": 16_384, "batch_size": 65_536}
        with pytest.raises(InvalidRequestError, match="4096 MiB per minibatch, at most 256"):
            resolve(**request, net_arch=[1024, 1024, 1024, 1024])
        assert resolve(**request).batch_size == 65_536

    def test_branches_too_short_for_so_long_a_rollout_are_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="in branches of 1 take"):
            resolve(n_envs=64, n_steps=16_384, horizon=1)

    def test_the_environment_built_for_the_check_is_closed(self, register_env: RegisterEnv) -> None:
        closed: list[bool] = []
        resolve(env_name=register_env(lambda: LineEnv(on_close=lambda: closed.append(True))))
        assert closed == [True]


class TestTraining:
    def test_it_tells_its_progress_and_metrics(self) -> None:
        recorder = Recorder()
        train_policy(resolve(total_timesteps=256, n_steps=64, seed=0), REWARD_FUNCTIONS["optimized_cartpole"], recorder)
        assert recorder.steps == sorted(recorder.steps)
        assert recorder.steps[0] == 1
        assert 256 <= recorder.steps[-1] < 256 + 64
        assert set().union(*recorder.metrics) >= REQUIRED_METRICS
        assert all(np.isfinite(value) for metrics in recorder.metrics for value in metrics.values())

    def test_the_file_says_what_it_was_trained_with(self) -> None:
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

    def test_the_processs_own_random_numbers_are_not_seeded(self) -> None:
        def capture() -> list[Any]:
            return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]

        config = resolve(total_timesteps=64, seed=3)
        states = []
        for seed in (1, 2):
            random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
            train(config)
            states.append(capture())
        assert all(one != other for one, other in zip(*states, strict=True))

    @pytest.fixture
    def temporary_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A folder that is taken for temporary files and was empty before."""
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        return tmp_path

    def test_no_file_is_left_behind(self, temporary_folder: Path) -> None:
        train(resolve(total_timesteps=64))
        assert list(temporary_folder.iterdir()) == []

    def test_told_to_stop_it_returns_the_policy_so_far_at_the_next_step(self) -> None:
        recorder = Recorder(stop_after=70)
        content = train_policy(resolve(total_timesteps=10_000, n_steps=64, seed=0), None, recorder)
        assert recorder.steps[-1] == 70
        meta = model_file.from_bytes(content).meta
        assert meta["num_timesteps"] == 70
        assert meta["n_updates"] == 10  # one rollout of 64 steps was learnt from, in 10 epochs

    @pytest.mark.parametrize("stops", [True, False])
    def test_the_environment_is_closed_in_the_end(self, register_env: RegisterEnv, stops: bool) -> None:
        closed: list[bool] = []
        n_steps = 0

        def on_step() -> None:
            nonlocal n_steps
            n_steps += 1
            if stops and n_steps > 40:
                raise RuntimeError("broken")

        env_name = register_env(lambda: LineEnv(on_step, on_close=lambda: closed.append(True)))
        config = resolve(env_name=env_name, total_timesteps=64, n_envs=2)
        closed.clear()
        if stops:
            with pytest.raises(RuntimeError, match="broken"):
                train(config)
        else:
            train(config)
        assert closed == [True, True]

    def test_a_reward_function_gets_whole_batches_of_steps_and_its_rewards_are_learnt_from(self) -> None:
        shapes = []

        def reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            shapes.append((state.shape[1:], action.shape[1:], next_state.shape[1:]))
            assert len(state) == len(action) == len(next_state)
            return action.float()

        recorder = Recorder()
        train_policy(resolve(total_timesteps=64, seed=0), reward, recorder)
        assert set(shapes) == {((4,), (1,), (4,))}
        assert 0.0 < recorder.metrics[0]["rollout/reward_mean"] < 1.0  # CartPole's own would be exactly 1

    @pytest.mark.parametrize("returned", [torch.zeros(3), torch.tensor(float("nan"))])
    def test_a_reward_function_that_returns_nonsense_ends_the_training(self, returned: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"reward"):
            train_policy(resolve(total_timesteps=64), lambda state, action, next_state: returned, Recorder())

    def test_dense_rewards_are_compared_plainly_and_others_with_the_value_network(self) -> None:
        dense, _ = train(resolve(total_timesteps=32), REWARD_FUNCTIONS["simple_cartpole"])
        other, _ = train(resolve(total_timesteps=32, reward_function_type="environment"))
        assert dense.meta["hyperparameters"]["baseline"] == "group"
        assert other.meta["hyperparameters"]["baseline"] == "residual"

    def test_the_networks_have_the_layers_asked_for(self) -> None:
        content, _ = train(resolve(total_timesteps=32, net_arch=[8, 4]))
        assert content.weights["mlp_extractor.policy_net.0.weight"].shape == (8, 4)
        assert content.weights["mlp_extractor.value_net.2.weight"].shape == (4, 8)
        assert content.weights["action_net.weight"].shape == (2, 4)


def test_every_field_of_a_request_reaches_the_algorithm() -> None:
    request: dict[str, Any] = {
        "total_timesteps": 48,
        "learning_rate": 0.002,
        "n_steps": 24,
        "batch_size": 7,
        "n_epochs": 3,
        "seed": 11,
        "n_envs": 2,
        "group_size": 3,
        "horizon": 4,
        "gamma": 0.7,
        "net_arch": [5, 3],
    }
    for reward, baseline, bootstrap_value in (("simple_cartpole", "group", False), ("environment", "residual", True)):
        config = resolve(**request, reward_function_type=reward)
        meta = model_file.from_bytes(train_policy(config, REWARD_FUNCTIONS.get(reward), Job(config, None))).meta
        assert meta["network"]["net_arch"] == {"pi": [5, 3], "vf": [5, 3]}
        assert meta["n_envs"] == 2
        assert meta["num_timesteps"] >= 48
        saved = meta["hyperparameters"]
        for name in ("n_steps", "batch_size", "n_epochs", "seed", "group_size", "horizon", "gamma"):
            assert saved[name] == request[name]
        assert saved["learning_rate"] == {"linear": [0.002, 0.0, 1.0]}
        assert (saved["baseline"], saved["bootstrap_value"]) == (baseline, bootstrap_value)
