"""The step of TRPO: along the natural gradient, as far as the policy may move (arXiv 1502.05477, appendix C)."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from grpo_core.update.losses import compute_kl, compute_weighted_mean

# All as in sb3-contrib's TRPO: what keeps the Fisher matrix of few steps invertible, how exactly the system is solved,
# and how often a step that went too far is shortened, and by how much.
_DAMPING = 0.1
_N_SOLVER_STEPS = 15
_N_TRIES, _SHRINKING = 10, 0.8
# A residual that is so small is one of rounding.
_SOLVED = 1e-10


class Evaluation(NamedTuple):
    """A policy, as it is, on the steps of a rollout.

    :param loss: To be minimised; its gradient by the parameters is asked for.
    :param log_prob: Log probability of each step's action, shape ``(batch_size,)``.
    :param terms: The terms of the loss, to be logged.
    """

    loss: torch.Tensor
    log_prob: torch.Tensor
    terms: Mapping[str, torch.Tensor]


def take_natural_step(
    parameters: Sequence[torch.nn.Parameter],
    evaluate: Callable[[], Evaluation],
    old_log_prob: torch.Tensor,
    weights: torch.Tensor,
    max_kl: float,
) -> dict[str, torch.Tensor]:
    """Minimise a loss as far as a step to the KL divergence ``max_kl`` does, or leave the parameters as they are.

    The step is ``x = F^-1 g`` with the gradient ``g`` and the Fisher matrix ``F``, found by conjugate gradients, and as
    long as ``sqrt(2 max_kl / x^T F x)``. It is shortened until the loss falls and the divergence is within its bound.

    :param parameters: Of the policy; those that need no gradient stay as they are.
    :param evaluate: Evaluates the policy on all steps.
    :param old_log_prob: Log probability under the policy that acted, shape ``(batch_size,)``.
    :param weights: How much each step counts, same shape, at least 0.
    :param max_kl: Bound of the mean divergence from the policy that acted, above 0.
    :return: The terms of the loss before the step, ``approx_kl`` after it, and ``step_taken``, 1 or 0.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    before = evaluate()
    if not parameters:
        kl = _measure_kl(before, old_log_prob, weights)
        return {**before.terms, "approx_kl": kl, "step_taken": torch.zeros(())}
    gradient = _flatten(torch.autograd.grad(before.loss, parameters, retain_graph=True, allow_unused=True), parameters)
    multiply = _make_fisher_product(before.log_prob, weights, parameters)
    direction = _solve(multiply, -gradient)
    curvature = direction @ multiply(direction)
    kl = _measure_kl(before, old_log_prob, weights)
    starts, is_taken = [parameter.detach().clone() for parameter in parameters], False
    if curvature > 0:
        step = (2.0 * max_kl / curvature).sqrt() * direction
        for n_shrunk in range(_N_TRIES):
            _move(parameters, starts, _SHRINKING**n_shrunk * step)
            with torch.no_grad():
                after = evaluate()
            moved = _measure_kl(after, old_log_prob, weights)
            if moved <= max_kl and after.loss < before.loss:
                kl, is_taken = moved, True
                break
        else:
            _move(parameters, starts, torch.zeros_like(step))
    return {**before.terms, "approx_kl": kl, "step_taken": torch.tensor(float(is_taken))}


def _make_fisher_product(
    log_prob: torch.Tensor, weights: torch.Tensor, parameters: Sequence[torch.nn.Parameter]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product of a vector with the Fisher matrix, damped.

    The matrix is estimated from the drawn actions, ``E[grad log_prob (grad log_prob)^T]``, the Hessian of half the
    squared log ratio: so it asks nothing of a distribution but its log probability, and masks are in it.
    """
    log_ratio = log_prob - log_prob.detach()
    divergence = compute_weighted_mean(0.5 * log_ratio.square(), weights)
    gradient = _flatten(torch.autograd.grad(divergence, parameters, create_graph=True, allow_unused=True), parameters)

    def multiply(vector: torch.Tensor) -> torch.Tensor:
        product = torch.autograd.grad(gradient @ vector, parameters, retain_graph=True, allow_unused=True)
        return _flatten(product, parameters).detach() + _DAMPING * vector

    return multiply


def _solve(multiply: Callable[[torch.Tensor], torch.Tensor], right: torch.Tensor) -> torch.Tensor:
    """Solve ``F x = right`` by conjugate gradients."""
    solution, residual, direction = torch.zeros_like(right), right.clone(), right.clone()
    squared = residual @ residual
    for _ in range(_N_SOLVER_STEPS):
        if squared < _SOLVED:
            break
        product = multiply(direction)
        length = squared / (direction @ product)
        solution += length * direction
        residual -= length * product
        squared, before = residual @ residual, squared
        direction = residual + (squared / before) * direction
    return solution


def _measure_kl(evaluation: Evaluation, old_log_prob: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return compute_weighted_mean(compute_kl(evaluation.log_prob.detach() - old_log_prob), weights)


def _move(parameters: Sequence[torch.nn.Parameter], starts: Sequence[torch.Tensor], step: torch.Tensor) -> None:
    parts = torch.split(step, [start.numel() for start in starts])
    with torch.no_grad():
        for parameter, start, part in zip(parameters, starts, parts, strict=True):
            parameter.copy_(start + part.view_as(start))


def _flatten(gradients: Sequence[torch.Tensor | None], parameters: Sequence[torch.nn.Parameter]) -> torch.Tensor:
    """Lay gradients end to end, 0 where the loss does not depend on a parameter."""
    pairs = zip(gradients, parameters, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in pairs])
