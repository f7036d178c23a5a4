"""The natural step, against explicit matrices."""

import math

import pytest
import torch

from grpo_core.update.trust_region import (
    _DAMPING,
    Evaluation,
    _make_fisher_product,
    _solve,
    take_natural_step,
)


class Bandit:
    """Three actions with logits of their own, of which 200 were drawn."""

    def __init__(self, advantages: tuple[float, float, float]) -> None:
        self.logits = torch.nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.actions = torch.multinomial(
            self.logits.detach().softmax(0), 200, replacement=True, generator=torch.Generator().manual_seed(0)
        )
        self.advantages = torch.tensor(advantages)[self.actions]
        self.weights = torch.ones(200)
        self.old_log_prob = self.evaluate().log_prob.detach()

    def evaluate(self) -> Evaluation:
        log_prob = self.logits.log_softmax(0)[self.actions]
        old = getattr(self, "old_log_prob", log_prob.detach())
        loss = -((log_prob - old).exp() * self.advantages).mean()
        return Evaluation(loss, log_prob, {"policy_gradient_loss": loss.detach()})

    def step(self, max_kl: float) -> dict[str, float]:
        metrics = take_natural_step([self.logits], self.evaluate, self.old_log_prob, self.weights, max_kl)
        return {name: metric.item() for name, metric in metrics.items()}


def compute_scores(bandit: Bandit) -> torch.Tensor:
    """Return the gradient of each action's log probability, ``(n_steps, n_actions)``, as one writes it by hand."""
    return torch.eye(3)[bandit.actions] - bandit.logits.detach().softmax(0)


def test_the_fisher_matrix_is_that_of_the_drawn_actions_scores() -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    bandit.weights[:100] = 3.0
    multiply = _make_fisher_product(bandit.evaluate().log_prob, bandit.weights, [bandit.logits])
    scores = compute_scores(bandit)
    matrix = (bandit.weights[:, None] * scores).T @ scores / bandit.weights.sum() + _DAMPING * torch.eye(3)
    for vector in torch.eye(3):
        torch.testing.assert_close(multiply(vector), matrix @ vector)


def test_conjugate_gradients_solve_the_system() -> None:
    factor = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
    matrix, right = factor @ factor.T + torch.eye(8), torch.arange(8.0)
    torch.testing.assert_close(
        _solve(lambda vector: matrix @ vector, right), torch.linalg.solve(matrix, right), rtol=1e-3, atol=1e-3
    )


def test_the_step_is_the_natural_gradient_as_long_as_the_divergence_allows() -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    start = bandit.logits.detach().clone()
    scores = compute_scores(bandit)
    matrix = scores.T @ scores / 200 + _DAMPING * torch.eye(3)
    uphill = (bandit.advantages[:, None] * scores).mean(0)
    direction = torch.linalg.solve(matrix, uphill)
    metrics = bandit.step(1e-4)
    expected = math.sqrt(2e-4 / float(direction @ matrix @ direction)) * direction
    torch.testing.assert_close(bandit.logits.detach() - start, expected, rtol=1e-3, atol=1e-5)
    assert metrics["step_taken"] == 1
    assert 0 < metrics["approx_kl"] <= 1e-4


@pytest.mark.parametrize("max_kl", [1e-3, 0.01, 0.1, 1.0])
def test_what_earns_more_becomes_likelier_within_the_bound(max_kl: float) -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    before = bandit.logits.detach().softmax(0)
    metrics = bandit.step(max_kl)
    after = bandit.logits.detach().softmax(0)
    assert metrics["step_taken"] == 1
    assert metrics["approx_kl"] <= max_kl
    assert after[0] > before[0]
    assert after[2] < before[2]
    assert bandit.evaluate().loss < metrics["policy_gradient_loss"]


def test_without_an_advantage_the_policy_stays() -> None:
    bandit = Bandit((0.0, 0.0, 0.0))
    start = bandit.logits.detach().clone()
    metrics = bandit.step(0.01)
    assert metrics["step_taken"] == 0
    assert metrics["approx_kl"] == 0
    assert torch.equal(bandit.logits.detach(), start)


def test_a_step_that_never_falls_within_the_bound_is_taken_back() -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    bandit.old_log_prob = bandit.old_log_prob + 1.0  # far from what the policy is, wherever it goes
    start = bandit.logits.detach().clone()
    assert bandit.step(1e-3)["step_taken"] == 0
    assert torch.equal(bandit.logits.detach(), start)


def test_a_policy_that_is_frozen_whole_takes_no_step() -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    bandit.logits.requires_grad_(False)
    assert bandit.step(0.01)["step_taken"] == 0


def test_frozen_and_unused_parameters_stay() -> None:
    bandit = Bandit((1.0, 0.0, -1.0))
    frozen, unused = torch.nn.Parameter(torch.ones(2), requires_grad=False), torch.nn.Parameter(torch.ones(2))
    start = bandit.logits.detach().clone()
    parameters = [frozen, bandit.logits, unused]
    take_natural_step(parameters, bandit.evaluate, bandit.old_log_prob, bandit.weights, 0.01)
    assert torch.equal(frozen, torch.ones(2))
    assert torch.equal(unused.detach(), torch.ones(2))
    assert not torch.equal(bandit.logits.detach(), start)
