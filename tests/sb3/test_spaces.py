"""Spaces that no policy can take are refused before anything is built, with what to do instead."""

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tests.sb3.environments import ACTION_SPACES, OBSERVATION_SPACES, MatchEnv
from tests.sb3.small_models import MODES, POLICY_OF, build

TAKEN_OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "unbounded": spaces.Box(-np.inf, np.inf, (3,), np.float64),
    "matrix": spaces.Box(0.0, 1.0, (2, 3), np.float32),
    "integers": spaces.Box(-5, 5, (2,), np.int64),
    "grid of bits": spaces.MultiBinary([2, 3]),
    "one value": spaces.Discrete(1),
}
TAKEN_ACTIONS: dict[str, spaces.Space[Any]] = {
    "matrix": spaces.Box(-1.0, 1.0, (2, 2), np.float32),
    "double precision": spaces.Box(-1.0, 1.0, (2,), np.float64),
    "one choice": spaces.MultiDiscrete([1, 2]),
    "one digit": spaces.MultiBinary(1),
}
REFUSED_OBSERVATIONS: dict[str, tuple[spaces.Space[Any], str]] = {
    "tuple": (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), "FlattenObservation"),
    "shifted": (spaces.Discrete(3, start=1), "starting at 0"),
    "grid of choices": (spaces.MultiDiscrete(np.array([[2, 2], [3, 3]])), "one-dimensional MultiDiscrete"),
    "single number": (spaces.Box(-1.0, 1.0, (), np.float32), "reshape"),
}
REFUSED_ACTIONS: dict[str, tuple[spaces.Space[Any], str]] = {
    "dict": (spaces.Dict({"a": spaces.Discrete(2)}), "use Discrete"),
    "tuple": (spaces.Tuple((spaces.Discrete(2), spaces.Discrete(2))), "use Discrete"),
    "shifted": (spaces.Discrete(3, start=1), "starting at 0"),
    "grid of choices": (spaces.MultiDiscrete(np.array([[2, 2], [3, 3]])), "one-dimensional MultiDiscrete"),
    "grid of bits": (spaces.MultiBinary([2, 2]), "one-dimensional MultiBinary"),
    "integers": (spaces.Box(-1, 1, (2,), np.int64), "Box of floats"),
}


class Shown(gym.Env[Any, Any]):
    """Has spaces, and nothing else."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


@pytest.mark.parametrize("name", TAKEN_OBSERVATIONS)
def test_observations_that_are_taken(name: str) -> None:
    model = build(MatchEnv(TAKEN_OBSERVATIONS[name]))
    model.learn(16)
    assert model.observation_space == TAKEN_OBSERVATIONS[name]


@pytest.mark.parametrize("name", TAKEN_ACTIONS)
def test_actions_that_are_taken(name: str) -> None:
    model = build(MatchEnv(action_space=TAKEN_ACTIONS[name]))
    model.learn(16)
    observation, _ = MatchEnv().reset(seed=0)
    assert model.action_space.contains(model.predict(observation)[0].astype(model.action_space.dtype))


class Types(gym.ActionWrapper[Any, Any, Any]):
    """Notes the types of the actions that arrive."""

    arrived: ClassVar[list[np.dtype[Any]]] = []

    def action(self, action: Any) -> Any:
        self.arrived.append(action.dtype)
        return action


@pytest.mark.parametrize("mode", ["branch", "episode"])
@pytest.mark.parametrize("name", ["multi-binary", "multi-discrete", "box"])
@pytest.mark.parametrize("own_layers", [False, True])
def test_actions_arrive_in_training_as_in_evaluation(name: str, mode: str, own_layers: bool) -> None:
    policy_kwargs = {"activation_fn": torch.nn.Softplus} if own_layers else {}
    model = build(Types(MatchEnv(action_space=ACTION_SPACES[name])), mode=mode, policy_kwargs=policy_kwargs)
    Types.arrived.clear()
    model.learn(16)
    assert len(Types.arrived) >= 16
    assert set(Types.arrived) == {model.predict(MatchEnv().reset(seed=0)[0])[0].dtype}


@pytest.mark.parametrize("name", REFUSED_OBSERVATIONS)
def test_observations_that_are_refused_say_what_to_do(name: str) -> None:
    space, remedy = REFUSED_OBSERVATIONS[name]
    with pytest.raises(ValueError, match=r"(?s)observation space .* is not supported") as refusal:
        build(Shown(space, ACTION_SPACES["discrete"]))
    assert remedy in str(refusal.value)


@pytest.mark.parametrize("name", REFUSED_ACTIONS)
def test_actions_that_are_refused_say_what_to_do(name: str) -> None:
    space, remedy = REFUSED_ACTIONS[name]
    with pytest.raises(ValueError, match=r"(?s)action space .* is not supported") as refusal:
        build(Shown(OBSERVATION_SPACES["box"], space))
    assert remedy in str(refusal.value)


def test_what_sb3_stumbles_over_is_refused_before_sb3_sees_it() -> None:
    with pytest.raises(ValueError, match="it needs finite bounds"):
        build(Shown(OBSERVATION_SPACES["box"], spaces.Box(-np.inf, np.inf, (2,), np.float32)))
    nested = spaces.Dict({"outer": spaces.Dict({"inner": spaces.Discrete(2)})})
    with pytest.raises(ValueError, match="key 'outer' is nested"):
        build(Shown(nested, ACTION_SPACES["discrete"]), "MultiInputPolicy")


@pytest.mark.parametrize("name", OBSERVATION_SPACES)
@pytest.mark.parametrize("policy", ["MlpPolicy", "CnnPolicy", "MultiInputPolicy"])
def test_each_policy_takes_its_own_observations_only(policy: str, name: str) -> None:
    env = MatchEnv(OBSERVATION_SPACES[name])
    if policy == POLICY_OF[name] or (policy, name) == ("MlpPolicy", "image"):  # flattened, as in SB3
        build(env, policy).learn(16)
        return
    # For a Dict it is SB3 that speaks.
    said = (
        "You must use `MultiInputPolicy`" if name == "dict" else f"policy='{policy}' is not allowed.* use 'MlpPolicy'"
    )
    with pytest.raises(ValueError, match=said):
        build(env, policy)


@pytest.mark.parametrize("name", [name for name in ACTION_SPACES if name != "discrete"])
def test_only_a_discrete_space_is_enumerated(name: str) -> None:
    with pytest.raises(ValueError, match="only a Discrete action space can be enumerated"):
        build(MatchEnv(action_space=ACTION_SPACES[name]), mode="action")


def test_enumerating_takes_one_branch_per_action() -> None:
    with pytest.raises(ValueError, match="group_size=3"):
        build(mode="action", group_size=2, n_steps=8)


@pytest.mark.parametrize("mode", MODES)
def test_an_image_too_small_for_the_convolutions_is_refused(mode: str) -> None:
    env = MatchEnv(spaces.Box(0, 255, (20, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="36"):
        build(env, "CnnPolicy", mode)
