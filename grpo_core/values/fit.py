"""Fit the value network to a finished policy, and check what its values are worth.

While a policy learns, its value network follows a moving target: the returns of a policy that still explores and still
changes, in units that may be hundreds of times what the network starts from. Once the policy is finished, its own
episodes say what its states are worth. ``fit_values`` regresses the value network on the discounted returns of some of
them, and ``check_values`` compares its values with what really followed in others.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.actor.actor import Actor
from grpo_core.update.policies import extract_value_features
from grpo_core.values.trajectories import Floats, Trajectory

# Returns count in a check from where at least this share of them, by discounting, lies within the trajectory.
_MIN_SHARE_SEEN = 0.95
# The least correlation, and the largest error in shares of the mean return, with which values are worth showing.
_MIN_CORRELATION = 0.8
_MAX_ERROR = 0.2
# Returns that differ by less than this share of their mean have nothing to correlate with.
_LEAST_SPREAD = 0.05

# Chosen for fits of 8,000 steps. On CartPole's default job they raised the correlation with the returns of other
# episodes from 0.14 to 0.94.
_MIN_ITERATIONS, _MAX_ITERATIONS = 100, 400
_STATES_PER_ITERATION = 15
_MINIBATCH_STATES = 256
_LEARNING_RATE = 1e-2
# How often the ends of cut trajectories are valued anew while the network learns.
_N_END_VALUES = 4
# Less is no spread, but rounding: features are in float32.
_EPSILON = 1e-6


@dataclass(frozen=True)
class ValueCheck:
    """How well values agree with the discounted returns that followed, over states of the policy's own episodes.

    :param n_states: Number of states.
    :param correlation: Pearson's, in [-1, 1]; None where the returns or the values do not differ.
    :param error: Mean size of the error, in shares of the mean size of the return; None where that is 0, or nearly.
    :param spread: Standard deviation of the returns, in the same shares.
    :param lowest: The least of these values and returns, in units of the rewards: beyond it nothing was tested.
    :param highest: The greatest of them.
    """

    n_states: int
    correlation: float | None
    error: float | None
    spread: float | None
    lowest: float
    highest: float

    @property
    def is_meaningful(self) -> bool:
        """Whether the values are worth showing."""
        if self.error is None or self.spread is None or self.error > _MAX_ERROR:
            return False
        return self.spread < _LEAST_SPREAD or (self.correlation is not None and self.correlation >= _MIN_CORRELATION)


def check_values(
    actor: Actor, trajectories: Sequence[Trajectory], gamma: float, reward_scale: float = 1.0
) -> ValueCheck | None:
    """Compare values with the returns that followed.

    States whose return was cut by the end of a trajectory, and by more than discounting makes negligible, do not count.

    :param trajectories: Episodes of the actor that its values were not fitted to.
    :param gamma: Discount factor in [0, 1].
    :param reward_scale: Rewards in units of the value network: what rewards were divided by in training.
    :return: None if no state counts.
    """
    values, returns = [], []
    for trajectory in trajectories:
        n_counted = len(trajectory.rewards) - (0 if trajectory.terminated else _count_cut_steps(gamma))
        if n_counted > 0:
            values.append(reward_scale * np.asarray(actor.values(trajectory.observations[:n_counted]), np.float64))
            returns.append(trajectory.compute_returns(gamma, 0.0)[:n_counted])
    return _compare(np.concatenate(values), np.concatenate(returns)) if values else None


def _compare(values: Floats, returns: Floats) -> ValueCheck:
    differ = len(returns) > 1 and values.std() > 0 and returns.std() > 0
    size = float(np.abs(returns).mean())
    return ValueCheck(
        n_states=len(returns),
        correlation=float(np.corrcoef(values, returns)[0, 1]) if differ else None,
        error=_divide(float(np.abs(values - returns).mean()), size),
        spread=_divide(float(returns.std()), size),
        lowest=float(min(values.min(), returns.min())),
        highest=float(max(values.max(), returns.max())),
    )


def _divide(number: float, size: float) -> float | None:
    """Divide by a size; None if that is 0, or so small that the quotient overflows."""
    quotient = number / size if size > 0 else math.inf
    return quotient if math.isfinite(quotient) else None


def _count_cut_steps(gamma: float) -> float:
    """Count the steps before a cut whose returns miss more than a negligible share of what would have followed."""
    if gamma >= 1.0:
        return math.inf
    return math.ceil(math.log(1.0 - _MIN_SHARE_SEEN) / math.log(gamma)) if gamma > 0.0 else 1


def fit_values(
    policy: ActorCriticPolicy,
    actor: Actor,
    trajectories: Sequence[Trajectory],
    gamma: float,
    rng: np.random.Generator,
    reward_scale: float = 1.0,
    on_minibatch: Callable[[], None] = lambda: None,
) -> None:
    """Train the value network anew on the discounted returns of trajectories; nothing else of the policy changes.

    A features extractor is left as it is, so what changes are the layers after it. The ends of trajectories that were
    cut are valued first as if their latest rewards went on for ever, later by the network itself.

    :param policy: Its value network is overwritten.
    :param actor: The policy as an actor, for its normalisation.
    :param trajectories: At least one.
    :param gamma: Discount factor, at least 0 and less than 1.
    :param rng: Draws the initial weights and the minibatches.
    :param reward_scale: What rewards were divided by in training; so are the values.
    :param on_minibatch: Called after every minibatch. It may raise to end the fit; the network is then half trained.
    """
    features = _extract_features(policy, actor, [t.observations for t in trajectories])
    ends = _extract_features(policy, actor, [t.last_observation for t in trajectories])
    mean, std = features.mean(0), features.std(0, correction=0)
    std[std < _EPSILON] = 1.0  # a feature that never differs tells nothing, and must not matter elsewhere
    features, ends = (features - mean) / std, (ends - mean) / std
    returns = _compute_returns(trajectories, gamma, [_extrapolate(t.rewards, gamma) for t in trajectories])
    centre, spread = float(returns.mean()), float(returns.std()) + _EPSILON

    network = torch.nn.Sequential(policy.mlp_extractor.value_net, policy.value_net)
    _initialize(network, rng)
    optimizer = torch.optim.Adam(network.parameters(), lr=_LEARNING_RATE, fused=True)
    n_iterations = int(np.clip(len(features) // _STATES_PER_ITERATION, _MIN_ITERATIONS, _MAX_ITERATIONS))
    is_cut = not all(trajectory.terminated for trajectory in trajectories)
    for i in range(n_iterations):
        if i > 0 and is_cut and i % (n_iterations // _N_END_VALUES) == 0:
            with torch.no_grad():
                end_values = network(ends).flatten().double().cpu().numpy() * spread + centre
            returns = _compute_returns(trajectories, gamma, end_values)
        chosen = rng.integers(len(features), size=_MINIBATCH_STATES)
        targets = torch.as_tensor((returns[chosen] - centre) / spread, dtype=torch.float32, device=policy.device)
        loss = torch.nn.functional.mse_loss(network(features[chosen]).flatten(), targets)
        optimizer.param_groups[0]["lr"] = _LEARNING_RATE * (1 - i / n_iterations)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        on_minibatch()
    _fold_scales(network, mean, std, centre / reward_scale, spread / reward_scale)


def _extract_features(policy: ActorCriticPolicy, actor: Actor, observations: Sequence[Any]) -> torch.Tensor:
    """Return what the value network's layers take, ``(n_states, n_features)``."""
    return extract_value_features(policy, actor.to_inputs(np.concatenate(observations)))


def _compute_returns(trajectories: Sequence[Trajectory], gamma: float, end_values: Any) -> Floats:
    pairs = zip(trajectories, end_values, strict=True)
    return np.concatenate([trajectory.compute_returns(gamma, float(value)) for trajectory, value in pairs])


def _extrapolate(rewards: Floats, gamma: float) -> float:
    """Return what an endless stretch of the latest rewards is worth."""
    n_latest = max(1, int(1.0 / (1.0 - gamma)))
    return float(rewards[-n_latest:].mean()) / (1.0 - gamma)


def _initialize(network: torch.nn.Module, rng: np.random.Generator) -> None:
    """Give the layers fresh weights as SB3 does: what training left may be saturated and could not learn any more."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
    layers = _list_layers(network)
    with torch.no_grad():
        for layer in layers:
            weight = torch.empty(layer.weight.shape)
            torch.nn.init.orthogonal_(weight, gain=1.0 if layer is layers[-1] else math.sqrt(2), generator=generator)
            layer.weight.copy_(weight)
            layer.bias.zero_()


def _fold_scales(network: torch.nn.Module, mean: torch.Tensor, std: torch.Tensor, centre: float, spread: float) -> None:
    """Let the network take features and give returns in their own units instead of standardised ones."""
    layers = _list_layers(network)
    with torch.no_grad():
        layers[-1].weight.mul_(spread)
        layers[-1].bias.mul_(spread).add_(centre)
        layers[0].weight.div_(std)
        layers[0].bias.sub_(layers[0].weight @ mean)


def _list_layers(network: torch.nn.Module) -> list[torch.nn.Linear]:
    return [module for module in network.modules() if isinstance(module, torch.nn.Linear)]
