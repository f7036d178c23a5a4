"""A state that grows for ever is warned of once, by name."""

import warnings

import pytest

from grpo_core.restoring.copying.growth import Growth, count_items


def follow(sizes: list[int]) -> Growth:
    """Capture states whose log has these sizes at the captures at which sizes are measured."""
    growth, n = Growth("Env"), 0
    for i, size in enumerate(sizes):
        while n < 64 * 2**i:
            n += 1
            growth.follow({"log": [0] * size, "x": 1.0})
    return growth


@pytest.mark.parametrize(
    "sizes",
    [
        [100, 200, 9_999],  # small
        [1_000, 2_000, 15_999],  # not much larger than at first
        [100, 50_000, 50_000],  # grows no longer
        [100, 50_000, 20_000],  # up and down
        [100, 100, 50_000],  # for the first time: an episode may just be long
    ],
)
def test_what_does_not_grow_for_ever_is_not_warned_of(sizes: list[int]) -> None:
    with warnings.catch_warnings(action="error"):
        follow(sizes)


def test_a_log_that_grows_for_ever_is_named_once() -> None:
    with pytest.warns(UserWarning, match=r"Env\.log grows with the training.*deque\(maxlen=") as said:
        follow([600, 2_000, 10_000, 20_000])
    assert len(said) == 1


def test_items_are_counted_at_any_depth_and_once() -> None:
    inner = [1.0, "a"]
    assert count_items({"a": inner, "b": inner, "c": (1, 2)}) == 3 + 2 + 2
    assert count_items(bytearray(80)) == 10
    assert count_items([[0] * 1_000] * 3) == 3 + 1_000
    assert count_items([[0] * 60_000, [0] * 60_000]) >= 100_000
    assert count_items(7.0) == 0
