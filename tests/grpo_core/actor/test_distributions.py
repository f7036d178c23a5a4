"""Draws at the edges, where rounding could choose what is impossible; the rest is tested through the actor."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.maskable.distributions import MaskableBernoulliDistribution, make_masked_proba_distribution

from grpo_core.actor.distributions import Bernoulli, Categorical, MultiCategorical, make_distribution

LOWEST, HIGHEST = np.float32(0.0), np.nextafter(np.float32(1.0), np.float32(0.0))


class ConstantGenerator(np.random.Generator):
    """Draws one number of [0, 1) again and again."""

    def __init__(self, number: np.float32) -> None:
        super().__init__(np.random.PCG64(0))
        self._number = number

    def random(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        return np.full(size, self._number, dtype)


@given(
    st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=40),
    st.integers(0, 2**31),
    st.sampled_from([LOWEST, HIGHEST]),
)
def test_the_outermost_draws_fall_on_allowed_actions(logits: list[float], seed: int, number: np.float32) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random((1, len(logits))) < 0.5
    mask[0, rng.integers(len(logits))] = True
    outputs = Categorical().mask(np.array([logits], np.float32), mask)
    actions, log_prob = Categorical().sample(outputs, ConstantGenerator(number))
    assert mask[0, actions[0]]
    assert np.isfinite(log_prob[0])
    assert Categorical().compute_probs(outputs)[0, actions[0]] > 0


@pytest.mark.parametrize("number", [LOWEST, HIGHEST])
def test_the_outermost_draws_of_switches_heed_their_masks(number: np.float32) -> None:
    outputs = np.zeros((1, 4), np.float32)
    masks = np.array([[True, False, False, True, True, True, True, False]])
    actions, log_prob = Bernoulli().sample(Bernoulli().mask(outputs, masks), ConstantGenerator(number))
    assert actions[0].tolist() == [0, 1, int(number < 0.5), 0]
    assert log_prob[0] == pytest.approx(np.log(0.5))


def draw_masks(rng: np.random.Generator, sizes: list[int], n: int) -> npt.NDArray[np.bool_]:
    columns = [rng.random((n, size)) < 0.5 for size in sizes]
    for column, size in zip(columns, sizes, strict=True):
        column[np.arange(n), rng.integers(size, size=n)] = True
    return np.concatenate(columns, axis=1)


@pytest.mark.parametrize(
    ("space", "sizes"), [(spaces.Discrete(5), [5]), (spaces.MultiDiscrete([3, 2, 4]), [3, 2, 4])], ids=str
)
def test_masked_choices_are_those_of_sb3_contrib(space: spaces.Space[Any], sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(32, sum(sizes))).astype(np.float32)
    masks = draw_masks(rng, sizes, 32)
    theirs: Any = make_masked_proba_distribution(space).proba_distribution(torch.from_numpy(outputs))
    theirs.apply_masking(masks)
    ours = make_distribution(space, None)
    masked = ours.mask(outputs, masks)
    np.testing.assert_array_equal(ours.get_mode(masked), theirs.mode().numpy())
    actions, log_prob = ours.sample(masked, rng)
    np.testing.assert_allclose(log_prob, theirs.log_prob(torch.from_numpy(actions)).numpy(), atol=1e-5)


def test_masked_switches_are_those_of_sb3_contrib() -> None:
    rng = np.random.default_rng(0)
    outputs, masks = rng.normal(size=(32, 3)).astype(np.float32), draw_masks(rng, [2, 2, 2], 32)
    # Theirs has an output per state of a switch; a difference of logits is what ours has.
    doubled = np.stack([np.zeros_like(outputs), outputs], axis=2).reshape(32, 6)
    theirs: Any = MaskableBernoulliDistribution(3).proba_distribution(torch.from_numpy(doubled))
    theirs.apply_masking(masks)
    masked = Bernoulli().mask(outputs, masks)
    np.testing.assert_array_equal(Bernoulli().get_mode(masked), theirs.mode().numpy())
    actions, log_prob = Bernoulli().sample(masked, rng)
    np.testing.assert_allclose(log_prob, theirs.log_prob(torch.from_numpy(actions).long()).numpy(), atol=1e-5)


def test_several_choices_are_drawn_independently_and_as_often_as_they_should_be() -> None:
    distribution, n = MultiCategorical((2, 3)), 40_000
    outputs = np.tile(np.log(np.array([0.3, 0.7, 0.2, 0.5, 0.3], np.float32)), (n, 1))
    actions, _ = distribution.sample(outputs, np.random.default_rng(0))
    together = np.zeros((2, 3))
    np.add.at(together, (actions[:, 0], actions[:, 1]), 1 / n)
    expected = np.outer([0.3, 0.7], [0.2, 0.5, 0.3])
    assert (np.abs(together - expected) < 5 * np.sqrt(expected * (1 - expected) / n)).all()
