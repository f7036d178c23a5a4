"""What an environment hands over is checked at its first reset and its first step, and later where it stands out."""

import re
import warnings
from collections.abc import Callable
from contextlib import closing
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from grpo import GRPO
from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.restorable_wrapper import RestorableWrapper
from grpo_core.banks.single_env import Order, SingleEnv
from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.first_calls import call_reset, check_masks, try_out
from grpo_core.environments.flags import read_success

SEEN = np.zeros(2, np.float32)
BOX = spaces.Box(-1.0, 1.0, (2,))
IMAGE = spaces.Box(0, 255, (4, 4, 3), np.uint8)
ROOM = spaces.Dict(place=BOX, door=spaces.Discrete(3))
INFO: dict[str, Any] = {}


class HandedOver(gym.Env[Any, Any]):
    """Hands over what it is given; every episode is one step."""

    action_space = spaces.Discrete(2)

    def __init__(self, first: Any = None, later: Any = None, space: spaces.Space[Any] = BOX) -> None:
        self.observation_space = space
        self.first = (SEEN, INFO) if first is None else first
        self.later = (SEEN, 0.0, True, False, INFO) if later is None else later

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self.first

    def step(self, action: Any) -> Any:
        return self.later

    def capture_state(self) -> int:
        return 0

    def restore_state(self, state: int) -> None:
        pass


def refuse(env: gym.Env[Any, Any]) -> str:
    with pytest.raises(InvalidEnvironmentError) as refusal:
        try_out(env)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("first", "came"),
    [
        (SEEN, "array([0., 0.], dtype=float32)"),
        (None.__class__, "NoneType"),
        ((SEEN,), "1 values"),
        ((SEEN, INFO, INFO), "3 values"),
        ((SEEN, None), "None as its second value"),
        ((0.0, 0.5), "0.5 as its second value"),
        ([0.0, 0.0, 0.0], "3 values"),
    ],
    ids=str,
)
def test_a_reset_of_another_form_is_named_with_what_came_and_what_has_to_come(first: Any, came: str) -> None:
    said = refuse(HandedOver(first))
    assert said.startswith("HandedOver.reset() returned ")
    assert came in said
    assert "return observation, info" in said


@pytest.mark.parametrize(
    ("later", "came", "remedy"),
    [
        ((SEEN, 0.0, True, INFO), "4 values", "the old done is terminated"),
        ((SEEN, 0.0), "2 values", "return observation, reward, terminated, truncated, info"),
        (SEEN, "array([0., 0.], dtype=float32)", "five values"),
        ((SEEN, None, True, False, INFO), "None as reward", "one finite number"),
        ((SEEN, "1.0", True, False, INFO), "'1.0' as reward", "one finite number"),
        ((SEEN, np.nan, True, False, INFO), "nan as reward", "one finite number"),
        ((SEEN, np.inf, True, False, INFO), "inf as reward", "one finite number"),
        ((SEEN, np.zeros(1), True, False, INFO), "array([0.]) as reward", "float(reward[0])"),
        ((SEEN, [1.0, 2.0], True, False, INFO), "[1.0, 2.0] as reward", "one finite number"),
        ((SEEN, {}, True, False, INFO), "{} as reward", "one finite number"),
        ((SEEN, 0.0, None, False, INFO), "None as terminated", "True or False"),
        ((SEEN, 0.0, False, "no", INFO), "'no' as truncated", "True or False"),
        ((SEEN, 0.0, INFO, False, INFO), "{} as terminated", "True or False"),
        ((SEEN, 0.0, np.array([True, False]), False, INFO), "array([ True, False]) as terminated", "True or False"),
        ((SEEN, 0.0, True, False, None), "None as info", "a dict there"),
        ((SEEN, 0.0, True, False, "won"), "'won' as info", "a dict there"),
        ((SEEN, 0.0, True, False, {"episode": 5}), "5 as info['episode']", "give yours another name"),
    ],
    ids=str,
)
def test_a_step_of_other_kinds_is_named_with_the_value_at_fault(later: Any, came: str, remedy: str) -> None:
    said = refuse(HandedOver(later=later))
    assert said.startswith("HandedOver.step() returned ")
    assert came in said
    assert remedy in said


@pytest.mark.parametrize(
    ("space", "observation", "came"),
    [
        (BOX, np.zeros(3), "of shape (3,) instead of (2,)"),
        (BOX, np.zeros((1, 2)), "of shape (1, 2) instead of (2,)"),
        (BOX, 0.0, "of shape () instead of (2,)"),
        (BOX, None, "None instead of numbers"),
        (BOX, "left", "'left' instead of numbers"),
        (BOX, {"place": SEEN}, "instead of numbers"),
        (BOX, [[0.0], [0.0, 1.0]], "instead of numbers"),
        (BOX, np.array([0, np.nan], np.float32), "not finite"),
        (BOX, np.array([0, 1e60]), "not finite in float32"),
        (IMAGE, np.full((4, 4, 3), 0.5), "fractions"),
        (IMAGE, np.full((4, 4, 3), 256), "not in Box"),
        (IMAGE, np.zeros((3, 4, 4), np.uint8), "of shape (3, 4, 4) instead of (4, 4, 3)"),
        (spaces.Discrete(3), 3, "not in Discrete(3)"),
        (spaces.Discrete(3), -1, "not in Discrete(3)"),
        (spaces.Discrete(3), 0.5, "fractions"),
        (spaces.Discrete(3), np.array([1]), "of shape (1,) instead of ()"),
        (spaces.MultiDiscrete([2, 3]), [1, 3], "not in MultiDiscrete"),
        (spaces.MultiBinary(2), [0, 2], "not in MultiBinary"),
        (ROOM, SEEN, "instead of a dict with the keys ['place', 'door']"),
        (ROOM, {"place": SEEN}, "without ['door']"),
        (ROOM, {"place": np.zeros(3), "door": 0}, "of shape (3,) instead of (2,) under key 'place'"),
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["reset", "step"])
def test_an_observation_of_another_space_is_named(
    space: spaces.Space[Any], observation: Any, came: str, method: str
) -> None:
    good = space.sample()
    first, later = (observation, good) if method == "reset" else (good, observation)
    said = refuse(HandedOver((first, INFO), (later, 0.0, True, False, INFO), space))
    assert said.startswith(f"HandedOver.{method}() returned ")
    assert came in said
    assert "observation_space" in said


@pytest.mark.parametrize(
    ("first", "later", "space"),
    [
        ([SEEN, INFO], [SEEN, 0, 1, 0, INFO], BOX),
        ((np.zeros(2), INFO), (np.zeros(2), np.float64(1), np.bool_(True), np.False_, INFO), BOX),
        (([0, 0], INFO), ((0.0, 0.0), np.array(0.5), np.array([True]), False, INFO), BOX),
        ((np.int64(1), INFO), (2.0, True, True, False, INFO), spaces.Discrete(3)),
        (({"place": [0, 0], "door": 0, "more": "text"}, INFO), None, ROOM),
        ((np.zeros((4, 4, 3), np.int64), INFO), None, IMAGE),
        ((True, INFO), (False, 0.0, True, False, INFO), spaces.Discrete(2)),
    ],
    ids=str,
)
def test_what_trains_as_it_is_passes(first: Any, later: Any, space: spaces.Space[Any]) -> None:
    try_out(HandedOver(first, later or (first[0], 0.0, True, False, INFO), space))


def test_numbers_outside_the_bounds_cause_a_warning_alone() -> None:
    with pytest.warns(UserWarning, match=r"HandedOver.reset\(\) returned an observation outside the bounds of Box"):
        call_reset(HandedOver((np.array([0, 1.5], np.float32), INFO)), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call_reset(HandedOver((np.array([0, 1 + 1e-9]), INFO)), seed=0)


class Signatures:
    class NoSeed(HandedOver):
        def reset(self) -> Any:  # type: ignore[override]  # the mistake
            return self.first

    class NoOptions(HandedOver):
        def reset(self, seed: int | None = None) -> Any:  # type: ignore[override]  # the mistake
            return self.first

    class NoAction(HandedOver):
        def step(self) -> Any:  # type: ignore[override]  # the mistake
            return self.later


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Signatures.NoSeed, "define it as reset(self, *, seed=None, options=None)"),
        (Signatures.NoOptions, "define it as reset(self, *, seed=None, options=None)"),
        (Signatures.NoAction, "define it as step(self, action)"),
    ],
)
def test_methods_that_take_too_little_are_named(kind: type[HandedOver], said: str) -> None:
    env = gym.wrappers.TimeLimit(kind(), 5)  # which passes options on
    assert said in refuse(env)


def test_an_error_of_its_own_keeps_its_type_and_says_which_call_it_was() -> None:
    class Fails(HandedOver):
        def step(self, action: Any) -> Any:
            raise KeyError("no such place")

    with pytest.raises(KeyError) as error:
        try_out(gym.wrappers.TimeLimit(Fails(), 5))
    assert error.value.__notes__ == [f"Fails.step({np.int64(1)!r}) raised it, at its first call."]


def test_the_class_at_fault_is_named_not_the_wrapper_that_stumbles() -> None:
    class Halve(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: Any) -> Any:
            return observation / 2

    assert refuse(Halve(HandedOver((None, INFO)))).startswith("HandedOver.reset() returned None")
    broken = HandedOver(later=(SEEN, 0.0, True, INFO))
    assert refuse(Monitor(gym.wrappers.TimeLimit(broken, 5))).startswith("HandedOver.step() returned 4 values")


def test_a_wrapper_may_mend_what_the_environment_returns_and_is_named_if_it_spoils_it() -> None:
    class Cut(gym.ObservationWrapper[Any, Any, Any]):
        def observation(self, observation: Any) -> Any:
            return observation[:2]

    too_long = HandedOver((np.zeros(3), INFO), (np.zeros(3), 0.0, True, False, INFO))
    try_out(Cut(too_long))
    spoilt = gym.wrappers.TimeLimit(Cut(HandedOver((np.zeros(5), INFO), space=spaces.Box(-1.0, 1.0, (5,)))), 5)
    assert refuse(spoilt).startswith("Cut.reset() returned array([0., 0.]) of shape (2,) instead of (5,)")


def test_nothing_is_left_in_an_environment_that_was_checked() -> None:
    env = Monitor(gym.wrappers.TimeLimit(HandedOver(), 5))
    nested: gym.Env[Any, Any] = env
    before = []
    while True:
        before.append((nested, set(vars(nested))))
        if not isinstance(nested, gym.Wrapper):
            break
        nested = nested.env
    try_out(env)
    for each, names in before:
        assert not {"reset", "step"} & set(vars(each)), names


def test_later_calls_go_to_the_environment_itself() -> None:
    env = HandedOver()
    single = SingleEnv(env, None)
    single.reset(None)
    single.step(Order(0))
    assert single._reset_env is None, "the environment's own"
    assert single._step_env is None


@pytest.mark.parametrize(
    ("space", "masks", "said"),
    [
        (spaces.Discrete(3), [True, False], "2 flags; it has to return 3 flags"),
        (spaces.Discrete(3), [False, False, False], "allows no action"),
        (spaces.Discrete(3), ["a", "b", "c"], "3 flags"),
        (spaces.Discrete(3), [0.5, 1, 1], "3 flags"),
        (spaces.Discrete(3), 1, "1 flags"),
        (spaces.MultiDiscrete([2, 2]), [1, 1, 0, 0], "allows no action"),
        (spaces.MultiDiscrete([2, 2]), [[1, 1], [1]], "4 flags"),
        (spaces.MultiBinary(2), [1, 1], "2 flags; it has to return 4 flags"),
    ],
    ids=str,
)
def test_masks_that_do_not_fit_are_named(space: spaces.Space[Any], masks: Any, said: str) -> None:
    with pytest.raises(InvalidEnvironmentError, match=r"^action_masks\(\) returned") as refusal:
        check_masks(space, masks)
    assert said in str(refusal.value)


@pytest.mark.parametrize("masks", [None, [1, 0, 1], np.array([[True, True, False]]), [0.0, 1.0, 0.0]], ids=str)
def test_masks_that_fit_pass(masks: Any) -> None:
    check_masks(spaces.Discrete(3), masks)


class MaskedWhileItGoesOn(gym.Env[Any, Any]):
    """Has masks before each of an episode's steps, and none after its last, as sb3-contrib takes it."""

    observation_space = spaces.Box(0, 2, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == self.n_steps, False, {}

    def action_masks(self) -> list[int]:
        return [[1, 0], [0, 1]][: self.n_steps][self.t]


@pytest.mark.parametrize("n_steps", [1, 2])
@pytest.mark.parametrize("group_mode", ["branch", "episode"])
def test_nobody_asks_for_masks_once_the_episode_is_over(group_mode: Any, n_steps: int) -> None:
    env = MaskedWhileItGoesOn(n_steps)
    try_out(env)
    GRPO("MlpPolicy", env, group_mode=group_mode, n_steps=64, n_epochs=1, device="cpu").learn(64)


@pytest.mark.parametrize(
    ("success", "expected"),
    [
        (True, True),
        (np.float32(1), True),
        (np.array([False]), False),
        (0, False),
        (None, None),
        (float("nan"), None),
        (np.float32("nan"), None),
    ],
    ids=str,
)
def test_success_is_read_as_it_is_meant(success: Any, expected: bool | None) -> None:
    assert read_success({"is_success": success}) is expected
    assert read_success({}) is None


@pytest.mark.parametrize("success", ["no", "yes", -1, 2, 0.5, [True, False], {}], ids=str)
def test_success_of_another_kind_is_refused_where_an_episode_ends(success: Any) -> None:
    env = HandedOver(later=(SEEN, 0.0, True, False, {"is_success": success}))
    with pytest.raises(InvalidEnvironmentError, match="is_success"):
        GRPO("MlpPolicy", env, n_steps=64).learn(64)


BROKEN: dict[str, tuple[Any, Any]] = {
    "reset()": (SEEN, None),
    "step()": (None, (SEEN, 0.0, True, INFO)),
}


@pytest.mark.parametrize("method", BROKEN)
@pytest.mark.parametrize("group_mode", ["branch", "episode", "auto"])
@pytest.mark.parametrize("wrap", [lambda env: env, lambda env: DummyVecEnv([lambda: env])], ids=["env", "DummyVecEnv"])
def test_training_names_the_method_in_every_mode(wrap: Callable[[Any], Any], group_mode: Any, method: str) -> None:
    first, later = BROKEN[method]
    with pytest.raises(InvalidEnvironmentError) as refusal:
        GRPO("MlpPolicy", wrap(HandedOver(first, later)), group_mode=group_mode, seed=0).learn(64)
    assert f"HandedOver.{method} returned" in str(refusal.value)


class WorseLater(HandedOver):
    """Hands over what it is given from the fourth step on."""

    n_steps = 0

    def step(self, action: Any) -> Any:
        self.n_steps += 1
        return self.later if self.n_steps > 3 else (SEEN, 0.0, self.n_steps == 2, False, INFO)


@pytest.mark.parametrize(
    ("later", "came"),
    [
        ((SEEN, "1", True, False, INFO), "'1' as reward"),
        ((SEEN, 0.0, None, False, INFO), "None as terminated"),
        ((SEEN, 0.0, "False", False, INFO), "'False' as terminated"),
        ((SEEN, 0.0, True, 2, INFO), "2 as truncated"),
        ((SEEN, 0.0, True, INFO), "4 values"),
        (([[0.0], [0.0, 1.0]], 0.0, True, False, INFO), "[[0.0], [0.0, 1.0]]"),
        ((SEEN[:1], 0.0, True, False, INFO), "of shape (1,) instead of (2,)"),
        ((SEEN, 1e300, True, False, INFO), "1e+300 as reward; it has to return a size of at most 3.4e+38"),
    ],
    ids=str,
)
def test_what_a_later_step_must_not_return_is_named(later: Any, came: str) -> None:
    env = SingleEnv(WorseLater(later=later), None)
    env.reset(0)
    for _ in range(3):
        env.step(Order(0))
    with pytest.raises(InvalidEnvironmentError, match=r"WorseLater.step\(\) returned") as refusal:
        env.step(Order(0))
    assert came in str(refusal.value)


@pytest.mark.parametrize(
    ("later", "came"),
    [
        ((SEEN, None, False, False, INFO), "None as reward"),
        ((SEEN, np.zeros(1), False, False, INFO), "as reward"),
        ((SEEN, 1j, False, False, INFO), "1j as reward"),
        ((SEEN, 0.0, False, INFO), "4 values"),
    ],
    ids=str,
)
def test_what_a_wrapper_stumbles_over_later_is_named(later: Any, came: str) -> None:
    env = SingleEnv(Monitor(WorseLater(later=later)), None)
    env.reset(0)
    for _ in range(3):
        if env.step(Order(0)).terminated:
            env.reset(0)
    with pytest.raises(InvalidEnvironmentError, match=r"WorseLater.step\(\) returned") as refusal:
        env.step(Order(0))
    assert came in str(refusal.value)


def test_an_environment_whose_own_code_fails_later_is_not_asked_again() -> None:
    class Failing(WorseLater):
        def step(self, action: Any) -> Any:
            if self.n_steps >= 3:
                self.n_steps += 1
                raise ValueError("out of fuel")
            return super().step(action)

    inner = Failing()
    env = SingleEnv(Monitor(inner), None)
    env.reset(0)
    for _ in range(3):
        if env.step(Order(0)).terminated:
            env.reset(0)
    with pytest.raises(ValueError, match="out of fuel"):
        env.step(Order(0))
    assert inner.n_steps == 4


def test_a_wrapper_that_raises_on_purpose_moves_the_environment_no_further() -> None:
    class Watchdog(gym.Wrapper[Any, Any, Any, Any]):
        def step(self, action: Any) -> Any:
            returned = super().step(action)
            if inner.n_steps == 4:
                raise ValueError("too late")
            return returned

    inner = WorseLater()
    env = SingleEnv(Watchdog(inner), None)
    env.reset(0)
    for _ in range(3):
        if env.step(Order(0)).terminated:
            env.reset(0)
    with pytest.raises(ValueError, match="too late"):
        env.step(Order(0))
    assert inner.n_steps == 4


def test_a_reset_that_fails_later_is_not_repeated() -> None:
    class Lost(gym.Wrapper[Any, Any, Any, Any]):
        n_resets = 0

        def reset(self, **options: Any) -> Any:
            self.n_resets += 1
            if self.n_resets > 2:
                raise TypeError("no connection")
            return super().reset(**options)

    lost = Lost(HandedOver())
    env = SingleEnv(lost, None)
    env.reset(0)
    env.reset(1)
    with pytest.raises(TypeError, match="no connection"):
        env.reset(2)
    assert lost.n_resets == 3


def test_a_part_of_another_shape_is_named_with_its_key() -> None:
    first = ({"place": SEEN, "door": 0}, INFO)
    env = HandedOver(first, ({"place": SEEN, "door": 0}, 0.0, False, False, INFO), ROOM)
    single_env = SingleEnv(env, None)
    single_env.reset(0)
    single_env.step(Order(0))
    for seen, came in (
        ({"place": SEEN[:1], "door": 0}, r"shape \(1,\) .* 'place'"),
        ({"door": 0}, r"without \['place'\]"),
    ):
        env.later = (seen, 0.0, False, False, INFO)
        with pytest.raises(InvalidEnvironmentError, match=rf"HandedOver.step\(\) returned .*{came}"):
            single_env.step(Order(0))


@pytest.mark.parametrize("wrapper", [RestorableWrapper, gym.Wrapper])
def test_workers_say_the_same(wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> None:
    def play(i: int, vec_env: VecEnv) -> None:
        bank = make_bank(vec_env, needs_restore=False)
        bank.reset({i: None})
        bank.step({i: Order(0)})

    makes: list[Callable[[], gym.Env[Any, Any]]] = [partial(make_broken, method, wrapper) for method in BROKEN]
    with closing(SubprocVecEnv(makes)) as vec_env:
        for i, method in enumerate(BROKEN):
            with pytest.raises(InvalidEnvironmentError, match=rf"environment {i}.{re.escape(method)} returned"):
                play(i, vec_env)
        if wrapper is RestorableWrapper:
            with pytest.raises(RuntimeError, match=r"HandedOver.reset\(\) returned"):
                make_bank(vec_env, needs_restore=True).reset({0: None})


def make_broken(method: str, wrapper: type[gym.Wrapper[Any, Any, Any, Any]]) -> gym.Env[Any, Any]:
    return wrapper(HandedOver(*BROKEN[method]))


@pytest.mark.parametrize("first", [(np.zeros(3, np.float32), INFO), ("ab", INFO), 5], ids=["shape", "text", "number"])
@pytest.mark.parametrize("group_mode", ["auto", "episode"])
def test_sb3s_own_first_reset_names_the_method_too(first: Any, group_mode: Any) -> None:
    model = GRPO("MlpPolicy", HandedOver(first), n_steps=64, horizon=16, group_mode=group_mode)
    with pytest.raises(InvalidEnvironmentError, match=r"HandedOver\.reset\(\) returned .*; it has to return"):
        model.learn(64)


def test_a_dict_of_the_first_reset_that_lacks_a_key_is_named() -> None:
    model = GRPO("MultiInputPolicy", HandedOver(({"door": 0}, INFO), space=ROOM), n_steps=64, group_mode="episode")
    with pytest.raises(InvalidEnvironmentError, match=r"HandedOver.reset\(\) returned .* without \['place'\]"):
        model.learn(64)


@pytest.mark.filterwarnings("ignore:.*cannot be proven to be restored")
def test_masks_that_are_no_method_are_refused() -> None:
    env = HandedOver()
    env.action_masks = np.array([True, False])  # type: ignore[attr-defined]
    with pytest.raises(InvalidEnvironmentError, match=r"action_masks of .* is a ndarray; make it a method"):
        GRPO("MlpPolicy", env, n_steps=64, horizon=16)
