"""What is not installed is named with the command that installs it."""

from typing import Any

import gymnasium as gym
import pytest

from grpo import GRPO
from grpo_core.environments.packages import describe_missing_package, describe_origin


def make_without(package: str) -> gym.Env[Any, Any]:
    try:
        raise ModuleNotFoundError(f"No module named '{package}'", name=package)
    except ModuleNotFoundError as error:
        raise gym.error.DependencyNotInstalled(f'{package} is missing, run `pip install "gymnasium[x]"`') from error


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("mujoco", 'mujoco is not installed: pip install "gymnasium[mujoco]"'),
        ("Box2D", 'Box2D is not installed: pip install "gymnasium[box2d]"'),
        ("ale_py", "ale_py is not installed: pip install ale-py opencv-python-headless"),
        ("cv2", "cv2 is not installed: pip install ale-py opencv-python-headless"),
        ("gym_anytrading", "gym_anytrading is not installed: pip install gym-anytrading"),
        ("my_robot", "the module 'my_robot' is missing; if a package of that name provides it: pip install my_robot"),
    ],
)
def test_every_error_ends_with_the_command(package: str, command: str) -> None:
    gym.register("Lacking-v0", entry_point=lambda **_: make_without(package))
    try:
        with pytest.raises(gym.error.DependencyNotInstalled) as refusal:
            GRPO("MlpPolicy", "Lacking-v0")
    finally:
        del gym.registry["Lacking-v0"]
    assert str(refusal.value) == f"env 'Lacking-v0' cannot be made: {command}"


def test_other_errors_are_left_alone() -> None:
    assert describe_missing_package(ValueError("no")) is None
    with pytest.raises(gym.error.NameNotFound, match="Environment `Chess` doesn't exist"):
        GRPO("MlpPolicy", "Chess-v0")


def test_environments_that_a_module_registers_name_it() -> None:
    said = describe_origin("MiniGrid-Empty-5x5-v0", "start the server with --env-module")
    assert said == "minigrid registers it; start the server with --env-module minigrid, after: pip install minigrid"
    assert describe_origin("Chess-v0", "import") is None
