"""Check and measure observation and action spaces, and store observations.

A ``Dict`` observation is one element of a NumPy structured array, with a field per key. Arrays of such elements are
indexed, masked and stacked like any other, and ``array["key"]`` is a view, as in a dict of arrays.
"""

from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gymnasium import spaces, vector

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]

# Networks compute, and rollouts hold rewards and observations, in float32, where larger numbers are infinite.
FLOAT32_MAX = float(np.finfo(np.float32).max)

_ARRAYS = "a Box of numbers, Discrete or one-dimensional MultiDiscrete starting at 0, MultiBinary, or a Dict of these"
# By the name of the space's class, since each is mended in another way.
_OBSERVATION_REMEDIES = {
    "Text": "text has no numbers for a network; gymnasium.wrappers.FilterObservation leaves it out of a Dict, and "
    "TransformObservation turns it into a Box.",
    "Sequence": "its length varies; gymnasium.wrappers.TransformObservation makes a Box of fixed length, padded.",
    "Graph": "its size varies; gymnasium.wrappers.TransformObservation makes a Box of fixed size.",
    "OneOf": "its shape varies; gymnasium.wrappers.TransformObservation makes a Box of one shape.",
    "Tuple": "gymnasium.wrappers.FlattenObservation(env) makes a Box of a Tuple of numbers.",
    "Discrete": "its choices must start at 0; gymnasium.wrappers.TransformObservation subtracts the start.",
    "MultiDiscrete": "it must have one axis and start at 0; gymnasium.wrappers.FlattenObservation(env) makes a Box of "
    "it.",
}
_ACTION_REMEDIES = {
    "Dict": "flatten it: gymnasium.wrappers.TransformAction(env, lambda action: gymnasium.spaces.unflatten("
    "env.action_space, action), gymnasium.spaces.flatten_space(env.action_space)), where all its parts are Boxes of "
    "floats.",
    "Tuple": "gymnasium.wrappers.TransformAction(env, tuple, gymnasium.spaces.MultiDiscrete([...])) makes it of one "
    "MultiDiscrete, where all its parts are Discrete.",
    "Discrete": "its choices must start at 0; gymnasium.wrappers.TransformAction adds the start.",
    "MultiDiscrete": "it must have one axis and start at 0; gymnasium.wrappers.TransformAction reshapes actions "
    "and adds the start.",
    "MultiBinary": "it must have one axis; gymnasium.wrappers.TransformAction reshapes actions.",
}


class UnsupportedSpaceError(ValueError):
    """A policy cannot be trained with the observation or action space."""


def check_spaces(env: Any) -> None:
    """Check that a policy can be trained in the spaces of an environment.

    :param env: An environment, or a vectorised one.
    :raises UnsupportedSpaceError: If it cannot, a space is missing, or it is no environment; the message names the
        value, the rule and the remedy.
    """
    if isinstance(env, type):
        raise UnsupportedSpaceError(f"env is the class {env.__name__}; make an instance of it: {env.__name__}().")
    if not callable(getattr(env, "step", None)):
        raise UnsupportedSpaceError(f"env is {env!r:.100}, {_explain_no_env(env)}")
    if isinstance(env, vector.VectorEnv):
        raise UnsupportedSpaceError(
            f"env is {env!r:.100}, a vectorised environment of Gymnasium's, and SB3 has its own: "
            "stable_baselines3.common.env_util.make_vec_env(id, n_envs=n)."
        )
    for role in ("observation_space", "action_space"):
        try:
            space = getattr(env, role, None)
        except Exception as error:  # a property of a foreign class may raise anything
            raise UnsupportedSpaceError(f"{role} of {type(env).__name__} cannot be read ({error}); fix it.") from error
        if isinstance(space, spaces.Space):
            continue
        came = "missing" if space is None else f"{space!r:.200} of type {type(space).__module__}.{type(space).__name__}"
        raise UnsupportedSpaceError(
            f"{role} of {type(env).__name__} is {came}; set self.{role} to a space of gymnasium.spaces in __init__."
        )
    check_observation_space(env.observation_space)
    check_action_space(env.action_space)


def _explain_no_env(env: Any) -> str:
    """Say what an object without ``step`` is, and how an environment is made of it."""
    if isinstance(env, str):
        return "the id of an environment; make it first: gym.make(...)."
    if callable(env):
        name = getattr(env, "__name__", "")
        call = f"{name if name.isidentifier() else 'env'}()"
        return f"a function; call it, to pass the environment that it makes: {call}."
    if isinstance(env, list | tuple):
        kind = type(env).__name__
        return f"a {kind}; DummyVecEnv([...]) makes a vectorised environment of functions that make one each."
    return (
        f"of type {type(env).__name__}, which has no step(); pass an environment, gym.make('CartPole-v1') for one, its "
        "id, or a vectorised environment."
    )


def is_image_space(space: spaces.Space[Any], normalized_image: bool = False) -> bool:
    """Return whether SB3 treats a space as an image: a Box with three axes, of uint8 from 0 to 255.

    :param normalized_image: Whether to accept any Box with three axes.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    return normalized_image or bool(space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all())


def list_normalizable(space: spaces.Space[Any]) -> list[str]:
    """List the keys of the observations that can be normalised; an empty key stands for observations without keys."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    return [key for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)]


def check_observation_space(space: spaces.Space[Any]) -> None:
    """Check that a policy can be trained on observations of a space.

    :raises UnsupportedSpaceError: If it cannot; the message names the space, the rule and the remedy.
    """
    if not isinstance(space, spaces.Dict):
        count_inputs(space)
        return
    if not space.spaces:
        _refuse("observation", space, "it has no keys; give it at least one.")
    for key, subspace in space.spaces.items():
        # Keys name modules in torch, fields in NumPy and members in a model file.
        if not isinstance(key, str) or not key or not key.isprintable() or set(key) & set("./\\"):
            _refuse("observation", space, f"key {key!r} must be printable text without dots and slashes; rename it.")
        if isinstance(subspace, spaces.Dict | spaces.Tuple):
            _refuse(
                "observation",
                space,
                f"key {key!r} is nested; gymnasium.wrappers.FlattenObservation(env) makes one Box of all keys, if they "
                "hold numbers only; or flatten it into the Dict above it.",
            )
    _check_keys(space)


def _check_keys(space: spaces.Dict) -> None:
    """Check every key's own space, and name all keys to keep where some cannot be observed.

    :raises UnsupportedSpaceError: If some cannot.
    """
    faults: dict[str, UnsupportedSpaceError] = {}
    for key, subspace in space.spaces.items():
        try:
            count_inputs(subspace)
        except UnsupportedSpaceError as error:
            faults[key] = error
    if not faults:
        return
    kept = [key for key in space.spaces if key not in faults]
    remedy = f" To leave it out: gymnasium.wrappers.FilterObservation(env, {kept})." if kept else ""
    key, fault = next(iter(faults.items()))
    raise UnsupportedSpaceError(f"key {key!r}: {fault}{remedy}") from fault


def check_action_space(space: spaces.Space[Any]) -> None:
    """Check that a policy can choose actions of a space.

    :raises UnsupportedSpaceError: If it cannot; the message names the space, the rule and the remedy.
    """
    count_outputs(space)


def count_inputs(space: spaces.Space[Any]) -> int:
    """Count the inputs of the networks: the numbers of a flattened observation, with one-hot discrete values.

    :raises UnsupportedSpaceError: If a policy cannot observe the space.
    """
    if isinstance(space, spaces.Dict):
        check_observation_space(space)
        return sum(map(count_inputs, space.spaces.values()))
    if isinstance(space, spaces.Box):
        _check_box("observation", space)
        return int(np.prod(space.shape))
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    return sum(_list_choices(space) or _refuse("observation", space, _describe_remedy("observation", space)))


def count_outputs(space: spaces.Space[Any]) -> int:
    """Count the policy's outputs: a logit per discrete choice or binary digit, a mean per dimension of a Box.

    :raises UnsupportedSpaceError: If a policy cannot act in the space.
    """
    if isinstance(space, spaces.Box):
        _check_action_box(space)
        return int(np.prod(space.shape))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return int(space.shape[0])
    return sum(_list_choices(space) or _refuse("action", space, _describe_remedy("action", space)))


def count_mask_bits(space: spaces.Space[Any]) -> int:
    """Count the flags of an action mask, as sb3-contrib lays them out.

    :return: One per choice; for MultiBinary two per digit, whether it may be 0 and whether it may be 1.
    :raises UnsupportedSpaceError: If actions of the space cannot be masked.
    """
    n_outputs = count_outputs(space)
    if isinstance(space, spaces.Box):
        _refuse("action", space, "only discrete choices can be masked; leave action masks out.")
    return 2 * n_outputs if isinstance(space, spaces.MultiBinary) else n_outputs


def observation_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    """Return the dtype of stored observations; for a Dict, it has a field per key with its subspace's dtype and shape.

    An array of ``n`` observations is ``np.zeros((n, *(space.shape or ())), observation_dtype(space))``.
    """
    if isinstance(space, spaces.Dict):
        # Aligned, because torch needs views whose strides are multiples of the item size.
        return np.dtype([(key, sub.dtype, sub.shape) for key, sub in space.spaces.items()], align=True)
    return np.dtype(space.dtype)


def pack(space: spaces.Space[Any], observation: Any) -> Array:
    """Convert an observation, or a batch of observations, to the dtype of stored observations.

    :param observation: What ``space.sample()`` or a vectorised environment returns, with any leading axes; packed
        observations are returned as they are.
    :return: An array of shape ``(..., *observation_shape)``; for a Dict, ``(...)`` with a field per key.
    """
    dtype = observation_dtype(space)
    if not isinstance(space, spaces.Dict) or isinstance(observation, np.ndarray | np.void):
        return np.asarray(observation, dtype)
    key, subspace = next(iter(space.spaces.items()))
    first = np.shape(observation[key])
    packed = np.zeros(first[: len(first) - len(subspace.shape or ())], dtype)
    for key in space.spaces:
        packed[key] = observation[key]
    return packed


def to_inputs(space: spaces.Space[Any], observations: Any, name: str = "observations") -> Any:
    """Check observations of unknown origin, and put the channels of images first, as SB3's ``predict`` does.

    :param observations: Arrays or lists ``(batch_size, *observation_shape)``, packed ones, or a dict of such.
    :param name: Their name in the message.
    :return: An array, or a dict of arrays.
    :raises ValueError: If they have another shape, or are no finite numbers.
    :raises TypeError: If a dict comes where an array has to, or the other way round.
    """
    if isinstance(observations, np.ndarray):
        observations = unpack(observations)
    if isinstance(space, spaces.Dict):
        return _to_parts(space, observations, name)
    if isinstance(observations, dict):
        raise TypeError(f"{name} are a dict with keys {[*observations]}; pass one array for {space}.")
    array, shape = np.asarray(observations), space.shape or ()
    if array.dtype.hasobject:
        with suppress(TypeError, ValueError):  # unless these are no numbers
            array = array.astype(np.float64)
    if array.ndim == 4 and array.shape[1:] != shape and is_image_space(space):
        array = array.transpose(0, 3, 1, 2)
    if array.shape[1:] != shape or array.ndim == 0:
        hint = "; observation[None] makes a batch of one" if array.shape == shape else ""
        rule = ", ".join(["batch_size", *map(str, shape)])
        raise ValueError(f"{name} have shape {array.shape}; pass ({rule}){hint}.")
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} are of type {array.dtype}; pass numbers.")
    _check_each(array, np.isfinite(array), name, "finite numbers")
    if not isinstance(space, spaces.Box):
        _check_each(array, array == np.floor(array), name, f"whole numbers for {space}")
    return array


def _to_parts(space: spaces.Dict, observations: Any, name: str) -> dict[str, Array]:
    if not isinstance(observations, dict) or not space.spaces.keys() <= observations.keys():
        came = f"have the keys {[*observations]}" if isinstance(observations, dict) else "are no dict"
        raise TypeError(f"{name} {came}; pass a dict of arrays with the keys {[*space.spaces]}.")
    parts = {key: to_inputs(part, observations[key], f"{name}[{key!r}]") for key, part in space.spaces.items()}
    if len({*map(len, parts.values())}) > 1:
        sizes = ", ".join(f"{len(part)} of {key!r}" for key, part in parts.items())
        raise ValueError(f"{name} are {sizes}; pass as many of each.")
    return parts


def _check_each(array: Array, is_right: Array, name: str, rule: str) -> None:
    if not is_right.all():
        at = np.argwhere(~is_right)[0].tolist()
        raise ValueError(f"{name}{at} is {array[*at]}; pass {rule}.")


def unpack(observations: Observations) -> Observations:
    """Return views of stored observations: an array ``(..., *observation_shape)``, or a dict of such arrays."""
    if isinstance(observations, dict) or observations.dtype.names is None:
        return observations
    return {key: observations[key] for key in observations.dtype.names}


def _list_choices(space: spaces.Space[Any]) -> list[int]:
    """List the numbers of choices of a Discrete or MultiDiscrete space; the list is empty for any other."""
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1 and not np.any(space.start):
        return [int(n) for n in space.nvec]
    return []


def _check_box(role: str, space: spaces.Box) -> None:
    if space.dtype.kind not in "fiu" or space.dtype.itemsize > 8:
        _refuse(
            role,
            space,
            f"its numbers are {space.dtype}; use a Box of numbers in float32, float64 or integers of up to 64 bits: "
            "gymnasium.wrappers.DtypeObservation(env, np.float32) converts them.",
        )
    if not space.shape:
        _refuse(
            role,
            space,
            "SB3's networks need at least one axis and one number; reshape it: "
            "gymnasium.wrappers.ReshapeObservation(env, (1,)).",
        )
    if 0 in space.shape:
        _refuse(role, space, "it has no numbers; SB3's networks need at least one axis and one number; reshape it.")
    if (space.low > space.high).any():
        _refuse(role, space, "some of its lower bounds are above the upper ones; swap them.")


def _check_action_box(space: spaces.Box) -> None:
    """Refuse a Box of actions that a Gaussian policy cannot fill.

    :raises UnsupportedSpaceError: If its numbers are no floats, or their bounds are infinite or contradict each other.
    """
    shape = space.shape
    if space.dtype.kind in "iu":
        bounds = f"gymnasium.spaces.Box(low, high, {shape})"
        if space.is_bounded() and shape:
            bounds = f"gymnasium.spaces.Box({space.low.min()}, {space.high.max()}, {shape})"
        _refuse(
            "action",
            space,
            f"its numbers are {space.dtype}, and the policy draws floats; declare Discrete or MultiDiscrete, or a Box "
            "of floats whose actions are rounded: gymnasium.wrappers.TransformAction(env, lambda action: "
            f"np.rint(action).astype(np.{space.dtype}), {bounds}).",
        )
    if space.dtype.kind != "f":
        _refuse("action", space, f"its numbers are {space.dtype}; use a Box of floats with finite bounds.")
    if 0 in shape:
        _refuse("action", space, "it has no numbers; use a Box of floats with finite bounds and at least one number.")
    if not space.is_bounded():
        _refuse(
            "action",
            space,
            "it needs finite bounds, the range that the environment expects: gymnasium.wrappers.TransformAction(env, "
            f"lambda action: action, gymnasium.spaces.Box(-1.0, 1.0, {shape})) declares one from -1 to 1.",
        )
    if (space.low > space.high).any() or (space.low == space.high).all():
        _refuse("action", space, "its lower bounds must be below its upper ones; correct them.")


def _describe_remedy(role: str, space: spaces.Space[Any]) -> str:
    """Say what may be used instead of a space, and which wrapper of Gymnasium's makes it of this one."""
    remedies = _OBSERVATION_REMEDIES if role == "observation" else _ACTION_REMEDIES
    name = next((kind.__name__ for kind in type(space).__mro__ if kind.__name__ in remedies), "")
    if role == "observation":
        remedy = remedies.get(name, "gymnasium.wrappers.TransformObservation makes one.")
        return f"use {_ARRAYS}; {remedy}"
    remedy = remedies.get(name, "gymnasium.wrappers.TransformAction makes one.")
    return (
        "use Discrete or one-dimensional MultiDiscrete starting at 0, one-dimensional MultiBinary, or a Box of floats "
        f"with finite bounds; {remedy}"
    )


def _refuse(role: str, space: spaces.Space[Any], rule: str) -> NoReturn:
    raise UnsupportedSpaceError(f"{role} space {space} is not supported: {rule}")
