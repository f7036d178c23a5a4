"""Decisions for one observation at a time, in a fraction of the time that a batch of one takes.

NumPy takes longer to begin most of its functions than to work through one row. So both networks go through as few of
them as possible, and the last steps are taken in plain numbers.
"""

import math
import threading
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from grpo_core.actor.actor import ACTIVATIONS, Actor
from grpo_core.actor.distributions import Gaussian
from grpo_core.actor.extractors import FloatArray, Layer
from grpo_core.spaces import FLOAT32_MAX

# With more outputs, arrays are quicker than plain numbers.
_MAX_OUTPUTS = 64
# Inputs that an activation turns into exactly 1.
_PREIMAGES_OF_1 = {"Tanh": 20.0, "ReLU": 1.0, "ELU": 1.0, "LeakyReLU": 1.0}
# A third of the largest float32, which leaves room for rounding.
_MAX_SUM = 1e38
# With smaller deviations, dividing the largest observations by them could overflow.
_LEAST_STD = 1e-100


class Choice(NamedTuple):
    """A decision for one observation, in plain numbers.

    :param action: An integer for Discrete actions, else a list.
    :param probs: As a row of ``Actor.action_probs``; of MultiDiscrete actions one list per component.
    :param value: Estimated discounted return.
    """

    action: int | list[Any]
    probs: list[Any] | None
    value: float


class _Step(NamedTuple):
    """A layer of both networks. Inputs and outputs end in 1, by which biases are multiplied.

    :param weights: Of the policy and of the value network, ``(n_out + 1, n_in + 1)``; of the last layer ``(n_out,
        n_in + 1)``.
    :param inputs: The outputs of the step before.
    :param outputs: Two parts of ``both``.
    """

    weights: tuple[FloatArray, FloatArray]
    inputs: tuple[FloatArray, FloatArray]
    outputs: tuple[FloatArray, FloatArray]
    both: FloatArray


class SingleActor:
    """Decides for one observation as an actor does, up to rounding. Safe to use from any thread.

    What it cannot decide it leaves to the actor.

    :param actor: One that ``can_act_singly``.
    """

    def __init__(self, actor: Actor) -> None:
        self._features = np.ones(actor.policy_layers[0][0].shape[1] + 1, np.float32)
        self._steps = _prepare(actor, self._features)
        # Every observation passes through the same arrays; the lock keeps threads out of each other's.
        self._lock = threading.Lock()
        self._is_tanh = actor.activation == "Tanh"
        self._activate = ACTIVATIONS[actor.activation]
        space = actor.observation_space
        self._n_states = int(space.n) if isinstance(space, spaces.Discrete) else 0
        self._largest_input = min(map(_find_largest_input, (actor.policy_layers, actor.value_layers)))
        self._n_numbers = len(self._features) - 1 if _is_row_of_floats(space) else 0
        self._normalization: tuple[Any, Any, float] | None = None
        # Normalised as they are: float32 would round away what large numbers differ in.
        self._numbers = np.empty(self._n_numbers, space.dtype if self._n_numbers else np.float32)
        if actor.normalization is not None and self._n_numbers:
            std = np.sqrt(np.asarray(actor.normalization.var) + actor.normalization.epsilon)
            self._normalization = np.asarray(actor.normalization.mean), std, actor.normalization.clip_obs
            if not (std >= _LEAST_STD).all() or actor.normalization.clip_obs > self._largest_input:
                self._n_numbers = 0
        space = actor.action_space
        self._n_choices = [int(n) for n in space.nvec] if isinstance(space, spaces.MultiDiscrete) else []
        self._bounds: list[tuple[float, float]] = []
        if isinstance(space, spaces.Box):
            assert isinstance(actor.distribution, Gaussian), "a policy over a Box is Gaussian"
            self._bounds = list(zip(space.low.tolist(), space.high.tolist(), strict=True))
            self._stds = np.exp(actor.distribution.log_std, dtype=np.float64).tolist()

    def act(
        self,
        observation: Any,
        deterministic: bool,
        rng: np.random.Generator,
        action_masks: Sequence[bool] | None = None,
    ) -> Choice | None:
        """Choose an action within its bounds, and compute probabilities and the value.

        :param observation: An integer, finite numbers in a list or in rectangular lists, or these by key.
        :param deterministic: Take the most likely action instead of drawing one.
        :param rng: Generator to draw from, as much as ``Actor.act`` would.
        :param action_masks: Flags of Discrete or MultiDiscrete actions, ``count_mask_bits`` of them, that leave a
            choice in every component; None allows all.
        :return: None if the observation is not one integer or one list of numbers that fits, or numbers overflow.
        """
        with self._lock:
            if not self._read(observation):
                return None
            numbers = self._forward()
        return self._decide(numbers, deterministic, rng, action_masks)

    def act_on_features(
        self,
        features: FloatArray,
        deterministic: bool,
        rng: np.random.Generator,
        action_masks: Sequence[bool] | None = None,
    ) -> Choice | None:
        """Do what ``act`` does with what the actor's extractor has made of an observation, ``(n_features,)``."""
        if not np.abs(features).max(initial=0.0) <= self._largest_input:  # NaN too
            return None
        with self._lock:
            self._features[:-1] = features
            numbers = self._forward()
        return self._decide(numbers, deterministic, rng, action_masks)

    def _read(self, observation: Any) -> bool:
        """Write an observation's features where the networks find them; return whether it fits."""
        if type(observation) is int:
            if not 0 <= observation < self._n_states or self._largest_input < 1.0:
                return False
            self._features[:-1] = 0.0
            self._features[observation] = 1.0
            return True
        if type(observation) is not list or not 0 < len(observation) == self._n_numbers:
            return False
        if type(observation[0]) is list or (self._normalization is None and self._is_too_large(observation)):
            return False
        features = self._features[:-1]
        if self._normalization is None:
            features[:] = observation
        else:
            mean, std, clip_obs = self._normalization
            self._numbers[:] = observation
            features[:] = np.minimum(np.maximum((self._numbers - mean) / std, -clip_obs), clip_obs)
        return True

    def _is_too_large(self, numbers: list[float]) -> bool:
        return max(map(abs, numbers)) > self._largest_input

    def _forward(self) -> list[float]:
        """Return the policy's outputs, and the value after them."""
        for weights, inputs, outputs, both in self._steps:
            weights[0].dot(inputs[0], outputs[0])
            weights[1].dot(inputs[1], outputs[1])
            if both is self._steps[-1].both:
                break
            if self._is_tanh:
                np.tanh(both, both)
            else:
                both[:] = self._activate(both)
        numbers: list[float] = both.tolist()
        return numbers

    def _decide(
        self,
        numbers: list[float],
        deterministic: bool,
        rng: np.random.Generator,
        action_masks: Sequence[bool] | None,
    ) -> Choice | None:
        if not all(map(math.isfinite, numbers)):
            return None
        value = numbers.pop()
        if self._bounds:
            return Choice(self._choose_numbers(numbers, deterministic, rng), None, value)
        if action_masks is not None:
            numbers = [x if allowed else -math.inf for x, allowed in zip(numbers, action_masks, strict=True)]
        if not self._n_choices:
            return Choice(*_choose(numbers, None if deterministic else float(rng.random(dtype=np.float32))), value)
        ends = accumulate(self._n_choices)
        parts = [numbers[end - n : end] for end, n in zip(ends, self._n_choices, strict=True)]
        draws = [None] * len(parts) if deterministic else rng.random(len(parts), dtype=np.float32).tolist()
        chosen = [_choose(part, draw) for part, draw in zip(parts, draws, strict=True)]
        return Choice([action for action, _ in chosen], [probs for _, probs in chosen], value)

    def _choose_numbers(self, means: list[float], deterministic: bool, rng: np.random.Generator) -> list[float]:
        if not deterministic:
            noise = rng.standard_normal(len(means), dtype=np.float32).tolist()
            means = [mean + std * x for mean, std, x in zip(means, self._stds, noise, strict=True)]
        return [min(max(x, low), high) for x, (low, high) in zip(means, self._bounds, strict=True)]


def _find_largest_input(layers: tuple[Layer, ...]) -> float:
    """Return the size of features up to which no sum in a network, nor a part of one, can overflow.

    An activation makes no number larger, so a layer's numbers are at most ``scale * x + offset`` if the features are at
    most ``x``.
    """
    scale, offset, largest = 1.0, 0.0, math.inf
    for weight, bias in layers:
        row_sum = float(np.abs(weight).sum(axis=1, dtype=np.float64).max())
        scale, offset = row_sum * scale, row_sum * offset + float(np.abs(bias).max())
        largest = min(largest, (_MAX_SUM - offset) / max(scale, _LEAST_STD))
    return largest


def can_act_singly(actor: Actor) -> bool:
    """Return whether a ``SingleActor`` can stand in for an actor: extractors without weights, few outputs."""
    if actor.policy_extractor.arrays or actor.value_extractor.arrays or len(actor.policy_layers[-1][1]) > _MAX_OUTPUTS:
        return False
    if len(actor.policy_layers) != len(actor.value_layers):
        return False
    space, distribution = actor.action_space, actor.distribution
    if isinstance(distribution, Gaussian) and not (distribution.log_std < math.log(FLOAT32_MAX)).all():
        return False
    return not isinstance(space, spaces.MultiBinary) and not (isinstance(space, spaces.Box) and len(space.shape) != 1)


def _is_row_of_floats(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and len(space.shape) == 1 and np.dtype(space.dtype) in (np.float32, np.float64)


def _prepare(actor: Actor, features: FloatArray) -> list[_Step]:
    steps: list[_Step] = []
    inputs = features, features
    for i, (policy_layer, value_layer) in enumerate(zip(actor.policy_layers, actor.value_layers, strict=True)):
        is_last = i == len(actor.policy_layers) - 1
        preimage = None if is_last else _PREIMAGES_OF_1[actor.activation]
        weights = _fold(*policy_layer, preimage), _fold(*value_layer, preimage)
        n_policy = len(weights[0])
        both = np.empty(n_policy + len(weights[1]), np.float32)
        steps.append(_Step(weights, inputs, (both[:n_policy], both[n_policy:]), both))
        inputs = steps[-1].outputs
    return steps


def _fold(weight: FloatArray, bias: FloatArray, preimage: float | None) -> FloatArray:
    """Join weights, ``(n_out, n_in)``, and biases, ``(n_out,)``; a last row passes the 1 on, unless it is None."""
    n_out, n_in = weight.shape
    folded = np.zeros((n_out + (preimage is not None), n_in + 1), np.float32)
    folded[:n_out, :n_in] = weight
    folded[:n_out, n_in] = bias
    if preimage is not None:
        folded[n_out, n_in] = preimage
    return folded


def _choose(logits: list[float], uniform: float | None) -> tuple[int, list[float]]:
    """Choose one of several.

    :param uniform: A number in [0, 1) to draw with; None takes the most likely choice.
    :return: The choice, and the probability of each.
    """
    largest = max(logits)
    weights = [math.exp(logit - largest) for logit in logits]
    # As in ``distributions``, the last possible choice ends at the sum itself, which no product here reaches.
    edges = list(accumulate(weights))
    choice = logits.index(largest) if uniform is None else bisect_right(edges, uniform * edges[-1])
    return choice, [weight / edges[-1] for weight in weights]
