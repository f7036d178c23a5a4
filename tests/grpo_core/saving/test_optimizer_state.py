"""The state of an optimizer, as a model file holds it."""

import numpy as np

from grpo_core.saving import model_file
from tests.support import make_model


def test_a_number_of_numpys_in_a_group_costs_no_moments() -> None:
    model = make_model("CartPole-v1")
    model.learn(64)
    model.policy.optimizer.param_groups[0]["weight_decay"] = np.float64(1e-4)  # as a schedule sets it
    content = model_file.from_bytes(model.to_bytes(), with_optimizer=True)
    assert content.optimizer
    assert content.meta["optimizer"]["groups"] == [[["weight_decay", 1e-4]], []]
