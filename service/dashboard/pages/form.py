"""The form that starts a job."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from anyio import to_thread
from nicegui import ui
from pydantic import ValidationError

from grpo_core.options.hyperparameters import list_group
from service.dashboard.current_service import get_service
from service.dashboard.pages.form_fields import Field, FieldInput, list_fields
from service.dashboard.pages.frame import show_frame
from service.dashboard.widgets.environment_panel import EnvironmentPanel
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, make_note, set_attributes
from service.errors import ServiceError
from service.schemas.training import TrainRequest

_COMMON = ("env_name", "reward_function_type", "preset", "total_timesteps", "model_name", "seed")
_GROUPS: Mapping[str, tuple[str, Sequence[str]]] = {
    "Evaluation and limits": (
        "how it is judged, and when it ends early",
        (
            "eval_freq",
            "n_eval_episodes",
            "keep_best",
            "stop_reward",
            "patience",
            "max_seconds",
            "tensorboard_log",
        ),
    ),
    "Construction": ("what the environment is built with, in JSON", ("env_kwargs", "wrappers")),
    "Groups and rollouts": ("what is compared with what", ("n_envs", *list_group("Groups and rollouts"))),
    "Credit": ("how rewards become advantages", ("reward_functions", *list_group("Credit"), "normalize")),
    "Optimisation": ("how far each update goes", ("lr_schedule", *list_group("Optimisation"))),
    "Loss": ("variants from language-model training", list_group("Loss")),
    "Network": ("what is trained, and where", ("net_arch", "activation", "log_std_init", "device")),
}
FIELD_NAMES = (*_COMMON, *(name for _, names in _GROUPS.values() for name in names))
# Fields that are not copied when a job is repeated.
_NOT_COPIED = frozenset({"model_name", "seed"})


def show_form() -> None:
    """Show the form, filled in from the job that the query parameter ``from`` names, if any."""
    with show_frame("New job", "Training"):
        with make_box("head"), make_box("stack").style("gap: 0"):
            make_heading("New job", 1)
            Text("Every field may be left as it is.", tag="p")
        form = _Form()
    ui.timer(0, form.refresh, once=True)
    source = ui.context.client.request.query_params.get("from")
    if source is not None:
        form.fill_from(source)


class _Form:
    """The inputs for a ``TrainRequest``, and previews of the environment and the equivalent command."""

    def __init__(self) -> None:
        self._service = get_service()
        self._inputs: dict[str, FieldInput] = {}
        self._groups: dict[str, ui.element] = {}
        fields = list_fields(TrainRequest.model_json_schema())
        with make_box("form-page", "form", novalidate=True).on("submit.prevent", self._submit, []):
            with make_box("card stack", "section", aria_label="Settings"):
                with make_box("fields"):
                    self._add(fields, _COMMON)
                with make_box():
                    for title, (subtitle, names) in _GROUPS.items():
                        self._add_group(fields, title, subtitle, names)
            with make_box("aside"):
                self._add_aside()

    def fill_from(self, job_id: str) -> None:
        """Copy the settings of a job into the fields."""
        try:
            config = self._service.registry.get(job_id).config.model_dump()
        except ServiceError as error:
            ui.notify(error.detail)
            return
        for name, field_input in self._inputs.items():
            if name not in _NOT_COPIED and config.get(name) is not None:
                field_input.fill(config[name])

    def _add(self, fields: Mapping[str, Field], names: Sequence[str]) -> None:
        for name in names:
            if name in fields:
                is_wide = fields[name].kind in ("weights", "json") or name == "env_name"
                self._inputs[name] = FieldInput(fields[name], self.refresh, self._list_options(name), is_wide)

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
            Text("Enter starts it too. You can watch it, and stop it, at any time.", "muted small", "p")
        self._about = EnvironmentPanel(self._service.catalogue)
        with make_box("card stack", "section", aria_label="The same as a command"):
            with make_box("row-flex between"):
                make_heading("The same as a command", 3)
                copy = make_button("Copy", None, "tiny quiet", "content_copy", "Copy the command")
            self._command = Text("", "code", "pre")
            copy.on(
                "click",
                js_handler=f"() => navigator.clipboard.writeText(getHtmlElement({self._command.id}).textContent)",
            )

    def _list_options(self, name: str) -> list[str] | None:
        if name == "env_name":
            return [environment.env_name for environment in self._service.catalogue.list_environments("")]
        if name == "preset":
            return ["none", *(e.env_name for e in self._service.catalogue.list_environments("") if e.has_preset)]
        if name == "reward_function_type":
            return ["environment", *sorted(self._service.reward_functions)]
        return None

    def _read(self) -> dict[str, Any]:
        values = {name: field_input.value for name, field_input in self._inputs.items()}
        return {name: value for name, value in values.items() if value is not None}

    async def refresh(self) -> None:
        """Show the command and the environment for the current fields."""
        self._preview()
        await self._about.show(self._inputs["env_name"].value)

    def _preview(self) -> None:
        url = str(ui.context.client.request.base_url.replace(path="/train"))
        key = "" if self._service.settings.api_key is None else ' -H "X-API-Key: $GRPO_API_KEY"'
        body = shlex.quote(json.dumps(self._read()))
        self._command.set_text(f'curl -X POST {url} -H "Content-Type: application/json"{key} -d {body}')

    async def _submit(self) -> None:
        self._show_problem(None)
        for field_input in self._inputs.values():
            field_input.show_problem(None)
        try:
            request = TrainRequest.model_validate_json(json.dumps(self._read()))
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_url=False):
                self._show_field_problem(str(problem["loc"][0]) if problem["loc"] else "", problem["msg"])
            return
        set_attributes(self._start, disabled=True)
        try:
            await to_thread.run_sync(self._service.start_job, request, limiter=self._service.planning_limiter)
        except ServiceError as error:
            self._show_field_problem(self._find_field(error.detail), error.detail)
        else:
            ui.navigate.to("/")
        finally:
            set_attributes(self._start, disabled=None)

    def _find_field(self, detail: str) -> str:
        """Return the first field that an error names; empty if it names none."""
        words = re.findall(r"[a-z_]+", detail)
        return next((word for word in words if word in self._inputs), "")

    def _show_field_problem(self, name: str, problem: str) -> None:
        if name not in self._inputs:
            self._show_problem(problem)
            return
        if name in self._groups:
            set_attributes(self._groups[name], open=True)
        self._inputs[name].show_problem(problem)
        self._inputs[name].focus()

    def _show_problem(self, problem: str | None) -> None:
        self._problem.clear()
        self._problem.set_visibility(problem is not None)
        if problem is not None:
            with self._problem:
                make_note(problem, "bad", "error")
