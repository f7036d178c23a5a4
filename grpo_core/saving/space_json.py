"""Describe the spaces of a model in the JSON of its file, and rebuild them."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.saving.errors import ModelFileError

# A few bytes can claim a huge space, whose bounds would fill memory; larger ones are refused: 32 MB per bound.
_MAX_SPACE_NUMBERS = 2**22


def space_to_json(space: spaces.Space[Any]) -> dict[str, Any]:
    """Describe a space in JSON, exactly.

    Floats are hexadecimal, which can also spell infinity. A Box whose numbers all have the same bound gives it once.
    """
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[key, space_to_json(sub)] for key, sub in space.spaces.items()]}
    if isinstance(space, spaces.Box):
        low, high = (_bound_to_json(bound) for bound in (space.low, space.high))
        return {"type": "Box", "low": low, "high": high, "shape": list(space.shape), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.n) if isinstance(space.n, tuple) else int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "dtype": str(space.dtype)}
    assert isinstance(space, spaces.Discrete), f"{space} passed the algorithm's own check"
    return {"type": "Discrete", "n": int(space.n), "dtype": str(space.dtype)}


def space_from_json(described: Mapping[str, Any]) -> spaces.Space[Any]:
    """Rebuild a space from ``space_to_json``.

    :raises ModelFileError: If it describes no space that a policy could take.
    """
    if described.get("type") == "Dict":
        parts = [(str(key), sub) for key, sub in described["spaces"]]
        if any(sub.get("type") == "Dict" for _, sub in parts):
            raise ModelFileError("a Dict space within another is not one that a policy can take.")
        if sum(_count_numbers(sub) for _, sub in parts) > _MAX_SPACE_NUMBERS:
            raise ModelFileError(f"a space of more than {_MAX_SPACE_NUMBERS} numbers is not read.")
        return spaces.Dict([(key, space_from_json(sub)) for key, sub in parts])
    if _count_numbers(described) > _MAX_SPACE_NUMBERS:
        raise ModelFileError(f"a space of more than {_MAX_SPACE_NUMBERS} numbers is not read.")
    if described.get("type") == "MultiBinary":
        return spaces.MultiBinary(described["n"])
    if described.get("type") not in ("Discrete", "MultiDiscrete", "Box"):
        raise ModelFileError(f"unknown space type {described.get('type')!r}.")
    dtype = np.dtype(described["dtype"])
    if described["type"] == "Discrete":
        return spaces.Discrete(int(described["n"]), dtype=_integer(dtype))
    if described["type"] == "MultiDiscrete":
        return spaces.MultiDiscrete(np.array(described["nvec"], np.int64), dtype=_integer(dtype))
    if dtype.kind not in "fiu":
        raise ModelFileError(f"a Box of {dtype} is not a space of numbers.")
    low, high = (_bound_from_json(described[bound], described["shape"], dtype) for bound in ("low", "high"))
    return spaces.Box(low, high, dtype=dtype.type)


def _bound_to_json(bound: npt.NDArray[Any]) -> Any:
    numbers = [float(x).hex() if bound.dtype.kind == "f" else int(x) for x in bound.reshape(-1)]
    return numbers[0] if len(numbers) > 1 and (bound == bound.flat[0]).all() else numbers


def _bound_from_json(described: Any, shape: list[int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    listed = described if isinstance(described, list) else [described]
    numbers = [float.fromhex(x) if isinstance(x, str) else x for x in listed]
    array = np.array(numbers, dtype) if dtype.kind in "iu" else np.array(numbers, np.float64).astype(dtype)
    return array.reshape(shape) if isinstance(described, list) else np.full(shape, array[0])


def _integer(dtype: np.dtype[Any]) -> type[np.integer[Any]]:
    if not issubclass(dtype.type, np.integer):
        raise ModelFileError(f"a space of choices counts in integers, not in {dtype}.")
    return dtype.type


def _count_numbers(described: Mapping[str, Any]) -> int:
    sizes = described.get("shape", described.get("n", 1)) if described.get("type") != "Discrete" else 1
    return math.prod(sizes) if isinstance(sizes, list) else int(sizes)
