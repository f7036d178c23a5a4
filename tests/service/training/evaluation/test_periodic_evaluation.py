"""Policies are evaluated during training, and training continues as if they were not."""

import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from grpo_core.evaluation import make_policy, play_episodes
from grpo_core.options.rewards import REWARD_FUNCTIONS
from grpo_core.saving import model_file
from service.environments.step_limit import MAX_STEPS_WITHOUT_LIMIT
from service.schemas.training import TrainConfig
from service.training.order import TrainingOrder
from service.training.train import train_policy
from tests.conftest import RegisterEnv
from tests.environments import FloatArray, LineEnv, is_tried_out
from tests.service.training.jobs import assert_trained_alike
from tests.support import Recorder, make_plan

Content = model_file.ModelContent


class PaidEnv(LineEnv):
    """A line with another reward.

    :param reward: Reward of every step.
    :param ends: Whether the episode ends five places from the start.
    """

    def __init__(self, reward: float = 1.0, ends: bool = True, on_step: Callable[[], None] = lambda: None) -> None:
        super().__init__(on_step)
        self._reward, self._ends = reward, ends

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observation, _, is_over, _, _ = super().step(action)
        return observation, self._reward, is_over and self._ends, False, {}


def resolve(**request: Any) -> TrainConfig:
    request = {"total_timesteps": 640, "n_steps": 64, "n_eval_episodes": 3, "seed": 0} | request
    return make_plan(**request).config


def run(recorder: Recorder | None = None, **request: Any) -> tuple[Content, Recorder]:
    recorder = recorder or Recorder()
    config = resolve(**request)
    reward = REWARD_FUNCTIONS.get(config.reward_function_type or "")
    return model_file.from_bytes(train_policy(TrainingOrder(config, reward), recorder), with_optimizer=True), recorder


def play(content: Content, n_episodes: int) -> list[float]:
    """Play the episodes of an evaluation with a saved policy."""
    env = gym.make(content.meta["env_name"])
    policy = make_policy(content.make_actor(), deterministic=True, rng=np.random.default_rng(7))
    episodes = play_episodes(env, policy, n_episodes, seed=1_000_000)
    env.close()
    return [episode.reward for episode in episodes]


class TestWhenPoliciesAreEvaluated:
    def test_after_the_first_update_past_each_multiple_of_eval_freq_and_at_the_end(self) -> None:
        content, recorder = run(eval_freq=150, keep_best=False)
        timesteps = [evaluation["timesteps"] for evaluation in recorder.evaluations]
        for due, at in zip([150, 300, 450, 600], timesteps, strict=False):
            assert due <= at < due + 64
        assert timesteps == sorted(set(timesteps))
        assert timesteps[-1] == content.meta["num_timesteps"] >= 640
        assert len(timesteps) == 5

    def test_once_if_eval_freq_is_total_timesteps(self) -> None:
        content, recorder = run(eval_freq=640)
        (evaluation,) = recorder.evaluations
        assert evaluation["timesteps"] == content.meta["num_timesteps"]


class TestEvaluations:
    def test_it_plays_the_policy_that_is_saved(self) -> None:
        content, recorder = run(eval_freq=640, n_eval_episodes=5)
        rewards = play(content, 5)
        (evaluation,) = recorder.evaluations
        assert evaluation["n_episodes"] == 5
        assert evaluation["mean_reward"] == pytest.approx(np.mean(rewards))
        assert evaluation["std_reward"] == pytest.approx(np.std(rewards))
        assert (evaluation["min_reward"], evaluation["max_reward"]) == (min(rewards), max(rewards))
        assert evaluation["mean_length"] == evaluation["mean_reward"]  # one for each step
        assert evaluation["success_rate"] is None  # balancing has no goal to reach
        written = {name: list(value) if isinstance(value, tuple) else value for name, value in evaluation.items()}
        assert content.meta["evaluation"] == written

    def test_it_is_logged_under_sb3s_keys(self) -> None:
        _, recorder = run(eval_freq=320, env_name="FrozenLake-v1")
        logged = [metrics for metrics in recorder.metrics if "eval/mean_reward" in metrics]
        assert [metrics["eval/mean_reward"] for metrics in logged] == [
            evaluation["mean_reward"] for evaluation in recorder.evaluations
        ]
        assert logged[0].keys() >= {"eval/mean_ep_length", "eval/success_rate", "train/approx_kl"}

    def test_the_environments_own_reward_counts_whatever_the_training_reward(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: PaidEnv(reward=0.5, ends=False), max_episode_steps=8)
        config = resolve(env_name=env_name, eval_freq=640)
        recorder = Recorder()
        train_policy(TrainingOrder(config, lambda state, action, next_state: action.float()), recorder)
        (evaluation,) = recorder.evaluations
        assert (evaluation["mean_reward"], evaluation["mean_length"], evaluation["success_rate"]) == (4.0, 8.0, None)

    def test_an_endless_episode_is_cut(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: PaidEnv(ends=False))
        _, recorder = run(env_name=env_name, eval_freq=640, n_eval_episodes=2)
        (evaluation,) = recorder.evaluations
        assert evaluation["mean_length"] == MAX_STEPS_WITHOUT_LIMIT == 1000

    def test_a_reward_that_is_not_finite_fails_the_training(self, register_env: RegisterEnv) -> None:
        class Paying(PaidEnv):
            """Pays without end from its second step on."""

            def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
                outcome = super().step(action)
                if not is_tried_out():
                    self._reward = float("inf")
                return outcome

        env_name = register_env(Paying)
        config = resolve(env_name=env_name, eval_freq=64)
        with pytest.raises(ValueError, match=r"is not finite \(inf\); fix the environment 'Line-v0'"):
            train_policy(TrainingOrder(config, lambda state, action, next_state: torch.ones(len(state), 1)), Recorder())


@pytest.mark.parametrize(
    "request_",
    [{}, {"n_envs": 2, "normalize": True}, {"env_name": "FrozenLake-v1"}, {"env_name": "Pendulum-v1"}],
    ids=str,
)
def test_training_continues_as_without_it(request_: dict[str, Any]) -> None:
    without, _ = run(**request_, n_eval_episodes=0)
    with_it, recorder = run(**request_, eval_freq=64, keep_best=False)
    assert len(recorder.evaluations) > 1
    assert_trained_alike(without, with_it)
    assert without.meta["rng_state"] == with_it.meta["rng_state"]


# Such large steps destroy what was learned.
WILD: dict[str, Any] = {"eval_freq": 64, "learning_rate": 0.05, "lr_schedule": "constant", "seed": 3}


class TestTheBestPolicy:
    def test_it_is_saved_instead_of_the_last_one(self) -> None:
        content, recorder = run(**WILD)
        means = [evaluation["mean_reward"] for evaluation in recorder.evaluations]
        best = recorder.evaluations[int(np.argmax(means))]
        assert max(means) > means[-1], "else this would prove nothing"
        assert np.mean(play(content, 3)) == best["mean_reward"]
        kept = content.meta["evaluation"]
        assert (kept["timesteps"], kept["mean_reward"]) == (best["timesteps"], best["mean_reward"])
        assert content.meta["num_timesteps"] == best["timesteps"]
        assert content.meta["ended_by"] == "total_timesteps"
        assert content.meta["config"]["keep_best"] is True

    def test_keep_best_false_saves_the_last_one(self) -> None:
        content, recorder = run(**WILD, keep_best=False)
        last = recorder.evaluations[-1]
        assert np.mean(play(content, 3)) == last["mean_reward"]
        assert content.meta["evaluation"]["timesteps"] == last["timesteps"] == content.meta["num_timesteps"]

    def test_of_equally_good_ones_the_first_is_kept(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: PaidEnv(ends=False), max_episode_steps=8)
        content, recorder = run(env_name=env_name, eval_freq=64)
        assert len(recorder.evaluations) > 5
        assert content.meta["evaluation"]["timesteps"] == recorder.evaluations[0]["timesteps"]

    def test_training_can_continue_from_its_file(self) -> None:
        content = train_policy(TrainingOrder(resolve(**WILD), None), Recorder())
        parts = model_file.from_bytes(content, with_optimizer=True)
        assert parts.optimizer
        assert model_file.to_bytes(parts.meta, parts.weights, parts.optimizer, parts.normalization) == content


class TestEndingEarly:
    def test_a_policy_that_is_good_enough_ends_training(self) -> None:
        content, recorder = run(eval_freq=64, stop_reward=5.0, total_timesteps=50_000)
        (evaluation,) = recorder.evaluations
        assert evaluation["mean_reward"] >= 5.0
        assert recorder.ended_by == [content.meta["ended_by"]] == ["stop_reward"]
        assert content.meta["evaluation"]["mean_reward"] == evaluation["mean_reward"]
        assert recorder.steps[-1] <= 65 + 64

    def test_keep_best_false_saves_the_policy_that_was_good_enough(self) -> None:
        content, recorder = run(eval_freq=64, stop_reward=5.0, keep_best=False, total_timesteps=50_000)
        assert np.mean(play(content, 3)) == recorder.evaluations[0]["mean_reward"]
        assert content.meta["evaluation"]["mean_reward"] == recorder.evaluations[0]["mean_reward"]

    def test_a_policy_that_stops_improving_ends_training(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: PaidEnv(ends=False), max_episode_steps=8)
        content, recorder = run(env_name=env_name, eval_freq=64, patience=3, total_timesteps=50_000)
        assert len(recorder.evaluations) == 1 + 3
        assert recorder.ended_by == [content.meta["ended_by"]] == ["patience"]

    def test_the_last_evaluation_comes_too_late_to_end_training(self) -> None:
        content, recorder = run(eval_freq=640, stop_reward=-1.0)
        assert len(recorder.evaluations) == 1
        assert recorder.ended_by == []
        assert content.meta["ended_by"] == "total_timesteps"

    def test_the_time_limit_counts_from_the_start_of_training(self) -> None:
        begun = time.monotonic()
        content, recorder = run(max_seconds=0.2, total_timesteps=10_000_000)
        assert time.monotonic() - begun >= 0.2
        assert recorder.ended_by == [content.meta["ended_by"]] == ["max_seconds"]
        assert 0 < content.meta["num_timesteps"] == recorder.steps[-1] < 10_000_000

    def test_the_time_limit_ends_an_evaluation_too(self, register_env: RegisterEnv) -> None:
        env_name = register_env(lambda: PaidEnv(ends=False), max_episode_steps=10**9)
        content, recorder = run(env_name=env_name, eval_freq=64, max_seconds=0.5)
        assert recorder.evaluations == []
        assert (recorder.ended_by, content.meta["ended_by"]) == (["max_seconds"], "max_seconds")
        assert content.meta["evaluation"] is None

    def test_a_stop_ends_an_evaluation_at_its_next_step_and_every_step_is_reported(
        self, register_env: RegisterEnv
    ) -> None:
        class Impatient(Recorder):
            """Stops during an evaluation: after more reports in a row than a rollout has minibatches."""

            def advance(self, current_timesteps: int) -> None:
                super().advance(current_timesteps)
                if self.steps[-50:] == [current_timesteps] * 50:
                    self._stop()

        env_name = register_env(lambda: PaidEnv(ends=False), max_episode_steps=10**9)
        content, recorder = run(Impatient(), env_name=env_name, eval_freq=64, n_epochs=2, total_timesteps=10_000)
        assert (recorder.evaluations, recorder.ended_by) == ([], [])
        assert content.meta["ended_by"] == "stop"
        # One more step, at which the next rollout ends; it is reported again during the final evaluation.
        last = recorder.steps.index(recorder.steps[-1])
        assert recorder.steps[last - 50 : last + 1] == [recorder.steps[-1] - 1] * 50 + [recorder.steps[-1]]
