"""The part of the form that starts a sweep over several values instead of one job."""

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from nicegui import ui
from pydantic import ValidationError

from service.dashboard.current_service import get_client, get_service
from service.dashboard.new_job.planning_wait import PlanningWait
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_note, set_attributes
from service.errors import InvalidFieldsError, ServiceError
from service.schemas.sweeps import SweepRequest
from service.schemas.violations import summarize_violations

_HINT = (
    "One line per field: its name, =, and values separated by commas. Every combination is trained with every seed, "
    "each in a job of its own; all other settings come from this form."
)
_EXAMPLE = "learning_rate = 0.0003, 0.001\ngroup_size = 2, 4"
# A sweep has its own fields for these.
_NOT_IN_BASE = frozenset({"model_name", "replace", "seed"})


class SweepPanel:
    """Starts a sweep from the form's fields and several values for some of them.

    :param read: Returns the fields of ``POST /train`` as they are filled in.
    """

    def __init__(self, read: Callable[[], dict[str, Any]]) -> None:
        self._read = read
        self._service = get_service()
        with make_box("card group sweep-panel", "details"):
            with make_box("", "summary"):
                Text("Try several values")
                Text("which settings learn best")
            with make_box("stack"):
                self._space = ui.textarea("What to try", placeholder=_EXAMPLE).props("outlined autogrow stack-label")
                Text(_HINT, "hint")
                self._seeds = ui.input("Seeds", value="0, 1, 2").props("outlined dense autocomplete=off")
                # Otherwise Enter would start the single job.
                self._seeds.on("keydown.enter.prevent", self._submit, [])
                self._problem = make_box(role="alert")
                self._start = make_button("Start a sweep", self._submit, "", "tune")
                self._waiting = PlanningWait()

    async def _submit(self) -> None:
        self._problem.clear()
        set_attributes(self._start, disabled=True)
        try:
            request = SweepRequest.model_validate_json(
                json.dumps(make_body(self._read(), self._space.value, self._seeds.value))
            )
            client = get_client() if self._service.settings.limits_clients else None
            create = partial(self._service.sweeps.create, request, client)
            planned = await self._waiting.plan(create, self._service.admission.planning_limiter)
        except ValidationError as error:
            self._complain(summarize_violations(error.errors(include_url=False))[0])
        except InvalidFieldsError as error:
            self._complain(summarize_violations(error.violations)[0])
        except ServiceError as error:
            self._complain(error.detail)
        else:
            ui.navigate.to(f"/sweeps/{planned.record.sweep_id}")

    def _complain(self, text: str) -> None:
        set_attributes(self._start, disabled=None)
        with self._problem:
            make_note(text, "bad", "error")


def make_body(fields: dict[str, Any], space: str | None, seeds: str | None) -> dict[str, Any]:
    """Make the body of ``POST /sweeps``.

    :param fields: Of ``POST /train``, as they are filled in.
    :param space: Lines of a name, ``=``, and values between commas.
    :param seeds: Numbers between commas; none leave the seeds to the server.
    """
    tried: dict[str, Any] = {}
    for line in filter(str.strip, (space or "").splitlines()):
        name, _, values = line.partition("=")
        tried[name.strip()] = _read_values(values)
    body: dict[str, Any] = {
        "base": {name: value for name, value in fields.items() if name not in tried.keys() | _NOT_IN_BASE},
        "space": tried,
    }
    if numbers := _read_values(seeds or ""):
        body["seeds"] = numbers
    if fields.get("model_name"):
        body["name"] = fields["model_name"]
    return body


def _read_values(text: str) -> list[Any]:
    """Read what stands between commas: all of it as JSON, or else each part as JSON or as a word."""
    try:
        return list(json.loads(f"[{text}]"))
    except ValueError:  # a word needs no quotes; then the commas in brackets separate nothing
        return [_read_value(part) for part in re.split(r",(?![^\[{]*[\]}])", text) if part.strip()]


def _read_value(text: str) -> Any:
    """Read JSON, or else take the text as a word."""
    try:
        return json.loads(text)
    except ValueError:
        return text.strip()
