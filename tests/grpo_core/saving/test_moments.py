"""Moments that no optimizer has are refused before anybody trains on with them."""

from typing import Any

import numpy as np
import pytest

from grpo_core.saving.model_file import Arrays, ModelContent, ModelFileError
from grpo_core.saving.moments import check_moments

WEIGHTS: Arrays = {"a": np.ones((4, 2)), "b": np.ones(4), "c": np.ones((4, 2))}


def describe(**replaced: Any) -> ModelContent:
    """Build a file with Adam's moments of the first two weights, some of them replaced, or left out by None."""
    moments: dict[str, Any] = {}
    for index, name in enumerate("ab"):
        shape = WEIGHTS[name].shape
        moments |= {f"{index}/step": np.array(3.0), f"{index}/exp_avg": -np.ones(shape)}
        moments |= {f"{index}/exp_avg_sq": np.zeros(shape)}
    moments |= {name.replace("_of_", "/", 1): array for name, array in replaced.items()}
    kept = {name: array for name, array in moments.items() if array is not None}
    return ModelContent({"network": {"optimizer_class": "Adam"}}, WEIGHTS, kept, {})


def test_those_of_the_weights_are_fine() -> None:
    check_moments(describe())
    check_moments(ModelContent({"network": {}}, WEIGHTS, {}, {}))


@pytest.mark.parametrize(
    ("member", "array", "message"),
    [
        ("0_of_step", np.array(-1.0), "0/step.npy holds negative numbers"),
        ("0_of_step", np.ones(2), r"0/step.npy has the shape \(2,\)"),
        ("0_of_exp_avg_sq", np.full((4, 2), -1e-9), "0/exp_avg_sq.npy holds negative numbers"),
        ("0_of_exp_avg", np.full((4, 2), np.inf), "0/exp_avg.npy holds NaN or infinite numbers"),
        ("0_of_exp_avg", np.ones((2, 4)), r"1 arrays optimizer/\*/exp_avg.npy have the shape \(2, 4\), and 0 weights"),
        ("1_of_exp_avg_sq", None, "lacks optimizer/1/exp_avg_sq.npy"),
        ("x_of_step", np.array(1.0), "x/step.npy is not a number"),
    ],
)
def test_others_are_refused(member: str, array: Any, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        check_moments(describe(**{member: array}))
