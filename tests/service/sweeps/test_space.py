"""What a sweep may try, and which settings are taken from it."""

import json
import math
from typing import Any

import pytest
from pydantic import ValidationError

from service.errors import InvalidFieldsError
from service.schemas.sweeps import SweepRequest
from service.schemas.violations import summarize_violations
from service.sweeps.space import Space

LOG = {"distribution": "loguniform", "low": 1e-5, "high": 1e-1}


def make_request(space: dict[str, Any], **fields: Any) -> SweepRequest:
    return SweepRequest.model_validate({"space": space, **fields})


def choose(space: dict[str, Any], n_trials: int | None = None, seed: int = 0) -> list[dict[str, Any]]:
    method = "grid" if n_trials is None else "random"
    return Space(make_request(space, method=method, n_trials=n_trials)).choose_settings(n_trials, seed)


def refuse(space: dict[str, Any], **fields: Any) -> dict[str, str]:
    """Return what is said of each field."""
    with pytest.raises(InvalidFieldsError) as refusal:
        Space(make_request(space, **fields))
    return {part["field"]: part["message"] for part in summarize_violations(refusal.value.violations)[1]}


def test_a_grid_has_every_combination_the_last_field_changing_first() -> None:
    assert choose({"gamma": [0.9, 1], "net_arch": [[64], [8, 8]]}) == [
        {"gamma": 0.9, "net_arch": [64]},
        {"gamma": 0.9, "net_arch": [8, 8]},
        {"gamma": 1.0, "net_arch": [64]},
        {"gamma": 1.0, "net_arch": [8, 8]},
    ]


def test_a_grid_takes_integers_with_a_step() -> None:
    steps = {"distribution": "integer", "low": 32, "high": 100, "step": 32}
    assert choose({"n_steps": steps}) == [{"n_steps": 32}, {"n_steps": 64}, {"n_steps": 96}]


def test_the_same_seed_draws_the_same_settings_in_whatever_order_the_fields_come() -> None:
    space = {"learning_rate": LOG, "group_size": [2, 4, 8], "gamma": {"distribution": "uniform", "low": 0.9, "high": 1}}
    drawn = choose(space, 20, seed=3)
    assert drawn == choose(dict(reversed(space.items())), 20, seed=3)
    assert drawn != choose(space, 20, seed=4)
    assert {setting["group_size"] for setting in drawn} == {2, 4, 8}
    assert all(0.9 <= setting["gamma"] <= 1 and 1e-5 <= setting["learning_rate"] <= 1e-1 for setting in drawn)


def test_loguniform_draws_every_power_of_ten_as_often() -> None:
    logarithms = [math.floor(math.log10(setting["learning_rate"])) for setting in choose({"learning_rate": LOG}, 400)]
    counts = [logarithms.count(power) for power in (-5, -4, -3, -2)]
    assert sum(counts) == 400
    # Of 400 draws, 100 each; five standard deviations of a binomial are 5 * sqrt(400 * 0.25 * 0.75) = 43.
    assert all(abs(count - 100) < 44 for count in counts)


def test_a_narrow_range_is_drawn_as_finely_as_a_wide_one_and_never_without_end() -> None:
    narrow = {"distribution": "uniform", "low": 0.999, "high": 0.9999}
    assert len({setting["gamma"] for setting in choose({"gamma": narrow}, 200)}) == 200
    with pytest.raises(InvalidFieldsError) as refusal:
        choose({"gamma": {"distribution": "uniform", "low": 0.5, "high": math.nextafter(0.5, 1)}}, 20)
    assert "only 2 different settings were drawn" in summarize_violations(refusal.value.violations)[0]


def test_seeds_alone_are_one_setting() -> None:
    assert Space(make_request({}, seeds=[0, 1])).choose_settings(None, 0) == [{}]
    assert (
        refuse({}, seeds=[0])
        == refuse({})
        == {"space": "there is nothing to compare; send fields to vary, or at least two 'seeds'"}
    )


def test_drawn_settings_differ() -> None:
    drawn = choose({"group_size": [2, 4], "n_epochs": [1, 2, 3]}, 6)
    assert len({json.dumps(setting, sort_keys=True) for setting in drawn}) == 6


@pytest.mark.parametrize(
    ("space", "place", "message"),
    [
        ({"learnin_rate": [1]}, "space.learnin_rate", "did you mean learning_rate?"),
        ({"learning_rate": [1e-3, 5]}, "space.learning_rate.1", "must be at most 1"),
        ({"net_arch": [[64], [64, "x"]]}, "space.net_arch.1.1", "must be a whole number"),
        ({"baseline": ["grop"]}, "space.baseline.0", "did you mean 'group'?"),
        ({"normalize": [{"norm_ob": True}]}, "space.normalize.0.norm_ob", ""),
        ({"gamma": 0.9}, "space.gamma", "list of values, or a range"),
        ({"gamma": []}, "space.gamma", "1 to 64 values"),
        ({"gamma": [0.9, 0.9]}, "space.gamma.1", "in the list already"),
        ({"gamma": [1, 1.0]}, "space.gamma.1", "in the list already"),
        ({"gamma": [0, -0.0]}, "space.gamma.1", "in the list already"),
        ({"gamma": {"distribution": "normal", "low": 0, "high": 1}}, "space.gamma.distribution", "'uniform'"),
        ({"gamma": {"distribution": "uniform", "low": 0, "hihg": 1}}, "space.gamma.hihg", "did you mean high?"),
        ({"gamma": {"distribution": "uniform", "low": 1, "high": 0}}, "space.gamma.high", "more than low"),
        ({"gamma": {"distribution": "uniform", "low": 0.5, "high": 1.5}}, "space.gamma.high", "must be at most"),
        ({"ent_coef": {**LOG, "low": 0}}, "space.ent_coef.low", "above 0"),
        ({"n_steps": {"distribution": "uniform", "low": 32, "high": 64}}, "space.n_steps", "distribution 'integer'"),
        ({"n_steps": {"distribution": "integer", "low": 32.5, "high": 64}}, "space.n_steps.low", "no integer"),
        ({"gamma": {**LOG, "step": 2}}, "space.gamma.step", "only 'integer'"),
        ({"learning_rate": LOG}, "space.learning_rate", "a grid needs a list"),
        ({"seed": [1, 2]}, "space.seed", "'seeds'"),
        ({"env_name": ["CartPole-v1"]}, "space.env_name", "cannot be compared"),
        ({"model_name": ["a", "b"]}, "space.model_name", "'name'"),
    ],
)
def test_what_cannot_be_tried_is_named_with_its_place(space: dict[str, Any], place: str, message: str) -> None:
    assert message in refuse(space)[place]


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"method": "random"}, "n_trials", "how many"),
        ({"method": "random", "n_trials": 3}, "n_trials", "more than the 2 different settings"),
        ({"n_trials": 2}, "n_trials", "only for method 'random' or 'halving'"),
        ({"reduction_factor": 2}, "reduction_factor", "only for method 'halving'"),
        ({"base": {"gamma": 0.9}}, "space.gamma", "'base' sets it too"),
        ({"base": {"model_name": "m"}}, "base.model_name", "'name'"),
        ({"base": {"n_eval_episodes": 0}}, "base.n_eval_episodes", "compares evaluations"),
        ({"base": {"seed": 1}, "seeds": [1, 2]}, "base.seed", "leave one out"),
        ({"seeds": [1, 1]}, "seeds", "only once"),
    ],
)
def test_what_does_not_go_together_is_named(fields: dict[str, Any], place: str, message: str) -> None:
    assert message in refuse({"gamma": [0.9, 0.99]}, **fields)[place]


def test_halving_varies_the_steps_itself() -> None:
    assert "halving itself" in refuse({"total_timesteps": [1, 2]}, method="halving")["space.total_timesteps"]


def test_a_field_of_the_base_is_suggested_too() -> None:
    with pytest.raises(ValidationError, match="did you mean n_steps"):
        make_request({"gamma": [0.9]}, base={"n_step": 3})
