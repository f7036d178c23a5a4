"""Environments of odd classes train as others do."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

from grpo import GRPO
from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.nested import find_action_masks, name_env
from tests.environments import LineEnv


class Looked(LineEnv):
    """Looks any attribute up that it does not have."""

    held: dict[str, Any] = {}  # noqa: RUF012  # read alone

    def __getattr__(self, name: str) -> Any:
        return self.held[name]


class LookedInWrapper(gym.Wrapper[Any, Any, Any, Any]):
    """Likewise, around a line."""

    held: dict[str, Any] = {}  # noqa: RUF012  # read alone

    def __init__(self) -> None:
        super().__init__(LineEnv())

    def __getattr__(self, name: str) -> Any:
        return self.held[name]


class Remote(LineEnv):
    """Takes any name for a method."""

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **options: "done"


class Unready(LineEnv):
    """Has masks that cannot be read."""

    @property
    def action_masks(self) -> Any:
        """Fail."""
        raise RuntimeError("not connected")


class Nameless(LineEnv):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no name")

    __repr__ = __str__


@pytest.mark.parametrize("make", [Looked, LookedInWrapper, Remote, Nameless])
@pytest.mark.parametrize("group_mode", ["branch", "episode"])
def test_odd_classes_train(make: Callable[[], gym.Env[Any, Any]], group_mode: Any) -> None:
    env = make()
    assert find_action_masks(env) is None
    GRPO("MlpPolicy", env, n_steps=16, horizon=8, n_epochs=1, group_mode=group_mode).learn(16)


@pytest.mark.parametrize("group_mode", ["auto", "branch", "episode"])
def test_masks_that_cannot_be_read_are_named(group_mode: Any) -> None:
    with pytest.raises(InvalidEnvironmentError, match=r"action_masks of .*Unready.* raised RuntimeError: not conn"):
        GRPO("MlpPolicy", Unready(), n_steps=16, horizon=8, group_mode=group_mode).learn(16)


def test_what_a_proxy_passes_on_is_found() -> None:
    class Proxy(gym.Wrapper[Any, Any, Any, Any]):
        def __getattr__(self, name: str) -> Any:
            if name == "action_masks":
                return lambda: [True, False]
            raise AttributeError(name)

    assert find_action_masks(Proxy(LineEnv()))() == [True, False]


def test_what_cannot_be_printed_is_named_by_its_class() -> None:
    assert name_env(gym.Wrapper(Nameless())) == "<Wrapper of Nameless>"
