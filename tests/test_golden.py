"""What a reader of an older file, a caller and a client rely on is as it was recorded; see ``tests.golden.record``."""

import json
from typing import Any

import numpy as np
import pytest

from grpo import GRPO
from tests.golden.record import (
    CASES,
    FOLDER,
    MODELS,
    RECORDED_MODELS,
    ask,
    get_openapi,
    list_arguments,
    measure_weights,
    train,
)

# Another processor rounds sums of matrix products differently, and training passes that on.
TRAINING_TOLERANCE = 1e-3
ANSWER_TOLERANCE = 1e-5


def read(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


@pytest.mark.parametrize("case", CASES)
def test_the_same_seed_trains_the_same_weights(case: str) -> None:
    assert measure_weights(train(case)) == pytest.approx(read("weights.json")[case], rel=TRAINING_TOLERANCE)


@pytest.mark.parametrize("case", RECORDED_MODELS)
def test_a_recorded_model_file_loads_and_answers_the_same(case: str) -> None:
    answers, recorded = ask(GRPO.load(MODELS / f"{case}.zip", device="cpu")), read("answers.json")[case]
    np.testing.assert_allclose(answers["values"], recorded["values"], rtol=ANSWER_TOLERANCE, atol=ANSWER_TOLERANCE)
    for action, expected in zip(answers["actions"], recorded["actions"], strict=True):
        np.testing.assert_allclose(action, expected, rtol=ANSWER_TOLERANCE, atol=ANSWER_TOLERANCE)


def test_the_constructor_takes_the_same_arguments_in_the_same_order() -> None:
    assert list_arguments() == read("arguments.json")


def test_the_published_schema_is_the_same() -> None:
    assert get_openapi() == read("openapi.json")
