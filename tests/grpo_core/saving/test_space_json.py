"""Spaces come back from their JSON exactly, and what claims to be huge is refused."""

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from grpo_core.saving.errors import ModelFileError
from grpo_core.saving.space_json import space_from_json, space_to_json


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(7),
        spaces.Box(-np.inf, np.inf, (2, 3)),
        spaces.Box(np.array([0.1, -1e-30], np.float64), np.array([0.3, 1e300], np.float64), dtype=np.float64),
        spaces.Box(0, 255, (2, 2), np.uint8),
        spaces.Box(np.float32(-0.1), np.float32(0.1), ()),
        spaces.Box(-0.1, 0.1, (1,)),
        spaces.Box(-np.inf, np.inf, (1, 1), np.float64),
        spaces.Box(np.array([0, 2]), np.array([2**63 - 1, 2**62 + 1]), dtype=np.int64),
        spaces.Box(0, 2**64 - 1, (3,), np.uint64),
        spaces.Box(-1.0, 1.0, (4,), np.float16),
        spaces.Box(0, 255, (4, 84, 84), np.uint8),
        spaces.Box(np.array([-1.0, -np.inf], np.float32), np.array([np.inf, 1.0], np.float32)),
        spaces.Discrete(5, dtype=np.int32),
        spaces.MultiDiscrete([3, 2, 4]),
        spaces.MultiDiscrete(np.array([7], np.int32), dtype=np.int32),
        spaces.MultiBinary(3),
        spaces.MultiBinary((2, 3)),
        spaces.Dict([("b", spaces.Discrete(3)), ("a", spaces.Box(0, 255, (3, 40, 40), np.uint8))]),
    ],
    ids=str,
)
def test_a_space_comes_back_exactly_from_its_json(space: spaces.Space[Any]) -> None:
    described = json.loads(json.dumps(space_to_json(space), allow_nan=False))
    rebuilt = space_from_json(described)
    assert rebuilt == space
    assert rebuilt.dtype == space.dtype
    for one, other in zip(list_parts(rebuilt), list_parts(space), strict=True):
        assert one.dtype == other.dtype
        if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):  # gymnasium compares bounds nearly
            assert (one.low == other.low).all()
            assert (one.high == other.high).all()


BOUNDED_BOXES = st.tuples(st.floats(-1e30, 0), st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=6)).map(
    lambda drawn: spaces.Box(np.full(len(drawn[1]), drawn[0]), np.array(drawn[1]), dtype=np.float64)
)
SPACES: st.SearchStrategy[Any] = st.one_of(
    st.integers(1, 2**31).map(spaces.Discrete),
    st.lists(st.integers(1, 2**31), min_size=1, max_size=5).map(spaces.MultiDiscrete),
    st.integers(1, 2**20).map(spaces.MultiBinary),
    BOUNDED_BOXES,
)


DICTS: st.SearchStrategy[Any] = st.dictionaries(st.text(min_size=1, max_size=4), SPACES, min_size=1, max_size=4).map(
    lambda parts: spaces.Dict(dict(parts))
)


@given(st.one_of(SPACES, DICTS))
def test_any_space_comes_back_exactly_from_its_json(space: spaces.Space[Any]) -> None:
    rebuilt = space_from_json(json.loads(json.dumps(space_to_json(space), allow_nan=False)))
    for one, other in zip(list_parts(rebuilt), list_parts(space), strict=True):
        assert one == other
        if isinstance(one, spaces.Box) and isinstance(other, spaces.Box):
            assert (one.low == other.low).all()
            assert (one.high == other.high).all()
    if isinstance(space, spaces.Dict) and isinstance(rebuilt, spaces.Dict):
        assert list(rebuilt.spaces) == list(space.spaces)


def list_parts(space: spaces.Space[Any]) -> list[spaces.Space[Any]]:
    return list(space.spaces.values()) if isinstance(space, spaces.Dict) else [space]


def test_the_keys_of_a_dict_keep_their_order() -> None:
    space = spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Box(-1.0, 1.0, (3,))), ("c", spaces.Discrete(2))])
    rebuilt = space_from_json(json.loads(json.dumps(space_to_json(space), sort_keys=True)))
    assert isinstance(rebuilt, spaces.Dict)
    assert list(rebuilt.spaces) == ["b", "a", "c"]


@pytest.mark.parametrize(
    "space",
    [
        {"type": "Box", "low": 0, "high": 255, "shape": [2**16, 2**16], "dtype": "uint8"},
        {"type": "MultiBinary", "n": 2**40},
        {"type": "MultiBinary", "n": [2**20, 2**20]},
        {
            "type": "Dict",
            "spaces": [
                [str(i), {"type": "Box", "low": 0, "high": 1, "shape": [2**21], "dtype": "int8"}] for i in range(9)
            ],
        },
    ],
    ids=lambda space: str(space["type"]),
)
def test_a_space_claiming_gigabytes_is_refused_without_allocating_them(space: dict[str, Any]) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelFileError, match="more than 4194304 numbers"):
            space_from_json(space)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 2**20
