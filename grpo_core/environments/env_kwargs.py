"""Arguments of an environment's constructor: which there are, and which may come from a client or a file."""

import importlib
import inspect
import re
from collections.abc import Mapping
from typing import Any

from gymnasium.envs.registration import EnvSpec

from grpo_core.environments.registered_limits import to_finite
from grpo_core.environments.wrappers import SetupError
from grpo_core.suggestions import suggest

# Chosen, with room: of Gymnasium's environments Humanoid-v5 takes the most arguments, 22, and no default exceeds 1000.
_MAX_ARGUMENTS = 32
_MAX_VALUES = 256
_MAX_DEPTH = 4
_MAX_NUMBER = 10**9
# Names and codes, such as "8x8", "dense" or "SFFF"; no character that a path, a URL or a module's name needs.
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _+-]{0,63}|")
# Parts of names whose values may be read as files, addresses or code, whatever they look like.
_UNSAFE_PARTS = frozenset(
    "file files filename path paths dir directory folder xml urdf json yaml csv url uri host hostname address port "
    "socket ip module class cls import entry callback callable func function fn eval exec code script command cmd "
    "shell program executable binary pickle load loader save saver cache dataset log logger logging record recorder "
    "video output checkpoint weights plugin".split()
)
# Ends of words too, as in "logdir".
_UNSAFE_ENDS = ("file", "filename", "path", "dir", "url")
# A direction, in MiniGrid.
_SAFE_NAMES = frozenset({"agent_start_dir"})
# Set where an environment is made, each for its own reason.
_RESERVED = {
    "render_mode": "films choose it",
    "disable_env_checker": "training checks what the environment returns itself",
    "id": "env_name says it",
}


def check_env_kwargs(env_kwargs: Mapping[str, Any]) -> None:
    """Check that arguments from a client or a file are small and plain: numbers, flags, words, and lists of these.

    :raises ValueError: If a name or a value is not; the message says which, the rule and the remedy.
    """
    if len(env_kwargs) > _MAX_ARGUMENTS:
        raise ValueError(f"it has {len(env_kwargs)} entries; at most {_MAX_ARGUMENTS} are taken")
    for name, value in env_kwargs.items():
        _check_name(name)
        _check_value(name, value, _MAX_DEPTH)
    if sum(map(_count_values, env_kwargs.values())) > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_VALUES} values; send fewer")
    steps = env_kwargs.get("max_episode_steps", 1)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
        raise ValueError(f"max_episode_steps={steps!r} must be a whole number of at least 1")


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or len(name) > 64:
        raise ValueError(f"{name!r:.80} is no name of an argument; use a Python identifier")
    if name in _RESERVED:
        raise ValueError(f"{name!r} is not taken, since {_RESERVED[name]}; leave it out")
    if name.startswith("_") or (name not in _SAFE_NAMES and not _UNSAFE_PARTS.isdisjoint(_split_name(name))):
        raise ValueError(
            f"{name!r} is not taken, since it may name a file, an address or code; register an environment "
            "of your own with it, in a module of --env-module"
        )


def _split_name(name: str) -> list[str]:
    """Return the words of a name, in ``xmlFile``, ``XMLFile`` and ``xml_file2`` alike, and how ``xmlfile`` ends."""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]
    return [*words, *(end for word in words for end in _UNSAFE_ENDS if word.endswith(end))]


def _check_value(name: str, value: Any, depth_left: int) -> None:
    if isinstance(value, list | tuple | dict):
        if depth_left == 0:
            raise ValueError(f"{name!r} is nested more than {_MAX_DEPTH} deep; flatten it")
        for key in value if isinstance(value, dict) else ():
            _check_name(key)
        for part in value.values() if isinstance(value, dict) else value:
            _check_value(name, part, depth_left - 1)
    elif isinstance(value, str):
        if not _WORD.fullmatch(value):
            raise ValueError(
                f"{name!r} holds {value!r:.80}; text may have letters, digits, spaces, _, + and - only, at "
                "most 64 of them: no path, address or name of a module"
            )
    elif not isinstance(value, bool | int | float | None):
        raise ValueError(f"{name!r} holds a {type(value).__name__}; send numbers, words, flags or lists")
    elif value is not None and not abs(value) <= _MAX_NUMBER:  # false for NaN
        raise ValueError(f"{name!r} holds a number that is not allowed; numbers go from -1e9 to 1e9")


def _count_values(value: Any) -> int:
    if isinstance(value, list | tuple | dict):
        return sum(map(_count_values, value.values() if isinstance(value, dict) else value))
    return 1


def list_env_kwargs(spec: EnvSpec) -> dict[str, Any] | None:
    """List the arguments that an environment's constructor takes, with their defaults; those that clients may set.

    A constructor with ``**kwargs`` is followed to those of its base classes.

    :return: None if it takes any argument.
    """
    entry_point = _import_entry_point(spec)
    is_class = isinstance(entry_point, type)
    constructors = [vars(base).get("__init__") for base in inspect.getmro(entry_point)] if is_class else [entry_point]
    found: dict[str, Any] = {}
    for constructor in filter(None, constructors):
        try:
            parameters = inspect.signature(constructor).parameters.values()
        except (ValueError, TypeError):
            break
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
                found.setdefault(parameter.name, parameter.default)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            break
    else:
        if not is_class:
            return None
    found.pop("self", None)
    return {name: spec.kwargs.get(name, default) for name, default in found.items() if _is_open(name)}


def check_known_env_kwargs(env_name: str, spec: EnvSpec, env_kwargs: Mapping[str, Any]) -> None:
    """Check that an environment's constructor takes the arguments, and that no word or list is given for a flag.

    :raises SetupError: If it does not; the message names those that it takes.
    """
    known = list_env_kwargs(spec) if env_kwargs else None
    if known is None:
        return
    for name, value in env_kwargs.items():
        if isinstance(known.get(name), bool) and not isinstance(value, bool | int | float | None):
            # Nearly any text or list would count as true.
            raise SetupError(f"env_kwargs: {name} of {env_name} is a flag, and not {value!r:.80}; send true or false.")
        if name not in known and name != "max_episode_steps":
            takes = ", ".join(sorted(known)) or "none"
            hint = f"{suggest(name, known, n_most=1)} It takes: {takes}.".lstrip()
            raise SetupError(f"env_kwargs: {env_name} does not take {name!r}; {hint}")


def _is_open(name: str) -> bool:
    try:
        check_env_kwargs({name: 1})
    except ValueError:
        return False
    return True


def _import_entry_point(spec: EnvSpec) -> Any:
    if isinstance(spec.entry_point, str):
        module, _, name = spec.entry_point.partition(":")
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    assert spec.entry_point is not None, "the registration of a plain environment has an entry point"
    return spec.entry_point


def to_plain(value: Any) -> Any:
    """Return a default value if it is plain JSON, else None."""
    if isinstance(value, bool | str) or value is None:
        return value if value is None or isinstance(value, bool) or _WORD.fullmatch(value) else None
    if isinstance(value, int | float):
        return None if to_finite(value) is None else value
    if isinstance(value, list | tuple) and len(value) <= 16:
        return [to_plain(part) for part in value]
    return None
