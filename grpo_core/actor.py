"""The policy as an immutable NumPy forward pass: used to collect rollouts and to serve models.

SB3's ``predict`` keeps the action distribution on the policy object, so two threads that share one policy can
be handed each other's actions. An ``Actor`` only reads its arrays, and for a 64x64 network it is several times
faster than an eager torch forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space

FloatArray = npt.NDArray[np.float32]
Layer = tuple[FloatArray, FloatArray]

ACTIVATIONS: dict[str, Callable[[FloatArray], FloatArray]] = {
    "Tanh": np.tanh,
    "ReLU": lambda x: np.maximum(x, np.float32(0)),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, np.float32(0)))),
    "LeakyReLU": lambda x: np.where(x > 0, x, np.float32(0.01) * x),
}
_LOG_2_PI = np.float32(np.log(2 * np.pi))


class UnsupportedSpaceError(ValueError):
    """The observation or action space is one the policy network cannot take."""


def count_inputs(space: spaces.Space[Any]) -> int:
    """Count the numbers a network sees: the size of a Box, one per value of a Discrete space (one-hot).

    :raises UnsupportedSpaceError: If the space is neither a Box nor a Discrete space starting at 0.
    """
    if isinstance(space, spaces.Box) and not is_image_space(space):
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return int(space.n)
    raise UnsupportedSpaceError(f"observation space {space} is not supported; use Box, or Discrete starting at 0.")


def count_outputs(space: spaces.Space[Any]) -> int:
    """Count the policy's outputs: one logit per action of a Discrete space, one mean per dimension of a Box.

    :raises UnsupportedSpaceError: If the space is neither a bounded Box nor a Discrete space starting at 0.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.is_bounded():
        return int(np.prod(space.shape))
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return int(space.n)
    raise UnsupportedSpaceError(
        f"action space {space} is not supported; use Discrete starting at 0, or a Box of floats with finite bounds."
    )


@dataclass(frozen=True, eq=False)
class Actor:
    """A policy and its value network, frozen.

    :param observation_space: Box or Discrete.
    :param action_space: Box or Discrete.
    :param activation: Name of the activation between layers, a key of ``ACTIVATIONS``.
    :param policy_layers: Weights ``(n_out, n_in)`` and biases ``(n_out,)``, input to logits or means.
    :param value_layers: The same, input to one value.
    :param log_std: Log standard deviation per action dimension, for a Box action space only.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    activation: str
    policy_layers: tuple[Layer, ...]
    value_layers: tuple[Layer, ...]
    log_std: FloatArray | None

    @classmethod
    def from_weights(
        cls,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        activation: str,
        weights: Mapping[str, npt.NDArray[Any]],
    ) -> "Actor":
        """Build it from the parameters of an SB3 ``ActorCriticPolicy``, under the names torch gives them.

        :param weights: Parameter name to array; copied, so later training leaves the actor untouched.
        """
        frozen = {name: np.array(array, dtype=np.float32) for name, array in weights.items()}
        for array in frozen.values():
            array.flags.writeable = False

        def layers(hidden: str, output: str) -> tuple[Layer, ...]:
            # SB3 numbers the modules of nn.Sequential(Linear, activation, Linear, ...): linear ones are even.
            n_hidden = sum(name.startswith(f"{hidden}.") and name.endswith(".weight") for name in frozen)
            names = [f"{hidden}.{2 * i}" for i in range(n_hidden)] + [output]
            return tuple((frozen[f"{name}.weight"], frozen[f"{name}.bias"]) for name in names)

        return cls(
            observation_space,
            action_space,
            activation,
            layers("mlp_extractor.policy_net", "action_net"),
            layers("mlp_extractor.value_net", "value_net"),
            frozen.get("log_std"),
        )

    def sample_actions(self, observations: npt.NDArray[Any], rng: np.random.Generator) -> tuple[Any, FloatArray]:
        """Draw one action per observation.

        :param observations: Shape ``(batch_size, *observation_shape)``.
        :return: Actions, ``(batch_size,)`` integers or ``(batch_size, *action_shape)`` floats that may lie outside
            the bounds, and their log probabilities ``(batch_size,)``.
        """
        outputs = self._forward(observations, self.policy_layers)
        if self.log_std is None:
            log_probs = outputs - _log_sum_exp(outputs)
            # The last edge is pushed past 1 so that rounding can never leave a draw without an action.
            edges = np.cumsum(np.exp(log_probs), axis=1)
            edges[:, -1] = 2.0
            actions = (rng.random(len(outputs), dtype=np.float32)[:, None] >= edges).sum(axis=1)
            return actions, log_probs[np.arange(len(actions)), actions]
        noise = rng.standard_normal(outputs.shape, dtype=np.float32)
        actions = outputs + np.exp(self.log_std) * noise
        log_prob = (-0.5 * np.square(noise) - self.log_std - 0.5 * _LOG_2_PI).sum(axis=1)
        return actions.reshape(-1, *self._action_shape), log_prob

    def best_actions(self, observations: npt.NDArray[Any]) -> Any:
        """Return the most likely action per observation, ``(batch_size,)`` or ``(batch_size, *action_shape)``.

        Box actions may lie outside the bounds, see ``clip_actions``.
        """
        outputs = self._forward(observations, self.policy_layers)
        if self.log_std is None:
            return outputs.argmax(axis=1)
        return outputs.reshape(-1, *self._action_shape)

    def clip_actions(self, actions: Any) -> Any:
        """Clip Box actions to their bounds; integers pass through."""
        if isinstance(self.action_space, spaces.Box):
            return np.clip(actions, self.action_space.low, self.action_space.high)
        return actions

    def action_probs(self, observations: npt.NDArray[Any]) -> FloatArray | None:
        """Return the probability of every action, ``(batch_size, n_actions)``; None for a Box action space."""
        if self.log_std is not None:
            return None
        logits = self._forward(observations, self.policy_layers)
        return np.asarray(np.exp(logits - _log_sum_exp(logits)))

    def values(self, observations: npt.NDArray[Any]) -> FloatArray:
        """Return the estimated discounted return from each observation, ``(batch_size,)``."""
        return self._forward(observations, self.value_layers)[:, 0]

    @property
    def n_parameters(self) -> int:
        """Number of weights held."""
        return sum(weight.size + bias.size for weight, bias in self.policy_layers + self.value_layers)

    @property
    def _action_shape(self) -> tuple[int, ...]:
        shape = self.action_space.shape
        return () if shape is None else shape

    def _forward(self, observations: npt.NDArray[Any], layers: tuple[Layer, ...]) -> FloatArray:
        activate = ACTIVATIONS[self.activation]
        x = self._to_inputs(observations)
        for weight, bias in layers[:-1]:
            x = activate(x @ weight.T + bias)
        weight, bias = layers[-1]
        return np.asarray(x @ weight.T + bias)

    def _to_inputs(self, observations: npt.NDArray[Any]) -> FloatArray:
        if isinstance(self.observation_space, spaces.Discrete):
            one_hot = np.zeros((len(observations), int(self.observation_space.n)), np.float32)
            one_hot[np.arange(len(observations)), observations.reshape(-1)] = 1.0
            return one_hot
        return np.asarray(observations, dtype=np.float32).reshape(len(observations), -1)


def _log_sum_exp(logits: FloatArray) -> FloatArray:
    largest = logits.max(axis=1, keepdims=True)
    return np.asarray(largest + np.log(np.exp(logits - largest).sum(axis=1, keepdims=True)))
