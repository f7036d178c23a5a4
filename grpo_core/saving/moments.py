"""Whether the moments in a model file can be those of its optimizer, which would fail in the middle of a training."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_core.saving.model_file import Arrays, ModelContent, ModelFileError, from_bytes

_NAME = re.compile(r"(\d{1,6})/(\w+)")
# As PyTorch's optimizers call them: those that have the shape of their weights, and those that are sums of squares.
SHAPED = frozenset({"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "momentum_buffer"})
_NEVER_NEGATIVE = frozenset({"step", "exp_avg_sq", "max_exp_avg_sq", "square_avg"})
_OF_ADAM = frozenset({"step", "exp_avg", "exp_avg_sq"})


def verify_trainable(content: bytes) -> ModelContent:
    """Read a model file with its optimizer, and check that a training could go on with it.

    :raises ModelFileError: If none could.
    """
    parsed = from_bytes(content, with_optimizer=True)
    check_moments(parsed)
    return parsed


def check_moments(content: ModelContent) -> None:
    """Check the optimizer's arrays of a file of a policy without own parts, which was read with them.

    :raises ModelFileError: If no training can go on with them.
    """
    read_parameter_names(content.meta)
    moments: dict[str, Arrays] = defaultdict(dict)
    for member, array in content.optimizer.items():
        match = _NAME.fullmatch(member)
        if match is None:
            raise ModelFileError(f"optimizer/{member}.npy is not a number of a weight and a name.")
        moments[match[1]][match[2]] = array
        _check_numbers(member, match[2], array)
    if content.meta["network"].get("optimizer_class") == "Adam":
        for index, found in moments.items():
            if missing := sorted(_OF_ADAM - found.keys()):
                raise ModelFileError(f"the file lacks optimizer/{index}/{missing[0]}.npy, which Adam needs.")
    shapes = Counter(np.shape(weights) for weights in content.weights.values())
    for name in sorted(SHAPED):
        for shape, n in Counter(found[name].shape for found in moments.values() if name in found).items():
            if n > shapes[shape]:
                raise ModelFileError(
                    f"{n} arrays optimizer/*/{name}.npy have the shape {shape}, and {shapes[shape]} weights have it."
                )


def read_parameter_names(meta: Mapping[str, Any]) -> list[str] | None:
    """Return the parameters that the moments in a file are of; None where an earlier version wrote it.

    :raises ModelFileError: If the metadata names none in their place.
    """
    optimizer = meta.get("optimizer", {})
    names = optimizer.get("parameters") if isinstance(optimizer, dict) else ()
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelFileError("the file does not name the parameters that its optimizer trains.")
    return names


def _check_numbers(member: str, name: str, array: npt.NDArray[Any]) -> None:
    if name == "step" and array.size != 1:
        raise ModelFileError(f"optimizer/{member}.npy has the shape {array.shape}; a number of steps has none.")
    if not np.isfinite(array).all():
        raise ModelFileError(f"optimizer/{member}.npy holds NaN or infinite numbers.")
    if name in _NEVER_NEGATIVE and (array < 0).any():
        raise ModelFileError(f"optimizer/{member}.npy holds negative numbers.")
