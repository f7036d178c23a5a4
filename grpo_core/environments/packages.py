"""Say which package an environment lacks, and the command that installs it."""

import keyword
import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import gymnasium as gym


class _Family(NamedTuple):
    """Environments that a package registers once its module is imported.

    :param pattern: Pattern of their ids.
    :param module: The module.
    :param package: Name that pip installs.
    """

    pattern: str
    module: str
    package: str


_ATARI = "ale-py opencv-python-headless"
# What pip installs, by module, where it has another name. Not extras: those of a clone are not spelt as elsewhere.
_PACKAGES = {
    "mujoco": '"gymnasium[mujoco]"',
    "Box2D": '"gymnasium[box2d]"',
    "ale_py": _ATARI,
    "cv2": _ATARI,
    "gym_anytrading": "gym-anytrading",
    "pygame": "pygame-ce",
    "PIL": "pillow",
}
_FAMILIES: tuple[_Family, ...] = (
    _Family(r"ALE/.*|.*NoFrameskip-v\d", "ale_py", _ATARI),
    _Family(r"(MiniGrid|BabyAI)-.*", "minigrid", "minigrid"),
    _Family(r"(stocks|forex)-v\d", "gym_anytrading", "gym-anytrading"),
    _Family(
        r"(Fetch|HandReach|HandManipulate|AntMaze|PointMaze|AdroitHand|FrankaKitchen).*",
        "gymnasium_robotics",
        "gymnasium-robotics",
    ),
    _Family(r"(highway|merge|roundabout|parking|intersection|racetrack)(-.*)?-v\d", "highway_env", "highway-env"),
    _Family(r"FlappyBird-v\d", "flappy_bird_gymnasium", "flappy-bird-gymnasium"),
    _Family(r"Panda.*-v\d", "panda_gym", "panda-gym"),
    _Family(r"Meta-World/.*", "metaworld", "metaworld"),
)
_KNOWN = {*_PACKAGES, *(family.module for family in _FAMILIES)}


def is_module_name(name: str) -> bool:
    """Return whether a name is written as in an import, or has a dash; that of a file is not."""
    is_file = name.endswith(".py")
    return not is_file and all(
        re.fullmatch(r"[\w-]+", part) and not keyword.iskeyword(part) for part in name.split(".")
    )


def describe_missing_package(error: BaseException) -> str | None:
    """Name the package whose absence caused an error, and the command that installs it; None if none is missing."""
    cause: BaseException | None = error
    name = None
    while cause is not None:
        if isinstance(cause, ModuleNotFoundError) and cause.name:
            name = cause.name.partition(".")[0]
        cause = cause.__cause__ or cause.__context__
    if name is None:
        return None
    if name not in _KNOWN:
        return f"the module '{name}' is missing; if a package of that name provides it: pip install {name}"
    return f"{name} is not installed: {describe_install(name)}"


def describe_install(module: str) -> str:
    """Return the command that installs a module."""
    return f"pip install {_PACKAGES.get(module, module)}"


def describe_origin(env_id: str, option: str) -> str | None:
    """Say which module registers an environment that is not registered, and how it gets imported; None if unknown.

    :param option: Words that tell people how to import the module, such as ``start the server with --env-module``.
    """
    for family in _FAMILIES:
        if re.fullmatch(family.pattern, env_id):
            imports = f"{family.module} registers it; {option} {family.module}"
            return imports if find_spec(family.module) else f"{imports}, after: pip install {family.package}"
    return None


@contextmanager
def explain_missing_packages(env: Any, prefix: str = "", option: str = "import") -> Iterator[None]:
    """Let errors of ``gym.make`` end with the command that installs what is missing.

    :param env: The id of the environment; anything else is not made, so that its errors are others.
    :param prefix: Beginning of the message.
    :param option: The remedy that imports a module that registers environments.
    """
    try:
        yield
    except (ImportError, gym.error.Error) as error:
        text = describe_missing_package(error) if isinstance(env, str) else None
        if text is None and isinstance(error, gym.error.UnregisteredEnv):
            text = describe_origin(str(env), option)
        if text is None:
            raise
        raise type(error)(f"{prefix}{text}") from error
