"""One rollout's update: the clipped policy step and the value network's regression, minibatch by minibatch.

``AutogradLearner`` takes any policy on any device. ``grpo_core.fast.learner`` takes the same steps several times faster
where the policy is a plain MLP on the CPU.
"""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from grpo_core.groups.rollout import StepBatch
from grpo_core.options.choices import ImportanceLevel, LossType
from grpo_core.update.losses import (
    compute_cispo_loss,
    compute_clipped_surrogate,
    compute_kl,
    compute_sequence_ratio,
)
from grpo_core.update.policies import evaluate_actions, split_parameters

Indices = npt.NDArray[np.int64]


class UpdateRule(NamedTuple):
    """What the loss of a minibatch is made of, and how far a step may go; see ``GRPO`` for the meaning of each.

    ``loss = mean(weights * surrogate) - ent_coef * mean(entropy) + vf_coef * mean((values - targets)^2)
    + kl_coef * mean(weights * KL(reference || policy))``
    """

    clip_range: float
    clip_range_high: float
    ent_coef: float
    vf_coef: float
    kl_coef: float
    max_grad_norm: float
    target_kl: float | None
    loss_type: LossType
    importance_level: ImportanceLevel

    def goes_too_far(self, approx_kl: float | torch.Tensor) -> bool:
        """Tell whether ``target_kl`` forbids a step, given how far the steps before it went."""
        return self.target_kl is not None and bool(approx_kl > 1.5 * self.target_kl)


class Learner(Protocol):
    """Fits a policy and its value network to the steps of one rollout."""

    def update(self, chosen: Indices) -> bool:
        """Take one optimizer step on some of the steps.

        :param chosen: Which ones, shape ``(batch_size,)``.
        :return: False if ``target_kl`` forbade it.
        """

    def finish(self) -> dict[str, float]:
        """Leave what was learnt in the policy and its optimizer.

        :return: What to log, averaged over the updates; empty if there was none.
        """


class AutogradLearner:
    """Leaves the gradient to torch.

    :param policy: The policy, with an optimizer of two parameter groups, see ``split_parameters``.
    :param batch: The steps of the rollout.
    :param n_branches: Number of branches in the rollout.
    """

    def __init__(self, policy: ActorCriticPolicy, batch: StepBatch, rule: UpdateRule, n_branches: int) -> None:
        policy.set_training_mode(True)
        self._policy = policy
        self._parameters = split_parameters(policy)
        self._batch = batch.to_tensors(policy.device)
        self._rule = rule
        self._n_branches = n_branches
        self._measured: list[dict[str, torch.Tensor]] = []

    def update(self, chosen: Indices) -> bool:
        """See ``Learner``."""
        rule, minibatch = self._rule, self._batch.select(torch.from_numpy(chosen).to(self._policy.device))
        values, log_prob, entropy = evaluate_actions(
            self._policy, minibatch.observations, minibatch.actions, minibatch.action_masks
        )
        log_ratio = log_prob - minibatch.old_log_prob
        if rule.importance_level == "branch":
            ratio = compute_sequence_ratio(log_ratio, minibatch.branch_index, self._n_branches)
        else:
            ratio = log_ratio.exp()
        if rule.loss_type == "cispo":
            losses = compute_cispo_loss(log_prob, ratio, minibatch.advantages, rule.clip_range_high)
        else:
            losses = compute_clipped_surrogate(ratio, minibatch.advantages, rule.clip_range, rule.clip_range_high)
        policy_loss = (minibatch.weights * losses).mean()
        value_loss = torch.nn.functional.mse_loss(values, minibatch.value_targets)
        entropy_loss = -entropy.mean()
        loss = policy_loss + rule.ent_coef * entropy_loss + rule.vf_coef * value_loss
        measured = {"policy_gradient_loss": policy_loss, "value_loss": value_loss, "entropy_loss": entropy_loss}
        if minibatch.ref_log_prob is not None:
            kl_ref = (minibatch.weights * compute_kl(minibatch.ref_log_prob - log_prob)).mean()
            loss = loss + rule.kl_coef * kl_ref
            measured["kl_ref"] = kl_ref
        with torch.no_grad():
            # Weighed as the loss is: enumerated first actions were not drawn from the old policy.
            measured["approx_kl"] = (minibatch.weights * compute_kl(log_ratio)).mean()
            too_low, too_high = ratio < 1.0 - rule.clip_range, ratio > 1.0 + rule.clip_range_high
            measured["clip_fraction"] = (minibatch.weights * (too_low | too_high)).mean()
        self._measured.append({name: x.detach() for name, x in {"loss": loss, **measured}.items()})
        if rule.goes_too_far(measured["approx_kl"]):
            return False
        self._policy.optimizer.zero_grad()
        loss.backward()
        # Clipped apart: the value network's gradient grows with the rewards and would drown the policy's.
        for parameters in self._parameters:
            torch.nn.utils.clip_grad_norm_(parameters, rule.max_grad_norm)
        self._policy.optimizer.step()
        return True

    def finish(self) -> dict[str, float]:
        """See ``Learner``."""
        names = self._measured[0] if self._measured else ()
        return {name: torch.stack([row[name] for row in self._measured]).mean().item() for name in names}
