"""What a finished policy's values are made of, and what is said about them."""

import math
import time
from itertools import count
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from grpo_core.values.fit import fit_values
from service.schemas.training import TrainConfig
from service.training.evaluation.evaluator import FITTED_SEED, Evaluator
from service.training.evaluation.value_check import refit_values
from service.training.evaluation.work_time import TimeBudget
from service.training.stop_rules import StopRules
from tests.grpo_core.values.test_fit import Line
from tests.support import Recorder, make_plan

pytestmark = pytest.mark.usefixtures("ample_time")

# Without a value network in training, as the named rewards of CartPole are trained.
UNTRAINED: dict[str, Any] = {"baseline": "group", "bootstrap_value": False, "gamma": 0.9}


def make_model(env: Any = None, **arguments: Any) -> GRPO:
    arguments = {"n_steps": 64, "seed": 0, "group_mode": "episode", **UNTRAINED, **arguments}
    return GRPO("MlpPolicy", Line() if env is None else env, **arguments)


def make_config(model: GRPO) -> TrainConfig:
    changes = {"baseline": model.baseline, "gamma": model.gamma, "total_timesteps": 64, "seed": 0}
    return make_plan().config.model_copy(update=changes)


def refit(model: GRPO, env: gym.Env[Any, Any] | None = None, stop_after: float = math.inf) -> dict[str, Any] | None:
    evaluator = Evaluator(make_config(model))
    vars(evaluator)["env"] = env or Line()
    stop_rules = StopRules(Recorder(stop_after=stop_after), None)
    stop_rules.begin(model)
    return refit_values(model, model.make_numpy_actor(), evaluator, 1.0, stop_rules)


def get_values(model: GRPO) -> list[float]:
    observations = np.array([[900.0, 50.0], [300.0, 50.0]], np.float32)
    values: list[float] = model.make_numpy_actor().values(observations).tolist()
    return values


def test_values_that_training_did_not_use_are_fitted_and_said_to_be_meaningful() -> None:
    model = make_model()
    check = refit(model)
    assert check is not None
    assert check["is_meaningful"] is True
    assert check["gamma"] == 0.9
    assert check["reward_scale"] == 1.0
    assert check["correlation"] > 0.9
    far, near = get_values(model)
    assert far < 2 * near < 0


def test_values_that_training_made_meaningful_stay_as_they_are() -> None:
    model = make_model()
    refit(model)
    before = get_values(model)
    model.baseline, model.bootstrap_value = "residual", True
    check = refit(model)
    assert check is not None
    assert check["is_meaningful"] is True
    assert get_values(model) == before


def test_the_policy_stays_as_it_is() -> None:
    model = make_model()
    before = [parameter.clone() for parameter in model.policy.action_net.parameters()]
    refit(model)
    assert all(map(torch.equal, before, model.policy.action_net.parameters()))


def test_the_same_job_gets_the_same_values() -> None:
    models = [make_model(), make_model()]
    for model in models:
        refit(model)
    assert get_values(models[0]) == get_values(models[1])


def test_values_of_normalised_rewards_come_with_the_scale_that_undoes_it() -> None:
    env = VecNormalize(DummyVecEnv([Line]), norm_obs=False, gamma=0.9)
    env.ret_rms.var = np.array(100.0**2)
    model = make_model(env)
    check = refit(model)
    assert check is not None
    assert check["reward_scale"] == pytest.approx(100.0)
    assert check["is_meaningful"] is True


def test_a_stop_ends_it_and_nothing_is_claimed() -> None:
    model = make_model()
    before = get_values(model)
    assert refit(model, stop_after=0) is None
    assert get_values(model) == before


def test_a_stop_while_values_are_fitted_leaves_them_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(*arguments: Any) -> None:
        stop_rules._stop()
        fit_values(*arguments)

    model, evaluator = make_model(), Evaluator(make_config(make_model()))
    vars(evaluator)["env"] = Line()
    stop_rules = StopRules(Recorder(), None)
    stop_rules.begin(model)
    monkeypatch.setattr("service.training.evaluation.value_check.fit_values", fit)
    before = get_values(model)
    check = refit_values(model, model.make_numpy_actor(), evaluator, 1.0, stop_rules)
    assert check is not None
    assert check["is_meaningful"] is False
    assert get_values(model) == before


def test_an_environment_that_is_too_slow_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = count()
    model = make_model()
    monkeypatch.setattr("service.training.evaluation.value_check._BUDGET", TimeBudget(0.1, 5.0, 5.0))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert refit(model) is None
    assert next(clock) < 20


def test_an_environment_that_fails_is_given_up() -> None:
    class Failing(Line):
        def step(self, action: Any) -> Any:
            raise OSError("the robot is gone")

    assert refit(make_model(), Failing()) is None


def test_rewards_that_are_not_finite_spoil_nothing() -> None:
    class Broken(Line):
        def step(self, action: Any) -> Any:
            observation, _, terminated, truncated, info = super().step(action)
            return observation, math.nan, terminated, truncated, info

    model = make_model()
    before = get_values(model)
    assert refit(model, Broken()) is None
    assert get_values(model) == before


def test_values_are_not_fitted_to_rewards_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Line):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            self.is_broken = seed is not None and seed >= FITTED_SEED
            return super().reset(seed=seed, options=options)

        def step(self, action: Any) -> Any:
            observation, reward, terminated, truncated, info = super().step(action)
            return observation, math.nan if self.is_broken else reward, terminated, truncated, info

    monkeypatch.setattr("service.training.evaluation.value_check.fit_values", lambda *_: pytest.fail("fitted"))
    model = make_model()
    before = get_values(model)
    check = refit(model, Broken())
    assert check is not None
    assert check["is_meaningful"] is False
    assert get_values(model) == before


def test_a_fit_that_ends_in_values_of_nan_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit(policy: ActorCriticPolicy, *arguments: Any) -> None:
        torch.nn.init.constant_(policy.value_net.bias, math.nan)

    monkeypatch.setattr("service.training.evaluation.value_check.fit_values", fit)
    model = make_model()
    before = get_values(model)
    check = refit(model)
    assert check is not None
    assert check["is_meaningful"] is False
    assert get_values(model) == before


def test_a_discount_of_one_is_only_checked() -> None:
    model = make_model(gamma=1.0)
    before = get_values(model)
    check = refit(model)
    assert check is not None
    assert check["is_meaningful"] is False
    assert get_values(model) == before
