"""Callbacks see the local variables that those of SB3's on-policy algorithms see."""

import copy
from itertools import pairwise
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EveryNTimesteps
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from grpo import GRPO
from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, POLICY_OF, build
from tests.suites import DEVICE
from tests.walk import StepLog, make_walk
from tests.weights import copy_weights, is_same

NAMES = (
    *("self", "env", "callback", "rollout_buffer", "n_rollout_steps", "n_steps", "infos", "dones", "rewards"),
    *("obs_tensor", "actions", "clipped_actions", "new_obs", "values", "log_probs"),
)


class Look(BaseCallback):
    """Keeps copies of what is read at every step."""

    def __init__(self, names: tuple[str, ...] = NAMES[6:]) -> None:
        super().__init__()
        self.names = names
        self.seen: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        self.seen.append({name: copy.deepcopy(self.locals[name]) for name in self.names})
        return True


def describe(value: Any) -> Any:
    """Describe the type, shape and dtype of a value, or of every value of a dict."""
    if isinstance(value, dict):
        return {key: describe(item) for key, item in value.items()}
    return type(value), tuple(value.shape), value.dtype


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize(
    ("observation", "action"), [*zip(OBSERVATION_SPACES, [*ACTION_SPACES, *ACTION_SPACES], strict=False)]
)
def test_names_shapes_and_types_are_those_of_ppo(observation: str, action: str, n_envs: int) -> None:
    def make_env() -> MatchEnv:
        return MatchEnv(OBSERVATION_SPACES[observation], ACTION_SPACES[action])

    ours, theirs = Look(), Look()
    model = build(make_vec_env(make_env, n_envs), POLICY_OF[observation])
    model.learn(16, ours)
    PPO(POLICY_OF[observation], make_vec_env(make_env, n_envs), n_steps=8, batch_size=8, device=DEVICE).learn(8, theirs)
    for name in ("dones", "rewards", "obs_tensor", "clipped_actions", "new_obs", "values", "log_probs"):
        if name == "clipped_actions" and action == "multi-binary":
            continue  # SB3 leaves floats, and DummyVecEnv takes them
        assert describe(ours.seen[0][name]) == describe(theirs.seen[0][name]), name


@pytest.mark.parametrize("use_fast_path", [True, False])
@pytest.mark.parametrize("mode", ["branch", "action"])
def test_values_are_those_of_the_step(mode: str, use_fast_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", use_fast_path)
    model = build("CartPole-v1", group_mode=mode, group_size=2, horizon=8, n_steps=32, seed=3)
    policy = copy.deepcopy(model.policy)
    look = Look(("obs_tensor", "new_obs", "actions", "values", "log_probs", "rewards", "n_steps", "step_mask"))
    model.learn(1, look)  # one rollout
    rollout = model.rollout_buffer
    assert len(look.seen) == rollout.step_mask.sum() == model.num_timesteps
    assert [seen["n_steps"] for seen in look.seen] == list(range(len(look.seen)))
    for seen in look.seen:
        with torch.no_grad():
            values, log_probs, _ = policy.evaluate_actions(
                seen["obs_tensor"], torch.as_tensor(seen["actions"], device=model.device)
            )
        torch.testing.assert_close(seen["values"], values)
        torch.testing.assert_close(seen["log_probs"], log_probs)
        assert seen["step_mask"].tolist() == [True]
    stored = rollout.next_observations[rollout.step_mask]
    key = np.lexsort(stored.T)
    came = np.concatenate([seen["new_obs"] for seen in look.seen])
    np.testing.assert_array_equal(came[np.lexsort(came.T)], stored[key])
    assert rollout.values.shape == rollout.returns.shape == rollout.shape


def test_an_environment_without_a_branch_left_is_told_apart() -> None:
    env = DummyVecEnv([lambda: MatchEnv(episode_length=3), lambda: MatchEnv(episode_length=4)])
    look = Look(("step_mask", "rewards", "dones", "new_obs", "actions", "values"))
    model = build(env, mode="episode")
    model.learn(1, look)
    # Groups of two: the first plays two groups of 3 steps each, the second two of 4.
    assert [tuple(seen["step_mask"].tolist()) for seen in look.seen] == [(True, True)] * 12 + [(False, True)] * 4
    alone = [seen for seen in look.seen if not seen["step_mask"].all()]
    for seen in alone:
        assert (seen["rewards"][~seen["step_mask"]] == 0.0).all()
        assert not seen["dones"][~seen["step_mask"]].any()
    assert sum(int(seen["step_mask"].sum()) for seen in look.seen) == model.num_timesteps


def test_an_environment_that_is_done_shows_its_own_latest_step() -> None:
    # The second plays six groups while the first plays one, so that groups do not take turns.
    log = StepLog()
    env = DummyVecEnv([lambda: make_walk(StepLog(), time_limit=8), lambda: make_walk(log, time_limit=1)])
    log.is_open = True  # so that every observation carries a stamp
    look = Look(("step_mask", "new_obs", "actions"))
    build(env, mode="episode", baseline="value").learn(1, look)
    latest = [seen for seen in look.seen if seen["step_mask"][1]][-1]
    alone = [seen for seen in look.seen if not seen["step_mask"][1]]
    assert len(alone) == 4
    for seen in alone:
        np.testing.assert_array_equal(seen["new_obs"][1], latest["new_obs"][1])
        assert seen["actions"][1] == latest["actions"][1]


@pytest.mark.parametrize("use_fast_path", [True, False])
def test_so_does_one_whose_branches_advanced_together(use_fast_path: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", use_fast_path)
    look = Look(("step_mask", "new_obs", "actions"))
    model = build(
        DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2), horizon=64, n_steps=256, group_size=2, fill_rollouts=True
    )
    model.learn(1200, look)
    n_checked = 0
    for before, seen in pairwise(look.seen):
        for i in range(2):
            if not seen["step_mask"][i]:
                np.testing.assert_array_equal(seen["new_obs"][i], before["new_obs"][i])
                assert seen["actions"][i] == before["actions"][i]
                n_checked += 1
    assert n_checked > 10


def test_the_last_observation_of_an_episode_is_in_its_info() -> None:
    look = Look(("infos", "dones", "new_obs"))
    build(DummyVecEnv([lambda: MatchEnv(episode_length=3)] * 2)).learn(32, look)
    n_ended = 0
    for seen in look.seen:
        for i, info in enumerate(seen["infos"]):
            assert ("terminal_observation" in info) == seen["dones"][i]
            assert info["TimeLimit.truncated"] is False
            if seen["dones"][i]:
                np.testing.assert_array_equal(info["terminal_observation"], seen["new_obs"][i])
                n_ended += 1
    assert n_ended > 0


def test_after_a_rollout_that_did_not_begin_the_last_observation_is_still_there() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.last = self.model._last_obs

    watch, model = Stop(), build(mode="episode")
    model.learn(40, watch)
    monkey = model._collector.collect
    model._collector.collect = lambda rollout, *rest: (rollout.clear(), False)[1]  # type: ignore[method-assign]
    model.learn(1, reset_num_timesteps=False)
    np.testing.assert_array_equal(model._last_obs, watch.last)
    model._collector.collect = monkey  # type: ignore[method-assign]
    model.learn(8, reset_num_timesteps=False)


def test_last_observations_are_those_that_actions_were_chosen_on_and_then_those_that_followed() -> None:
    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            np.testing.assert_array_equal(self.model._last_obs, self.locals["obs_tensor"].cpu().numpy())
            self.last = self.locals["new_obs"], self.locals["dones"]
            return True

    watch, model = Watch(), build()
    model.learn(16, watch)
    np.testing.assert_array_equal(model._last_obs, watch.last[0])
    np.testing.assert_array_equal(model._last_episode_starts, watch.last[1])
    model.set_env(MatchEnv())
    assert model._last_obs is None


def test_observations_are_normalised_as_the_policy_sees_them() -> None:
    env = VecNormalize(make_vec_env(lambda: MatchEnv(spaces.Box(100.0, 300.0, (2,), np.float32)), 1))
    look = Look(("obs_tensor", "new_obs"))
    build(env).learn(32, look)
    assert max(float(np.abs(seen["new_obs"]).max()) for seen in look.seen[16:]) < 50.0
    assert max(float(seen["obs_tensor"].abs().max()) for seen in look.seen[16:]) < 50.0


@pytest.mark.parametrize("observation", ["box", "dict"])
def test_what_vec_normalize_keeps_of_a_step_is_that_of_the_step(observation: str) -> None:
    envs = make_vec_env(lambda: MatchEnv(OBSERVATION_SPACES[observation]), 2)
    env = VecNormalize(envs, training=False, norm_obs_keys=["place"] if observation == "dict" else None)
    rms: Any = env.obs_rms["place"] if isinstance(env.obs_rms, dict) else env.obs_rms
    rms.mean += 0.5

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            self.last = env.get_original_obs()
            np.testing.assert_equal(env.normalize_obs(self.last), self.locals["new_obs"])
            assert env.get_original_reward().tolist() == self.locals["rewards"].tolist()
            rewards.update(self.locals["rewards"].tolist())
            return True

        def _on_rollout_start(self) -> None:
            if self.n_calls:
                np.testing.assert_equal(env.get_original_obs(), self.last)

    rewards, watch = set[float](), Watch()
    model = build(env, POLICY_OF[observation])
    model.learn(64, watch)
    assert len(rewards) > 1
    copied = copy.deepcopy(model).get_vec_normalize_env()
    assert copied is not None
    np.testing.assert_equal(copied.get_original_obs(), watch.last)
    model._collector.collect = lambda rollout, *rest: (rollout.clear(), False)[1]  # type: ignore[method-assign]
    model.learn(1, reset_num_timesteps=False)
    np.testing.assert_equal(env.get_original_obs(), watch.last)


@pytest.mark.parametrize("wrap", [lambda c: c, lambda c: CallbackList([c]), lambda c: [EveryNTimesteps(1, c)]])
@pytest.mark.parametrize("mode", MODES)
def test_locals_are_a_dict_in_every_way(mode: str, wrap: Any) -> None:
    class Poke(BaseCallback):
        def _on_step(self) -> bool:
            assert set(NAMES) <= set(self.locals)
            assert all(name in self.locals for name in NAMES)
            assert self.locals.get("values") is self.locals["values"]
            assert self.locals.get("nothing") is None
            assert {**self.locals}["actions"] is dict(self.locals)["actions"] is self.locals.copy()["actions"]
            assert dict(self.locals.items())["new_obs"] is self.locals["new_obs"]
            assert any(value is self.locals["log_probs"] for value in self.locals.values())
            assert self.locals.setdefault("clipped_actions", None) is not None
            assert self.locals["self"] is self.model
            assert self.locals["env"] is self.training_env
            assert self.locals["rollout_buffer"] is self.model.rollout_buffer
            assert self.locals["n_rollout_steps"] == self.model.n_steps
            assert "total_timesteps" in self.locals
            assert self.locals.pop("values").shape == (1, 1)
            assert "values" not in self.locals
            return True

    build(mode=mode).learn(16, wrap(Poke()))


def test_a_callback_that_hands_its_locals_on_hands_on_values() -> None:
    inner = Look(("values", "actions"))

    class Outer(BaseCallback):
        def _on_training_start(self) -> None:
            inner.init_callback(self.model)

        def _on_step(self) -> bool:
            inner.update_locals(self.locals)
            return inner.on_step()

    build().learn(16, Outer())
    assert all(isinstance(seen["values"], torch.Tensor) for seen in inner.seen)


class HandsOn(BaseCallback):
    """Hands its locals on by SB3's own hook, and by nothing else."""

    def __init__(self, child: BaseCallback) -> None:
        super().__init__()
        self.children = {"only": child}

    def _init_callback(self) -> None:
        self.children["only"].init_callback(self.model)

    def _on_step(self) -> bool:
        return self.children["only"].on_step()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        self.children["only"].update_locals(locals_)


class StartsNothing(EveryNTimesteps):
    """Leaves its child to the hook of SB3's EventCallback."""

    def _on_training_start(self) -> None:
        pass


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "wrap",
    [
        HandsOn,
        lambda c: HandsOn(HandsOn(c)),
        lambda c: EveryNTimesteps(1, HandsOn(c)),
        lambda c: StartsNothing(1, CallbackList([c])),
    ],
)
def test_a_callback_that_only_the_hook_reaches_sees_every_step(mode: str, wrap: Any) -> None:
    told, shares = (Look(("infos", "rewards", "new_obs", "actions")) for _ in range(2))
    model = build(mode=mode)
    for _ in range(2):  # the second time, what the first has left is there
        model.learn(16, [wrap(told), shares])
    np.testing.assert_equal(told.seen, shares.seen)


def test_callbacks_that_share_their_locals_are_not_told_of_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    n_told = []
    monkeypatch.setattr(BaseCallback, "update_locals", lambda self, locals_: n_told.append(self))
    watch = Look(("infos",))
    build().learn(16, [EveryNTimesteps(1, CallbackList([watch]))])
    assert watch.seen
    assert not n_told


def test_reading_changes_nothing() -> None:
    read, unread = build(), build()
    read.learn(48, Look())
    unread.learn(48)
    assert is_same(copy_weights(read), copy_weights(unread))
