"""The form: every field of a request, read from its schema."""

from service.dashboard.pages.form import FIELD_NAMES
from service.dashboard.pages.form_fields import list_fields
from service.schemas.training import TrainRequest

FIELDS = list_fields(TrainRequest.model_json_schema())


def test_every_field_of_a_request_is_in_the_form_once() -> None:
    assert set(FIELD_NAMES) == TrainRequest.model_fields.keys()
    assert len(set(FIELD_NAMES)) == len(FIELD_NAMES)


def test_kinds_come_from_the_schema() -> None:
    kinds = {name: field.kind for name, field in FIELDS.items()}
    assert kinds["env_name"] == "text"
    assert kinds["total_timesteps"] == "integer"
    assert kinds["learning_rate"] == "number"
    assert kinds["group_mode"] == "choice"
    assert kinds["bootstrap_value"] == kinds["normalize"] == "flag"
    assert kinds["net_arch"] == "sizes"
    assert kinds["reward_functions"] == "weights"
    assert kinds["env_kwargs"] == kinds["wrappers"] == "json"
    assert set(kinds.values()) == {"text", "integer", "number", "choice", "flag", "sizes", "weights", "json"}


def test_ranges_defaults_and_choices_come_from_the_schema() -> None:
    assert FIELDS["total_timesteps"].rule == "1 to 10,000,000"
    assert FIELDS["clip_range"].rule == "above 0, up to 10"
    assert FIELDS["model_name"].rule == ""
    assert FIELDS["n_steps"].default == 32
    assert FIELDS["device"].choices == ("auto", "cpu", "cuda")
