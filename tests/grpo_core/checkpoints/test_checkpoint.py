"""A training that goes on from a checkpoint ends with the weights that it would have had."""

import functools
import io
import math
import random
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize

from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import Checkpoint, CheckpointError
from grpo_core.restoring import simulator
from grpo_core.restoring.proving.proof import prove
from tests.suites import DEVICE

_TOTAL, _AT = 600, 250


class Walk(gym.Env[Any, Any]):
    """A walk that remembers its way in lists, objects and a generator of its own, and how often it was begun."""

    observation_space = spaces.Box(-50.0, 50.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.way: list[Step] = []
        self.n_begun = 0
        self.luck = np.random.default_rng(5)
        self.names = {"left": {"x": -1.0}, "right": {"x": 1.0}}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_begun += 1
        # Two names for one object, which stays one.
        self.way = [Step(float(self.np_random.normal()), self.names["left"])]
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        side = self.names["right" if action else "left"]
        self.way.append(Step(self.way[-1].x + side["x"] * self.luck.random() + 0.01 * self.n_begun, side))
        return self._observe(), self.way[-1].x, len(self.way) > 12, False, {}

    def _observe(self) -> Any:
        return np.array([self.way[-1].x, self.n_begun % 7], np.float32)


class Step:
    """Where the walk was."""

    def __init__(self, x: float, side: dict[str, float]) -> None:
        self.x, self.side = x, side


class Luck:
    """Two generators in an object."""

    def __init__(self) -> None:
        self.rng, self.bits = np.random.default_rng(5), np.random.PCG64(5)

    def random(self) -> float:
        return self.rng.random() + self.bits.random_raw() / 2**64


class Lucky(Walk):
    """A walk whose generators are copied with what holds them, and go on."""

    def __init__(self) -> None:
        super().__init__()
        self.luck: Any = Luck()


class Wind(Walk):
    """A walk with a wind from one of the process's own generators."""

    blow: Callable[[], float]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, *rest = super().step(action)
        return observation, reward + self.blow(), *rest


class NumpyWind(Wind):
    blow = staticmethod(np.random.normal)


class PythonWind(Wind):
    blow = staticmethod(random.random)


class TorchWind(Wind):
    @staticmethod
    def blow() -> float:
        return float(torch.rand(()))


class Own(Walk):
    """A walk that captures itself."""

    def capture_state(self) -> Any:
        return list(self.way), self.n_begun

    def restore_state(self, state: Any) -> None:
        self.way, self.n_begun = list(state[0]), state[1]


class Unwilling(Walk):
    """A walk that says it can be captured, and cannot."""

    def capture_state(self) -> Any:
        raise RuntimeError("not today")

    def restore_state(self, state: Any) -> None:
        raise AssertionError("nothing was captured")


class Breezy(Walk):
    """A walk with a breeze, whose generator the first step makes."""

    breeze: Any = None

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.breeze is None:
            self.breeze = np.random.default_rng(5)
        observation, reward, *rest = super().step(action)
        return observation, reward + float(self.breeze.normal()), *rest


class BreezyFromNone(Breezy):
    def __init__(self) -> None:
        super().__init__()
        self.breeze = None


class OwnOfStep(Own):
    """A walk that captures what a step changes, and not how many resets it took to get there."""

    n_resets = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_resets += 1
        self.way[0].x += 0.1 * self.n_resets
        return self._observe(), {}


class Stuck(Walk):
    """A walk that nothing can copy, with a breeze in a place that only a step fills."""

    is_named = True

    def __init__(self) -> None:
        super().__init__()
        self.left = (i for i in range(3))
        self.table: dict[str, Any] = {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        held = vars(self) if self.is_named else self.table
        observation, reward, *rest = super().step(action)
        return observation, reward + float(held.setdefault("breeze", np.random.default_rng(5)).normal()), *rest


class StuckInDict(Stuck):
    is_named = False


class StuckOwn(OwnOfStep):
    """It holds what nothing can copy."""

    def __init__(self) -> None:
        super().__init__()
        self.left = (i for i in range(3))


class Gait(Walk):
    """A walk that changes its gait, a function, on the way."""

    gait: Callable[[float], float]

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.gait = lambda x: x
        return super().reset(seed=seed)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if len(self.way) == 4:
            self.gait = lambda x: -x
        observation, reward, *rest = super().step(action)
        return observation, self.gait(reward), *rest


class _TakeOne(BaseCallback):
    model: GRPO

    def __init__(self) -> None:
        super().__init__()
        self.content: bytes | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.content is None and self.model.num_timesteps >= _AT:
            self.content = checkpoint.to_bytes(self.model, {"mine": 1}, {"name": b"content"})


def train_and_take(make_env: Callable[[], VecEnv], **arguments: Any) -> tuple[GRPO, bytes]:
    model, taking = make_model(make_env(), **arguments), _TakeOne()
    model.learn(_TOTAL, taking)
    assert taking.content is not None
    return model, taking.content


def make_model(env: VecEnv, **arguments: Any) -> GRPO:
    return GRPO("MlpPolicy", env, seed=3, device=DEVICE, **{"n_steps": 64, "horizon": 16, "n_epochs": 2, **arguments})


def go_on(env: VecEnv, content: bytes, **arguments: Any) -> tuple[GRPO, Any]:
    model = make_model(env, **arguments)
    caveat = checkpoint.restore(model, checkpoint.from_bytes(content))
    model.learn(_TOTAL - model.num_timesteps, reset_num_timesteps=False)
    return model, caveat


def make_shown() -> gym.Env[Any, Any]:
    """A wrapper that holds a lambda and a space, which no file can hold."""
    env = Walk()
    return TransformObservation(env, lambda observation: observation * 2, env.observation_space)


def normalized(env_id: str) -> Callable[[], VecEnv]:
    return lambda: VecNormalize(make_vec_env(env_id, 2))


TRAININGS: dict[str, tuple[Callable[[], VecEnv], dict[str, Any]]] = {
    "branch": (lambda: make_vec_env("CartPole-v1"), {}),
    "adaptive, normalized, two": (normalized("CartPole-v1"), {"baseline": "adaptive"}),
    "archive": (lambda: make_vec_env("Pendulum-v1"), {"anchor_selection": "archive", "restart_probability": 0.3}),
    "action, with a reference": (
        lambda: make_vec_env("CartPole-v1"),
        {"group_mode": "action", "kl_coef": 0.1, "ref_sync_steps": 150},
    ),
    "same noise": (lambda: make_vec_env("FrozenLake-v1"), {"common_random_numbers": True}),
    "episodes": (normalized("CartPole-v1"), {"group_mode": "episode", "horizon": None}),
    "unknown": (lambda: make_vec_env(Walk, 2), {"restart_probability": 0.3, "group_mode": "branch"}),
    "unknown, with noise in an object": (
        lambda: make_vec_env(Lucky, 2),
        {"restart_probability": 0.3, "group_mode": "branch", "anchor_selection": "archive"},
    ),
    "unknown, wrapped": (lambda: VecFrameStack(make_vec_env(make_shown), 2), {"group_mode": "branch"}),
    "unknown, with a late generator": (lambda: make_vec_env(Breezy), {"group_mode": "branch"}),
    "unknown, with a late generator, episodes": (
        lambda: make_vec_env(BreezyFromNone),
        {"group_mode": "episode", "horizon": None},
    ),
    "captures itself": (lambda: make_vec_env(OwnOfStep), {"group_mode": "branch"}),
    "captures itself, episodes": (lambda: make_vec_env(OwnOfStep), {"group_mode": "episode", "horizon": None}),
    "unknown, episodes": (lambda: make_vec_env(Walk), {"group_mode": "episode", "horizon": None}),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [(NumpyWind, "branch"), (NumpyWind, "episode"), (PythonWind, "branch"), (TorchWind, "episode")],
)
@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_the_processs_own_generators_go_on_too(kind: type[Wind], mode: str) -> None:
    whole, content = train_and_take(lambda: make_vec_env(kind), group_mode=mode)
    resumed, caveat = go_on(make_vec_env(kind), content, group_mode=mode)
    assert caveat is None
    assert resumed.to_bytes() == whole.to_bytes()


@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_an_environment_that_cannot_be_captured_after_all_costs_the_checkpoint_its_simulators_alone() -> None:
    _, content = train_and_take(lambda: make_vec_env(Unwilling), group_mode="episode", horizon=None)
    caveat = checkpoint.from_bytes(content).caveat
    assert caveat is not None
    assert not caveat.is_certain


@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_a_generator_is_put_into_its_place_or_missed_by_its_name() -> None:
    caveats = {}
    for kind in (Stuck, StuckInDict):
        _, content = train_and_take(functools.partial(make_vec_env, kind), group_mode="episode", horizon=None)
        _, caveats[kind] = go_on(make_vec_env(kind), content, group_mode="episode", horizon=None)
    assert not caveats[Stuck].is_certain
    assert caveats[StuckInDict].is_certain
    assert "StuckInDict.table['breeze']" in caveats[StuckInDict].reason


def test_of_an_environment_that_captures_itself_and_cannot_be_copied_only_that_is_kept() -> None:
    _, content = train_and_take(lambda: make_vec_env(StuckOwn), group_mode="branch")
    caveat = checkpoint.from_bytes(content).caveat
    assert caveat is not None
    assert not caveat.is_certain
    assert "what only its resets change" in caveat.reason


@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_a_function_that_no_file_holds_is_missed_unless_a_reset_sets_it() -> None:
    for mode, horizon in (("episode", None), ("branch", 16)):
        whole, content = train_and_take(lambda: make_vec_env(Gait), group_mode=mode, horizon=horizon)
        resumed, caveat = go_on(make_vec_env(Gait), content, group_mode=mode, horizon=horizon)
        assert caveat is not None or mode == "branch"
        assert (caveat is not None and caveat.is_certain) or resumed.to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.filterwarnings("ignore:the episodes of a group begin")
def test_a_training_goes_on_to_the_same_weights(name: str) -> None:
    make_env, arguments = TRAININGS[name]
    whole, content = train_and_take(make_env, **arguments)
    resumed, caveat = go_on(make_env(), content, **arguments)
    assert caveat is None
    assert resumed.to_bytes() == whole.to_bytes()


def test_the_slow_path_goes_on_to_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", False)
    make_env = normalized("CartPole-v1")
    whole, content = train_and_take(make_env)
    assert go_on(make_env(), content)[0].to_bytes() == whole.to_bytes()


@pytest.mark.parametrize("was_fast", [True, False])
def test_states_of_another_kind_are_not_gone_on_from(was_fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", was_fast)
    _, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    monkeypatch.setattr(GRPO, "use_fast_path", not was_fast)
    resumed, caveat = go_on(make_vec_env("CartPole-v1"), content)
    assert caveat.is_certain
    assert "another collector" in caveat.reason
    assert resumed.num_timesteps >= _TOTAL


class _FirstRow(BaseCallback):
    """Keeps what the logger holds when the first rollout begins."""

    held: dict[str, tuple[float, int, Any]] | None = None

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if self.held is None:
            counts, excluded = self.logger.name_to_count, self.logger.name_to_excluded
            self.held = {k: (v, counts.get(k, 0), excluded[k]) for k, v in self.logger.name_to_value.items()}


def test_the_logger_goes_on_with_the_numbers_that_it_had_yet_to_write() -> None:
    model = make_model(make_vec_env("CartPole-v1")).learn(_AT)
    for value in (1.0, 4.0):
        model.logger.record_mean("own/mean", value, exclude="tensorboard")
    model.logger.record("own/text", "not a number")
    content = checkpoint.to_bytes(model)
    for is_anew in (False, True):
        resumed, first = make_model(make_vec_env("CartPole-v1")), _FirstRow()
        checkpoint.restore(resumed, checkpoint.from_bytes(content))
        again = checkpoint.from_bytes(checkpoint.to_bytes(resumed))
        assert [name for name, *_ in again.facts["logged"]] == [name for name, *_ in resumed._logged] != []
        resumed.learn(1, first, reset_num_timesteps=is_anew)
        assert first.held is not None
        assert (first.held.keys() > {"train/loss", "train/n_updates"}) is not is_anew
        assert first.held.get("own/mean") == (None if is_anew else (2.5, 2, ("tensorboard",)))
        assert "own/text" not in first.held


def test_a_checkpoint_holds_what_it_was_given() -> None:
    taken = checkpoint.from_bytes(train_and_take(lambda: make_vec_env("CartPole-v1"))[1])
    assert (taken.facts["own"], taken.attachments) == ({"mine": 1}, {"name": b"content"})
    assert _AT <= taken.timesteps < _TOTAL


def test_what_a_monitor_keeps_of_an_episode_need_not_be_json() -> None:
    class Places(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            *outcome, info = self.env.step(action)
            return *outcome, {**info, "path": {(0, 1): Path("here"), "it": Path("here")}, "place": np.float32(0.5)}

    def make_env() -> VecEnv:
        return DummyVecEnv([lambda: Monitor(Places(gym.make("CartPole-v1")), info_keywords=("path", "place"))])

    taken = checkpoint.from_bytes(train_and_take(make_env)[1])
    episodes = taken.facts["episodes"][0]
    assert {(*episode["path"].values(), episode["place"]) for episode in episodes} == {("here", 0.5)}


def test_without_the_simulators_a_training_goes_on_from_new_episodes_and_says_so() -> None:
    arguments = {"group_mode": "episode", "horizon": None}
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    _, content = train_and_take(lambda: env, **arguments)
    env.close()
    resumed, caveat = go_on(make_vec_env("CartPole-v1"), content, **arguments)
    assert caveat.is_certain
    assert caveat.reason == "the states of environments in a SubprocVecEnv are in other processes"
    assert resumed.num_timesteps >= _TOTAL


@pytest.mark.parametrize("was_dear", [True, False])
@pytest.mark.parametrize(
    ("kind", "mode"), [(Walk, "auto"), (Own, "branch")], ids=["the mode", "whether branches alternate"]
)
def test_what_was_chosen_by_the_clock_is_not_chosen_anew(
    kind: type[Walk], mode: str, was_dear: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_where_restoring(is_dear: bool, go: Callable[[], Any]) -> Any:
        def report(*arguments: Any) -> Any:
            return replace(prove(*arguments), capture_us=1e9 if is_dear else 0.0, restore_us=0.0)

        with monkeypatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            patch.setattr(simulator, "prove", report)
            return go()

    def make_env() -> VecEnv:
        return make_vec_env(kind, 2)

    whole, content = train_where_restoring(was_dear, lambda: train_and_take(make_env, group_mode=mode))
    resumed, caveat = train_where_restoring(not was_dear, lambda: go_on(make_env(), content, group_mode=mode))
    assert caveat is None
    assert resumed._mode == ("episode" if was_dear and mode == "auto" else "branch")
    assert resumed.to_bytes() == whole.to_bytes()


def test_another_number_of_environments_is_refused() -> None:
    _, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    other = make_model(make_vec_env("CartPole-v1", 2))
    with pytest.raises(CheckpointError, match=r"in n_envs=1 environments, but here are 2; make as many"):
        checkpoint.restore(other, checkpoint.from_bytes(content))


def test_a_model_without_an_environment_is_refused() -> None:
    trained, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    file = io.BytesIO(trained.to_bytes())
    with pytest.raises(ValueError, match=r"no environment to train in; call set_env\(env\) first"):
        checkpoint.restore(GRPO.load(file, device=DEVICE), checkpoint.from_bytes(content))


def test_a_model_of_another_shape_is_refused() -> None:
    _, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    other = make_model(make_vec_env("CartPole-v1"), policy_kwargs={"net_arch": [8]})
    with pytest.raises(CheckpointError, match="of another training"):
        checkpoint.restore(other, checkpoint.from_bytes(content))


def test_a_model_without_the_normalisation_is_refused() -> None:
    _, content = train_and_take(normalized("CartPole-v1"))
    other = make_model(make_vec_env("CartPole-v1", 2))
    with pytest.raises(CheckpointError, match=r"in VecNormalize, but this environment has none; make the model around"):
        checkpoint.restore(other, checkpoint.from_bytes(content))


def test_a_training_without_an_end_goes_on() -> None:
    model, taking = make_model(make_vec_env("CartPole-v1")), _TakeOne()
    model.learn(math.inf, CallbackList([taking, StopTrainingOnMaxEpisodes(20)]))  # type: ignore[arg-type]
    assert taking.content is not None
    other = make_model(make_vec_env("CartPole-v1"))
    checkpoint.restore(other, checkpoint.from_bytes(taking.content))
    assert (other.num_timesteps >= _AT, other._total_timesteps) == (True, math.inf)


def read_damaged(content: bytes) -> Checkpoint | None:
    try:
        return checkpoint.from_bytes(content)
    except CheckpointError:
        return None


def test_a_damaged_checkpoint_is_refused_in_one_way() -> None:
    _, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    rng = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(content)
        at = int(rng.integers(len(content)))
        damaged[at] ^= 1 + int(rng.integers(255))
        read_damaged(bytes(damaged))  # raises nothing else
        read_damaged(content[:at])


def test_a_checkpoint_that_lacks_a_fact_is_refused_by_its_name() -> None:
    _, content = train_and_take(lambda: make_vec_env("CartPole-v1"))
    for name in set(checkpoint.from_bytes(content).facts) - {"format"}:
        with pytest.raises(CheckpointError, match=f"lacks {name}; another version wrote it"):
            checkpoint.from_bytes(rewrite(content, f'"{name}": '.encode(), b'"unheard_of": '))
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.from_bytes(rewrite(content, b'"caveat": null', b'"caveat": ["a reason alone"]'))


def test_what_a_checkpoint_names_is_looked_up_in_the_environments_packages_alone() -> None:
    _, content = train_and_take(lambda: make_vec_env(Walk), group_mode="branch")
    evil = rewrite(content, b'"Step"', b'"Path"', b'"tests.grpo_core.checkpoints.test_checkpoint"', b'"pathlib"')
    _, caveat = go_on(make_vec_env(Walk), evil, group_mode="branch")
    assert caveat is not None
    assert "pathlib.Path is not something that a saved state may contain" in caveat.reason


def rewrite(content: bytes, *replacements: bytes) -> bytes:
    """Replace parts of a checkpoint's JSON."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        for name in old.namelist():
            member = old.read(name)
            if name == "checkpoint.json":
                for before, after in zip(replacements[::2], replacements[1::2], strict=True):
                    assert before in member
                    member = member.replace(before, after)
            new.writestr(name, member)
    return written.getvalue()
