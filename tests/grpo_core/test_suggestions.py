"""Misspelt names are recognised, at a bounded cost."""

import itertools

import pytest

from grpo_core.suggestions import list_close, suggest
from service.schemas.training import TrainRequest

KNOWN = ["CartPole-v0", "CartPole-v1", "Pendulum-v1"]


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("pendulum", "did you mean 'Pendulum-v1'?"),
        ("PENDULUM-V1", "did you mean 'Pendulum-v1'?"),
        ("CartPol-v1", "did you mean 'CartPole-v1' or 'CartPole-v0'?"),
        ("pen", "did you mean 'Pendulum-v1'?"),
        ("pe", ""),
        ("Breakout", ""),
        ("", ""),
    ],
)
def test_the_closest_come_first_whatever_their_case(name: str, question: str) -> None:
    assert suggest(name, KNOWN) == question


def test_a_name_is_spelt_as_asked() -> None:
    assert suggest("gama", ["gamma"], spell="--{}".format) == "did you mean --gamma?"
    assert suggest("maxsteps", ["seed", "maxSteps"]) == "did you mean 'maxSteps'?"
    assert suggest("gama", []) == ""


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("env", "env_name"),
        ("steps", "total_timesteps"),
        ("state", "observation"),
        ("LR", "learning_rate"),
        ("gpu", "cuda"),
    ],
)
def test_another_word_for_a_name_is_known(name: str, field: str) -> None:
    assert list_close(name, ["n_envs", "n_steps", "net_arch", "cpu", field]) == [field]
    assert field not in list_close(name, ["n_envs", "n_steps", "net_arch", "cpu"])


@pytest.mark.parametrize(
    ("name", "field"),
    [("lr", "learning_rate"), ("hidden_sizes", "net_arch"), ("reward", "reward_functions"), ("beta", "kl_coef")],
)
def test_the_words_of_other_libraries_lead_to_fields_that_exist(name: str, field: str) -> None:
    assert list_close(name, TrainRequest.model_fields, n_most=1) == [field]


def test_three_are_named_at_most() -> None:
    assert suggest("model-0", [f"model-{i}" for i in range(1, 9)]).count("model-") == 3
    assert list_close("model-0", [f"model-{i}" for i in range(1, 9)], n_most=1) == ["model-8"]


def test_a_long_name_is_not_compared() -> None:
    assert list_close("a" * 100, ["a" * 100]) == ["a" * 100]
    assert list_close("a" * 101, ["a" * 101]) == []


def test_of_endless_names_the_first_two_thousand_are_looked_at() -> None:
    assert list_close("1999", map(str, itertools.count()), n_most=1) == ["1999"]
    assert list_close("2000", map(str, itertools.count()), n_most=1) != ["2000"]
