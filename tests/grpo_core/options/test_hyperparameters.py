"""GRPO's signature and docstring agree with the table of hyperparameters."""

import inspect
import math
import re
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.type_aliases import Schedule

from grpo import GRPO
from grpo_core.options.hyperparameters import (
    HYPERPARAMETERS,
    OWN_HYPERPARAMETERS,
    SAVED_HYPERPARAMETERS,
    Group,
    Row,
)

# Arguments that do not belong to the method.
OTHER_ARGUMENTS = {
    *("self", "policy", "env", "policy_kwargs", "stats_window_size", "tensorboard_log", "verbose", "seed", "device"),
    *("_init_setup_model", "reward_function", "reward_weights"),
}


def test_the_signature_has_every_row_of_the_table_in_its_order_with_its_default() -> None:
    parameters = inspect.signature(GRPO.__init__).parameters
    defaults = {name: one.default for name, one in parameters.items() if name not in OTHER_ARGUMENTS}
    assert list(defaults.items()) == [(name, row.default) for name, row in HYPERPARAMETERS.items()]
    types = GRPO.__init__.__annotations__
    for name, row in HYPERPARAMETERS.items():
        expected = row.annotation | Schedule if row.is_schedule else row.annotation
        assert list_types(types[name]) == list_types(expected), name


def list_types(annotation: Any) -> set[Any]:
    """List what a value may be: the members of a union, and the choices of a ``Literal``."""
    parts = get_args(annotation)
    return (
        set().union(*map(list_types, parts)) if get_origin(annotation) in (Union, UnionType, Literal) else {annotation}
    )


def test_own_hyperparameters_are_those_that_ppo_lacks() -> None:
    assert (
        HYPERPARAMETERS.keys() - OWN_HYPERPARAMETERS.keys()
        == HYPERPARAMETERS.keys() & inspect.signature(PPO).parameters
    )


def test_the_docstring_documents_every_argument_once() -> None:
    documented = re.findall(r":param (\w+):", inspect.getdoc(GRPO) or "")
    assert documented == [name for name in inspect.signature(GRPO.__init__).parameters if name != "self"]


@pytest.mark.parametrize("row", HYPERPARAMETERS.values(), ids=lambda row: row.name)
def test_a_row_is_complete(row: Row) -> None:
    assert row.title
    assert row.meaning
    assert not row.meaning.endswith(".")
    assert row.group in get_args(Group)
    assert bool(row.none_means) == (NoneType in get_args(row.annotation)), "what may be None says what that stands for"
    if row.kind in (int, float):
        assert (row.at_least == -math.inf) != (row.above == -math.inf), "a smallest number, included or not"
        assert row.request_most < math.inf, "a request has limits"
    else:
        assert row.kind is bool or row.default in row.choices


def test_a_model_file_keeps_every_argument_that_is_plain_data() -> None:
    elsewhere = {"self", "policy", "env", "policy_kwargs", "stats_window_size", "reward_function"}
    not_kept = {"device", "_init_setup_model"}
    arguments = [name for name in inspect.signature(GRPO.__init__).parameters if name not in elsewhere | not_kept]
    assert arguments == list(SAVED_HYPERPARAMETERS)
