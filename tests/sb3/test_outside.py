"""What is set on an environment from outside stays set, as with SB3's algorithms."""

import copy
import dataclasses
import gc
import math
import threading
import weakref
from collections import Counter, UserDict, defaultdict, deque
from typing import Any, ClassVar, NamedTuple
from unittest import mock

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    ConvertCallback,
    EvalCallback,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from grpo import GRPO, RestorableWrapper
from grpo_core.banks.choose_bank import make_bank
from grpo_core.groups.callback_view import leaves_environments_alone
from tests.suites import DEVICE


class Task(gym.Env[Any, Any]):
    """Gets harder when it is told to; a state of its own, so that attributes are restored by copies."""

    observation_space, action_space = spaces.Box(-99.0, 99.0, (2,), np.float32), spaces.Discrete(2)

    def __init__(self) -> None:
        self.level = 0
        self.opponent: Any = None

    def harder(self) -> None:
        self.level += 1

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.x, self.t = 0.0, 0
        return np.array([self.x, self.t], np.float32), {}

    def step(self, action: Any) -> Any:
        self.x, self.t = self.x + float(action) - 0.5, self.t + 1
        observation = np.array([self.x, self.t], np.float32)
        return observation, -abs(self.x), False, self.t >= 30, {"level": self.level, "opponent": self.opponent}


class Scaled(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper of one's own around an environment that is known."""

    level = 0

    def harder(self) -> None:
        self.level += 1
        self.unwrapped.force_mag = 10.0 + self.level  # type: ignore[attr-defined]

    def step(self, action: Any) -> Any:
        *outcome, info = self.env.step(action)
        level = int(self.unwrapped.force_mag) - 10  # type: ignore[attr-defined]
        return *outcome, {**info, "level": level if level == self.level else None}


class Curriculum(BaseCallback):
    """Makes the task harder once, or before every rollout, and keeps what steps say of it."""

    def __init__(self, at_step: int | None) -> None:
        super().__init__()
        self.at_step, self.levels = at_step, list[Any]()

    def _on_rollout_start(self) -> None:
        if self.at_step is None:
            self.training_env.env_method("harder")

    def _on_step(self) -> bool:
        self.levels += [info["level"] for info in self.locals["infos"] if "level" in info]
        if self.at_step is not None and self.num_timesteps >= self.at_step:
            self.at_step = 10**9
            self.training_env.env_method("harder")
        return True


def build(algorithm: Any, env: Any) -> Any:
    settings = {"horizon": 8} if algorithm is GRPO else {}
    return algorithm("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, device=DEVICE, **settings)


def make(kind: Any) -> Any:
    return Task() if kind is Task else Scaled(gym.make("CartPole-v1"))


def make_envs(kind: Any, n_envs: int, in_workers: bool) -> Any:
    if not in_workers:
        return make_vec_env(kind, n_envs)
    forked = {"start_method": "fork"}
    return make_vec_env(kind, n_envs, vec_env_cls=SubprocVecEnv, vec_env_kwargs=forked, wrapper_class=RestorableWrapper)


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
@pytest.mark.parametrize("kind", [Task, Scaled])
def test_a_callback_makes_a_task_harder_before_every_rollout(kind: Any, algorithm: Any) -> None:
    callback, model = Curriculum(None), build(algorithm, make(kind))
    model.learn(256, callback)
    assert set(callback.levels) == set(range(1, callback.levels[-1] + 1))
    assert sorted(callback.levels) == callback.levels
    assert callback.levels[-1] >= 4


@pytest.mark.parametrize("kind", [Task, Scaled])
def test_what_is_set_in_a_rollout_holds_from_the_next_one_on(kind: Any) -> None:
    callback, model = Curriculum(32), build(GRPO, make(kind))
    model.learn(256, callback)
    assert set(callback.levels[:32]) == {0}
    assert set(callback.levels[80:]) == {1}


def test_what_is_set_between_two_runs_holds() -> None:
    env, levels = Task(), []
    model = build(GRPO, env)
    for env.level in (3, 5, 4):
        callback = Curriculum(10**9)
        model.learn(64, callback, reset_num_timesteps=False)
        levels.append(set(callback.levels))
    assert levels == [{3}, {5}, {4}]
    assert env.level == 4


def test_what_is_set_between_two_runs_holds_in_rollout_workers() -> None:
    env, levels = Task(), []
    model = GRPO("MlpPolicy", env, n_steps=64, horizon=8, n_epochs=1, seed=0, device=DEVICE, n_rollout_workers=2)
    for env.level in (0, 3):
        callback = Curriculum(10**9)
        model.learn(64, callback, reset_num_timesteps=False)
        levels.append(set(callback.levels))
    assert levels == [{0}, {3}]


@pytest.mark.parametrize("restart_probability", [0.0, 0.5])
def test_where_nothing_is_set_anchors_stay_as_they_are(
    restart_probability: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, renewed = build(GRPO, Task()), list[Any]()
    model.restart_probability = restart_probability
    monkeypatch.setattr(model._collector.anchors, "renew", renewed.append)
    model.learn(256, Curriculum(10**9), reset_num_timesteps=False)
    assert renewed == []


class _Drawing(BaseCallback):
    """Says that it does nothing to the environments."""

    leaves_environments_alone = True

    def _on_step(self) -> bool:
        return True


class _Derived(_Drawing):
    """May do more than the class that it is made from."""


def test_only_callbacks_that_may_touch_the_environments_are_watched() -> None:
    trusted: list[BaseCallback] = [_Drawing(), CheckpointCallback(1, "unused"), ConvertCallback(None)]
    for callback in (*trusted, CallbackList(trusted)):
        assert leaves_environments_alone(callback)
    watched: list[BaseCallback] = [_Derived(), Curriculum(None), ConvertCallback(lambda *_: True)]
    for callback in (*watched, *(CallbackList([*trusted, one]) for one in watched)):
        assert not leaves_environments_alone(callback)


def test_what_is_set_between_two_runs_holds_if_nothing_was_watched() -> None:
    model = GRPO("MlpPolicy", Task(), n_steps=64, group_size=2, horizon=16, n_epochs=1, seed=0, device=DEVICE)
    model.learn(256, callback=_Drawing())
    env = model.get_env()
    assert env is not None
    env.env_method("harder")
    model.learn(256, reset_num_timesteps=False)
    assert env.get_attr("level") == [1]


class Meddling(BaseCallback):
    """Does something to the environments before every rollout, and keeps the latest step of an episode that is seen."""

    def __init__(self, meddle: Any) -> None:
        super().__init__()
        self.meddle, self.latest, self.levels = meddle, 0.0, set[int]()

    def _on_rollout_start(self) -> None:
        self.meddle(self)

    def _on_step(self) -> bool:
        self.latest = max(self.latest, float(self.locals["new_obs"][:, 1].max()))
        self.levels |= {info["level"] for info in self.locals["infos"]}
        return True


def evaluate(callback: Meddling) -> None:
    evaluate_policy(callback.model, callback.training_env, n_eval_episodes=1)


@pytest.mark.parametrize(
    "meddle",
    [
        lambda callback: callback.training_env.env_method("harder"),
        lambda callback: callback.training_env.set_attr("frame", np.zeros((200, 200, 3))),
        lambda callback: callback.training_env.reset(),
        evaluate,
    ],
    ids=["curriculum", "frame", "reset", "evaluation"],
)
@pytest.mark.parametrize("anchor_selection", ["continue", "archive"])
def test_episodes_go_on_whatever_is_done_to_the_environments(meddle: Any, anchor_selection: Any) -> None:
    callback = Meddling(meddle)
    model = GRPO("MlpPolicy", Task(), n_steps=64, horizon=8, anchor_selection=anchor_selection, n_epochs=1, seed=0)
    model.learn(64 * 8, callback)
    assert callback.latest == 30


@pytest.mark.parametrize("use", [lambda env, _: env.reset(), lambda env, model: evaluate_policy(model, env, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_episodes_go_on_after_their_environment_was_used_between_two_runs(use: Any, seed: int) -> None:
    """Also where a run was so short that hardly anything is known of the environment."""
    model = GRPO("MlpPolicy", Task(), n_steps=64, horizon=8, seed=seed, device=DEVICE)
    for i in range(6):
        model.learn(64, reset_num_timesteps=i == 0)
        rollout = model.rollout_buffer
        moves = np.abs(rollout.next_observations - rollout.observations)[rollout.step_mask]
        assert np.allclose(moves, [0.5, 1.0])
        use(model.get_env(), model)
    assert {episode["l"] for episode in model.ep_info_buffer or ()} <= {30}


@pytest.mark.parametrize("seed", range(4))
def test_an_evaluation_of_the_training_environment_spoils_no_episode(seed: int) -> None:
    env = make_vec_env(Task, 1)
    model = GRPO("MlpPolicy", env, n_steps=64, horizon=8, seed=seed, device=DEVICE)
    model.learn(768, EvalCallback(env, eval_freq=50, n_eval_episodes=1, verbose=0, warn=False))
    assert {episode["l"] for episode in model.ep_info_buffer or ()} == {30}


class Key(gym.Env[Any, Any]):
    """A walk on which a key is kept once it is found, as happens in few episodes."""

    observation_space, action_space = spaces.Box(-999.0, 999.0, (2,), np.float32), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.x, self.has_key, self.end = 0, 0, False, int(self.np_random.integers(50, 150))
        return np.array([self.x, self.has_key], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t, self.x = self.t + 1, self.x + 2 * int(action) - 1
        self.has_key = self.has_key or self.x >= 12
        return np.array([self.x, self.has_key], np.float32), float(self.has_key), self.t >= self.end, False, {}


def count_impossible(model: GRPO) -> int:
    """Count steps of the latest rollout that no step of ``Key`` can make."""
    rollout = model.rollout_buffer
    before, after = rollout.observations, rollout.next_observations
    is_wrong = (after[..., 1] != before[..., 1]) & (after[..., 0] < 12) | (abs(after[..., 0] - before[..., 0]) != 1)
    return int(is_wrong[rollout.step_mask].sum())


@pytest.mark.parametrize("in_workers", [False, True])
def test_an_evaluation_gives_no_anchor_what_it_came_to(in_workers: bool) -> None:
    env = make_envs(Key, 8, in_workers)
    try:
        model = GRPO("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, device=DEVICE)
        for i in range(5):
            model.learn(256, reset_num_timesteps=i == 0)
            assert count_impossible(model) == 0
            evaluate_policy(model, env, 5)
    finally:
        env.close()


class Dear(Task):
    """Takes longer to restore than to step, so that its branches do not take turns."""

    def __init__(self) -> None:
        super().__init__()
        self.map = {i: [i] for i in range(300)}


@pytest.mark.parametrize("visit", ["evaluation", "reset", "step"])
def test_a_branch_goes_on_after_somebody_else_has_moved_its_environment(visit: str) -> None:
    class Visiting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 7 == 0 and visit == "evaluation":
                evaluate_policy(self.model, self.training_env, 1)
            elif self.n_calls % 7 == 0 and visit == "reset":
                self.training_env.reset()
            elif visit == "step":  # also where an episode has just ended
                self.training_env.step(np.array([1]))
            return True

    model = GRPO("MlpPolicy", Dear(), n_steps=256, horizon=16, group_mode="branch", seed=0, device=DEVICE)
    model.learn(512, Visiting())
    rollout = model.rollout_buffer
    moves = np.abs(rollout.next_observations - rollout.observations)[rollout.step_mask]
    assert np.allclose(moves, [0.5, 1.0])


@pytest.mark.parametrize("in_workers", [False, True])
def test_a_visit_moves_what_the_model_that_plays_has_left(in_workers: bool) -> None:
    """Not what another model has, whose episode on the same environments ended long ago."""

    class Visiting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls % 7 == 0:
                self.training_env.step(np.ones(self.training_env.num_envs, np.int64))
            return True

    env = make_envs(Dear, 2, in_workers)
    try:
        models = [
            GRPO("MlpPolicy", env, n_steps=64, horizon=16, group_mode="branch", common_random_numbers=same, seed=0)
            for same in (False, True)
        ]
        for i, model in enumerate((*models, models[0])):
            model.learn(200, Visiting(), reset_num_timesteps=i < 2)
            rollout = model.rollout_buffer
            moves = np.abs(rollout.next_observations - rollout.observations)[rollout.step_mask]
            assert np.allclose(moves, [0.5, 1.0])
    finally:
        env.close()


def test_a_visit_to_one_environment_leaves_the_others_alone() -> None:
    class Visiting(BaseCallback):
        is_done = False

        def _on_step(self) -> bool:
            if self.locals["dones"][0] and not self.is_done:  # a step would reset it first
                env, self.is_done = self.training_env.envs[0].unwrapped, True  # type: ignore[attr-defined]
                self.training_env.env_method("step", 1, indices=[1])
                assert env.t == 30
            return True

    visiting = Visiting()
    build(GRPO, make_vec_env(Dear, 2)).learn(512, visiting)
    assert visiting.is_done


@pytest.mark.parametrize(
    "make_copy",
    [copy.deepcopy, lambda model: cloudpickle.loads(cloudpickle.dumps(model))],
    ids=["copied", "pickled"],
)
def test_a_copy_of_a_model_has_environments_of_its_own(make_copy: Any) -> None:
    model = build(GRPO, make_vec_env(Task, 2)).learn(64)
    copied = make_copy(model)
    copied.get_env().reset()
    assert [env.unwrapped.t for env in copied.get_env().envs] == [0, 0]
    assert [env.unwrapped.t for env in model.get_env().envs] != [0, 0]


def test_what_is_set_with_a_reset_holds() -> None:
    def meddle(callback: Meddling) -> None:
        if callback.num_timesteps == 64:
            callback.training_env.env_method("harder")
        callback.training_env.reset()

    callback = Meddling(meddle)
    build(GRPO, Task()).learn(256, callback)
    assert callback.levels == {0, 1}
    callback.levels = set()
    callback.model.learn(64, callback, reset_num_timesteps=False)
    assert callback.levels == {1}


class Configured(Task):
    """Holds its level in what can be written to."""

    def __init__(self) -> None:
        super().__init__()
        self.settings, self.levels, self.array = {"level": 0}, [0], np.zeros(2)

    def harder(self) -> None:
        self.settings["level"] += 1
        self.levels.append(self.settings["level"])
        self.array[0] += 1

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        held = {self.settings["level"], self.levels[-1], int(self.array[0])}
        return *outcome, {**info, "level": held.pop() if len(held) == 1 else None}


class Stored(Task):
    """Holds its level in one of several places; a name of drawing tools among them."""

    def __init__(self) -> None:
        super().__init__()
        self.by_default, self.counts, self.queue = defaultdict(int, level=0), Counter(level=0), deque([0])
        self.nested, self.lists, self.long, self.array = {"a": {"level": 0}}, [[0]], [0] * 200, np.zeros(2000)
        self.raw, self.objects, self.window, self.extra = bytearray(3), np.zeros(1, object), 0, 0

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        mappings = self.by_default["level"], self.counts["level"], self.nested["a"]["level"]
        held = *mappings, self.queue[0], self.lists[0][0], self.long[0], self.array[0], self.raw[0], self.objects[0]
        return *outcome, {**info, "level": sum(map(int, held)) + self.window + (not hasattr(self, "extra"))}


@pytest.mark.parametrize(
    "change",
    [
        lambda task: task.by_default.update(level=1),
        lambda task: task.counts.update(level=1),
        lambda task: task.queue.__setitem__(0, 1),
        lambda task: task.nested["a"].update(level=1),
        lambda task: task.lists[0].__setitem__(0, 1),
        lambda task: task.long.__setitem__(0, 1),
        lambda task: task.array.__setitem__(0, 1),
        lambda task: task.raw.__setitem__(0, 1),
        lambda task: task.objects.__setitem__(0, 1),
        lambda task: setattr(task, "window", 1),
        lambda task: delattr(task, "extra"),
    ],
    ids=[
        "defaultdict",
        "counter",
        "deque",
        "nested",
        "lists",
        "long",
        "array",
        "bytes",
        "objects",
        "window",
        "deleted",
    ],
)
def test_what_is_changed_once_holds_wherever_it_is_stored(change: Any) -> None:
    task = Stored()

    def meddle(callback: Meddling) -> None:
        if callback.num_timesteps == 128:
            change(task)
            callback.levels = set()

    callback = Meddling(meddle)
    build(GRPO, task).learn(320, callback)
    assert callback.levels == {1}


@dataclasses.dataclass(slots=True)
class Slotted:
    level: Any = 0


@dataclasses.dataclass(slots=True, frozen=True)
class Frozen:
    levels: list[int]


class OwnDict(dict[str, int]): ...


class OwnList(list[int]): ...


class Pair(NamedTuple):
    first: Any
    second: Any


class Kept(Task):
    """Holds its level where it is told to."""

    def __init__(self, place: Any, read: Any) -> None:
        super().__init__()
        self.place, self.read = place, read

    def step(self, action: Any) -> Any:
        *outcome, info = super().step(action)
        return *outcome, {**info, "level": int(self.read(self.place))}


@pytest.mark.parametrize(
    ("place", "read", "write"),
    [
        (Slotted(), lambda kept: kept.level, lambda kept: setattr(kept, "level", 1)),
        (Slotted([0]), lambda kept: kept.level[0], lambda kept: kept.level.__setitem__(0, 1)),
        (Frozen([0]), lambda kept: kept.levels[0], lambda kept: kept.levels.__setitem__(0, 1)),
        (([0], 2), lambda kept: kept[0][0], lambda kept: kept[0].__setitem__(0, 1)),
        ((2, ([0],)), lambda kept: kept[1][0][0], lambda kept: kept[1][0].__setitem__(0, 1)),
        ((Slotted(), 2), lambda kept: kept[0].level, lambda kept: setattr(kept[0], "level", 1)),
        (Pair(np.zeros(1), 2), lambda kept: kept.first[0], lambda kept: kept.first.fill(1)),
        ({"a": np.zeros(1)}, lambda kept: kept["a"][0], lambda kept: kept["a"].fill(1)),
        (OwnDict(level=0), lambda kept: kept["level"], lambda kept: kept.update(level=1)),
        (OwnList([0]), lambda kept: kept[0], lambda kept: kept.__setitem__(0, 1)),
        (UserDict(level=0), lambda kept: kept["level"], lambda kept: kept.update(level=1)),
        (torch.zeros(1), lambda kept: kept[0], lambda kept: kept.fill_(1)),
    ],
    ids=[
        *("slots", "in slots", "frozen", "tuple", "tuples", "object", "named", "array", "dict", "list", "user dict"),
        "tensor",
    ],
)
def test_what_is_written_to_holds_whatever_it_is(place: Any, read: Any, write: Any) -> None:
    task = Kept(copy.deepcopy(place), read)

    def meddle(callback: Meddling) -> None:
        if callback.num_timesteps == 128:
            write(task.place)
            callback.levels = set()

    callback = Meddling(meddle)
    build(GRPO, task).learn(320, callback)
    assert callback.levels == {1}


class Teacher:
    """A curriculum that a callback and environments hold."""

    def __init__(self) -> None:
        self.n, self.memory = 0, {"levels": [0]}


class Taught(Task):
    def __init__(self, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher

    def step(self, action: Any) -> Any:
        self.level = self.teacher.memory["levels"][-1]
        return super().step(action)


class Teaching(Curriculum):
    """Counts its steps in the teacher, who raises the level with every tenth."""

    def __init__(self, teacher: Teacher) -> None:
        super().__init__(None)
        self.teacher = teacher

    def _on_rollout_start(self) -> None: ...

    def _on_step(self) -> bool:
        assert {info["level"] for info in self.locals["infos"]} == {self.teacher.n // 10}
        self.teacher.n += 1
        self.teacher.memory["levels"][-1] = self.teacher.n // 10
        assert self.teacher.n == self.n_calls
        return super()._on_step()


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_curriculum_that_a_callback_shares_with_environments_is_never_rewound(n_envs: int) -> None:
    teacher = Teacher()
    callback, env = Teaching(teacher), make_vec_env(lambda: Taught(teacher), n_envs)
    build(GRPO, env).learn(384, callback)
    assert teacher.n >= 128
    assert env.get_attr("teacher") == [teacher] * n_envs


class Heavier(gym.Wrapper[Any, Any, Any, Any]):
    """Changes the physics of an engine inside."""

    def harder(self) -> None:
        self.unwrapped.model.body_mass[1] += 1.0  # type: ignore[attr-defined]

    def step(self, action: Any) -> Any:
        *outcome, info = self.env.step(action)
        return *outcome, {**info, "level": round(float(self.unwrapped.model.body_mass[1]), 3)}  # type: ignore[attr-defined]


def test_what_is_written_to_lists_dicts_and_arrays_holds() -> None:
    callback = Curriculum(50)
    build(GRPO, Configured()).learn(256, callback)
    assert set(callback.levels[:50]) == {0}
    assert set(callback.levels[64:]) == {1}


def test_what_is_changed_in_the_model_of_an_engine_holds() -> None:
    pytest.importorskip("mujoco")
    callback = Curriculum(50)
    build(GRPO, Heavier(gym.make("Hopper-v5"))).learn(256, callback)
    assert len(set(callback.levels[:50])) == 1
    assert set(callback.levels[80:]) == {callback.levels[0] + 1.0}


class Assigning(Curriculum):
    """Sets the level by name."""

    def _on_rollout_start(self) -> None:
        (level, *_) = self.training_env.get_attr("level")
        self.training_env.set_attr("level", level + 1)


@pytest.mark.parametrize("kind", [Curriculum, Assigning])
def test_what_is_set_on_environments_in_workers_holds(kind: type[Curriculum]) -> None:
    env = make_envs(Task, 2, in_workers=True)
    try:
        callback = kind(None)
        build(GRPO, env).learn(384, callback)
    finally:
        env.close()
    assert sorted(callback.levels) == callback.levels
    assert set(callback.levels) == {1, 2, 3}


def test_what_is_set_on_the_wrapper_of_a_worker_is_set_on_the_layer_that_has_it() -> None:
    task = Task()
    limit = TimeLimit(task, 9)
    wrapper = RestorableWrapper(limit)
    for name, value in {"level": 3, "_max_episode_steps": 5, "new": 1}.items():
        setattr(wrapper, name, value)
    assert (task.level, limit._max_episode_steps, vars(task)["new"]) == (3, 5, 1)
    assert not {"level", "_max_episode_steps", "new"} & vars(wrapper).keys()


class Counting(RestorableWrapper):
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.count = 0


def test_a_subclass_of_the_wrapper_keeps_attributes_of_its_own() -> None:
    task = Task()
    wrapper = Counting(task)
    wrapper.count += 1
    wrapper.level = 3
    assert (wrapper.count, task.level, "count" in vars(task)) == (1, 3, False)


class Tenfold(gym.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return 10.0 * float(reward)


class TenfoldCartPole(CartPoleEnv):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)  # type: ignore[no-untyped-call]
        return observation, 10.0 * reward, *rest


def wrap_all(env: Any) -> None:
    for i, inner in enumerate(env.envs):
        env.envs[i] = Tenfold(inner)


def wrap_inside(env: Any) -> None:
    for layer in env.envs:
        while not isinstance(layer, TimeLimit):
            layer = layer.env
        layer.env = Tenfold(layer.env)


def replace_step(env: Any) -> None:
    def make_tenfold(step: Any) -> Any:
        return lambda action: (lambda observation, reward, *rest: (observation, 10.0 * reward, *rest))(*step(action))

    for inner in env.envs:
        inner.unwrapped.step = make_tenfold(inner.unwrapped.step)


def replace_class(env: Any) -> None:
    for inner in env.envs:
        inner.unwrapped.__class__ = TenfoldCartPole


class Rewards(BaseCallback):
    """Replaces something when a rollout begins, and keeps the rewards of each rollout."""

    def __init__(self, at_rollout: int, replace: Any, when: str = "start") -> None:
        super().__init__()
        self.at_rollout, self.replace, self.when, self.rewards = at_rollout, replace, when, list[set[float]]()

    def _meddle(self, when: str) -> None:
        if when == self.when and len(self.rewards) == self.at_rollout:
            self.at_rollout = -1
            self.replace(self)

    def _on_rollout_start(self) -> None:
        self._meddle("start")
        self.rewards.append(set())

    def _on_step(self) -> bool:
        self.rewards[-1] |= set(self.locals["rewards"].tolist())
        self._meddle("step")
        return True

    def _on_rollout_end(self) -> None:
        self._meddle("end")


@pytest.mark.parametrize("is_fast", [True, False])
@pytest.mark.parametrize("replace", [wrap_all, wrap_inside, replace_step, replace_class])
def test_what_replaces_a_layer_or_a_method_is_trained_in(
    replace: Any, is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", is_fast)
    env = make_vec_env("CartPole-v1", 1)
    model, callback = build(GRPO, env), Rewards(2, lambda callback: replace(callback.training_env))
    model.learn(240, callback)
    assert callback.rewards[:2] == [{1.0}] * 2
    assert all(rewards == {10.0} for rewards in callback.rewards[2:])

    model = build(GRPO, env := make_vec_env("CartPole-v1", 1))
    replace(env)
    model.learn(64, callback := Rewards(-1, None))
    assert all(rewards == {10.0} for rewards in callback.rewards)


class Promoted(gym.Wrapper[Any, Any, Any, Any]):
    """Takes a harder task in a reset, once that is due; no restore makes it undue."""

    due: ClassVar[list[bool]] = []

    def reset(self, **kwargs: Any) -> Any:
        if self.due:
            take_harder_task(self)
            self.due.clear()
        return self.env.reset(**kwargs)


def take_harder_task(wrapper: Any) -> None:
    wrapper.env = Task()
    wrapper.env.level = 1
    wrapper.env.reset()


def find_promoted(callback: Any) -> Any:
    return callback.training_env.envs[0].env


@pytest.mark.parametrize("fill_rollouts", [True, False])
@pytest.mark.parametrize("when", ["reset", "start", "step", "end"])
def test_groups_branch_in_the_environment_that_a_wrapper_takes(when: str, fill_rollouts: bool) -> None:
    levels = list[set[int]]()

    class Watching(Rewards):
        def _on_rollout_start(self) -> None:
            super()._on_rollout_start()
            levels.append(set())

        def _on_step(self) -> bool:
            levels[-1] |= {info["level"] for info in self.locals["infos"] if info}
            return super()._on_step()

        def _on_rollout_end(self) -> None:
            rollout = self.model.rollout_buffer  # type: ignore[attr-defined]
            moves = np.abs(rollout.next_observations - rollout.observations)[rollout.step_mask]
            assert np.allclose(moves, [0.5, 1.0])
            super()._on_rollout_end()

    def change(callback: BaseCallback) -> None:
        if when == "reset":
            Promoted.due.append(True)
        else:
            take_harder_task(find_promoted(callback))

    env, callback = Promoted(Task()), Watching(2, change, "step" if when == "reset" else when)
    settings: dict[str, Any] = {"restart_probability": 0.5, "fill_rollouts": fill_rollouts}
    model = GRPO("MlpPolicy", env, n_steps=64, horizon=8, n_epochs=1, seed=0, device=DEVICE, **settings)
    model.learn(64 * 8, callback)
    assert model._mode == "branch"
    assert levels[0] == {0}
    assert levels[-1] == {1}
    assert model.num_timesteps >= 64 * 8


def test_a_wrapper_that_goes_on_exchanging_environments_is_named() -> None:
    class Restless(BaseCallback):
        def _on_step(self) -> bool:
            take_harder_task(find_promoted(self))
            return True

    settings: dict[str, Any] = {"n_steps": 64, "horizon": 8, "n_epochs": 1, "device": DEVICE}
    said = "the wrapper Promoted holds another environment than before"
    with pytest.raises(ValueError, match=said):
        GRPO("MlpPolicy", Promoted(Task()), group_mode="branch", **settings).learn(64, Restless())
    model = GRPO("MlpPolicy", Promoted(Task()), **settings)
    with pytest.warns(UserWarning, match=said):
        model.learn(64, Restless())
    assert model._mode == "episode"
    model.learn(64)


class Exchanging(Promoted):
    def exchange(self) -> None:
        take_harder_task(self)


def test_groups_branch_in_the_environment_that_a_wrapper_in_a_worker_takes() -> None:
    env = make_envs(lambda: Exchanging(Task()), 1, in_workers=True)
    try:
        model = build(GRPO, env).learn(64)
        env.env_method("exchange")
        model.learn(64)
        assert model._mode == "branch"
        assert env.get_attr("level") == [1]
    finally:
        env.close()


class Masked(Task):
    action_space = spaces.Discrete(4)

    def action_masks(self) -> Any:
        return np.array([True, True, False, False])


@pytest.mark.parametrize("group_mode", ["branch", "episode"])
def test_masks_that_are_assigned_later_hold(group_mode: Any) -> None:
    taken = set[int]()

    class Taken(BaseCallback):
        def _on_step(self) -> bool:
            taken.update(self.locals["actions"].ravel().tolist())
            return True

    model = GRPO("MlpPolicy", Masked(), n_steps=64, horizon=None, group_mode=group_mode, seed=0, device=DEVICE)
    model.learn(64, Taken())
    assert taken == {0, 1}
    taken.clear()
    model.env.envs[0].unwrapped.action_masks = lambda: np.array([False, False, True, True])  # type: ignore[union-attr]
    model.learn(64, Taken())
    assert taken == {2, 3}


class Forbidding(Task):
    def forbid(self) -> None:
        self.action_masks = lambda: np.array([True, False])


@pytest.mark.parametrize("group_mode", ["branch", "episode"])
def test_masks_that_are_assigned_in_a_worker_hold(group_mode: Any) -> None:
    env = make_envs(Forbidding, 1, in_workers=True)
    try:
        settings: dict[str, Any] = {"n_steps": 64, "n_epochs": 1, "seed": 0, "device": DEVICE}
        model = GRPO("MlpPolicy", env, group_mode=group_mode, **settings).learn(64)
        assert set(model.rollout_buffer.actions[model.rollout_buffer.step_mask].tolist()) == {0, 1}
        env.env_method("forbid")
        model.learn(64)
        assert set(model.rollout_buffer.actions[model.rollout_buffer.step_mask].tolist()) == {0}
    finally:
        env.close()


def test_masks_that_a_reset_assigns_hold_from_that_episode_on() -> None:
    seen = list[bool]()

    class Alternating(Masked):
        is_odd = True

        def reset(self, **kwargs: Any) -> Any:
            self.is_odd = not self.is_odd
            self.action_masks = lambda: np.array([not self.is_odd, not self.is_odd, self.is_odd, self.is_odd])  # type: ignore[method-assign]
            return super().reset(**kwargs)

        def step(self, action: Any) -> Any:
            seen.append((action >= 2) == self.is_odd)
            return super().step(action)

    model = GRPO("MlpPolicy", Alternating(), n_steps=64, horizon=None, group_mode="episode", seed=0, device=DEVICE)
    seen.clear()
    model.learn(64)
    assert seen
    assert all(seen)


def give_lock(model: Any) -> None:
    model.env.envs[0].unwrapped.opponent = threading.Lock()


def test_groups_are_whole_episodes_once_the_environment_holds_what_cannot_be_copied() -> None:
    model = build(GRPO, Task()).learn(64)
    give_lock(model)
    with pytest.warns(UserWarning, match=r"opponent \(_thread.lock\) cannot be copied.* whole episodes"):
        model.learn(128, reset_num_timesteps=False)
    assert model._mode == "episode"
    assert model.num_timesteps >= 192


@pytest.mark.parametrize("is_other_model", [True, False])
def test_what_an_error_says_helps_where_it_cannot_be_copied(is_other_model: bool) -> None:
    settings: dict[str, Any] = {"n_steps": 64, "horizon": 8, "n_epochs": 1, "seed": 0, "device": DEVICE}
    model = GRPO("MlpPolicy", Task(), **settings, group_mode="branch").learn(64)
    give_lock(model)
    with pytest.raises(ValueError, match='Train with group_mode="episode"'):
        model.learn(64)
    if is_other_model:
        assert model.env is not None
        GRPO("MlpPolicy", model.env, **{**settings, "horizon": None}, group_mode="episode").learn(128)
    else:
        model.group_mode = "episode"
        model.learn(128)


def test_the_model_that_trains_is_no_opponent_in_its_own_environment_but_its_actor_is() -> None:
    model = build(GRPO, make_vec_env(Task, 2)).learn(64)
    for env in model.env.envs:
        env.unwrapped.opponent = model.make_actor()
    model.learn(64, reset_num_timesteps=False)
    model.env.envs[0].unwrapped.opponent = model
    with pytest.warns(
        UserWarning, match=r"opponent \(grpo.GRPO\) is a model that trains in this very .* model.make_actor"
    ):
        model.learn(64, reset_num_timesteps=False)
    assert model._mode == "episode"


def test_a_branch_does_not_go_on_from_where_it_was_not_left() -> None:
    class Visiting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 20:
                give_lock(self.model)
                self.training_env.reset()  # no error of a branch is its concern
                self.has_reset = True
            return True

    visiting, model = Visiting(), GRPO("MlpPolicy", Dear(), n_steps=256, horizon=16, group_mode="branch", device=DEVICE)
    with pytest.raises(ValueError, match=r"opponent \(_thread.lock\) cannot be copied"):
        model.learn(256, visiting)
    assert visiting.has_reset


def test_an_environment_that_a_callback_sets_is_proven_once_and_refused_at_once() -> None:
    class Setting(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 5:
                before, locked = self.model.env, Task()
                locked.opponent = threading.Lock()
                with pytest.raises(ValueError, match="opponent"):
                    self.model.set_env(locked)
                assert self.model.env is before
                self.model.set_env(Task())
            return True

    model = GRPO("MlpPolicy", Task(), n_steps=64, horizon=8, n_epochs=1, group_mode="branch", device=DEVICE)
    callback = Setting()
    with mock.patch("grpo_core.algorithm.grouped.make_bank", wraps=make_bank) as made:
        model.learn(1, callback)
        assert made.call_count == 2, "one is refused"
        copy.deepcopy(model).learn(64)
        made.reset_mock()
        model.learn(64)
    assert not made.called
    lost = weakref.ref(callback)
    del callback
    gc.collect()
    assert lost() is None, "a model keeps no callback that it is done with"


def test_the_groups_of_an_environment_that_was_set_do_not_wait_beyond_an_interrupted_training() -> None:
    class Interrupting(BaseCallback):
        def _on_step(self) -> bool:
            self.model.set_env(self.training_env)
            raise KeyboardInterrupt

    model = build(GRPO, Task())
    with pytest.raises(KeyboardInterrupt):
        model.learn(64, Interrupting())
    waited = model._collector
    model.learn(64, reset_num_timesteps=False)
    assert model._collector is waited


@pytest.mark.parametrize("when", ["start", "step", "end"])
@pytest.mark.parametrize("settings", [{"horizon": 8}, {"anchor_selection": "archive"}, {"group_mode": "episode"}])
def test_a_callback_sets_an_environment(settings: Any, when: str) -> None:
    """PPO goes on in the old one until the rollout is over, too."""

    def change(callback: Any) -> None:
        callback.model.set_env(make_vec_env("CartPole-v1", 2, wrapper_class=Tenfold))

    callback = Rewards(2, change, when)
    env = make_vec_env("CartPole-v1", 2)
    model = GRPO("MlpPolicy", env, n_steps=64, n_epochs=1, seed=0, device=DEVICE, **settings)
    model.learn(600, callback)
    assert len(callback.rewards) > 2
    assert [max(rewards) for rewards in callback.rewards] == [1.0, 1.0, *[10.0] * (len(callback.rewards) - 2)]


class Interrupted(gym.Env[Any, Any]):
    """Counts its steps, and shows their number; interrupts the training at a step."""

    observation_space = spaces.Box(0.0, np.inf, (1,))
    action_space = spaces.Discrete(2)
    n_left = math.inf

    def __init__(self) -> None:
        self.n_steps = 0

    def reset(self, **options: Any) -> Any:
        super().reset(**options)
        self.n_steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        Interrupted.n_left -= 1
        if Interrupted.n_left == 0:
            raise KeyboardInterrupt
        return np.full(1, self.n_steps, np.float32), 1.0, False, self.n_steps == 50, {}


def test_what_our_own_steps_changed_before_an_interrupt_was_not_set_from_outside() -> None:
    Interrupted.n_left = math.inf
    model = GRPO(
        "MlpPolicy", Interrupted(), n_steps=32, horizon=8, group_size=2, group_mode="branch", seed=0, n_epochs=1
    )
    Interrupted.n_left = 20
    with pytest.raises(KeyboardInterrupt):
        model.learn(1_000)
    Interrupted.n_left = math.inf
    model.learn(32, reset_num_timesteps=False)
    rollout = model.rollout_buffer
    taken = rollout.step_mask
    steps = (rollout.next_observations - rollout.observations)[taken]
    assert (steps == 1.0).all()
