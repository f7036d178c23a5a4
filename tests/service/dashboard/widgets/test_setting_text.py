"""How settings are written."""

from typing import Any

import pytest

from service.dashboard.widgets.setting_text import name_setting, write_named_setting, write_setting


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "yes"),
        (10_000, "10,000"),
        (0.0003, "0.0003"),
        ("branch", "branch"),
        ([64, 64], "64, 64"),
        ([], "none"),
        ({}, "none"),
        ([{"name": "frame_stack", "n": 4}, "flatten"], '{"name": "frame_stack", "n": 4}, flatten'),
        ({"norm_obs": True, "norm_reward": False}, "norm_obs: yes, norm_reward: no"),
    ],
    ids=str,
)
def test_settings_are_written_as_people_type_them(value: Any, text: str) -> None:
    assert write_setting(value) == text


def test_a_setting_has_the_label_of_the_form() -> None:
    assert [name_setting(name) for name in ("total_timesteps", "bootstrap_value")] == [
        "Simulator steps",
        "Bootstrap value",
    ]


def test_an_open_setting_is_written_as_what_happens_then() -> None:
    assert write_named_setting("checkpoint_every", None) == "one a minute"
    assert write_named_setting("checkpoint_every", 500) == "500"
    assert write_named_setting("patience", None) == "none"
