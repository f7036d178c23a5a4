"""From a policy network's outputs to actions, in NumPy: one class per kind of action space.

Every method takes outputs ``(batch_size, n_outputs)``. ``mask`` replaces those of illegal actions by infinities, so
that their probability is exactly 0; its masks have passed ``check_action_masks``.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.spaces import count_mask_bits

FloatArray = npt.NDArray[np.float32]
# An array, a list of arrays or None, depending on the action space; see ``Actor.action_probs``.
Probabilities = Any
_LOG_2_PI = np.float32(np.log(2 * np.pi))


class ActionDistribution(Protocol):
    """The interface that the four kinds share."""

    def sample(self, outputs: FloatArray, rng: np.random.Generator) -> tuple[Any, FloatArray]:
        """Draw one action per row.

        :return: Actions ``(batch_size, *action_shape)`` and their log probabilities ``(batch_size,)``.
        """

    def get_mode(self, outputs: FloatArray) -> Any:
        """Return the most likely action per row, ``(batch_size, *action_shape)``."""

    def compute_probs(self, outputs: FloatArray) -> Probabilities:
        """Return the probability of every action, ``(batch_size, ...)``; None where actions are continuous."""

    def mask(self, outputs: FloatArray, action_masks: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the outputs with illegal actions ruled out, same shape.

        :param action_masks: True where an action is legal, shape ``(batch_size, n_bits)``.
        """


@dataclass(frozen=True)
class Categorical:
    """One choice out of several; actions are integers ``(batch_size,)``."""

    def sample(self, outputs: FloatArray, rng: np.random.Generator) -> tuple[Any, FloatArray]:
        return _draw(outputs, rng.random(len(outputs), dtype=np.float32))

    def get_mode(self, outputs: FloatArray) -> Any:
        return outputs.argmax(axis=1)

    def compute_probs(self, outputs: FloatArray) -> FloatArray:
        """Return the probability of every choice, ``(batch_size, n_choices)``."""
        return np.asarray(np.exp(self.compute_log_probs(outputs)))

    def compute_log_probs(self, outputs: FloatArray) -> FloatArray:
        """Return the log probability of every choice, ``(batch_size, n_choices)``."""
        return outputs - _log_sum_exp(outputs)

    def mask(self, outputs: FloatArray, action_masks: npt.NDArray[np.bool_]) -> FloatArray:
        """Rule choices out; ``action_masks`` is ``(batch_size, n_choices)``."""
        return np.where(action_masks, outputs, np.float32(-np.inf))


@dataclass(frozen=True)
class MultiCategorical:
    """Several choices, independent of each other; actions are integers ``(batch_size, n_components)``.

    :param n_choices: Choices of each component; outputs are laid out in this order.
    """

    n_choices: tuple[int, ...]

    def sample(self, outputs: FloatArray, rng: np.random.Generator) -> tuple[Any, FloatArray]:
        draws = rng.random((len(self.n_choices), len(outputs)), dtype=np.float32)
        drawn = [_draw(logits, draw) for logits, draw in zip(self._split(outputs), draws, strict=True)]
        return np.stack([actions for actions, _ in drawn], axis=1), np.sum([log_prob for _, log_prob in drawn], axis=0)

    def get_mode(self, outputs: FloatArray) -> Any:
        return np.stack([logits.argmax(axis=1) for logits in self._split(outputs)], axis=1)

    def compute_probs(self, outputs: FloatArray) -> list[FloatArray]:
        """Return the probability of every choice, one array ``(batch_size, n_choices)`` per component."""
        return [Categorical().compute_probs(logits) for logits in self._split(outputs)]

    def mask(self, outputs: FloatArray, action_masks: npt.NDArray[np.bool_]) -> FloatArray:
        """Rule choices out; ``action_masks`` is ``(batch_size, sum(n_choices))``."""
        return np.where(action_masks, outputs, np.float32(-np.inf))

    def _split(self, array: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        return np.split(array, np.cumsum(self.n_choices)[:-1], axis=1)


@dataclass(frozen=True)
class Bernoulli:
    """Binary digits, independent of each other; actions are 0 and 1, int8 ``(batch_size, n_digits)``."""

    def sample(self, outputs: FloatArray, rng: np.random.Generator) -> tuple[Any, FloatArray]:
        ones = rng.random(outputs.shape, dtype=np.float32) < self.compute_probs(outputs)
        log_prob = -np.logaddexp(np.float32(0), np.where(ones, -outputs, outputs)).sum(axis=1)
        return ones.astype(np.int8), log_prob

    def get_mode(self, outputs: FloatArray) -> Any:
        return (self.compute_probs(outputs) > 0.5).astype(np.int8)

    def compute_probs(self, outputs: FloatArray) -> FloatArray:
        """Return the probability of 1, ``(batch_size, n_digits)``."""
        return np.asarray(np.exp(-np.logaddexp(np.float32(0), -outputs)))

    def mask(self, outputs: FloatArray, action_masks: npt.NDArray[np.bool_]) -> FloatArray:
        """Rule values of digits out.

        :param action_masks: Shape ``(batch_size, 2 * n_digits)``: per digit whether it may be 0 and may be 1.
        """
        pairs = action_masks.reshape(len(outputs), -1, 2)
        outputs = np.where(pairs[..., 1], outputs, np.float32(-np.inf))
        return np.where(pairs[..., 0], outputs, np.float32(np.inf))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Independent normal distributions; actions are floats ``(batch_size, *shape)``, which may leave the bounds.

    :param log_std: Log standard deviation per dimension; outputs are the means.
    :param shape: Shape of one action.
    """

    log_std: FloatArray
    shape: tuple[int, ...]

    def sample(self, outputs: FloatArray, rng: np.random.Generator) -> tuple[Any, FloatArray]:
        noise = rng.standard_normal(outputs.shape, dtype=np.float32)
        log_prob = (-0.5 * np.square(noise) - self.log_std - 0.5 * _LOG_2_PI).sum(axis=1)
        return (outputs + np.exp(self.log_std) * noise).reshape(-1, *self.shape), log_prob

    def get_mode(self, outputs: FloatArray) -> Any:
        return outputs.reshape(-1, *self.shape)

    def compute_probs(self, outputs: FloatArray) -> None:
        """Return None: continuous actions cannot be listed."""

    def mask(self, outputs: FloatArray, action_masks: npt.NDArray[np.bool_]) -> FloatArray:
        """Return the outputs unchanged; ``check_action_masks`` refuses masks of a Box before they get here."""
        return outputs


def make_distribution(space: spaces.Space[Any], log_std: FloatArray | None) -> ActionDistribution:
    """Choose the distribution for a space that ``check_action_space`` has accepted.

    :param log_std: Log standard deviations of a Box, shape ``(n_dimensions,)``; None for the other spaces.
    """
    if isinstance(space, spaces.Box):
        assert log_std is not None, "a policy over a Box has standard deviations"
        return Gaussian(log_std, space.shape)
    if isinstance(space, spaces.MultiDiscrete):
        return MultiCategorical(tuple(int(n) for n in space.nvec))
    return Bernoulli() if isinstance(space, spaces.MultiBinary) else Categorical()


def check_action_masks(space: spaces.Space[Any], action_masks: Any, batch_size: int) -> npt.NDArray[np.bool_]:
    """Check action masks.

    :param action_masks: Flags, True where an action is legal.
    :return: The same as an array, shape ``(batch_size, count_mask_bits(space))``.
    :raises ValueError: If rows and observations differ in number, or a row rules out every option of a choice.
    :raises UnsupportedSpaceError: If actions of the space cannot be masked.
    """
    shape = (batch_size, count_mask_bits(space))
    masks = np.asarray(action_masks, np.bool_)
    if masks.shape != shape:
        raise ValueError(
            f"action_masks of shape {masks.shape} do not fit {space}: {batch_size} observations need shape {shape}, "
            "True where an action is allowed; reshape them."
        )
    # MultiBinary: the digits' pairs of flags; others: the components' ranges of flags.
    edges: list[int] = np.cumsum(space.nvec)[:-1].tolist() if isinstance(space, spaces.MultiDiscrete) else []
    components = (
        [masks.reshape(batch_size, -1, 2)] if isinstance(space, spaces.MultiBinary) else np.split(masks, edges, 1)
    )
    for component in components:
        _check_choice_left(component)
    return masks


def _check_choice_left(action_masks: npt.NDArray[np.bool_]) -> None:
    allowed = action_masks.any(axis=-1)
    if not allowed.all():
        row = int(np.argwhere(~allowed)[0, 0])
        raise ValueError(
            f"action_masks row {row} ({action_masks[row].astype(int).tolist()}) allows no action: every choice must "
            "leave one open; end the episode in states without actions."
        )


def _draw(logits: FloatArray, uniform: FloatArray) -> tuple[Any, FloatArray]:
    """Turn numbers in [0, 1) into choices; return them and their log probabilities, ``(batch_size,)`` each."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    edges = np.cumsum(np.exp(shifted), axis=1)
    sums = edges[:, -1].copy()
    # The last possible choice then ends at exactly 1, so that rounding can neither leave a draw without a choice
    # nor give it one of probability 0.
    edges /= sums[:, None]
    choices = (uniform[:, None] >= edges).sum(axis=1)
    return choices, shifted[np.arange(len(choices)), choices] - np.log(sums)


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    largest = logits.max(axis=1, keepdims=True)
    return np.asarray(largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))
