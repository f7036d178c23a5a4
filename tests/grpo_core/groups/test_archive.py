"""Archived anchor states: which are kept, which are drawn, and that they are what they were when they return."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from grpo_core.banks.single_env import Observed
from grpo_core.groups import archive as archive_module
from grpo_core.groups.archive import (
    MAX_ARCHIVED_STATES,
    AnchorArchive,
    compute_draw_probabilities,
    compute_spreads,
)
from grpo_core.groups.group import AnchorState


def make_anchor(observation: Any, state: Any = None) -> AnchorState:
    return AnchorState(Observed(np.array(observation, np.float32), None), state)


def list_kept(archive: AnchorArchive, env_index: int = 0) -> set[Any]:
    return {anchor.simulator_state for anchor in archive.draw(env_index, 10**6, np.random.default_rng(0))}


def test_the_spread_is_the_standard_deviation_of_what_members_earn_from_the_anchor_on() -> None:
    targets = np.zeros((2, 3, 3), np.float32)
    targets[0] = [[1, 2, 3], [5, 5, 5], [0, 4, 100]]
    targets[1] = [[90, 0, 0]] * 3  # later steps do not count
    mask = np.ones(targets.shape, np.bool_)
    mask[0, 2, 2] = False  # nor do branches that took no step
    np.testing.assert_allclose(compute_spreads(targets, mask), [np.sqrt(2 / 3), 0, 2], rtol=1e-6)


def test_states_are_drawn_by_the_rank_of_their_spread_and_by_their_age() -> None:
    # Ranks 2, 1, 3 at temperature 0.3; a tenth of the draws goes by age, of which the last has three quarters.
    weights = [2 ** -(1 / 0.3), 1, 3 ** -(1 / 0.3)]
    by_rank = np.array(weights) / sum(weights)
    expected = 0.9 * by_rank + 0.1 * np.array([0, 0.25, 0.75])
    np.testing.assert_allclose(compute_draw_probabilities(np.array([1, 9, 0]), np.array([0, 1, 3])), expected)
    np.testing.assert_allclose(compute_draw_probabilities(np.array([1, 9, 0]), np.zeros(3)), by_rank)


def test_equal_spreads_are_drawn_alike() -> None:
    np.testing.assert_allclose(compute_draw_probabilities(np.zeros(4), np.zeros(4)), [0.25] * 4)
    first = 1 / (1 + 2 ** -(1 / 0.3) + 3 ** -(1 / 0.3))
    expected = [(1 - first) / 2, first, (1 - first) / 2]
    np.testing.assert_allclose(compute_draw_probabilities(np.array([1, 2, 1]), np.zeros(3)), expected)


def test_those_whose_groups_differed_are_drawn_most_often_and_the_others_now_and_then() -> None:
    archive, rng = AnchorArchive(1), np.random.default_rng(0)
    for i in range(10):
        archive.count_rollout()
        archive.keep(0, make_anchor([i], i), spread=float(i == 4))
    drawn = Counter(archive.draw(0, 1, rng)[0].simulator_state for _ in range(2000))
    assert drawn[4] > 1000
    assert len(drawn) > 7


def test_a_tenth_of_the_draws_goes_by_the_rollouts_since_a_state_was_played() -> None:
    archive, rng, n_draws = AnchorArchive(1), np.random.default_rng(0), 5000
    played: dict[int, list[Any]] = {1: ["oldest"], 4: ["older"], 5: list(range(8))}
    for n_rollouts in range(1, 6):
        archive.count_rollout()
        for state in played.get(n_rollouts, []):
            archive.keep(0, make_anchor(list(str(state).encode()), state), spread=1.0)
    drawn = Counter(archive.draw(0, 1, rng)[0].simulator_state for _ in range(n_draws))
    # Ten equal spreads share nine tenths; the ages are 4, 1 and eight times 0.
    expected = [0.09 + 0.1 * 4 / 5, 0.09 + 0.1 * 1 / 5, *[0.09] * 8]
    shares = [drawn[state] / n_draws for state in ("oldest", "older", *range(8))]
    assert shares == pytest.approx(expected, abs=0.015)


def test_no_state_is_drawn_twice_at_once() -> None:
    archive = AnchorArchive(1)
    for i in range(5):
        archive.keep(0, make_anchor([i], i), spread=float(i))
    drawn = [anchor.simulator_state for anchor in archive.draw(0, 5, np.random.default_rng(0))]
    assert len(drawn) == 5
    assert set(drawn) == {0, 1, 2, 3, 4}
    assert len(archive.draw(0, 9, np.random.default_rng(0))) == 5


def test_a_state_takes_the_place_of_the_one_with_the_same_observation() -> None:
    archive = AnchorArchive(1)
    for spread, state in ((1.0, "first"), (0.5, "second")):
        archive.keep(0, make_anchor([1, 2], state), spread)
    archive.keep(0, make_anchor([2, 1], "other"), 0.0)
    assert len(archive) == 2
    assert list_kept(archive) == {"second", "other"}


def test_every_environment_has_its_own_states() -> None:
    archive = AnchorArchive(2)
    archive.keep(0, make_anchor([1], "left"), 1.0)
    archive.keep(1, make_anchor([1], "right"), 1.0)
    assert (list_kept(archive, 0), list_kept(archive, 1)) == ({"left"}, {"right"})


@pytest.mark.parametrize("n_envs", [1, 4])
def test_the_state_that_was_played_longest_ago_makes_room(n_envs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVED_STATES", 3 * n_envs)
    archive = AnchorArchive(n_envs)
    for i in (0, 1, 2, 0, 3):
        archive.keep(0, make_anchor([i], i), 1.0)
    assert list_kept(archive) == {2, 0, 3}


def test_large_states_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_BYTES", 10_000)
    archive = AnchorArchive(1)
    for i in range(20):
        archive.keep(0, make_anchor([i], bytes(2000)), 1.0)
    assert len(archive) == 4
    unknown = AnchorArchive(1)
    for i in range(20):
        unknown.keep(0, make_anchor([i], lambda: None), 1.0)
    assert len(unknown) == 1, "it cannot be pickled, and may be anything"
    assert MAX_ARCHIVED_STATES > 20


def test_states_that_grow_leave_room_for_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "MAX_ARCHIVE_BYTES", 10_000)
    archive = AnchorArchive(1)
    for i in range(20):
        archive.count_rollout()
        archive.keep(0, make_anchor([i], bytes(200 * i)), 1.0)
    assert len(archive) == 2, "the last ones have some 4,000 bytes each"


class _Pointer:
    """A part of a native library's state, which pickle refuses in a way of its own."""

    def __reduce__(self) -> Any:
        raise ValueError("ctypes objects containing pointers cannot be pickled")


def test_a_state_that_cannot_be_measured_is_kept_too() -> None:
    archive = AnchorArchive(1)
    archive.keep(0, make_anchor([1.0], _Pointer()), 1.0)
    assert len(archive) == 1
