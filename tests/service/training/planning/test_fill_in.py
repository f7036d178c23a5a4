"""Requests become complete configurations or clear refusals."""

import random
import re
from argparse import Namespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from grpo import GRPO
from grpo_cli.training_settings import choose_settings
from grpo_core.environments.making import EnvSetup
from grpo_core.options.hyperparameters import HYPERPARAMETERS
from grpo_core.options.hyperparameters_json import hyperparameters_to_json
from grpo_core.options.presets import get_preset, list_presets
from grpo_core.options.rewards import REWARD_FUNCTIONS
from service.environments.build import build_vec_env
from service.errors import InvalidRequestError
from service.schemas.training import Normalization, TrainConfig, TrainRequest
from service.training.build_model import build_model
from service.training.planning.names import resolve_names
from service.training.planning.plan import TrainingPlan
from tests.conftest import RegisterEnv
from tests.environments import ForgetfulEnv, LineEnv, SpaceEnv
from tests.grpo_core.options.test_presets import NEEDS
from tests.support import make_plan


def plan(**request: Any) -> TrainingPlan:
    return make_plan(**request)


def resolve(**request: Any) -> TrainConfig:
    return plan(**request).config


def refuse(**request: Any) -> str:
    with pytest.raises(InvalidRequestError) as refusal:
        plan(**request)
    return refusal.value.detail


class TestResolvingTheConfiguration:
    def test_an_empty_request_becomes_a_complete_configuration(self) -> None:
        config = resolve()
        assert config.model_name.startswith("CartPole-v1-")
        assert config.device == ("cuda" if torch.cuda.is_available() else "cpu")
        assert 0 <= config.seed < 2**32
        drawn = {"model_name", "device", "seed"}
        assert config.model_dump(exclude=drawn) == {
            **{name: row.default for name, row in HYPERPARAMETERS.items()},
            "env_name": "CartPole-v1",
            "env_kwargs": {},
            "wrappers": [],
            "preset": "none",
            "total_timesteps": 10_000,
            "learning_rate": 3e-4,
            "n_steps": 32,
            "batch_size": 64,
            "n_epochs": 10,
            "reward_function_type": "optimized_cartpole",
            "reward_functions": None,
            "n_envs": 1,
            "group_mode": "branch",
            "group_size": 2,
            "horizon": 16,
            "gamma": 0.99,
            "baseline": "group",
            "bootstrap_value": False,
            "normalize": False,
            "lr_schedule": "linear",
            "net_arch": [64, 64],
            "activation": "tanh",
            "log_std_init": 0.0,
            "eval_freq": None,
            "n_eval_episodes": 10,
            "keep_best": False,
            "stop_reward": None,
            "patience": None,
            "max_seconds": None,
            "checkpoint_every": None,
            "max_restarts": 1,
            "init_model": None,
            "replace": True,
            "tensorboard_log": False,
        }

    def test_two_requests_draw_different_names_and_seeds(self) -> None:
        one, other = resolve(), resolve()
        assert one.model_name != other.model_name
        assert one.seed != other.seed

    def test_what_the_request_sets_is_kept(self) -> None:
        request: dict[str, Any] = {
            "env_name": "Acrobot-v1",
            "env_kwargs": {"max_episode_steps": 100},
            "wrappers": [{"name": "frame_stack", "n": 2}],
            "preset": "Pendulum-v1",
            "total_timesteps": 7,
            "learning_rate": 0.5,
            "n_steps": 64,
            "batch_size": 3,
            "n_epochs": 2,
            "reward_functions": {"environment": -0.5},
            "model_name": "mine",
            "seed": 0,
            "n_envs": 3,
            "group_size": 4,
            "group_mode": "branch",
            "horizon": 8,
            "gamma": 0.0,
            "gae_lambda": 0.0,
            "baseline": "none",
            "supervision": "outcome",
            "advantage_scaling": "none",
            "bootstrap_value": True,
            "clip_range": 0.01,
            "clip_range_high": 10.0,
            "loss_type": "cispo",
            "importance_level": "branch",
            "loss_normalization": "branch",
            "ent_coef": 0.0,
            "vf_coef": 0.0,
            "vf_lr_factor": 0.0,
            "max_grad_norm": 0.0,
            "target_kl": 1.0,
            "kl_coef": 1.0,
            "ref_sync_steps": 1,
            "n_rollout_workers": 2,
            "n_rollout_shards": 3,
            "restart_probability": 1.0,
            "common_random_numbers": True,
            "antithetic_actions": False,
            "filter_zero_std_groups": True,
            "normalize": {"norm_obs": False, "norm_reward": True},
            "lr_schedule": "constant",
            "device": "cpu",
            "net_arch": [],
            "activation": "leakyrelu",
            "log_std_init": -3.0,
            "eval_freq": 7,
            "n_eval_episodes": 1,
            "keep_best": True,
            "stop_reward": -1e9,
            "patience": 1000,
            "max_seconds": 0.001,
            "checkpoint_every": 100,
            "max_restarts": 0,
            "replace": False,
            "tensorboard_log": True,
        }
        unsaid = {name: row.default for name, row in HYPERPARAMETERS.items() if name not in request}
        assert resolve(**request).model_dump() == {
            **request,
            **unsaid,
            "reward_function_type": None,
            "init_model": None,
        }

    @pytest.mark.parametrize(
        "request_",
        [
            {},
            {"env_name": "CartPole-v1", "reward_function_type": "environment"},
            {"env_name": "Pendulum-v1"},
            {"env_name": "Pendulum-v1", "group_mode": "episode"},
            {"env_name": "Pendulum-v1", "group_mode": "episode", "horizon": 50},
            {"env_name": "MountainCar-v0", "normalize": True},
            {"env_name": "FrozenLake-v1", "group_mode": "action"},
            {"env_name": "Acrobot-v1", "preset": "MountainCar-v0", "supervision": "outcome"},
            {"reward_functions": {"simple_cartpole": 2, "environment": 0.5}},
        ],
        ids=str,
    )
    def test_a_configuration_sent_as_a_request_gives_the_same_configuration(self, request_: dict[str, Any]) -> None:
        config = resolve(**request_)
        sent_again = TrainRequest.model_validate_json(config.model_dump_json())
        assert plan(**sent_again.model_dump(exclude_unset=True)).config == config

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
    def test_cartpole_uses_its_named_reward_and_others_use_their_own(self, env_name: str, reward_name: str) -> None:
        assert resolve(env_name=env_name).reward_function_type == reward_name

    def test_a_custom_reward_function_is_allowed_everywhere(self) -> None:
        def my_reward(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
            return action

        planned = make_plan({"my_reward": my_reward}, env_name="Acrobot-v1", reward_function_type="my_reward")
        assert planned.config.reward_function_type == "my_reward"

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
    def test_the_horizon_fits_and_is_close_to_sixteen(self, n_steps: int, group_size: int, horizon: int) -> None:
        assert resolve(n_steps=n_steps, group_size=group_size).horizon == horizon

    def test_a_generated_name_can_name_a_model_whatever_the_environment_is_called(
        self, register_env: RegisterEnv
    ) -> None:
        for env_name in ("testing/Line-v0", "..Line-v0", "_Line-v0", "-Line-v0", f"{'L' * 120}-v0"):
            generated = resolve(env_name=register_env(LineEnv, env_name)).model_name
            assert TrainRequest(model_name=generated).model_name == generated

    # The tests run without CUDA, so torch's report is replaced; nothing is trained on it.
    @pytest.mark.parametrize(
        ("has_cuda", "asked", "chosen"),
        [(True, "auto", "cuda"), (True, "cpu", "cpu"), (True, "cuda", "cuda"), (False, "auto", "cpu")],
    )
    def test_cuda_is_used_if_it_is_available_and_wanted(
        self, monkeypatch: pytest.MonkeyPatch, has_cuda: bool, asked: str, chosen: str
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: has_cuda)
        assert resolve(device=asked).device == chosen

    @pytest.mark.parametrize(
        ("space", "asked", "is_told"),
        [
            ("box", {}, True),
            ("box", {"device": "auto"}, True),
            ("box", {"device": "cuda"}, False),
            ("image", {}, False),
        ],
    )
    def test_small_layers_that_nobody_put_on_the_gpu_are_told_of(
        self, monkeypatch: pytest.MonkeyPatch, register_env: RegisterEnv, space: str, asked: Any, is_told: bool
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # see above
        shown = spaces.Box(0, 255, (36, 36, 1), np.uint8) if space == "image" else spaces.Box(-1.0, 1.0, (3,))
        env_name = register_env(lambda: SpaceEnv(shown, spaces.Discrete(2)))
        warnings = plan(env_name=env_name, n_steps=64, **asked).warnings
        assert any('"device": "cpu"' in warning for warning in warnings) == is_told

    def test_cuda_is_refused_if_it_is_not_available(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # see above
        with pytest.raises(InvalidRequestError, match="send 'auto' or 'cpu'"):
            resolve(device="cuda")


class TestRefusals:
    def test_an_unknown_environment_is_refused_with_similar_names(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"'CartPole-v9' is not .* did you mean .*'CartPole-v1'"):
            resolve(env_name="CartPole-v9")

    def test_an_environment_with_no_similar_name_is_refused_with_a_place_to_look(self) -> None:
        with pytest.raises(InvalidRequestError, match=r"GET /environments lists .* --env-module"):
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

    def test_an_observation_that_is_not_an_array_is_refused(self) -> None:
        with pytest.raises(InvalidRequestError, match="observation space"):
            resolve(env_name="Blackjack-v1")

    def test_an_unbounded_action_is_refused(self, register_env: RegisterEnv) -> None:
        def make_env() -> gym.Env[Any, Any]:
            env = LineEnv()
            env.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
            return env

        with pytest.raises(InvalidRequestError, match="finite bounds"):
            resolve(env_name=register_env(make_env))

    def test_an_unknown_reward_is_refused_with_the_known_ones(self) -> None:
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
    def test_a_rollout_of_incomplete_groups_is_refused_with_a_length_that_works(self, request_: dict[str, int]) -> None:
        with pytest.raises(InvalidRequestError, match=f"n_steps={request_['n_steps']} ") as refusal:
            resolve(**request_)
        suggested = int(refusal.value.detail.rpartition("n_steps=")[2].split()[0].rstrip(",."))
        assert resolve(**{**request_, "n_steps": suggested}).n_steps == suggested

    def test_no_suggested_length_exceeds_the_limit(self) -> None:
        with pytest.raises(InvalidRequestError) as refusal:
            resolve(n_steps=16_384, group_size=256, horizon=16_384)
        for suggested in refusal.value.detail.split("send n_steps=")[1:]:
            assert int(suggested.split()[0].rstrip(",.")) <= 16_384

    def test_the_environment_built_for_the_check_is_closed(self, register_env: RegisterEnv) -> None:
        closed: list[bool] = []
        resolve(env_name=register_env(lambda: LineEnv(on_close=lambda: closed.append(True))))
        assert closed == [True]


class TestPresets:
    @pytest.mark.filterwarnings("ignore:builtin type .* has no __module__ attribute:DeprecationWarning")
    @pytest.mark.parametrize("env_name", list_presets())
    def test_a_preset_is_followed_exactly(self, env_name: str) -> None:
        pytest.importorskip(NEEDS.get(env_name, "gymnasium"))
        config = resolve(env_name=env_name, reward_function_type="environment")
        preset = get_preset(env_name)
        assert preset is not None
        assert (config.preset, config.total_timesteps, config.n_envs) == (env_name, preset.n_timesteps, preset.n_envs)
        env = build_vec_env(EnvSetup(env_name), 1)
        found = hyperparameters_to_json(build_model(config, env, None))
        policy_kwargs = preset.arguments.get("policy_kwargs", {})
        arguments = {name: value for name, value in preset.make_arguments().items() if name != "policy_kwargs"}
        model = GRPO(preset.policy, env, policy_kwargs=policy_kwargs, **arguments)
        # The service spells this out.
        expected = hyperparameters_to_json(model) | {"group_mode": config.group_mode, "seed": config.seed}
        if config.group_mode == "branch" and model.horizon is None:
            expected["horizon"] = 32
        assert found == expected
        env.close()
        if preset.normalize is None:
            assert config.normalize is False
        else:
            assert config.normalize == Normalization(**preset.normalize)

    @pytest.mark.parametrize(
        ("request_", "preset"),
        [
            ({"env_name": "CartPole-v1"}, "none"),
            ({"env_name": "CartPole-v1", "reward_function_type": "simple_cartpole"}, "none"),
            ({"env_name": "CartPole-v1", "reward_function_type": "environment"}, "CartPole-v1"),
            ({"env_name": "CartPole-v1", "preset": "CartPole-v1"}, "CartPole-v1"),
            ({"env_name": "CartPole-v1", "reward_functions": {"environment": 1.0}}, "none"),
            ({"env_name": "Acrobot-v1"}, "Acrobot-v1"),
            ({"env_name": "Acrobot-v1", "preset": None}, "Acrobot-v1"),
            ({"env_name": "Acrobot-v1", "preset": "none"}, "none"),
            ({"env_name": "Acrobot-v1", "preset": "FrozenLake-v1"}, "FrozenLake-v1"),
            ({"env_name": "CliffWalking-v1"}, "general-discrete"),
            ({"env_name": "Taxi-v4", "group_mode": "episode"}, "general-discrete-episodes"),
            ({"env_name": "MountainCarContinuous-v0"}, "MountainCarContinuous-v0"),
            ({"env_name": "MountainCarContinuous-v0", "preset": "general"}, "general-continuous"),
            ({"env_name": "Acrobot-v1", "preset": "general"}, "general-discrete"),
            ({"env_name": "Acrobot-v1", "preset": "general-continuous"}, "general-continuous"),
            ({"env_name": "CartPole-v1", "preset": "general"}, "general-discrete"),
        ],
        ids=str,
    )
    def test_the_environments_own_reward_brings_its_own_preset(self, request_: dict[str, Any], preset: str) -> None:
        assert resolve(**request_).preset == preset

    @pytest.mark.parametrize(
        ("request_", "preset"),
        [
            ({"env_name": "Pendulum-v1", "reward_function_type": "own"}, "Pendulum-v1"),
            ({"env_name": "Pendulum-v1", "reward_functions": {"environment": 1.0, "own": 0.5}}, "Pendulum-v1"),
            ({"env_name": "CartPole-v1", "reward_function_type": "own"}, "CartPole-v1"),
            ({"env_name": "CartPole-v1", "reward_functions": {"simple_cartpole": 1.0, "own": 0.5}}, "CartPole-v1"),
            ({"env_name": "CartPole-v1", "reward_function_type": "own", "preset": "none"}, "none"),
            ({"env_name": "CliffWalking-v1", "reward_function_type": "own"}, "general-discrete"),
        ],
        ids=str,
    )
    def test_so_does_a_reward_of_the_users(self, request_: dict[str, Any], preset: str) -> None:
        known = {**REWARD_FUNCTIONS, "own": lambda state, action, next_state: next_state[:, 0]}
        assert make_plan(known, **request_).config.preset == preset

    def test_the_general_preset_shortens_its_rollouts_to_the_training(self) -> None:
        expected = {100_000: (512, 32), 10_000: (512, 32), 1000: (64, 32), 64: (32, 16)}
        for total_timesteps, sizes in expected.items():
            config = resolve(env_name="CliffWalking-v1", total_timesteps=total_timesteps)
            assert (config.n_steps, config.horizon) == sizes
        assert resolve(env_name="CliffWalking-v1", total_timesteps=64, n_steps=512).n_steps == 512

    def test_a_long_training_takes_the_general_preset_for_it(self) -> None:
        config = resolve(env_name="Pendulum-v1", preset="general", total_timesteps=500_000)
        assert config.preset == "general-continuous-long"
        assert (config.learning_rate, config.lr_schedule, config.log_std_init) == (0.0003, "linear", -1.0)
        assert resolve(env_name="Pendulum-v1", preset="general").preset == "general-continuous"
        asked = resolve(env_name="Pendulum-v1", preset="general-continuous-long")
        assert asked.total_timesteps == 1_000_000

    def test_the_general_preset_fits_large_images_and_observations_without_numbers(
        self, register_env: RegisterEnv
    ) -> None:
        screen = spaces.Box(0, 255, (128, 128, 3), np.uint8)
        config = resolve(env_name=register_env(lambda: SpaceEnv(screen, spaces.Discrete(2))))
        assert (config.preset, config.batch_size, config.n_steps) == ("general-image", 128, 512)
        torque = spaces.Box(-1.0, 1.0, (1,))
        name = register_env(lambda: SpaceEnv(spaces.Discrete(8), torque), "Blind-v0", max_episode_steps=9)
        assert resolve(env_name=name).normalize == Normalization(norm_obs=False)

    def test_an_environment_that_cannot_be_restored_gets_episodes_and_is_told_why(
        self, register_env: RegisterEnv
    ) -> None:
        planned = plan(env_name=register_env(ForgetfulEnv, max_episode_steps=9))
        assert (planned.config.preset, planned.config.group_mode) == ("general-discrete-episodes", "episode")
        assert planned.config.baseline == "value"
        assert len(planned.warnings) == 1
        assert "Groups are whole episodes" in planned.warnings[0]

    def test_an_unknown_preset_is_refused_with_the_known_ones(self) -> None:
        assert "choose one of 'none', 'Acrobot-v1'" in refuse(preset="Chess-v0")

    def test_without_a_preset_an_environments_own_reward_needs_the_value_network(self) -> None:
        config = resolve(env_name="Acrobot-v1", preset="none")
        assert (config.baseline, config.bootstrap_value, config.lr_schedule) == ("adaptive", True, "linear")
        assert (config.total_timesteps, config.n_steps, config.horizon) == (10_000, 32, 16)

    def test_the_request_overrides_the_preset_even_with_a_default(self) -> None:
        config = resolve(env_name="Pendulum-v1", total_timesteps=10_000, learning_rate=3e-4, gamma=0.99, n_epochs=10)
        assert (config.total_timesteps, config.learning_rate, config.gamma) == (10_000, 3e-4, 0.99)
        preset = get_preset("Pendulum-v1")
        assert preset is not None
        assert config.n_steps == preset.arguments["n_steps"]

    def test_each_setting_says_who_chose_it(self) -> None:
        changes = {"n_epochs": 3, "target_kl": None, "group_size": 4}
        request = {"env_name": "Pendulum-v1", "preset": "HalfCheetah-v5", **changes}
        plan = make_plan(**request)
        assert plan.config_origins.keys() == type(plan.config).model_fields.keys()
        by_request = {name for name, origin in plan.config_origins.items() if origin == "request"}
        by_preset = {name for name, origin in plan.config_origins.items() if origin == "preset"}
        assert by_request == request.keys() - {"target_kl"}
        preset = get_preset("HalfCheetah-v5")
        assert preset is not None
        said = {**preset.arguments, **preset.arguments["policy_kwargs"]}.keys() - {"policy_kwargs"}
        assert by_preset == (said | {"total_timesteps", "normalize", "lr_schedule"}) - by_request

    def test_what_no_longer_is_as_the_preset_says_is_not_the_presets(self) -> None:
        plan = make_plan(env_name="MountainCar-v0", group_size=3)
        assert plan.config.n_steps % 3 == 0
        assert plan.config_origins["n_steps"] == "default"
        assert make_plan(env_name="MountainCar-v0").config_origins["n_steps"] == "preset"

    def test_without_a_preset_there_are_requests_and_defaults(self) -> None:
        origins = make_plan(seed=1, model_name="mine").config_origins
        assert {name for name, origin in origins.items() if origin != "default"} == {"seed", "model_name"}
        assert set(make_plan(seed=1).config_origins.values()) == {"request", "default"}

    def test_a_refusal_names_the_presets_settings_and_how_to_change_them(self) -> None:
        detail = refuse(env_name="Pendulum-v1", n_steps=1023)
        assert detail.startswith("n_steps=1023 is not allowed: a rollout holds whole groups of group_size=2 steps")
        assert "Preset 'Pendulum-v1' chose group_size;" in detail
        assert detail.endswith('send your own, or "preset": "none".')
        assert "Preset" not in refuse(n_steps=33)


class TestFitting:
    """What is left out is chosen to fit what is sent."""

    @pytest.mark.parametrize(
        ("request_", "n_steps", "horizon"),
        [
            ({"group_size": 5}, 80, 16),  # 32 is no multiple of 5; 5 * 16 is the nearest number of whole groups
            ({"horizon": 5}, 30, 5),
            ({"group_size": 8}, 32, 4),  # as before: 32 / 8 steps per branch
            ({"env_name": "Acrobot-v1", "preset": "none", "group_mode": "action"}, 48, 16),  # of 3 actions
        ],
        ids=str,
    )
    def test_the_rollout_holds_whole_groups(self, request_: dict[str, Any], n_steps: int, horizon: int) -> None:
        config = resolve(**request_)
        assert (config.n_steps, config.horizon) == (n_steps, horizon)

    @pytest.mark.parametrize("group_size", [2, 3, 5, 7, 64, 100])
    @pytest.mark.parametrize("horizon", [None, 1, 10, 33])
    def test_a_presets_rollout_holds_whole_groups_too(self, group_size: int, horizon: int | None) -> None:
        config = resolve(env_name="Pendulum-v1", group_size=group_size, horizon=horizon)
        assert config.horizon == (horizon or config.horizon)
        assert config.horizon is not None
        assert config.n_steps % (group_size * config.horizon) == 0

    @pytest.mark.filterwarnings("ignore:.*The environment CartPole-v0 is out of date")
    @pytest.mark.parametrize(
        ("env_name", "reward_name", "asked", "preset_name"),
        [
            ("CartPole-v1", "environment", None, "CartPole-v1"),
            ("CartPole-v1", "optimized_cartpole", None, "none"),
            ("CartPole-v1", "optimized_cartpole", "general", "general"),
            ("CartPole-v1", "environment", "none", "none"),
            ("CartPole-v0", "environment", None, "general"),  # it has none of its own
            ("CartPole-v0", "simple_cartpole", None, "none"),
            ("FrozenLake-v1", "environment", None, "FrozenLake-v1"),
            ("FrozenLake-v1", "environment", "MountainCar-v0", "MountainCar-v0"),
            ("FrozenLake-v1", "environment", "general-image", "general-image"),
            ("CliffWalking-v1", "environment", None, "general"),
        ],
    )
    def test_the_command_line_takes_the_same_preset(
        self, env_name: str, reward_name: str, asked: str | None, preset_name: str
    ) -> None:
        request = TrainRequest(env_name=env_name, reward_function_type=reward_name, preset=asked)
        assert resolve_names(request, REWARD_FUNCTIONS).preset == preset_name
        options = Namespace(**dict.fromkeys(HYPERPARAMETERS), preset=asked, n_envs=None, total_timesteps=None)
        options.reward_function, options.hyperparams = reward_name, []
        general = "general-discrete"
        expected = general if preset_name == "general" else preset_name
        settings = choose_settings(options, env_name, lambda is_episodic: (general, spaces.Discrete(4)))
        assert settings.preset_name == expected

    @pytest.mark.parametrize(
        ("sizes", "fitted"),
        [
            ({}, {"n_steps": 512, "group_size": 2, "horizon": 32}),
            # 250 steps per branch; of their divisors 25 is closest to 32, as a ratio
            ({"n_steps": 500}, {"n_steps": 500, "group_size": 2, "horizon": 25}),
            ({"group_size": 3}, {"n_steps": 480, "group_size": 3, "horizon": 32}),
            ({"horizon": 24}, {"n_steps": 528, "group_size": 2, "horizon": 24}),
            ({"group_mode": "episode"}, {"n_steps": 512, "group_size": 2, "horizon": None}),
            ({"group_mode": "action"}, {"n_steps": 512, "group_size": 4, "horizon": 32}),
            ({"group_mode": "action", "horizon": 20}, {"n_steps": 480, "group_size": 4, "horizon": 20}),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("preset", ["general", "general-discrete"])
    def test_the_command_line_fits_a_general_preset_alike(
        self, preset: str, sizes: dict[str, Any], fitted: dict[str, Any]
    ) -> None:
        words = [f"{name}={value}" for name, value in sizes.items()]
        options = Namespace(**dict.fromkeys(HYPERPARAMETERS), preset=preset, n_envs=None)
        options.total_timesteps, options.reward_function, options.hyperparams = 10_000, "environment", words

        def choose_general(is_episodic: bool) -> tuple[str, spaces.Space[Any]]:
            return "general-discrete-episodes" if is_episodic else "general-discrete", spaces.Discrete(4)

        settings = choose_settings(options, "FrozenLake-v1", choose_general)
        config = resolve(env_name="FrozenLake-v1", preset=preset, total_timesteps=10_000, **sizes)
        assert settings.preset_name == config.preset
        assert {name: settings.arguments[name] for name in fitted} == fitted
        assert {name: getattr(config, name) for name in fitted} == fitted

    def test_group_mode_action_has_one_branch_per_action(self) -> None:
        config = resolve(env_name="FrozenLake-v1", group_mode="action")
        assert (config.group_mode, config.group_size) == ("action", 4)
        assert "group_mode='action' needs group_size=4" in refuse(
            env_name="FrozenLake-v1", group_mode="action", group_size=2
        )

    def test_more_actions_than_a_group_can_hold_are_refused(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: SpaceEnv(spaces.Discrete(2), spaces.Discrete(257)))
        assert "at most 256 branches" in refuse(env_name=env_name, group_mode="action")

    @pytest.mark.parametrize(
        ("request_", "baseline", "bootstrap_value", "supervision"),
        [
            ({"supervision": "outcome"}, "group", True, "outcome"),
            ({"bootstrap_value": False}, "group", False, "process"),
            ({"baseline": "value"}, "value", True, "process"),
            ({"baseline": "leave_one_out", "bootstrap_value": False}, "leave_one_out", False, "process"),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("preset", ["none", "Acrobot-v1"])
    def test_the_baseline_suits_the_credit_settings(
        self, preset: str, request_: dict[str, Any], baseline: str, bootstrap_value: bool, supervision: str
    ) -> None:
        config = resolve(env_name="Acrobot-v1", preset=preset, **request_)
        chosen = (config.baseline, config.bootstrap_value, config.supervision)
        assert chosen == (baseline, bootstrap_value, supervision)

    def test_scaling_by_the_group_takes_a_baseline_that_can_be_unless_a_preset_chose_another(self) -> None:
        assert resolve(env_name="Acrobot-v1", preset="none", advantage_scaling="group").baseline == "residual"
        assert "Preset 'Pendulum-v1' chose baseline" in refuse(env_name="Pendulum-v1", advantage_scaling="group")

    def test_a_dense_reward_with_a_value_baseline_is_bootstrapped(self) -> None:
        config = resolve(baseline="residual")
        assert (config.reward_function_type, config.bootstrap_value) == ("optimized_cartpole", True)


class TestGroupModes:
    def test_an_environment_that_cannot_be_restored_is_trained_in_episodes_with_a_warning(
        self, register_env: RegisterEnv
    ) -> None:
        env_name = register_env(ForgetfulEnv, max_episode_steps=9)
        planned = plan(env_name=env_name)
        assert (planned.config.group_mode, planned.config.horizon) == ("episode", None)
        (warning,) = planned.warnings
        assert "ForgetfulEnv" in warning
        assert "whole episodes" in warning
        assert plan(env_name=env_name, group_mode="episode").warnings == ()
        assert plan(env_name="CartPole-v1").warnings == ()

    @pytest.mark.parametrize("group_mode", ["branch", "action"])
    def test_it_is_refused_in_any_other_mode_with_the_reason(self, register_env: RegisterEnv, group_mode: str) -> None:
        env_name = register_env(ForgetfulEnv, max_episode_steps=9)
        detail = refuse(env_name=env_name, group_mode=group_mode)
        assert f"cannot be trained with group_mode '{group_mode}'" in detail
        assert "capture_state()" in detail

    @pytest.mark.parametrize("group_mode", [None, "episode"])
    def test_episodes_need_an_end(self, register_env: RegisterEnv, group_mode: str | None) -> None:
        env_name = register_env(ForgetfulEnv)
        assert "max_episode_steps, or send horizon" in refuse(env_name=env_name, group_mode=group_mode)
        assert resolve(env_name=env_name, group_mode=group_mode, horizon=7).horizon == 7

    def test_a_presets_horizon_does_not_limit_episodes(self) -> None:
        config = resolve(env_name="Pendulum-v1", group_mode="episode")
        assert (config.group_mode, config.horizon) == ("episode", None)

    def test_an_environment_that_fails_while_it_is_tried_out_is_refused(self, register_env: RegisterEnv) -> None:
        class BrokenEnv(gym.Env[Any, Any]):
            observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
            action_space = spaces.Discrete(2)

            def reset(self, **_: Any) -> Any:
                raise RuntimeError("broken at /home/someone")

        detail = refuse(env_name=register_env(BrokenEnv))
        assert "(RuntimeError: broken at <path>. BrokenEnv.reset(seed=0) raised it, at its first call)" in detail
        assert "/home" not in detail

    def test_an_environment_whose_steps_fail_is_refused_with_what_it_says(self, register_env: RegisterEnv) -> None:
        class StuckEnv(LineEnv):
            def step(self, action: Any) -> Any:
                raise ValueError("the joint at /home/someone is stuck")

        detail = refuse(env_name=register_env(StuckEnv, max_episode_steps=9), group_mode="branch")
        assert "the joint at <path> is stuck" in detail

    def test_an_environment_that_returns_what_it_must_not_is_refused_before_a_job_exists(
        self, register_env: RegisterEnv
    ) -> None:
        class OldEnv(LineEnv):
            def step(self, action: Any) -> Any:
                return super().step(action)[:4]

        env_name = register_env(OldEnv, max_episode_steps=9)
        for group_mode in ("auto", "episode"):
            detail = refuse(env_name=env_name, group_mode=group_mode)
            assert "'Line-v0' cannot be trained: OldEnv.step() returned 4 values; it has to return five" in detail

    def test_global_random_generators_are_left_alone(self) -> None:
        def capture() -> list[Any]:
            return [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]

        before = capture()
        resolve(env_name="Taxi-v4")
        assert capture() == before


class TestWhatTheAlgorithmRefuses:
    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            ({"ref_sync_steps": 5}, "ref_sync_steps=5 is not allowed: with kl_coef=0"),
            ({"n_rollout_shards": 3, "n_envs": 2}, "a multiple of the 2 environments up to"),
            ({"n_rollout_workers": 9, "n_envs": 2}, "n_rollout_workers=9 is not allowed: a rollout is cut into 2"),
            ({"baseline": "residual", "bootstrap_value": False}, "use bootstrap_value=True or baseline='group'"),
            ({"baseline": "residual", "supervision": "outcome"}, "use supervision='process' or baseline='group'"),
            ({"env_name": "Pendulum-v1", "group_mode": "action"}, "only a Discrete action space"),
            ({"env_name": "FrozenLake-v1", "normalize": True}, "normalize is not allowed"),
        ],
        ids=str,
    )
    def test_its_own_error_reaches_the_client(self, request_: dict[str, Any], said: str) -> None:
        assert said in refuse(**request_)

    def test_a_dict_with_an_image_too_small_is_refused(self, register_env: RegisterEnv) -> None:
        space = spaces.Dict({"image": spaces.Box(0, 255, (8, 8, 3), np.uint8)})
        env_name = register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))
        assert "at least 36 x 36 pixels" in refuse(env_name=env_name)


class TestSeveralRewards:
    def test_they_are_passed_on_in_order_with_their_weights(self) -> None:
        planned = plan(reward_functions={"environment": 0.5, "optimized_cartpole": 2})
        assert planned.config.reward_function_type is None
        assert planned.config.reward_functions == {"environment": 0.5, "optimized_cartpole": 2.0}
        assert planned.reward == [None, REWARD_FUNCTIONS["optimized_cartpole"]]

    @pytest.mark.parametrize(
        ("names", "baseline"),
        [
            (["optimized_cartpole", "simple_cartpole"], "group"),
            (["optimized_cartpole", "environment"], "adaptive"),
        ],
    )
    def test_they_are_dense_if_each_of_them_is(self, names: list[str], baseline: str) -> None:
        assert resolve(reward_functions=dict.fromkeys(names, 1.0)).baseline == baseline

    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            ({"reward_functions": {"none_such": 1.0}}, "reward_functions 'none_such' is unknown"),
            ({"env_name": "Acrobot-v1", "reward_functions": {"simple_cartpole": 1.0}}, "cannot score Acrobot-v1"),
            (
                {"reward_function_type": "environment", "reward_functions": {"environment": 1.0}},
                "exclude each other; send only one",
            ),
        ],
        ids=str,
    )
    def test_an_unknown_or_unsuitable_one_is_refused(self, request_: dict[str, Any], said: str) -> None:
        assert said in refuse(**request_)


def test_observations_too_large_for_inference_cause_a_warning(register_env: RegisterEnv) -> None:
    space = spaces.Box(-1.0, 1.0, (70_000,))
    (warning,) = plan(env_name=register_env(lambda: SpaceEnv(space, spaces.Discrete(2)))).warnings
    assert "observations have 70000 numbers, and POST /inference takes at most 65536" in warning


class TestEvaluations:
    def test_by_default_there_are_none(self) -> None:
        config = resolve()
        assert (config.eval_freq, config.n_eval_episodes, config.keep_best) == (None, 10, False)
        assert (config.stop_reward, config.patience, config.max_seconds) == (None, None, None)
        assert resolve(max_seconds=60.0, keep_best=False).eval_freq is None

    @pytest.mark.parametrize("rule", [{"stop_reward": 0.0}, {"patience": 3}, {"keep_best": True}], ids=str)
    @pytest.mark.parametrize(
        ("sizes", "eval_freq"),
        [
            ({"total_timesteps": 10_000}, 500),
            ({"total_timesteps": 10_000, "n_steps": 256, "n_envs": 4}, 1024),  # a rollout
            ({"total_timesteps": 100, "n_steps": 256}, 100),  # once, at the end
            ({"env_name": "Pendulum-v1", "total_timesteps": 100_000}, 5000),
        ],
        ids=str,
    )
    def test_a_rule_that_needs_them_gets_about_twenty(
        self, rule: dict[str, Any], sizes: dict[str, Any], eval_freq: int
    ) -> None:
        config = resolve(**sizes, **rule)
        assert config.eval_freq == eval_freq
        assert config.keep_best

    def test_settings_in_the_request_are_kept(self) -> None:
        rules = {"eval_freq": 700, "n_eval_episodes": 3, "keep_best": False, "stop_reward": 475.0, "patience": 5}
        config = resolve(**rules, max_seconds=0.5).model_dump()
        assert {name: config[name] for name in rules} == rules
        assert config["max_seconds"] == 0.5
        assert resolve(eval_freq=700).keep_best

    @pytest.mark.parametrize(
        ("request_", "said"),
        [
            ({"eval_freq": 101}, "eval_freq=101 is more than total_timesteps=100,.*at most 100"),
            ({"eval_freq": 99, "total_timesteps": 100_000}, "eval_freq=99 .* 1010 times,.* 1000 .*at least 100"),
        ],
    )
    def test_a_nonsensical_frequency_is_refused_with_one_that_works(self, request_: dict[str, Any], said: str) -> None:
        assert re.search(said, refuse(**{"total_timesteps": 100} | request_))


def test_tensorboard_is_refused_if_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan(tensorboard_log=True).config.tensorboard_log
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert not plan().config.tensorboard_log
    assert re.search("tensorboard_log=true needs .*send false.* pip install tensorboard$", refuse(tensorboard_log=True))
