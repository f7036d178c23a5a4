"""The estimate of how alike members are, against correlations that are known."""

import itertools
import json
import math

import numpy as np
import pytest

from grpo_core.groups.advantage import Floats
from grpo_core.groups.correlation import GroupCorrelation


def draw_gae(correlations: Floats, group_size: int, seed: int, n_groups: int = 2000) -> Floats:
    """Draw GAEs of which two members of a group correlate as given, ``(horizon, n_groups, group_size)``."""
    rng, common = np.random.default_rng(seed), correlations[:, None, None]
    shape = (len(correlations), n_groups, group_size)
    return np.asarray(
        np.sqrt(common) * rng.standard_normal((*shape[:2], 1)) + np.sqrt(1.0 - common) * rng.standard_normal(shape)
    )


def everyone(gae: Floats) -> np.typing.NDArray[np.bool_]:
    return np.ones(gae.shape, np.bool_)


@pytest.mark.parametrize("group_size", [2, 4])
def test_the_correlation_of_members_is_found_in_every_range_of_steps(group_size: int) -> None:
    known = np.array([0.9, 0.6, 0.3, 0.3, 0.0, 0.0, 0.0, 0.0])  # ranges 0, 1, 2-3, 4-7
    correlation = GroupCorrelation()
    for seed in range(10):
        gae = draw_gae(known, group_size, seed)
        correlation.update(gae * 10.0**seed, everyone(gae))  # whatever their unit
    np.testing.assert_allclose(correlation.estimate(8), known, atol=0.03)


def test_it_begins_with_members_that_are_all_alike() -> None:
    assert (GroupCorrelation().estimate(5000) == 1.0).all()


def test_it_follows_a_change_within_some_rollouts() -> None:
    correlation = GroupCorrelation()
    for seed in range(5):
        correlation.update(draw_gae(np.array([0.9]), 2, seed), np.ones((1, 2000, 2), np.bool_))
    for seed in range(22):
        correlation.update(draw_gae(np.array([0.0]), 2, 50 + seed), np.ones((1, 2000, 2), np.bool_))
    assert correlation.estimate(1)[0] == pytest.approx(0.9 * 0.9**22 * (1 - 0.9**5) / (1 - 0.9**27), abs=0.03)


@pytest.mark.parametrize(("n_groups", "low", "high"), [(2, 0.3, 0.5), (4, 0.6, 0.7)])
def test_of_few_groups_it_finds_too_little(n_groups: int, low: float, high: float) -> None:
    """docs/method.md gives these figures for pairs to groups of four."""
    for group_size in (2, 4):
        correlation, found = GroupCorrelation(), []
        for seed in range(300):
            gae = draw_gae(np.array([0.8]), group_size, seed, n_groups)
            correlation.update(gae, everyone(gae))
            found.append(correlation.estimate(1)[0])
        assert low - 0.05 < np.mean(found[50:]) < high + 0.05


def test_members_that_pull_apart_count_as_unlike() -> None:
    correlation = GroupCorrelation()
    for _ in range(30):
        correlation.update(np.array([[[1.0, -1.0], [-2.0, 2.0]]]), np.ones((1, 2, 2), np.bool_))
    assert correlation.estimate(1)[0] == 0.0


def test_steps_without_others_and_numbers_outside_the_mask_tell_nothing() -> None:
    gae = draw_gae(np.array([0.5, 0.5]), 2, 0)
    step_mask = everyone(gae)
    step_mask[1, :, 1] = False
    known, noisy = GroupCorrelation(), GroupCorrelation()
    known.update(np.where(step_mask, gae, 0.0), step_mask)
    noisy.update(np.where(step_mask, gae, 1e6), step_mask)
    assert known.to_json() == noisy.to_json()
    assert known.estimate(2)[1] == 1.0  # as at first


def test_pairs_are_those_of_live_members_however_many_a_group_has_left() -> None:
    gae = np.array([[[3.0, 9.0, 9.0], [1.0, -2.0, 9.0], [4.0, 0.0, -1.0]]])
    left = [[3.0], [1.0, -2.0], [4.0, 0.0, -1.0]]
    correlation = GroupCorrelation()
    correlation.update(gae, np.array([[[True, False, False], [True, True, False], [True, True, True]]]))
    live = np.concatenate(left)
    deviations = [[(number - live.mean()) / live.std() for number in group] for group in left]
    pairs = [a * b for group in deviations for a, b in itertools.permutations(group, 2)]
    squares = [a * a for group in deviations if len(group) > 1 for a in group]
    added = [sum(pairs), len(pairs), sum(squares), len(squares)]
    sums = [row[0] for row in correlation.to_json()]
    np.testing.assert_allclose(sums, [0.9 * 8.0 + each for each in added])
    assert (len(pairs), len(squares)) == (8, 5)


@pytest.mark.parametrize("number", [0.0, 3.0, math.nan, math.inf])
def test_a_rollout_without_spread_or_with_a_lost_number_changes_nothing(number: float) -> None:
    correlation = GroupCorrelation()
    with np.errstate(invalid="ignore"):
        correlation.update(np.full((2, 3, 2), number), np.ones((2, 3, 2), np.bool_))
    assert correlation.to_json() == GroupCorrelation().to_json()


def test_it_goes_on_from_what_a_file_held() -> None:
    correlation = GroupCorrelation()
    correlation.update(draw_gae(np.array([0.7, 0.2]), 2, 0), np.ones((2, 2000, 2), np.bool_))
    loaded = GroupCorrelation.from_json(json.loads(json.dumps(correlation.to_json())))
    assert loaded.to_json() == correlation.to_json()


def test_ranges_that_no_branch_reaches_stay_numbers_that_every_processor_holds() -> None:
    gae, n_reached = draw_gae(np.array([0.5, 0.5]), 2, 0), 2
    fresh, old = GroupCorrelation(), GroupCorrelation.from_json([[1e-300] * 14] * 4)  # after 6,600 rollouts
    for _ in range(200):  # as many as lead to numbers that some processors take for 0
        old.update(gae[:n_reached], everyone(gae[:n_reached]))
    assert np.abs(old.to_json()).min() >= np.finfo(np.float64).tiny
    assert (old.estimate(5000)[n_reached:] == 1.0).all(), "as before"
    for correlation in (old, fresh):
        correlation.update(draw_gae(np.full(16, 0.5), 2, 1), np.ones((16, 2000, 2), np.bool_))
    np.testing.assert_allclose(old.estimate(16)[n_reached:], fresh.estimate(16)[n_reached:], atol=0.01)


def test_ranges_whose_sums_a_processor_took_for_0_begin_anew() -> None:
    sums = GroupCorrelation().to_json()
    sums[0][5:], sums[1][5:], sums[2][5:], sums[3][5:] = ([0.0] * 9 for _ in range(4))
    loaded = GroupCorrelation.from_json(sums)
    assert (loaded.estimate(5000) == 1.0).all()
    gae = draw_gae(np.full(32, 0.3), 2, 0)
    loaded.update(gae, everyone(gae))
    np.testing.assert_allclose(loaded.estimate(32)[16:], 0.3, atol=0.05)


@pytest.mark.parametrize("sums", [[], [[1.0]] * 4, [[math.nan] * 14] * 4, [[-1.0] * 14] * 4, "x", None])
def test_what_is_no_estimate_is_refused(sums: object) -> None:
    with pytest.raises(ValueError, match="group_correlation"):
        GroupCorrelation.from_json(sums)
