"""From observations to the most likely actions, step by step, for whoever writes the steps down.

The walk is that of ``Actor.best_actions`` and ``Actor.clip_actions``, but that binary digits stay integers; the
operations are those that ONNX and torch share.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import Actor
from grpo_core.actor.distributions import Bernoulli, Gaussian, MultiCategorical
from grpo_core.actor.extractors import Flatten, NatureCnn
from grpo_core.spaces import count_mask_bits

#: A tensor of the format that is written, ``(batch_size, ...)``.
Tensor = Any
Constant = npt.NDArray[Any]

OBSERVATION, ACTION, ACTION_MASKS = "observation", "action", "action_masks"


class Port(NamedTuple):
    """An input or output of an exported policy.

    :param shape: Without the batch's axis, which comes first.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """Describe it in JSON."""
        return {"name": self.name, "dtype": str(self.dtype), "shape": ["batch_size", *self.shape]}


class Operations(Protocol):
    """The steps of a policy, each of which maps tensors ``(batch_size, ...)`` to one."""

    def cast(self, x: Tensor, dtype: npt.DTypeLike) -> Tensor:
        """Convert numbers to another type."""

    def subtract(self, x: Tensor, constant: Constant) -> Tensor:
        """Subtract an array of the same type, with broadcasting."""

    def divide(self, x: Tensor, constant: Constant) -> Tensor:
        """Divide by an array of the same type, with broadcasting."""

    def clip(self, x: Tensor, low: Constant, high: Constant) -> Tensor:
        """Clip to bounds of the same type, with broadcasting."""

    def flatten(self, x: Tensor) -> Tensor:
        """Put all but the first axis into one."""

    def reshape(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        """Reshape to ``(batch_size, *shape)``."""

    def pick(self, x: Tensor, columns: Constant) -> Tensor:
        """Pick columns by number, ``(batch_size, n_columns)``."""

    def concatenate(self, parts: Sequence[Tensor]) -> Tensor:
        """Join columns, ``(batch_size, n_columns)``."""

    def equal(self, x: Tensor, constant: Constant) -> Tensor:
        """Compare with an array of the same type."""

    def linear(self, x: Tensor, weight: Constant, bias: Constant) -> Tensor:
        """Apply weights ``(n_out, n_in)`` and biases."""

    def convolve(self, x: Tensor, weight: Constant, bias: Constant, stride: int) -> Tensor:
        """Convolve images with filters ``(n_filters, n_channels, height, width)``."""

    def activate(self, x: Tensor, name: str) -> Tensor:
        """Apply an activation, a key of ``ACTIVATIONS``, or ``Sigmoid``."""

    def select(self, flags: Tensor, x: Tensor, otherwise: float) -> Tensor:
        """Keep the numbers that are flagged, and put another in place of the rest."""

    def is_above(self, x: Tensor, threshold: float) -> Tensor:
        """Compare with a number."""

    def argmax(self, x: Tensor, keeps_axis: bool) -> Tensor:
        """Return the first column of the largest number, ``(batch_size,)`` or ``(batch_size, 1)``."""


def list_inputs(actor: Actor) -> dict[str | None, Port]:
    """List an exported policy's observations by the key of a Dict; None stands for observations without keys.

    A Dict's are named ``observation/<key>``. Types and shapes are those of the observation space.
    """
    space = actor.observation_space
    if isinstance(space, spaces.Dict):
        return {key: _make_port(f"{OBSERVATION}/{key}", part) for key, part in space.spaces.items()}
    return {None: _make_port(OBSERVATION, space)}


def make_output(actor: Actor) -> Port:
    """Describe an exported policy's actions: int64 choices, int8 digits, or floats within the bounds of a Box."""
    space, distribution = actor.action_space, actor.distribution
    if isinstance(distribution, Gaussian):
        return Port(ACTION, np.result_type(np.float32, _find_dtype(space)), distribution.shape)
    if isinstance(distribution, Bernoulli):
        return Port(ACTION, np.dtype(np.int8), space.shape or ())
    return Port(ACTION, np.dtype(np.int64), space.shape or ())


def make_masks_input(actor: Actor) -> Port:
    """Describe an exported policy's action masks, laid out as sb3-contrib does.

    :raises UnsupportedSpaceError: If its actions have none.
    """
    return Port(ACTION_MASKS, np.dtype(np.bool_), (count_mask_bits(actor.action_space),))


def choose_actions(
    actor: Actor, operations: Operations, observations: Mapping[str | None, Tensor], action_masks: Tensor | None
) -> Tensor:
    """Walk from observations to the most likely actions within their bounds.

    :param observations: A tensor per entry of ``list_inputs``, as the environment gives them.
    :param action_masks: Flags as ``make_masks_input`` describes them; None allows all.
    :return: As ``make_output`` describes it.
    """
    parts = []
    for key, x in observations.items():
        extractor: Any = actor.policy_extractor
        parts.append(
            _extract(
                extractor.parts[key] if key is not None else extractor,
                operations,
                *_normalize(actor, operations, key, x),
            )
        )
    x = parts[0] if len(parts) == 1 else operations.concatenate(parts)
    for weight, bias in actor.policy_layers[:-1]:
        x = operations.activate(operations.linear(x, weight, bias), actor.activation)
    x = operations.linear(x, *actor.policy_layers[-1])
    return _choose(actor, operations, x, action_masks)


def _make_port(name: str, space: spaces.Space[Any]) -> Port:
    return Port(name, _find_dtype(space), space.shape or ())


def _find_dtype(space: spaces.Space[Any]) -> np.dtype[Any]:
    # Neither format knows longer floats.
    dtype = np.dtype(space.dtype)
    return np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype


def _normalize(actor: Actor, operations: Operations, key: str | None, x: Tensor) -> tuple[Tensor, np.dtype[Any]]:
    """Apply the statistics of ``VecNormalize``; return the type of numbers too."""
    space: Any = actor.observation_space
    dtype = _find_dtype(space if key is None else space.spaces[key])
    statistics = actor.normalization
    if statistics is None:
        return x, dtype
    mean, var = statistics.mean, statistics.var
    if isinstance(mean, Mapping) and isinstance(var, Mapping):
        if key is None or key not in mean:
            return x, dtype
        mean, var = mean[key], var[key]
    bound = np.float64(statistics.clip_obs)
    x = operations.subtract(operations.cast(x, np.float64), np.asarray(mean, np.float64))
    x = operations.divide(x, np.sqrt(np.asarray(var, np.float64) + statistics.epsilon))
    x = operations.clip(x, np.asarray(-bound), np.asarray(bound))
    return operations.cast(x, np.float32), np.dtype(np.float32)


def _extract(part: Flatten | NatureCnn, operations: Operations, x: Tensor, dtype: np.dtype[Any]) -> Tensor:
    """Turn one observation into features, ``(batch_size, n_features)``."""
    if isinstance(part, Flatten) and part.n_choices is not None:
        choices = operations.pick(
            operations.reshape(x, (len(part.n_choices),)), np.repeat(np.arange(len(part.n_choices)), part.n_choices)
        )
        columns = np.concatenate([np.arange(n) for n in part.n_choices])
        return operations.cast(operations.equal(operations.cast(choices, np.int64), columns), np.float32)
    if dtype != np.float32:
        x = operations.cast(x, np.float32)
    if isinstance(part, Flatten):
        x = operations.flatten(x)
    if part.scale != 1.0:
        x = operations.divide(x, np.asarray(part.scale, np.float32))
    if isinstance(part, NatureCnn):
        for weight, bias, stride in part.list_filters():
            x = operations.activate(operations.convolve(x, weight, bias, stride), "ReLU")
        x = operations.activate(operations.linear(operations.flatten(x), *part.get_linear()), "ReLU")
    return x


def _choose(actor: Actor, operations: Operations, x: Tensor, action_masks: Tensor | None) -> Tensor:
    """Turn the policy's outputs, ``(batch_size, n_outputs)``, into actions."""
    distribution, output = actor.distribution, make_output(actor)
    if isinstance(distribution, Gaussian):
        x = operations.cast(operations.reshape(x, output.shape), output.dtype)
        space: Any = actor.action_space
        return operations.clip(x, space.low.astype(output.dtype), space.high.astype(output.dtype))
    if isinstance(distribution, Bernoulli):
        if action_masks is not None:
            digits = np.arange(output.shape[0])
            x = operations.select(operations.pick(action_masks, 2 * digits + 1), x, -np.inf)
            x = operations.select(operations.pick(action_masks, 2 * digits), x, np.inf)
        return operations.cast(operations.is_above(operations.activate(x, "Sigmoid"), 0.5), np.int8)
    if action_masks is not None:
        x = operations.select(action_masks, x, -np.inf)
    if not isinstance(distribution, MultiCategorical):
        return operations.argmax(x, keeps_axis=False)
    ends = np.cumsum(distribution.n_choices)
    ranges = [np.arange(end - n, end) for end, n in zip(ends, distribution.n_choices, strict=True)]
    return operations.concatenate(
        [operations.argmax(operations.pick(x, columns), keeps_axis=True) for columns in ranges]
    )
