"""Check what an environment's methods return, at its first reset and its first step.

Every wrapper is checked along with the environment inside it, so that an error names the class at fault. Later calls go
to the environment itself, and cost no more than a look at the types of what a step returned.
"""

import copy
import functools
import inspect
import math
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from gymnasium import spaces

from grpo_core.environments.action_masks import get_action_masks, sample_action
from grpo_core.environments.errors import InvalidEnvironmentError
from grpo_core.environments.flags import (
    describe,
    read_flag,
    read_success,
    shorten,
    to_array,
)
from grpo_core.environments.nested import Env, list_nested_envs
from grpo_core.spaces import FLOAT32_MAX, count_mask_bits

# Checks what one wrapper or environment has returned, under the name given first.
_Check = Callable[[str, Any], None]

_STEP_RULE = "return observation, reward, terminated, truncated, info"
_RESET_RULE = "return observation, info"
_SIGNATURES = {"reset": "reset(self, *, seed=None, options=None)", "step": "step(self, action)"}
# Largest relative error of storing a bound in another type of float.
_ROUNDING = 1e-6
_REWARD_TYPES = frozenset({float, int, np.float64, np.float32, np.int64})
_FLAG_TYPES = frozenset({bool, np.bool_})
# Whose wrappers stumble over what they are given, and how.
_LIBRARIES = frozenset({"gymnasium", "stable_baselines3", "grpo_core"})
_STUMBLES = frozenset({TypeError, ValueError, KeyError, IndexError, AttributeError})


def try_out(env: Env) -> None:
    """Reset an environment and take one allowed step, to check what its methods return; it must be reset afterwards.

    :raises InvalidEnvironmentError: If a method returns what it must not.
    :raises Exception: Whatever the environment raises, with a note that names the method.
    """
    call_reset(env, seed=0)
    masks = get_action_masks(env)
    check_masks(env.action_space, masks)
    action_space = copy.deepcopy(env.action_space)
    action_space.seed(0)
    terminated, truncated, info = call_step(env, sample_action(action_space, masks))[2:]
    if not (terminated or truncated):  # as in sb3-contrib, there need be no masks then
        check_masks(env.action_space, get_action_masks(env))
    read_success(info)


def check_methods(env: Env) -> None:
    """Say what is wrong with the methods of an environment that failed, rather than where it showed.

    :raises InvalidEnvironmentError: If a method returns what it must not. An error of the environment's own is left for
        whoever uses it next.
    """
    try:
        try_out(env)
    except InvalidEnvironmentError:
        raise
    except Exception:  # foreign code may raise anything
        return


def explain_stumble(env: Env, error: Exception, action: Any) -> None:
    """Say what the environment inside a wrapper returned, if a later step failed in the code of a library's wrapper.

    Only now is it asked, by another step: a check of every step would cost time. Not where the code of an environment
    or of a user's wrapper raised the error, which tells enough.

    :param error: The error of the step.
    :raises InvalidEnvironmentError: If ``step`` returns what it must not.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    packages = [frame.f_globals.get("__name__", "").partition(".")[0] for frame in frames]
    raised_by = next((package for package in reversed(packages) if package != "numpy"), "")
    innermost = list_nested_envs(env)[-1]
    is_own = any(frame.f_locals.get("self") is innermost for frame in frames)
    if is_own or raised_by not in _LIBRARIES or type(error) not in _STUMBLES:
        return
    try:
        call_step(env, action)
    except InvalidEnvironmentError as fault:
        raise fault from error
    except Exception:  # foreign code may raise anything; the first error tells more
        return


def call_reset(env: Env, **arguments: Any) -> Any:
    """Reset an environment, and check what it and its wrappers return.

    :raises InvalidEnvironmentError: If one of them returns what it must not.
    """
    with _watch(env, "reset", check_reset, f"seed={arguments.get('seed')}") as returned_by:
        returned = env.reset(**arguments)
    _check_observed(env, "reset()", returned_by)
    return returned


def call_step(env: Env, action: Any) -> Any:
    """Step an environment, and check what it and its wrappers return.

    :raises InvalidEnvironmentError: If one of them returns what it must not.
    """
    with _watch(env, "step", check_step, shorten.repr(action)) as returned_by:
        returned = env.step(action)
    _check_observed(env, "step()", returned_by)
    return returned


def is_usual(returned: Any) -> bool:
    """Return whether ``step`` returned a reward and flags that need no further look: of the usual types and sizes."""
    if type(returned) is not tuple or len(returned) != 5:
        return False
    _, reward, terminated, truncated, info = returned
    return (
        type(reward) in _REWARD_TYPES
        and not FLOAT32_MAX < abs(reward) < math.inf  # what is infinite is named with its place in the rollout
        and type(terminated) in _FLAG_TYPES
        and type(truncated) in _FLAG_TYPES
        and isinstance(info, dict)
    )


def check_reset(source: str, returned: Any) -> None:
    """Check the form of what ``reset`` returned: an observation and a dict.

    :param source: The class at fault.
    :raises InvalidEnvironmentError: If it has another form.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 2:
        raise _refuse(source, "reset()", _describe_parts(returned), f"an observation and a dict: {_RESET_RULE}")
    if not isinstance(returned[1], Mapping):
        came = f"{describe(returned[1])} as its second value"
        raise _refuse(source, "reset()", came, f"a dict there, empty if there is nothing to tell: {_RESET_RULE}")


def check_step(source: str, returned: Any) -> None:
    """Check what ``step`` returned, except the observation: five values of the right kinds.

    :param source: The class at fault.
    :raises InvalidEnvironmentError: If a value is missing or of another kind.
    """
    if not isinstance(returned, tuple | list) or len(returned) != 5:
        old = isinstance(returned, tuple | list) and len(returned) == 4
        hint = "; the old done is terminated, or truncated where a time limit ended the episode" if old else ""
        raise _refuse(source, "step()", _describe_parts(returned), f"five values: {_STEP_RULE}{hint}")
    _, reward, terminated, truncated, info = returned
    _check_reward(source, reward)
    for name, flag in (("terminated", terminated), ("truncated", truncated)):
        if read_flag(flag) is None:
            came = f"{describe(flag)} as {name}"
            raise _refuse(source, "step()", came, "True or False there: bool(...) makes one of a condition")
    if not isinstance(info, Mapping):
        came = f"{describe(info)} as info"
        raise _refuse(source, "step()", came, f"a dict there, empty if there is nothing to tell: {_STEP_RULE}")
    episode = info.get("episode")
    if episode is not None and not (isinstance(episode, Mapping) and {"r", "l"} <= episode.keys()):
        rule = "a dict with the episode's reward r and length l there, which SB3 reads; give yours another name"
        raise _refuse(source, "step()", f"{describe(episode)} as info['episode']", rule)


def check_observation(source: str, method: str, observation: Any, space: spaces.Space[Any]) -> None:
    """Check an observation against its space; numbers outside the bounds only cause a warning.

    :raises InvalidEnvironmentError: If it is no observation of that kind and shape.
    """
    fault = _find_fault(observation, space)
    if fault is not None:
        rule = f"an observation of observation_space {shorten.repr(space)}; correct either"
        raise _refuse(source, method, fault, rule)
    # VecNormalize writes its own bounds into the parts of a Dict that it shares with the environment.
    if isinstance(space, spaces.Box) and _is_outside(np.asarray(observation), space):
        warnings.warn(
            f"{source}.{method} returned an observation outside the bounds of {shorten.repr(space)}; it "
            "is used as it is. Correct the bounds, or clip the observation.",
            stacklevel=2,
        )


def check_masks(action_space: spaces.Space[Any], masks: Any) -> None:
    """Check what ``action_masks()`` returned while the episode goes on.

    :param masks: Its result; None allows all actions.
    :raises InvalidEnvironmentError: If the flags are too few or too many, no flags, or allow no action.
    """
    if masks is None or isinstance(action_space, spaces.Box):
        return
    n_bits = count_mask_bits(action_space)
    rule = f"{n_bits} flags for action_space {shorten.repr(action_space)}, True for what is allowed"
    try:
        flags = np.array(masks).ravel()
    except (ValueError, TypeError):
        flags = np.array([None])
    if flags.dtype.kind not in "biuf" or not np.isin(flags, (0, 1)).all():
        raise InvalidEnvironmentError(f"action_masks() returned {describe(masks)}; it has to return {rule}.")
    if len(flags) != n_bits:
        raise InvalidEnvironmentError(f"action_masks() returned {len(flags)} flags; it has to return {rule}.")
    if not all(part.any() for part in _split_flags(flags, action_space)):
        raise InvalidEnvironmentError(
            f"action_masks() returned {describe(masks)}, which allows no action; allow at least one of each choice, "
            "or end the episode."
        )


@contextmanager
def _watch(env: Env, method: str, check: _Check, arguments: str) -> Iterator[dict[int, Any]]:
    """Check every wrapper's and the environment's own method for as long as the context lasts.

    :param arguments: What it is called with, for a note on errors of its own.
    :return: What each has returned, by its place: 0 is the outermost.
    """
    returned_by: dict[int, Any] = {}
    nested_envs = list_nested_envs(env)
    undo = [_replace(nested, method, check, i, returned_by) for i, nested in enumerate(nested_envs)]
    try:
        yield returned_by
    except InvalidEnvironmentError:
        raise
    except Exception as error:  # foreign code may raise anything
        # A wrapper may have stumbled over an observation that the environment inside it must not return.
        for i, returned in sorted(returned_by.items(), reverse=True):
            if (fault := _find_layer_fault(nested_envs[i], returned)) is not None:
                raise _refuse_observation(nested_envs[i], f"{method}()", fault) from error
        error.add_note(f"{_name(nested_envs[-1])}.{method}({arguments}) raised it, at its first call.")
        raise
    finally:
        for restore in undo:
            restore()


def _replace(env: Env, method: str, check: _Check, place: int, returned_by: dict[int, Any]) -> Callable[[], None]:
    """Put a checked method in the place of an environment's own; return the function that takes it away again."""
    source, original = _name(env), getattr(env, method)

    @functools.wraps(original)
    def checked(*args: Any, **kwargs: Any) -> Any:
        _check_signature(source, method, original, args, kwargs)
        returned = original(*args, **kwargs)
        check(source, returned)
        returned_by[place] = returned
        return returned

    had_own = method in getattr(env, "__dict__", {})
    try:
        setattr(env, method, checked)
    except Exception:  # a foreign class may forbid it; it is then checked from outside alone
        return lambda: None
    return lambda: setattr(env, method, original) if had_own else delattr(env, method)


def _check_signature(source: str, method: str, function: Any, args: Any, kwargs: Any) -> None:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):  # native code shows none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InvalidEnvironmentError(
            f"{source}.{method}() cannot be called as Gymnasium calls it ({error}); define it as {_SIGNATURES[method]}."
        ) from error


def _check_observed(env: Env, method: str, returned_by: Mapping[int, Any]) -> None:
    """Check the observation that comes out of all wrappers, and blame the innermost that is at fault."""
    if 0 not in returned_by:
        return
    nested_envs = list_nested_envs(env)
    observation = returned_by[0][0]
    source = _name(env)
    if _find_fault(observation, env.observation_space) is not None:
        for i, returned in sorted(returned_by.items(), reverse=True):
            if (fault := _find_layer_fault(nested_envs[i], returned)) is not None:
                raise _refuse_observation(nested_envs[i], method, fault)
    inner = returned_by.get(len(nested_envs) - 1)
    if inner is not None and inner[0] is observation:
        source = _name(nested_envs[-1])
    check_observation(source, method, observation, env.observation_space)


def _find_layer_fault(env: Env, returned: Any) -> str | None:
    space = getattr(env, "observation_space", None)
    return _find_fault(returned[0], space) if isinstance(space, spaces.Space) else None


def _refuse_observation(env: Env, method: str, fault: str) -> InvalidEnvironmentError:
    rule = f"an observation of observation_space {shorten.repr(env.observation_space)}; correct either"
    return _refuse(_name(env), method, fault, rule)


def _refuse(source: str, method: str, came: str, rule: str) -> InvalidEnvironmentError:
    return InvalidEnvironmentError(f"{source}.{method} returned {came}; it has to return {rule}.")


def _name(env: Any) -> str:
    return type(env).__name__


def _check_reward(source: str, reward: Any) -> None:
    try:
        is_number = np.ndim(reward) == 0 and not isinstance(reward, str | bytes) and math.isfinite(float(reward))
        is_too_large = is_number and abs(float(reward)) > FLOAT32_MAX
    except (TypeError, ValueError, OverflowError):
        is_number = is_too_large = False
    if is_too_large:
        rule = f"a size of at most {FLOAT32_MAX:.2g} there, the largest number in float32; scale rewards down"
        raise _refuse(source, "step()", f"{describe(reward)} as reward", rule)
    if not is_number:
        hint = "; float(reward[0]) takes it out of the array" if np.shape(to_array(reward)) == (1,) else ""
        raise _refuse(source, "step()", f"{describe(reward)} as reward", f"one finite number there{hint}")


def _find_fault(observation: Any, space: spaces.Space[Any]) -> str | None:
    """Describe an observation that does not belong to a space; None if it does, or is only outside a Box's bounds."""
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping):
            return f"{describe(observation)} instead of a dict with the keys {[*space.spaces]}"
        missing = [key for key in space.spaces if key not in observation]
        if missing:
            return f"a dict with the keys {[*observation]}, without {missing}"
        faults = {key: _find_fault(observation[key], part) for key, part in space.spaces.items()}
        return next((f"{fault} under key {key!r}" for key, fault in faults.items() if fault is not None), None)
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return None
    array = to_array(observation)
    if array.dtype.kind not in "biuf":
        return f"{describe(observation)} instead of numbers"
    if array.shape != space.shape:
        return f"{describe(observation)} of shape {array.shape} instead of {space.shape}"
    with np.errstate(over="ignore"):
        stored = array.astype(space.dtype) if space.dtype.kind == "f" else array
    if not np.isfinite(stored).all():
        return f"{describe(observation)} (not finite in {space.dtype})"
    return None if space.dtype.kind == "f" else _find_integer_fault(array, space)


def _find_integer_fault(array: np.ndarray[Any, Any], space: spaces.Space[Any]) -> str | None:
    if array.dtype.kind == "f" and (array != np.floor(array)).any():
        return f"fractions ({describe(array)}) instead of {space.dtype}"
    if isinstance(space, spaces.Box):
        limits = np.iinfo(space.dtype)
        low, high = np.array(limits.min), np.array(limits.max)
    elif isinstance(space, spaces.MultiBinary):
        low, high = np.array(0), np.array(1)
    else:
        assert isinstance(space, spaces.Discrete | spaces.MultiDiscrete), "the caller takes no other space"
        low = np.asarray(space.start)
        high = low + (space.n if isinstance(space, spaces.Discrete) else space.nvec) - 1
    is_outside = array.size > 0 and ((array < low) | (array > high)).any()
    return f"{describe(array)} (not in {shorten.repr(space)})" if is_outside else None


def _is_outside(array: np.ndarray[Any, Any], space: spaces.Box) -> bool:
    low, high = np.asarray(space.low, np.float64), np.asarray(space.high, np.float64)
    with np.errstate(invalid="ignore"):
        is_low = array < low - _ROUNDING * np.maximum(1.0, np.abs(low))
        is_high = array > high + _ROUNDING * np.maximum(1.0, np.abs(high))
    return bool((is_low | is_high).any())


def _split_flags(flags: np.ndarray[Any, Any], space: spaces.Space[Any]) -> list[np.ndarray[Any, Any]]:
    if isinstance(space, spaces.MultiDiscrete):
        return np.split(flags, np.cumsum(space.nvec.ravel())[:-1])
    return np.split(flags, len(flags) // 2) if isinstance(space, spaces.MultiBinary) else [flags]


def _describe_parts(returned: Any) -> str:
    if isinstance(returned, tuple | list):
        return f"{len(returned)} values"
    return describe(returned)
