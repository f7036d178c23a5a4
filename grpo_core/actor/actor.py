"""The policy as an immutable NumPy forward pass: used to collect rollouts and to serve models.

SB3's ``predict`` keeps the action distribution on the policy object, so two threads that share one policy can
be handed each other's actions. An ``Actor`` only reads its arrays, and for a 64x64 network it is several times
faster than an eager torch forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.distributions import (
    ActionDistribution,
    Categorical,
    Gaussian,
    Probabilities,
    check_action_masks,
    make_distribution,
)
from grpo_core.actor.extractors import ExtractorPlan, FeaturesExtractor, FloatArray, Layer, make_extractor
from grpo_core.actor.normalization import ObservationStatistics
from grpo_core.spaces import Observations, to_inputs, unpack

# The slope of torch.nn.LeakyReLU below 0, where none is given.
LEAKY_SLOPE = np.float32(0.01)
ACTIVATIONS: Mapping[str, Callable[[FloatArray], FloatArray]] = MappingProxyType(
    {
        "Tanh": np.tanh,
        "ReLU": lambda x: np.maximum(x, np.float32(0)),
        "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, np.float32(0)))),
        "LeakyReLU": lambda x: np.where(x > 0, x, LEAKY_SLOPE * x),
    }
)
# A probability that is too small for single precision is 0, also for whoever has NumPy raise errors.
_MAY_UNDERFLOW = np.errstate(under="ignore")


class Decision(NamedTuple):
    """The decisions of a policy for a batch of observations.

    :param actions: Shape ``(batch_size, *action_shape)``; within the bounds of a Box.
    :param probs: As ``Actor.action_probs`` returns them.
    :param values: Shape ``(batch_size,)``.
    """

    actions: Any
    probs: Probabilities
    values: FloatArray

    def list_probs(self) -> list[Any]:
        """List each row's probabilities; for a MultiDiscrete space a list per component, and None for a Box."""
        if self.probs is None:
            return [None] * len(self.values)
        if isinstance(self.probs, list):
            return list(map(list, zip(*(part.tolist() for part in self.probs), strict=True)))
        listed: list[Any] = self.probs.tolist()
        return listed

    def find_finite_choices(self) -> npt.NDArray[np.bool_]:
        """Return a flag per row, ``(batch_size,)``: whether its action and its probabilities are finite."""
        probs = self.probs if isinstance(self.probs, list) else [] if self.probs is None else [self.probs]
        is_finite = np.ones(len(self.values), np.bool_)
        for part in (self.actions, *probs):
            is_finite &= np.isfinite(part).reshape(len(part), -1).all(axis=1)
        return is_finite


class PolicyActor(Protocol):
    """The interface of ``Actor``, which says what its methods take and return, for policies of any make."""

    @property
    def observation_space(self) -> spaces.Space[Any]:
        """The space of the policy's observations."""

    @property
    def action_space(self) -> spaces.Space[Any]:
        """The space of its actions."""

    @property
    def normalization(self) -> ObservationStatistics | None:
        """Applied to observations first."""

    @property
    def n_parameters(self) -> int:
        """Number of weights held."""

    def act(
        self, observations: Observations, deterministic: bool, rng: np.random.Generator, action_masks: Any = None
    ) -> Decision:
        """Choose actions within their bounds, and compute probabilities and values."""

    def sample_actions(
        self, observations: Observations, rng: np.random.Generator, action_masks: Any = None
    ) -> tuple[Any, FloatArray]:
        """Draw one action per observation, and return their log probabilities too."""

    def best_actions(self, observations: Observations, action_masks: Any = None) -> Any:
        """Return the most likely action per observation."""

    def clip_actions(self, actions: Any) -> Any:
        """Turn actions into what the environment receives."""

    def action_probs(self, observations: Observations, action_masks: Any = None) -> Probabilities:
        """Return the probability of every action."""

    def log_probs(self, observations: Observations, action_masks: Any = None) -> FloatArray:
        """Return the log probability of every action of a Discrete space."""

    def values(self, observations: Observations) -> FloatArray:
        """Return the estimated discounted return from each observation."""


@dataclass(frozen=True, eq=False)
class Actor:
    """A policy and its value network, frozen.

    Observations are given as arrays ``(batch_size, *observation_shape)``, as a dict of such arrays, or packed (see
    ``grpo_core.spaces``). Action masks are flags ``(batch_size, count_mask_bits(action_space))``, True where an action
    is allowed; the others have probability 0. A mask of another shape, or one that allows nothing of a choice, raises
    ``ValueError``.

    :param observation_space: What the policy observes.
    :param action_space: Where it acts.
    :param activation: Name of the activation between layers, a key of ``ACTIVATIONS``.
    :param policy_extractor: From observations to the features that the policy's layers see.
    :param value_extractor: The same for the value network; the same object if they share it.
    :param policy_layers: Weights ``(n_out, n_in)`` and biases ``(n_out,)``, features to logits or means.
    :param value_layers: The same, features to one value.
    :param distribution: From logits or means to actions.
    :param normalization: Applied to observations first; None if they come as the networks saw them in training.
    :param checks_observations: Whether ``grpo_core.spaces.to_inputs`` checks them before: they may be anybody's.
    """

    observation_space: spaces.Space[Any]
    action_space: spaces.Space[Any]
    activation: str
    policy_extractor: FeaturesExtractor
    value_extractor: FeaturesExtractor
    policy_layers: tuple[Layer, ...]
    value_layers: tuple[Layer, ...]
    distribution: ActionDistribution
    normalization: ObservationStatistics | None = None
    checks_observations: bool = False

    @classmethod
    def from_weights(
        cls,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        network: Mapping[str, Any],
        weights: Mapping[str, npt.NDArray[Any]],
        normalization: ObservationStatistics | None = None,
    ) -> "Actor":
        """Build an actor from the parameters of an SB3 ``ActorCriticPolicy``, by torch's names.

        :param network: Description of the network, as ``grpo_core.options.network_json.network_to_json`` writes it.
        :param weights: Parameter name to array; copied, so that later training leaves the actor untouched.
        :param normalization: Statistics to normalise observations with; None leaves them as they are.
        """
        frozen = {name: np.array(array, dtype=np.float32) for name, array in weights.items()}
        for array in frozen.values():
            array.flags.writeable = False

        def layers(hidden: str, output: str) -> tuple[Layer, ...]:
            # SB3 numbers the modules of nn.Sequential(Linear, activation, Linear, ...): linear ones are even.
            n_hidden = sum(name.startswith(f"{hidden}.") and name.endswith(".weight") for name in frozen)
            names = [f"{hidden}.{2 * i}" for i in range(n_hidden)] + [output]
            return tuple((frozen[f"{name}.weight"], frozen[f"{name}.bias"]) for name in names)

        plan = ExtractorPlan.from_json(network)
        policy_extractor = value_extractor = make_extractor(observation_space, plan, frozen, "features_extractor")
        if not plan.is_shared:
            value_extractor = make_extractor(observation_space, plan, frozen, "vf_features_extractor")
        return cls(
            observation_space=observation_space,
            action_space=action_space,
            activation=network["activation"],
            policy_extractor=policy_extractor,
            value_extractor=value_extractor,
            policy_layers=layers("mlp_extractor.policy_net", "action_net"),
            value_layers=layers("mlp_extractor.value_net", "value_net"),
            distribution=make_distribution(action_space, frozen.get("log_std")),
            normalization=normalization,
        )

    @_MAY_UNDERFLOW
    def act(
        self,
        observations: Observations,
        deterministic: bool,
        rng: np.random.Generator,
        action_masks: Any = None,
    ) -> Decision:
        """Choose actions within their bounds, and compute probabilities and values, in one pass.

        :param observations: Shape ``(batch_size, *observation_shape)``.
        :param deterministic: Take the most likely actions instead of drawing them.
        :param rng: Generator to draw from.
        """
        inputs = self.to_inputs(observations)
        features = self.policy_extractor(inputs)
        outputs = self._compute_outputs(features, action_masks)
        if self.value_extractor is not self.policy_extractor:
            features = self.value_extractor(inputs)
        values = self._forward(features, self.value_layers)[:, 0]
        if deterministic:
            actions = self.distribution.get_mode(outputs)
        else:
            actions, _ = self.distribution.sample(outputs, rng)
        return Decision(self._clip(actions), self.distribution.compute_probs(outputs), values)

    @_MAY_UNDERFLOW
    def sample_actions(
        self, observations: Observations, rng: np.random.Generator, action_masks: Any = None
    ) -> tuple[Any, FloatArray]:
        """Draw one action per observation.

        :return: Actions, ``(batch_size, *action_shape)``; those of a Box may lie outside its bounds, see
            ``clip_actions``. And their log probabilities ``(batch_size,)``.
        """
        return self.distribution.sample(self._compute_policy_outputs(observations, action_masks), rng)

    def best_actions(self, observations: Observations, action_masks: Any = None) -> Any:
        """Return the most likely action per observation, ``(batch_size, *action_shape)``.

        Those of a Box may lie outside its bounds, see ``clip_actions``.
        """
        return self.distribution.get_mode(self._compute_policy_outputs(observations, action_masks))

    def clip_actions(self, actions: Any) -> Any:
        """Turn actions into what the environment receives: those of a Box within its bounds.

        Binary digits become floats, as SB3's ``predict`` returns them: in arithmetic with integers of a byte, an
        environment would soon overflow.
        """
        return actions.astype(np.float32) if isinstance(self.action_space, spaces.MultiBinary) else self._clip(actions)

    def _clip(self, actions: Any) -> Any:
        if isinstance(self.action_space, spaces.Box):
            return np.clip(actions, self.action_space.low, self.action_space.high)
        return actions

    @_MAY_UNDERFLOW
    def action_probs(self, observations: Observations, action_masks: Any = None) -> Probabilities:
        """Return the probability of every action.

        :return: Discrete: ``(batch_size, n_actions)``. MultiDiscrete: a list of such arrays, one per component.
            MultiBinary: the probability of 1, ``(batch_size, n_digits)``. Box: None.
        """
        return self.distribution.compute_probs(self._compute_policy_outputs(observations, action_masks))

    @_MAY_UNDERFLOW
    def log_probs(self, observations: Observations, action_masks: Any = None) -> FloatArray:
        """Return the log probability of every action of a Discrete space, ``(batch_size, n_actions)``.

        Unlike that of a probability of ``action_probs``, it is exact however unlikely the action.

        :raises ValueError: If the action space is of another kind.
        """
        if not isinstance(self.distribution, Categorical):
            raise ValueError(
                f"action space {self.action_space} is not Discrete, so its actions cannot be listed with a log "
                "probability each; take action_probs, or sample_actions for the log probabilities of drawn actions."
            )
        return self.distribution.compute_log_probs(self._compute_policy_outputs(observations, action_masks))

    def values(self, observations: Observations) -> FloatArray:
        """Return the estimated discounted return from each observation, ``(batch_size,)``."""
        return self.values_of_inputs(self.to_inputs(observations))

    def values_of_inputs(self, inputs: Observations) -> FloatArray:
        """Return what ``values`` does, ``(batch_size,)``, for observations that are already normalised."""
        return self._forward(self.value_extractor(inputs), self.value_layers)[:, 0]

    @cached_property
    def n_parameters(self) -> int:
        """Number of weights held."""
        arrays = [array for layer in self.policy_layers + self.value_layers for array in layer]
        arrays += self.policy_extractor.arrays
        if isinstance(self.distribution, Gaussian):
            arrays.append(self.distribution.log_std)
        if self.value_extractor is not self.policy_extractor:
            arrays += self.value_extractor.arrays
        return sum(array.size for array in arrays)

    def to_inputs(self, observations: Observations) -> Observations:
        """Normalise observations, ``(batch_size, *observation_shape)``, as the networks take them."""
        if self.checks_observations:
            observations = to_inputs(self.observation_space, observations)
        if self.normalization is not None:
            return self.normalization.apply(observations)
        return unpack(observations)

    def _compute_policy_outputs(self, observations: Observations, action_masks: Any) -> FloatArray:
        return self._compute_outputs(self.policy_extractor(self.to_inputs(observations)), action_masks)

    def _compute_outputs(self, features: FloatArray, action_masks: Any) -> FloatArray:
        outputs = self._forward(features, self.policy_layers)
        if action_masks is None:
            return outputs
        masks = check_action_masks(self.action_space, action_masks, len(outputs))
        return self.distribution.mask(outputs, masks)

    def _forward(self, x: FloatArray, layers: tuple[Layer, ...]) -> FloatArray:
        # dot, because @ gives the same numbers but takes twice as long to start, which is most of the time of one row.
        activate = ACTIVATIONS[self.activation]
        for weight, bias in layers[:-1]:
            x = activate(x.dot(weight.T) + bias)
        weight, bias = layers[-1]
        return np.asarray(x.dot(weight.T) + bias)
