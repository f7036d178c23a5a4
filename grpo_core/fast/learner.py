"""The steps of ``GRPO.train`` for plain MLP policies on the CPU, with the gradient derived by hand in NumPy.

A minibatch of a 64x64 network is so little arithmetic that eager torch spends nine tenths of a step on its own
bookkeeping. Here parameters, gradients and Adam's moments lie in one vector each, and a step is some sixty NumPy
calls. It rounds differently from torch, in the last digits; ``tests/grpo_core/fast/test_learner.py`` compares the two.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from threadpoolctl import ThreadpoolController

from grpo_core.actor.actor import ACTIVATIONS, LEAKY_SLOPE, Actor
from grpo_core.actor.extractors import FloatArray
from grpo_core.fast.one_thread import OneThread
from grpo_core.groups.rollout import Indices, StepBatch
from grpo_core.options.choices import LossType
from grpo_core.spaces import Observations
from grpo_core.update.losses import TARGET_KL_TOLERANCE, TINY
from grpo_core.update.structure import unwrap_compiled

# Options of Adam that change its step; a policy whose optimizer sets one of them is left to torch.
_ADAM_EXTRAS = ("weight_decay", "amsgrad", "maximize", "decoupled_weight_decay")
_NORM_EPSILON = 1e-6  # torch.nn.utils.clip_grad_norm_'s
# For NumPy's matrix products. A minibatch's are so small that a second thread costs more than it takes over, and jobs
# that train beside each other would fight over the cores.
_BLAS = OneThread(ThreadpoolController().select(user_api="blas"))
_LOG_2_PI = math.log(2.0 * math.pi)

# The derivative of each activation as a function of its output.
_SLOPES: Mapping[str, Callable[[FloatArray], Any]] = MappingProxyType(
    {
        "Tanh": lambda h: 1.0 - h * h,
        "ReLU": lambda h: h > 0.0,
        "ELU": lambda h: np.where(h > 0.0, np.float32(1.0), h + 1.0),
        "LeakyReLU": lambda h: np.where(h > 0.0, np.float32(1.0), LEAKY_SLOPE),
    }
)


def is_plain_mlp(policy: ActorCriticPolicy) -> bool:
    """Tell whether ``MlpLearner`` can train a policy as it is now.

    It can if the policy, which has the layers that SB3 gave it, is on the CPU, chooses one of several actions or draws
    from a Gaussian, has no layers but those of two MLPs, all of them trained, and Adam as its optimizer without extras.
    """
    return (
        type(policy.action_dist) in (CategoricalDistribution, DiagGaussianDistribution)
        and _is_plain_adam(policy.optimizer)
        and _trains_two_mlps(policy)
    )


def _is_plain_adam(optimizer: torch.optim.Optimizer) -> bool:
    if type(optimizer) is not torch.optim.Adam:
        return False
    first, *others = groups = optimizer.param_groups
    # Parameters that were frozen for a while, or not in the state that was loaded, have taken fewer steps.
    n_steps = [{_count_steps(optimizer, p) for p in group["params"]} for group in groups]
    return (
        all(len(of_group) == 1 for of_group in n_steps)
        and not any(group.get(name) for group in groups for name in _ADAM_EXTRAS)
        and all(group[name] == first[name] for group in others for name in ("betas", "eps"))
    )


def _count_steps(optimizer: torch.optim.Optimizer, parameter: torch.Tensor) -> int:
    return int(optimizer.state[parameter]["step"]) if optimizer.state.get(parameter) else 0


def _trains_two_mlps(policy: ActorCriticPolicy) -> bool:
    """Tell whether one optimizer group holds the policy's layers, the other the value network's, and none else."""
    expected = [[p for layer in net for p in (layer.weight, layer.bias)] for net in _list_linear_layers(policy)]
    if type(policy.action_dist) is DiagGaussianDistribution:
        expected[0].append(policy.log_std)
    trained = [group["params"] for group in policy.optimizer.param_groups]
    return [{id(p) for p in group} for group in trained] == [{id(p) for p in group} for group in expected] and all(
        p.requires_grad and p.dtype == torch.float32 and p.device.type == "cpu" for group in trained for p in group
    )


def _list_linear_layers(policy: ActorCriticPolicy) -> list[list[torch.nn.Linear]]:
    """List the layers of the policy and of the value network, features to outputs."""
    hidden = unwrap_compiled(policy.mlp_extractor)
    pi, vf = unwrap_compiled(hidden.policy_net), unwrap_compiled(hidden.value_net)
    networks = ([*pi, policy.action_net], [*vf, policy.value_net])
    return [[layer for layer in network if isinstance(layer, torch.nn.Linear)] for network in networks]


class _Part(NamedTuple):
    """Views of the vectors of ``_FlatParameters`` that belong to one parameter, in its shape."""

    parameter: FloatArray
    gradient: FloatArray
    mean: FloatArray
    square: FloatArray


class _FlatParameters:
    """The parameters of two optimizer groups, their gradients and Adam's two moments, in one vector each.

    :param optimizer: The optimizer of a policy for which ``is_plain_mlp`` is true.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        sizes = [[p.numel() for p in group["params"]] for group in optimizer.param_groups]
        n_policy, n_all = sum(sizes[0]), sum(map(sum, sizes))
        self._halves = slice(0, n_policy), slice(n_policy, n_all)
        vectors = tuple(np.zeros(n_all, np.float32) for _ in range(4))
        self.gradient, self._scratch = vectors[1], np.empty(n_all, np.float32)
        # What a step works on: everything, or all but the policy.
        self._all = (*vectors, self._scratch)
        self._of_values = tuple(vector[n_policy:] for vector in self._all)
        self.parts: dict[torch.Tensor, _Part] = {}
        start = 0
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            end = start + p.numel()
            self.parts[p] = _Part(*[vector[start:end].reshape(p.shape) for vector in vectors])
            start = end
        # Of either group: a step may leave the policy out.
        self._n_steps = [_count_steps(optimizer, group["params"][0]) for group in optimizer.param_groups]
        self._n_steps_before = tuple(self._n_steps)
        for p, part in self.parts.items():
            part.parameter[...] = p.detach().numpy()
            if optimizer.state.get(p):
                part.mean[...] = optimizer.state[p]["exp_avg"].numpy()
                part.square[...] = optimizer.state[p]["exp_avg_sq"].numpy()

    def clip(self, max_grad_norm: float) -> None:
        """Shorten the gradient of either group to a norm."""
        for half in self._halves:
            part = self.gradient[half]
            factor = max_grad_norm / (math.sqrt(np.dot(part, part)) + _NORM_EPSILON)
            if factor < 1.0:
                part *= factor

    def step(self, moves_policy: bool = True) -> None:
        """Take a step of Adam (https://arxiv.org/abs/1412.6980, algorithm 1), as ``torch.optim.Adam`` does.

        :param moves_policy: Whether the policy takes it as well as the value network.
        """
        groups = self._optimizer.param_groups
        (beta_1, beta_2), eps = groups[0]["betas"], groups[0]["eps"]
        moved = range(0 if moves_policy else 1, len(groups))
        parameters, gradient, mean, square, scratch = self._all if moves_policy else self._of_values
        np.subtract(gradient, mean, out=scratch)
        scratch *= 1.0 - beta_1
        mean += scratch
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1.0 - beta_2
        square *= beta_2
        square += scratch
        np.sqrt(square, out=scratch)
        for i in moved:
            self._n_steps[i] += 1
            self._scratch[self._halves[i]] /= math.sqrt(1.0 - beta_2 ** self._n_steps[i])
        scratch += eps
        np.divide(mean, scratch, out=scratch)
        for i in moved:
            self._scratch[self._halves[i]] *= groups[i]["lr"] / (1.0 - beta_1 ** self._n_steps[i])
        parameters -= scratch

    def write_back(self) -> None:
        """Leave the parameters, their last gradients and the moments in the policy and its optimizer."""
        groups = self._optimizer.param_groups
        for group, n_steps, n_before in zip(groups, self._n_steps, self._n_steps_before, strict=True):
            if n_steps == n_before:
                continue
            for p in group["params"]:
                self._write_back(p, n_steps)

    def _write_back(self, p: torch.nn.Parameter, n_steps: int) -> None:
        state, part = self._optimizer.state[p], self.parts[p]
        if not state:  # as Adam's first step finds it
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.empty_like(p), "exp_avg_sq": torch.empty_like(p)}
        state["step"].fill_(n_steps)
        p.detach().numpy()[...] = part.parameter
        p.grad = torch.from_numpy(part.gradient)  # as after autograd: that of the last step, clipped
        state["exp_avg"].detach().numpy()[...] = part.mean
        state["exp_avg_sq"].detach().numpy()[...] = part.square


class _Mlp:
    """One network: weights ``(n_out, n_in)`` and biases ``(n_out,)`` per layer, and where their gradients go."""

    def __init__(self, layers: Sequence[torch.nn.Linear], activation: str, flat: _FlatParameters) -> None:
        parts = [(flat.parts[layer.weight], flat.parts[layer.bias]) for layer in layers]
        self._layers = [(weight.parameter, bias.parameter) for weight, bias in parts]
        self._gradients = [(weight.gradient, bias.gradient) for weight, bias in parts]
        self._activate, self._slope = ACTIVATIONS[activation], _SLOPES[activation]

    def forward(self, x: FloatArray) -> FloatArray:
        """Compute the outputs, ``(batch_size, n_out)``, and keep what ``backward`` needs."""
        self._inputs = [x]
        for weight, bias in self._layers[:-1]:
            x = x @ weight.T
            x += bias
            x = self._activate(x)
            self._inputs.append(x)
        weight, bias = self._layers[-1]
        return np.asarray(self._inputs[-1] @ weight.T + bias)

    def backward(self, slopes: FloatArray) -> None:
        """Compute the gradient of a loss.

        :param slopes: Its derivatives with respect to the outputs of ``forward``, shape ``(batch_size, n_out)``.
        """
        for i in range(len(self._layers) - 1, -1, -1):
            to_weight, to_bias = self._gradients[i]
            np.matmul(slopes.T, self._inputs[i], out=to_weight)
            np.add.reduce(slopes, axis=0, out=to_bias)
            if i > 0:
                slopes = (slopes @ self._layers[i][0]) * self._slope(self._inputs[i])


class _Head(Protocol):
    """An action distribution: from the policy's outputs to log probabilities, and back to derivatives."""

    def forward(self, outputs: FloatArray, actions: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Compute the log probabilities of actions and the entropies, ``(batch_size,)`` each."""

    def backward(self, log_prob_slopes: FloatArray, entropy_slope: float) -> FloatArray:
        """Compute the derivatives of a loss with respect to the outputs.

        :param log_prob_slopes: Its derivatives with respect to the log probabilities, shape ``(batch_size,)``.
        :param entropy_slope: Its derivative with respect to the entropy of any step.
        """


class _Categorical:
    """One choice out of several; outputs are logits."""

    def forward(self, outputs: FloatArray, actions: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Compute log probabilities and entropies; ``actions`` are integers ``(batch_size,)``."""
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        sums = exponentials.sum(axis=1, keepdims=True)
        self._chosen = np.arange(len(actions)), actions
        self._probs, self._log_probs = exponentials / sums, shifted - np.log(sums)
        self._entropy = -(self._probs * self._log_probs).sum(axis=1, keepdims=True)
        return self._log_probs[self._chosen], self._entropy[:, 0]

    def backward(self, log_prob_slopes: FloatArray, entropy_slope: float) -> FloatArray:
        """Compute the derivatives with respect to the logits.

        ``d log p_a / d z_i = [a = i] - p_i`` and ``d H / d z_i = -p_i (log p_i + H)``.
        """
        slopes = -self._probs * log_prob_slopes[:, None]
        slopes[self._chosen] += log_prob_slopes
        if entropy_slope != 0.0:
            slopes -= entropy_slope * self._probs * (self._log_probs + self._entropy)
        return np.asarray(slopes)


class _Gaussian:
    """Independent normal distributions; outputs are the means.

    :param log_std: Log standard deviations, shape ``(n_dimensions,)``.
    :param gradient: Where their gradient goes, same shape.
    """

    def __init__(self, log_std: FloatArray, gradient: FloatArray) -> None:
        self._log_std, self._gradient = log_std, gradient

    def forward(self, outputs: FloatArray, actions: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray]:
        """Compute log probabilities and entropies; ``actions`` are numbers ``(batch_size, n_dimensions)``."""
        self._std = np.exp(self._log_std)
        self._noise = (actions - outputs) / self._std
        log_prob = (-0.5 * self._noise * self._noise - self._log_std - 0.5 * _LOG_2_PI).sum(axis=1)
        entropy = (self._log_std + 0.5 * (1.0 + _LOG_2_PI)).sum()
        return log_prob, np.full(len(actions), entropy, np.float32)

    def backward(self, log_prob_slopes: FloatArray, entropy_slope: float) -> FloatArray:
        """Compute the derivatives with respect to the means, and write the gradient of ``log_std``."""
        weighed = log_prob_slopes[:, None] * self._noise
        self._gradient[:] = (weighed * self._noise - log_prob_slopes[:, None]).sum(axis=0)
        self._gradient += entropy_slope * len(log_prob_slopes)
        return np.asarray(weighed / self._std)


class _Steps(NamedTuple):
    """The fields of ``StepBatch`` that the loss reads, ``(batch_size, ...)`` each, with features for observations."""

    features: FloatArray
    actions: npt.NDArray[Any]
    old_log_prob: FloatArray
    advantages: FloatArray
    value_targets: FloatArray
    weights: FloatArray
    unfiltered_weights: FloatArray
    ref_log_prob: FloatArray | None

    def select(self, chosen: Indices) -> "_Steps":
        """Return some of the steps.

        :param chosen: Which ones, integers ``(batch_size,)``.
        """
        fields: list[Any] = [None if field is None else field[chosen] for field in self]
        return _Steps(*fields)


class UpdateRule(NamedTuple):
    """The hyperparameters of the loss and of the step; ``GRPO`` says what each means."""

    clip_range: float
    clip_range_high: float
    ent_coef: float
    vf_coef: float
    kl_coef: float
    max_grad_norm: float
    target_kl: float | None
    loss_type: LossType


class MlpLearner:
    """Takes the steps of ``GRPO.train`` on one rollout.

    :param policy: One for which ``is_plain_mlp`` is true; it is left as it is until ``train`` returns.
    :param actor: The actor that collected the rollout; its extractor turns observations into features.
    :param batch: The steps of the rollout, without action masks.
    :param rule: Hyperparameters of the loss and of the step.
    """

    def __init__(self, policy: ActorCriticPolicy, actor: Actor, batch: StepBatch, rule: UpdateRule) -> None:
        self._flat = _FlatParameters(policy.optimizer)
        pi, vf = _list_linear_layers(policy)
        self._policy_net, self._value_net = (_Mlp(net, actor.activation, self._flat) for net in (pi, vf))
        self._head: _Head = _Categorical()
        if isinstance(policy.action_dist, DiagGaussianDistribution):
            log_std = self._flat.parts[policy.log_std]
            self._head = _Gaussian(log_std.parameter, log_std.gradient)
        self._steps = _Steps(
            features=actor.policy_extractor(batch.observations),
            actions=batch.actions,
            old_log_prob=batch.old_log_prob,
            advantages=batch.advantages,
            value_targets=batch.value_targets,
            weights=batch.weights,
            unfiltered_weights=batch.unfiltered_weights,
            ref_log_prob=batch.ref_log_prob,
        )
        self._rule = rule
        self._measured: list[tuple[float, ...]] = []

    def train(self, minibatches: Iterable[Indices]) -> dict[str, float]:
        """Take one optimizer step per minibatch, until ``target_kl`` forbids one, and write them to the policy.

        :param minibatches: Which steps of the batch each one takes, integers ``(batch_size,)``.
        :return: Metrics to log, averaged over the minibatches; empty if there was none.
        """
        try:
            with _BLAS:
                for chosen in minibatches:
                    if not self._take_step(self._steps.select(chosen)):
                        break
        finally:
            self._flat.write_back()
        return self._compute_means()

    @np.errstate(all="ignore")  # as torch does; a loss that is not finite is refused by whoever logs it
    def _take_step(self, steps: _Steps) -> bool:
        """Take one optimizer step; return False if ``target_kl`` forbade it."""
        rule, n_steps = self._rule, len(steps.features)
        log_prob, entropy = self._head.forward(self._policy_net.forward(steps.features), steps.actions)
        errors = self._value_net.forward(steps.features)[:, 0] - steps.value_targets
        log_ratio = log_prob - steps.old_log_prob
        ratio = np.exp(log_ratio)
        # CISPO bounds the ratio only above.
        lowest, highest = 0.0 if rule.loss_type == "cispo" else 1.0 - rule.clip_range, 1.0 + rule.clip_range_high
        too_low, too_high = ratio < lowest, ratio > highest
        # Each step's loss, and its derivative with respect to the log probability.
        if rule.loss_type == "cispo":
            slopes = -np.minimum(ratio, highest) * steps.advantages
            losses = slopes * log_prob
        else:
            slopes = -ratio * steps.advantages
            losses = np.maximum(slopes, -ratio.clip(lowest, highest) * steps.advantages)
            # A step that left the interval in the direction its advantage asks for is not pushed further.
            slopes[np.where(steps.advantages < 0.0, too_low, too_high)] = 0.0

        policy_loss, value_loss = np.dot(steps.weights, losses) / n_steps, np.dot(errors, errors) / n_steps
        entropy_loss = -entropy.sum() / n_steps
        loss = policy_loss + rule.ent_coef * entropy_loss + rule.vf_coef * value_loss
        all_weights = max(np.add.reduce(steps.unfiltered_weights), TINY)
        kl_ref: tuple[float, ...] = ()
        if steps.ref_log_prob is not None:
            log_ref = steps.ref_log_prob - log_prob
            over = np.expm1(log_ref)
            loss += rule.kl_coef * (np.dot(steps.weights, over - log_ref) / n_steps)
            kl_ref = (np.dot(steps.unfiltered_weights, over - log_ref) / all_weights,)
            slopes -= rule.kl_coef * over
        approx_kl = np.dot(steps.unfiltered_weights, np.expm1(log_ratio) - log_ratio) / all_weights
        clip_fraction = np.dot(steps.unfiltered_weights, too_low | too_high) / all_weights
        self._measured.append((loss, policy_loss, value_loss, entropy_loss, *kl_ref, approx_kl, clip_fraction))
        if rule.target_kl is not None and approx_kl > TARGET_KL_TOLERANCE * rule.target_kl:
            return False

        moves_policy = rule.ent_coef != 0.0 or bool(np.count_nonzero(steps.weights))  # or all groups are filtered out
        if moves_policy:
            slopes *= steps.weights / n_steps
            self._policy_net.backward(self._head.backward(slopes, -rule.ent_coef / n_steps))
        self._value_net.backward((errors * (2.0 * rule.vf_coef / n_steps))[:, None])
        self._flat.clip(rule.max_grad_norm)
        self._flat.step(moves_policy)
        return True

    def _compute_means(self) -> dict[str, float]:
        if not self._measured:
            return {}
        kl_ref = ["kl_ref"] if self._steps.ref_log_prob is not None else []
        losses = ["loss", "policy_gradient_loss", "value_loss", "entropy_loss", *kl_ref]
        return dict(zip([*losses, "approx_kl", "clip_fraction"], _mean_columns(self._measured), strict=True))


def _mean_columns(rows: Iterable[tuple[float, ...]]) -> list[float]:
    return [float(sum(column)) / len(column) for column in zip(*rows, strict=True)]


def compute_values(actor: Actor, observations: Observations) -> FloatArray:
    """Estimate the values of observations, ``(n_steps,)``, with the actor's copy of a plain MLP.

    :param observations: As the networks see them, shape ``(n_steps, *observation_shape)``.
    """
    with _BLAS:
        return actor.values_of_inputs(observations)
