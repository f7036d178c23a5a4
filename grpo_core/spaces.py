"""Check and measure observation and action spaces, and store observations.

A ``Dict`` observation is one element of a NumPy structured array, with a field per key. Arrays of such elements are
indexed, masked and stacked like any other, and ``array["key"]`` is a view, as in a dict of arrays.
"""

from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

Array = npt.NDArray[Any]
Observations = Array | dict[str, Array]

_OBSERVATION_RULE = (
    "use a Box of numbers, Discrete or one-dimensional MultiDiscrete starting at 0, MultiBinary, or a Dict of these "
    "(gymnasium.wrappers.FlattenObservation or TransformObservation makes one)."
)
_ACTION_RULE = (
    "use Discrete or one-dimensional MultiDiscrete starting at 0, one-dimensional MultiBinary, or a Box of floats "
    "with finite bounds (gymnasium.wrappers.TransformAction or RescaleAction makes one)."
)


class UnsupportedSpaceError(ValueError):
    """A policy cannot be trained with the observation or action space."""


def is_image_space(space: spaces.Space[Any], normalized_image: bool = False) -> bool:
    """Return whether SB3 treats a space as an image: a Box with three axes, of uint8 from 0 to 255.

    :param normalized_image: Whether to accept any Box with three axes.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3:
        return False
    return normalized_image or bool(space.dtype == np.uint8 and (space.low == 0).all() and (space.high == 255).all())


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
            _refuse("observation", space, f"key {key!r} is nested; flatten it into the Dict above it.")
        count_inputs(subspace)


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
        if space.dtype.kind not in "fiu" or space.dtype.itemsize > 8:
            _refuse("observation", space, _OBSERVATION_RULE)
        if not space.shape or 0 in space.shape:
            _refuse("observation", space, "SB3's networks need at least one axis and one number; reshape it.")
        return int(np.prod(space.shape))
    if isinstance(space, spaces.MultiBinary):
        return int(np.prod(space.shape))
    return sum(_list_choices(space) or _refuse("observation", space, _OBSERVATION_RULE))


def count_outputs(space: spaces.Space[Any]) -> int:
    """Count the policy's outputs: a logit per discrete choice or binary digit, a mean per dimension of a Box.

    :raises UnsupportedSpaceError: If a policy cannot act in the space.
    """
    if isinstance(space, spaces.Box):
        if space.dtype.kind != "f" or not space.is_bounded() or 0 in space.shape:
            _refuse("action", space, _ACTION_RULE)
        return int(np.prod(space.shape))
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return int(space.shape[0])
    return sum(_list_choices(space) or _refuse("action", space, _ACTION_RULE))


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


def _refuse(role: str, space: spaces.Space[Any], rule: str) -> NoReturn:
    raise UnsupportedSpaceError(f"{role} space {space} is not supported: {rule}")
