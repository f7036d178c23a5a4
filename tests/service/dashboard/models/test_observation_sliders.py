"""The value beside the sliders, which is shown only where it was tested."""

import anyio
import pytest
from fastapi import FastAPI
from nicegui import Client, ui

from service.dashboard.models.environment_labels import Labels, ask_for_labels, get_labels
from service.dashboard.models.observation_sliders import ObservationSliders, describe_value
from service.schemas.models import ValueFigures
from tests.conftest import RegisterEnv
from tests.environments import LineEnv
from tests.models import make_model

CHECK = ValueFigures(
    is_meaningful=True, gamma=0.99, n_states=9, correlation=0.9, error=0.1, spread=0.5, lowest=2.0, highest=550.0
)


@pytest.mark.parametrize("value", [2.0, 100.0, 550.0, 555.4, -3.4])
def test_a_value_among_those_that_were_tested_is_a_figure(value: float) -> None:
    figure, meaning = describe_value(value, "what is earned", CHECK)
    assert (float(figure), meaning) == (value, "what is earned")


@pytest.mark.parametrize(("value", "check"), [(555.6, CHECK), (-3.6, CHECK)])
def test_a_value_beyond_what_was_tested_is_none(value: float, check: ValueFigures) -> None:
    assert describe_value(value, "what is earned", check) == ("", "value: outside the tested range")


def test_a_value_is_not_shown_where_it_is_not_known_what_was_tested() -> None:
    figure, meaning = describe_value(100.0, "what is earned", None)
    assert not figure
    assert "range is unknown" in meaning


def test_no_value_needs_no_words() -> None:
    assert describe_value(None, "what is earned", CHECK) == ("", "")


@pytest.mark.parametrize(
    ("metadata", "labels"),
    [
        ({"observation_names": ["place"], "action_names": ("back", "on")}, Labels(("place",), ("back", "on"))),
        ({"observation_names": ["place", 7], "action_names": "back"}, Labels()),
        ({"observation_names": ["place", "x" * 65], "action_names": ["back", " "]}, Labels()),
        ({"observation_names": ["place\nx"], "action_names": ["\u202eback"]}, Labels()),
        ({"observation_names": [f"{i}" for i in range(65)]}, Labels(tuple(f"{i}" for i in range(64)))),
        ({}, Labels()),
    ],
)
def test_an_environment_names_its_numbers_and_actions(
    app: FastAPI, register_env: RegisterEnv, metadata: dict[str, object], labels: Labels
) -> None:
    def build() -> LineEnv:
        env = LineEnv()
        env.metadata = metadata
        return env

    env_name = register_env(build)
    assert get_labels(env_name) == Labels()
    assert ask_for_labels(app.state.service.catalogue, env_name) == labels


def test_names_that_come_later_take_the_place_of_numbers(app: FastAPI) -> None:
    store = app.state.service.store
    store.publish("m", make_model("CartPole-v1").to_bytes())
    with Client(ui.page("/model")) as client:
        sliders = ObservationSliders(store.get("m"), Labels(), "what is earned", None)

    def list_texts() -> list[str]:
        return [getattr(element, "text", "") for element in client.elements.values()]

    anyio.run(sliders.answer)
    assert {"number 0", "number 3", "action 0"} <= {*list_texts()}
    anyio.run(sliders.label, Labels(("place", "speed", "angle"), ("left", "stay", "right")))  # of another build
    assert {"number 0", "number 3", "action 0"} <= {*list_texts()}
    anyio.run(sliders.label, Labels(("place", "speed", "angle", "spin"), ("left", "right")))
    assert {"place", "spin", "left", "right"} <= {*list_texts()}
    assert not {"number 0", "number 3", "action 0"} & {*list_texts()}
