"""Arguments of environments are plain and small, and none names a file or code."""

import math
import re
from typing import Any

import gymnasium as gym
import pytest

from grpo_core.environments.env_kwargs import check_env_kwargs, check_known_env_kwargs, list_env_kwargs, to_plain
from grpo_core.environments.wrappers import SetupError


@pytest.mark.parametrize(
    "env_kwargs",
    [
        {},
        {"map_name": "8x8", "is_slippery": False},
        {"desc": ["SFFF", "FHFG"]},
        {"frame_bound": [10, 500], "window_size": 10, "cost": 0.5, "nothing": None},
        {"config": {"lanes": 3, "vehicles": {"n": 5}}},
        {"agent_start_dir": 1, "max_episode_steps": 100},
    ],
    ids=str,
)
def test_numbers_words_flags_and_lists_pass(env_kwargs: dict[str, Any]) -> None:
    check_env_kwargs(env_kwargs)


@pytest.mark.parametrize(
    ("env_kwargs", "said"),
    [
        ({"xml_file": "humanoid"}, "may name a file"),
        ({"model_path": "x"}, "may name a file"),
        ({"log_dir": "x"}, "may name a file"),
        *(({name: "x"}, "may name a file") for name in ("logdir", "xmlFile", "XMLFile", "xml2", "moduleName")),
        ({"reward_func": "x"}, "may name a file"),
        ({"config": {"import": "os"}}, "may name a file"),
        ({"__class__": 1}, "may name a file"),
        ({"render_mode": "human"}, "films choose it"),
        ({"not a name": 1}, "^'not a name' is no name of an argument; use a Python identifier"),
        ({"x": "../secrets"}, "no path"),
        ({"x": "models/a"}, "no path"),
        ({"x": "a.xml"}, "no path"),
        ({"x": "os:system"}, "no path"),
        ({"x": "~"}, "no path"),
        ({"x": "a" * 65}, "at most 64"),
        ({"x": math.nan}, "numbers go from"),
        ({"x": 10**400}, "holds a number that is not allowed; numbers go from"),
        ({"x": [[[[[1]]]]]}, "nested more than 4 deep"),
        ({"x": {"a": {"a": {"a": {"a": {}}}}}}, "nested more than 4 deep"),
        ({"x": [0] * 300}, "more than 256 values"),
        ({f"x{i}": i for i in range(33)}, "at most 32"),
        ({"max_episode_steps": -1}, "at least 1"),
        ({"x": object}, "holds a type"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_anything_else_is_refused_by_its_name(env_kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_env_kwargs(env_kwargs)


def test_the_arguments_of_a_constructor_are_listed_with_their_defaults() -> None:
    assert list_env_kwargs(gym.spec("CartPole-v1")) == {"sutton_barto_reward": False}
    lake = list_env_kwargs(gym.spec("FrozenLake-v1"))
    assert lake is not None
    assert (lake["map_name"], lake["is_slippery"]) == ("4x4", True)
    assert "render_mode" not in lake


class Base(gym.Env[Any, Any]):
    def __init__(self, width: int = 3, xml_file: str = "a.xml") -> None:
        self.width = width


class Derived(Base):
    def __init__(self, height: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)


def test_further_arguments_are_those_of_the_base_classes() -> None:
    spec = gym.envs.registration.EnvSpec("Base-v0", entry_point=Derived)
    assert list_env_kwargs(spec) == {"height": 2, "width": 3}
    anything = gym.envs.registration.EnvSpec("Any-v0", entry_point=lambda **arguments: Derived(**arguments))
    assert list_env_kwargs(anything) is None


def test_an_argument_that_there_is_not_is_refused_with_those_that_there_are() -> None:
    spec = gym.spec("FrozenLake-v1")
    check_known_env_kwargs("FrozenLake-v1", spec, {"map_name": "8x8", "max_episode_steps": 5})
    with pytest.raises(SetupError, match=r"does not take 'map_nam'; did you mean 'map_name'\? It takes: desc, is_slip"):
        check_known_env_kwargs("FrozenLake-v1", spec, {"map_nam": "8x8"})


@pytest.mark.parametrize("value", ["false", "yes", "", [0], [], {}])
def test_a_word_or_a_list_is_no_flag(value: Any) -> None:
    """Python takes nearly all of them for true."""
    spec = gym.spec("FrozenLake-v1")
    check_known_env_kwargs("FrozenLake-v1", spec, {"is_slippery": False})
    with pytest.raises(
        SetupError, match=f"is_slippery of FrozenLake-v1 is a flag, and not {re.escape(repr(value))}; send true"
    ):
        check_known_env_kwargs("FrozenLake-v1", spec, {"is_slippery": value})


def test_defaults_are_shown_as_far_as_they_are_plain() -> None:
    assert to_plain((1, "a", None, math.inf, object(), "/etc/passwd")) == [1, "a", None, None, None, None]
    assert to_plain([10**400, -(10**400), 10**300]) == [None, None, 10**300], "what no float can hold"
