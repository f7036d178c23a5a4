"""What breaks the schema is told in words: the field, the rule, the value."""

from typing import Any

import pytest
from pydantic import ValidationError

from service.schemas.training import TrainRequest
from service.schemas.violations import summarize_violations
from service.settings import Settings


@pytest.mark.parametrize(
    ("request_body", "detail"),
    [
        ({"total_timesteps": "100"}, "total_timesteps: must be a whole number, not a string"),
        ({"total_timesteps": 1e4}, "total_timesteps: must be a whole number, not 10000.0"),
        ({"seed": -3}, "seed: must be at least 0, not -3"),
        ({"gamma": 2.0}, "gamma: must be at most 1.0, not 2.0"),
        ({"gamma": [0.9]}, "gamma: must be a number"),
        ({"bootstrap_value": 1}, "bootstrap_value: must be true or false, not 1"),
        ({"device": "gpu"}, "device: must be 'auto', 'cpu' or 'cuda'; did you mean 'cuda'?"),
        ({"gamma": "9" * 100}, "gamma: must be a number, not a string"),
        ({"normalize": {"x": 1}}, "normalize.x: unknown field"),
        ({"normalize": 5}, 'normalize: it must be true, false or an object such as {"norm_reward": false}'),
        ({"steps": 100}, "steps: unknown field; did you mean total_timesteps?"),
    ],
)
def test_the_rule_and_the_value_are_named(request_body: dict[str, Any], detail: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainRequest.model_validate(request_body)
    assert summarize_violations(caught.value.errors())[0] == detail


def test_a_number_out_of_range_in_a_variable_is_no_wrong_kind_of_value() -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"port": "70000"})
    assert summarize_violations(caught.value.errors())[0] == "port: must be at most 65535"
