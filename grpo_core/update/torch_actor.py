"""A policy of any layers as an actor, run by torch: slower than the one in NumPy, but used in the same way."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.actor.actor import Decision
from grpo_core.actor.distributions import Probabilities, check_action_masks
from grpo_core.actor.extractors import FloatArray
from grpo_core.actor.normalization import ObservationStatistics
from grpo_core.groups.rollout import to_tensors
from grpo_core.spaces import Observations, to_inputs, unpack
from grpo_core.update.policies import get_distribution
from grpo_core.update.seeding import borrow_torch_generator


class TorchActor:
    """Chooses actions as ``Actor`` does, which says what its methods take and return.

    Draws come from the generator that is given: torch's process-wide one is only borrowed. Unlike an ``Actor`` it is
    not for several threads at once, since SB3's policies keep their distribution in themselves.

    :param policy: The policy; it acts as it is at each call, so pass a copy to freeze it.
    :param normalization: Applied to observations first; None if they come as the networks saw them in training.
    :param checks_observations: As ``Actor`` takes it.
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        normalization: ObservationStatistics | None = None,
        checks_observations: bool = False,
    ) -> None:
        self.checks_observations = checks_observations
        policy.set_training_mode(False)
        self.policy = policy
        self.normalization = normalization
        self.observation_space: spaces.Space[Any] = policy.observation_space
        self.action_space: spaces.Space[Any] = policy.action_space

    def act(
        self,
        observations: Observations,
        deterministic: bool,
        rng: np.random.Generator,
        action_masks: Any = None,
    ) -> Decision:
        """Choose actions within their bounds, and compute probabilities and values."""
        if deterministic:
            actions = self.best_actions(observations, action_masks)
        else:
            actions, _ = self.sample_actions(observations, rng, action_masks)
        return Decision(
            self.clip_actions(actions), self.action_probs(observations, action_masks), self.values(observations)
        )

    @torch.no_grad()
    def sample_actions(
        self, observations: Observations, rng: np.random.Generator, action_masks: Any = None
    ) -> tuple[Any, FloatArray]:
        """Draw one action per observation, and return their log probabilities too."""
        inputs = self._to_inputs(observations)
        with borrow_torch_generator(rng, self.policy.device):
            if action_masks is None:
                actions, _, log_probs = self.policy(inputs)  # what SB3's algorithms call, a user's own included
            else:
                distribution = self._get_distribution(inputs, action_masks)
                actions = distribution.get_actions()
                log_probs = distribution.log_prob(actions)
        return self._to_actions(actions), _to_array(log_probs)

    @torch.no_grad()
    def best_actions(self, observations: Observations, action_masks: Any = None) -> Any:
        """Return the most likely action per observation."""
        distribution = self._get_distribution(self._to_inputs(observations), action_masks)
        return self._to_actions(distribution.get_actions(deterministic=True))

    def clip_actions(self, actions: Any) -> Any:
        """Turn actions into what the environment receives, as ``Actor.clip_actions`` does."""
        if isinstance(self.action_space, spaces.MultiBinary):
            return actions.astype(np.float32)
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)
        return np.clip(actions, self.action_space.low, self.action_space.high)

    @torch.no_grad()
    def action_probs(self, observations: Observations, action_masks: Any = None) -> Probabilities:
        """Return the probability of every action."""
        distribution = self._get_distribution(self._to_inputs(observations), action_masks)
        inner: Any = distribution.distribution
        if isinstance(distribution, MultiCategoricalDistribution):
            return [_to_array(categorical.probs) for categorical in inner]
        if isinstance(distribution, CategoricalDistribution | BernoulliDistribution):
            return _to_array(inner.probs)
        return None

    @torch.no_grad()
    def log_probs(self, observations: Observations, action_masks: Any = None) -> FloatArray:
        """Return the log probability of every action of a Discrete space.

        :raises ValueError: If the action space is of another kind.
        """
        distribution = self._get_distribution(self._to_inputs(observations), action_masks)
        inner: Any = distribution.distribution
        if not isinstance(distribution, CategoricalDistribution):
            raise ValueError(
                f"action space {self.action_space} is not Discrete, so its actions cannot be listed with a log "
                "probability each; take sample_actions for the log probabilities of drawn actions."
            )
        return _to_array(inner.logits)

    @torch.no_grad()
    def values(self, observations: Observations) -> FloatArray:
        """Return the estimated discounted return from each observation, ``(batch_size,)``."""
        return _to_array(self.policy.predict_values(self._to_inputs(observations))).reshape(-1)

    @property
    def n_parameters(self) -> int:
        """Number of weights held."""
        return sum(p.numel() for p in self.policy.parameters())

    def _to_inputs(self, observations: Observations) -> Any:
        if self.checks_observations:
            observations = to_inputs(self.observation_space, observations)
        shown = unpack(observations) if self.normalization is None else self.normalization.apply(observations)
        if isinstance(shown, dict):
            shown = {key: np.require(array, requirements="W") for key, array in shown.items()}
        else:
            shown = np.require(shown, requirements="W")
        return to_tensors(shown, self.policy.device)

    def _get_distribution(self, inputs: Any, action_masks: Any) -> Distribution:
        if action_masks is None:
            return get_distribution(self.policy, inputs, None)
        batch_size = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
        masks = check_action_masks(self.action_space, action_masks, batch_size)
        return get_distribution(self.policy, inputs, torch.as_tensor(masks, device=self.policy.device))

    def _to_actions(self, actions: torch.Tensor) -> npt.NDArray[Any]:
        array = actions.cpu().numpy().reshape(-1, *(self.action_space.shape or ()))
        # Choices are int64 and binary digits int8, as NumPy's actor draws them.
        return array if array.dtype == self.action_space.dtype else array.astype(self.action_space.dtype)


def _to_array(tensor: torch.Tensor) -> npt.NDArray[np.float32]:
    return np.asarray(tensor.cpu().numpy(), np.float32)
