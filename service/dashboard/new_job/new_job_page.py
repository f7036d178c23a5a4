"""The form that starts a job."""

import asyncio
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from anyio import to_thread
from nicegui import ui
from pydantic import ValidationError

from service.dashboard.current_service import get_client, get_service, get_url
from service.dashboard.frame import show_frame
from service.dashboard.new_job.environment_panel import EnvironmentPanel
from service.dashboard.new_job.fields import COMMON, GROUPS, Field, FieldInput, list_fields
from service.dashboard.new_job.planning_wait import PlanningWait
from service.dashboard.new_job.sweep_panel import SweepPanel
from service.dashboard.widgets.confirmation import confirm, describe_old_model
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, make_note, set_attributes
from service.dashboard.widgets.toasts import show_error
from service.errors import InvalidRequestError, ServiceError
from service.schemas.training import TrainRequest
from service.schemas.violations import summarize_violations
from service.training.planning.names import resolve_names
from service.training.planning.plan import TrainingPlan

# Fields that hold names. They are looked up one by one, so that each wrong name is marked, whatever else is wrong.
_NAMES = ("env_name", "reward_function_type", "reward_functions", "preset")
# Mistakes are shown after a pause in typing, not in the middle of a word.
_PAUSE_SECONDS = 0.4
_ENTER = "Enter starts it too. You can watch and stop the job at any time."
# Fields drawn afresh for each job, unless they are given.
_DRAWN = frozenset({"model_name", "seed"})


def show_form() -> None:
    """Show the form, filled in from the job that the query parameter ``from`` names, if any."""
    with show_frame("New job", "Training"):
        with make_box("head"), make_box("stack").style("gap: 0"):
            make_heading("New job", 1)
            Text("Every field is optional.", tag="p")
        form = _Form()
    ui.timer(0, form.refresh, once=True)
    source = ui.context.client.request.query_params.get("from")
    if source is not None:
        form.fill_from(source)
    if (init_model := ui.context.client.request.query_params.get("init_model")) is not None:
        form.fill("init_model", init_model)


class _Form:
    """The inputs for a ``TrainRequest``, and previews of the environment and the equivalent command."""

    def __init__(self) -> None:
        self._service = get_service()
        self._inputs: dict[str, FieldInput] = {}
        self._groups: dict[str, ui.element] = {}
        self._n_changes = 0
        self._is_starting = False
        fields = list_fields(TrainRequest.model_json_schema())
        with make_box("form-page", "form", novalidate=True).on("submit.prevent", self._submit, []):
            with make_box("card stack", "section", aria_label="Settings"):
                with make_box("fields"):
                    self._add(fields, COMMON)
                with make_box():
                    for title, (subtitle, names) in GROUPS.items():
                        self._add_group(fields, title, subtitle, names)
            with make_box("aside"):
                self._add_aside()

    def fill_from(self, job_id: str) -> None:
        """Copy what was chosen for a job into the fields; what was left out then is left out again."""
        try:
            job = self._service.registry.get(job_id)
        except ServiceError:
            show_error("That job no longer exists, so the form shows the defaults.")
            return
        config, origins = job.config.model_dump(), job.plan.config_origins
        for name, field_input in self._inputs.items():
            if name not in _DRAWN and origins.get(name) == "request" and config.get(name) is not None:
                field_input.fill(config[name])

    def fill(self, name: str, value: str) -> None:
        """Fill in one field."""
        self._inputs[name].fill(value)

    def _add(self, fields: Mapping[str, Field], names: Sequence[str]) -> None:
        for name in names:
            if name in fields:
                is_wide = fields[name].kind in ("weights", "json") or name == "env_name"
                self._inputs[name] = FieldInput(fields[name], self.refresh, self._list_suggestions(name), is_wide)

    def _add_group(self, fields: Mapping[str, Field], title: str, subtitle: str, names: Sequence[str]) -> None:
        with make_box("group", "details") as group:
            with make_box("", "summary"):
                Text(title)
                Text(subtitle)
            with make_box("fields"):
                self._add(fields, names)
        self._groups |= dict.fromkeys(names, group)

    def _add_aside(self) -> None:
        with make_box("card stack", "section", aria_label="Start"):
            self._problem = make_box(role="alert")
            self._problem.set_visibility(False)
            self._start = make_button("Start training", None, "primary", "play_arrow", kind="submit")
            self._why = Text(_ENTER, "muted small why", "p").props("aria-live=polite")
            self._waiting = PlanningWait()
        SweepPanel(self._read)
        self._about = EnvironmentPanel(self._service.catalogue)
        with make_box("card stack", "section", aria_label="The same as a command"):
            with make_box("row-flex between"):
                make_heading("The same as a command", 3)
                copy = make_button("Copy", None, "tiny quiet", "content_copy", "Copy the command")
            self._command = Text("", "code", "pre")
            copy.on(
                "click",
                js_handler=f"() => grpoToasts.copy(getHtmlElement({self._command.id}))",
            )

    def _list_suggestions(self, name: str) -> list[str] | None:
        if name == "env_name":
            return [environment.env_name for environment in self._service.catalogue.list_environments("")]
        if name == "preset":
            return [
                "none",
                "general",
                *(e.env_name for e in self._service.catalogue.list_environments("") if e.has_preset),
            ]
        if name == "reward_function_type":
            return ["environment", *sorted(self._service.reward_functions)]
        if name == "init_model":
            return self._service.store.folder.list_names()
        return None

    def _read(self) -> dict[str, Any]:
        values = {name: field_input.value for name, field_input in self._inputs.items()}
        return {name: value for name, value in values.items() if value is not None}

    async def refresh(self) -> None:
        """Show the command for the current fields, what is wrong with them, and the environment."""
        self._preview()
        self._n_changes += 1
        change = self._n_changes
        problems = self._find_problems()
        if not problems:
            self._show_problems(problems)
        await asyncio.sleep(_PAUSE_SECONDS if self._n_changes > 1 else 0)
        if change != self._n_changes:
            return
        self._show_problems(problems)
        if "env_name" in problems:
            self._about.clear()
            return
        about = self._about.show(self._read().get("env_name", TrainRequest.model_fields["env_name"].default))
        await asyncio.gather(about, *([] if problems else [self._try_out(change)]))

    async def _try_out(self, change: int) -> None:
        """Let the server plan the job, as it would be started, and show what it refuses."""
        planning = self._service.admission.planning_limiter
        try:
            plan = await to_thread.run_sync(self._service.admission.plan, self._make_request(), limiter=planning)
        except InvalidRequestError as error:
            if change == self._n_changes:
                self._show_problems({self._find_field(error.detail): error.detail})
        except ServiceError:  # the server is busy or ends; a start says so
            return
        else:
            if change == self._n_changes:
                self._show_choices(plan)

    def _show_choices(self, plan: TrainingPlan) -> None:
        """Show in the fields that were left out what the preset or the server chose."""
        config = plan.config.model_dump(exclude=set(_DRAWN))
        for name, value in config.items():
            if plan.config_origins.get(name) != "request" and name in self._inputs:
                self._inputs[name].show_choice(value, plan.config_origins.get(name, "default"))

    def _make_request(self) -> TrainRequest:
        return TrainRequest.model_validate_json(json.dumps(self._read()))

    def _find_problems(self) -> dict[str, str]:
        """Find what is wrong with the fields, without looking at the environment; return sentences by field."""
        values = self._read()
        unknown = {name: self._look_up({name: values[name]}).get(name) for name in _NAMES if name in values}
        return {name: problem for name, problem in unknown.items() if problem is not None} | self._look_up(values)

    def _look_up(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Find what is wrong with some of the fields, the others left out; of several wrong names, only the first."""
        try:
            resolve_names(TrainRequest.model_validate_json(json.dumps(values)), self._service.reward_functions)
        except ValidationError as error:
            _, violations = summarize_violations(error.errors(include_url=False))
            return {name: self._explain(name, each["message"]) for each in violations for name in [_get_stem(each)]}
        except InvalidRequestError as error:
            return {self._find_field(error.detail): error.detail}
        return {}

    def _preview(self) -> None:
        key = "" if self._service.settings.api_key is None else ' -H "X-API-Key: $GRPO_API_KEY"'
        body = shlex.quote(json.dumps(self._read()))
        self._command.set_text(f'curl -X POST {get_url()}/train -H "Content-Type: application/json"{key} -d {body}')

    async def _submit(self) -> None:
        if self._is_starting:
            return
        self._n_changes += 1  # what a preview still finds is found here too
        problems = self._find_problems()
        self._show_problems(problems)
        if problems:
            self._go_to(next(iter(problems)))
            return
        request = self._make_request()
        name = request.model_name
        if name is not None and request.replace and self._service.store.exists(name):
            old = describe_old_model(self._service.settings.max_model_versions)
            consequence = f"A model with this name exists. The new policy replaces it; the old one {old}."
            if not await confirm(f"Replace {name}?", consequence, "Train"):
                return
        self._set_starting(True)
        try:
            start = partial(self._service.admission.start_job, request, get_client())
            job = await self._waiting.plan(start, self._service.admission.planning_limiter)
        except ServiceError as error:
            self._set_starting(False)
            field = self._find_field(error.detail)
            self._show_problems({field: error.detail}, is_fault=isinstance(error, InvalidRequestError))
            self._go_to(field)
        except BaseException:  # the button must not stay dead
            self._set_starting(False)
            raise
        else:
            ui.navigate.to(f"/jobs/{job.job_id}")

    def _set_starting(self, is_starting: bool) -> None:
        self._is_starting = is_starting
        set_attributes(self._start, disabled=is_starting or None)
        self._why.set_visibility(not is_starting)

    def _explain(self, name: str, problem: str) -> str:
        return self._inputs[name].explain(problem) if name in self._inputs else problem

    def _find_field(self, detail: str) -> str:
        """Return the first field that an error names; empty if it names none."""
        words = re.findall(r"[a-z_]+", detail)
        return next((word for word in words if word in self._inputs), "")

    def _show_problems(self, problems: Mapping[str, str], is_fault: bool = True) -> None:
        """Show what is wrong at the fields, each problem once, and what belongs to none of them above the button.

        :param is_fault: Whether a start would fail again for the same reason.
        """
        for name, field_input in self._inputs.items():
            field_input.show_problem(problems.get(name))
            if name in problems and name in self._groups:
                set_attributes(self._groups[name], open=True)
        others = [problem for name, problem in problems.items() if name not in self._inputs]
        self._problem.clear()
        self._problem.set_visibility(bool(others))
        with self._problem:
            for problem in others:
                make_note(problem, "bad", "error")
        is_off = is_fault and bool(problems)
        set_attributes(self._start, disabled=is_off or self._is_starting or None)
        titles = [self._inputs[name].title for name in problems if name in self._inputs]
        fields = "field" if len(titles) == 1 else "fields"
        self._why.set_text(f"Fix the marked {fields} first: {', '.join(titles)}." if is_off and titles else _ENTER)

    def _go_to(self, name: str) -> None:
        if name in self._inputs:
            self._inputs[name].focus()


def _get_stem(violation: Mapping[str, str]) -> str:
    """Return the field of a request that a violation lies in, such as ``net_arch`` of ``net_arch.0``."""
    return violation["field"].partition(".")[0]
