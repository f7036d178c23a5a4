"""The state of an optimizer, as a model file holds it."""

from typing import Any

import numpy as np
import pytest

from grpo_core.saving import model_file
from grpo_core.saving.optimizer_state import put_optimizer_state
from tests.models import make_model


def test_a_number_of_numpys_in_a_group_costs_no_moments() -> None:
    model = make_model("CartPole-v1")
    model.learn(64)
    model.policy.optimizer.param_groups[0]["weight_decay"] = np.float64(1e-4)  # as a schedule sets it
    content = model_file.from_bytes(model.to_bytes(), with_optimizer=True)
    assert content.optimizer
    assert content.meta["optimizer"]["groups"] == [[["weight_decay", 1e-4]], []]


@pytest.mark.parametrize(
    ("forged", "said"),
    [
        ({"rest": [["param_groups", {"list": []}]]}, None),  # which groups there are is the optimizer's own
        ({"groups": [[["weight_decay", {"tensor": ["0/step", "save"]}]], []]}, "torch.save is no type of numbers"),
    ],
)
def test_a_file_says_neither_which_groups_there_are_nor_what_tensors_are_made_with(
    forged: dict[str, Any], said: str | None
) -> None:
    model = make_model("CartPole-v1")
    model.learn(64)
    content = model_file.from_bytes(model.to_bytes(), with_optimizer=True)
    content.meta["optimizer"].update(forged)
    lost = put_optimizer_state(model.policy.optimizer, model.policy, content)
    assert (lost is None) if said is None else (lost is not None and said in lost)
    assert len(model.policy.optimizer.param_groups) == 2
