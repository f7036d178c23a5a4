"""Train SB3's actor-critic policies with separate step sizes and action masks, and run them on large batches."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
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
from stable_baselines3.common.torch_layers import MlpExtractor

from grpo_core.actor.distributions import check_action_masks
from grpo_core.groups.rollout import StepBatch, select, to_tensors
from grpo_core.options.policies import POLICIES
from grpo_core.spaces import Observations, count_inputs
from grpo_core.update.seeding import lock_torch_generator
from grpo_core.update.structure import unwrap_compiled

# A masked logit: far below any other, and still a number that entropy can be computed with.
_RULED_OUT = -1e8
# A forward pass over a whole rollout at once would hold every layer's output for all of its steps. A hundred images
# take as much memory as thousands of short observations.
_MAX_FORWARD_STEPS = 8192
_MAX_FORWARD_INPUTS = 2**22


@contextmanager
def build_in_float32() -> Iterator[None]:
    """Let layers made inside the block be of float32, as SB3's observations are.

    An environment that computes in float64 may have changed torch's default, which holds for the whole process. Outside
    the block it stays as the environment needs it. Only under ``borrow_torch_generator``: two blocks must not overlap.
    """
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def split_parameters(policy: ActorCriticPolicy) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Separate the parameters that only the value network uses from all others.

    :return: The policy's, which include whatever both share, and the value network's.
    """
    policy = unwrap_compiled(policy)
    if type(policy) in POLICIES.values() and type(policy.mlp_extractor) is MlpExtractor:
        of_policy = [policy.mlp_extractor.policy_net, policy.action_net, policy.pi_features_extractor]
        of_values = [policy.mlp_extractor.value_net, policy.value_net]
        if not policy.share_features_extractor:
            of_values.append(policy.vf_features_extractor)
        shared = {id(p) for layer in of_policy for p in layer.parameters()}
        value_parameters = [p for layer in of_values for p in layer.parameters() if id(p) not in shared]
    else:
        value_parameters = _find_value_parameters(policy)
    in_value_network = {id(p) for p in value_parameters}
    return [p for p in policy.parameters() if id(p) not in in_value_network], value_parameters


@torch.no_grad()
def find_not_finite(policy: ActorCriticPolicy) -> str | None:
    """Name a trained parameter that holds NaN or infinity; return None if all are finite."""
    for name, parameter in unwrap_compiled(policy).named_parameters():
        # A sum is quicker to ask, and finite only if all of it is.
        if parameter.requires_grad and not parameter.sum().isfinite() and not parameter.isfinite().all():
            return str(name)
    return None


def _find_value_parameters(policy: ActorCriticPolicy) -> list[torch.nn.Parameter]:
    """Find the parameters that values depend on and probabilities do not, in a policy of any layers."""
    was_training = policy.training
    policy.set_training_mode(False)
    # Hooks that watch the policy see this pass too; torch's generator must not, in case a layer draws from it.
    with lock_torch_generator(), torch.random.fork_rng(devices=[]), torch.enable_grad():
        observations = policy.obs_to_tensor(_make_observations(policy.observation_space))[0]
        actions = torch.zeros((1, *(policy.action_space.shape or ())), device=policy.device)
        if isinstance(policy.action_space, spaces.Box):
            actions = actions.reshape(1, -1)
        values, log_prob, entropy = policy.evaluate_actions(observations, actions)
        parameters = [p for p in policy.parameters() if p.requires_grad]
        of_policy = log_prob.sum() if entropy is None else log_prob.sum() + entropy.sum()
        reached = [
            {id(p) for p, g in zip(parameters, _list_gradients(outputs, parameters), strict=True) if g is not None}
            for outputs in (values.sum(), of_policy)
        ]
    policy.set_training_mode(was_training)
    return [p for p in parameters if id(p) in reached[0] - reached[1]]


def _list_gradients(output: torch.Tensor, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor | None]:
    if not output.requires_grad:  # all layers in question are frozen
        return [None] * len(parameters)
    return list(torch.autograd.grad(output, parameters, allow_unused=True, retain_graph=True))


def _make_observations(space: spaces.Space[Any]) -> Any:
    """Make a batch of one observation of zeros: it exists in every space that policies accept."""
    if isinstance(space, spaces.Dict):
        return {key: _make_observations(subspace) for key, subspace in space.spaces.items()}
    return np.zeros((1, *(space.shape or ())), space.dtype)


def copy_policy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """Copy a policy as it is now, to be asked and not trained: without its optimizer, dropout off."""
    policy = unwrap_compiled(policy)
    # The last forward pass left tensors of a graph in the distribution, which cannot be copied.
    policy.action_dist.distribution = None  # type: ignore[assignment]  # as SB3's constructors leave it
    copied: ActorCriticPolicy = copy.deepcopy(policy, {id(policy.optimizer): None})
    copied.set_training_mode(False)
    return copied


def evaluate_actions(
    policy: ActorCriticPolicy, observations: Any, actions: torch.Tensor, action_masks: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Evaluate actions as ``ActorCriticPolicy.evaluate_actions`` does, but with masks.

    :param observations: Shape ``(batch_size, *observation_shape)``; a dict of such for Dict observations.
    :param actions: Shape ``(batch_size, *action_shape)``.
    :param action_masks: Legal actions, shape ``(batch_size, n_bits)``; None where all are.
    :return: Values, log probabilities and entropies, ``(batch_size,)`` each.
    """
    if action_masks is None:
        values, log_prob, entropy = policy.evaluate_actions(observations, actions)
    else:
        distribution = get_distribution(policy, observations, action_masks)
        values, log_prob, entropy = (
            policy.predict_values(observations),
            distribution.log_prob(actions),
            distribution.entropy(),
        )
    if entropy is None:  # a distribution without a closed form is estimated as SB3's algorithms do
        entropy = -log_prob
    return values.flatten(), log_prob, entropy


def compute_values(policy: ActorCriticPolicy, observations: Observations) -> npt.NDArray[np.float32]:
    """Estimate the values of observations, ``(n_steps,)``, in forward passes of bounded size.

    :param observations: As the policy sees them, shape ``(n_steps, *observation_shape)``.
    """
    inputs = to_tensors(observations, policy.device)
    with torch.no_grad():
        chunks = [policy.predict_values(select(inputs, part)) for part in _split_for_forward(policy, inputs)]
    return np.asarray(torch.cat(chunks).flatten().cpu().numpy())


def extract_value_features(policy: ActorCriticPolicy, observations: Observations) -> torch.Tensor:
    """Return what the value network's own layers take, ``(n_steps, n_features)``, in forward passes of bounded size.

    :param observations: As the policy sees them, shape ``(n_steps, *observation_shape)``.
    """
    inputs = to_tensors(observations, policy.device)
    # With a shared extractor it is the policy's: SB3 keeps it under both names.
    extractor = policy.vf_features_extractor
    with torch.no_grad():
        chunks = [
            super(ActorCriticPolicy, policy).extract_features(select(inputs, part), extractor)
            for part in _split_for_forward(policy, inputs)
        ]
    return torch.cat(chunks)


def compute_log_prob(policy: ActorCriticPolicy, batch: StepBatch) -> npt.NDArray[np.float32]:
    """Compute the log probability of each action of a batch, ``(n_steps,)``, in forward passes of bounded size."""
    tensors = batch.to_tensors(policy.device)
    with torch.no_grad():
        chunks = [
            evaluate_actions(policy, part.observations, part.actions, part.action_masks)[1]
            for part in map(tensors.select, _split_for_forward(policy, tensors.observations))
        ]
    return np.asarray(torch.cat(chunks).cpu().numpy())


def _split_for_forward(policy: ActorCriticPolicy, inputs: Any) -> tuple[torch.Tensor, ...]:
    """Split the indices of observations into parts that are small enough for one forward pass each."""
    n_inputs = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    n_at_once = min(_MAX_FORWARD_STEPS, max(1, _MAX_FORWARD_INPUTS // count_inputs(policy.observation_space)))
    return torch.split(torch.arange(n_inputs, device=policy.device), n_at_once)


def get_distribution(policy: ActorCriticPolicy, observations: Any, action_masks: torch.Tensor | None) -> Distribution:
    """Return the distribution of actions, in which masked ones do not occur.

    :param action_masks: Legal actions, shape ``(batch_size, n_bits)``; None where all are.
    """
    distribution = policy.get_distribution(observations)
    if action_masks is None:
        return distribution
    if isinstance(distribution, CategoricalDistribution):
        distribution.distribution = _mask(distribution.distribution, action_masks)
    elif isinstance(distribution, MultiCategoricalDistribution):
        masks = torch.split(action_masks, list(distribution.action_dims), dim=1)
        distribution.distribution = [_mask(*pair) for pair in zip(distribution.distribution, masks, strict=True)]
    else:
        assert isinstance(distribution, BernoulliDistribution)  # count_mask_bits refuses a Box
        pairs = action_masks.reshape(len(action_masks), -1, 2)
        logits = distribution.distribution.logits.masked_fill(~pairs[..., 1], _RULED_OUT)
        logits = logits.masked_fill(~pairs[..., 0], -_RULED_OUT)
        distribution.distribution = torch.distributions.Bernoulli(logits=logits)
    return distribution


def _mask(categorical: Any, masks: torch.Tensor) -> torch.distributions.Categorical:
    return torch.distributions.Categorical(logits=categorical.logits.masked_fill(~masks, _RULED_OUT))


def predict_masked(
    policy: ActorCriticPolicy, observation: Any, action_masks: Any, deterministic: bool
) -> npt.NDArray[Any]:
    """Choose legal actions as ``BasePolicy.predict`` chooses any.

    :param action_masks: Legal actions, shape ``(n_bits,)``, or ``(batch_size, n_bits)`` for several observations.
    :raises ValueError: If the observation or the masks have another shape, or nothing of a choice is legal.
    """
    policy.set_training_mode(False)
    if isinstance(observation, tuple):
        raise ValueError("the observation is a tuple, as env.reset() of Gymnasium returns it; pass its first part.")
    observations, is_vectorized = policy.obs_to_tensor(observation)
    n_observations = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    masks = np.asarray(action_masks)
    masks = masks.reshape(len(masks) if is_vectorized and masks.ndim > 1 else 1, -1)
    masks = check_action_masks(policy.action_space, masks, n_observations)
    with torch.no_grad():
        distribution = get_distribution(policy, observations, torch.as_tensor(masks, device=policy.device))
        actions = distribution.get_actions(deterministic=deterministic).cpu().numpy()
    actions = actions.reshape(-1, *(policy.action_space.shape or ()))
    return actions if is_vectorized else actions[0]
