"""The fields of a form, made from a request's schema: its descriptions, ranges, choices and defaults."""

import html
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from nicegui import ui

from grpo_core.options.hyperparameters import list_group
from service.dashboard.widgets.html_elements import Text, make_box
from service.dashboard.widgets.number_format import format_count
from service.dashboard.widgets.setting_text import name_setting, write_named_setting, write_setting

# Shown without opening a part.
COMMON = ("env_name", "reward_function_type", "preset", "total_timesteps", "model_name", "seed", "init_model")
# Title of each part that opens, its subtitle and its fields.
GROUPS: Mapping[str, tuple[str, Sequence[str]]] = {
    "Evaluation and limits": (
        "how the job is judged, and when it ends early",
        (
            "eval_freq",
            "n_eval_episodes",
            "keep_best",
            "stop_reward",
            "patience",
            "max_seconds",
            "checkpoint_every",
            "max_restarts",
            "replace",
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
_CODE = re.compile("`([^`]+)`")
# Whole numbers with commas between thousands. "0,001" is not one of them: elsewhere it is a decimal fraction.
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
# Written as JSON: no other input fits them.
_JSON_FIELDS = ("env_kwargs", "wrappers")
_KINDS_IN_WORDS = {
    "json": 'JSON, such as {"gravity": 9.8} or ["flatten"]',
    "integer": "a whole number, such as 1000",
    "number": "a number, such as 0.5",
    "sizes": "whole numbers separated by commas, such as 64, 64, or none",
    "weights": "names and their weights, such as environment: 1, optimized_cartpole: 0.5",
}
# What the server draws afresh for each job that leaves it out.
_DRAWN = {"model_name": "generated", "seed": "random"}
# As the placeholder says it; an empty field is left out.
_NO_SIZES = write_setting([])
_FLAGS: dict[Any, str] = {True: "yes", False: "no"}


class Field(NamedTuple):
    """One field of a request.

    :param name: Its name in the request.
    :param kind: ``choice``, ``flag``, ``integer``, ``number``, ``text``, ``sizes``, ``weights`` or ``json``.
    :param choices: The allowed values of a ``choice``.
    :param default: The default; None if the server chooses one.
    :param rule: The range in words; empty if there is none.
    :param minimum: Smallest number; None if there is none.
    :param maximum: Largest number; None if there is none.
    """

    name: str
    kind: str
    description: str
    choices: tuple[str, ...]
    default: Any
    rule: str
    minimum: float | None
    maximum: float | None


def list_fields(schema: Mapping[str, Any]) -> dict[str, Field]:
    """Read the fields of a request, by name.

    :param schema: The output of ``model_json_schema``.
    """
    return {name: _read_field(name, described) for name, described in schema["properties"].items()}


def _read_field(name: str, described: Mapping[str, Any]) -> Field:
    candidates = [part for part in described.get("anyOf", [described]) if part.get("type") != "null"]
    first = candidates[0]
    kinds = {"boolean": "flag", "array": "sizes", "object": "weights", "string": "text"}
    if name in _JSON_FIELDS:
        first = {"type": "json"}
    kind = "choice" if "enum" in first else kinds.get(first.get("type", ""), first.get("type", "text"))
    minimum, maximum = first.get("minimum", first.get("exclusiveMinimum")), first.get("maximum")
    return Field(
        name=name,
        kind=kind,
        description=described.get("description", ""),
        choices=tuple(first.get("enum", ())),
        default=described.get("default"),
        rule=_describe_range(minimum, maximum, "exclusiveMinimum" in first),
        minimum=minimum,
        maximum=maximum,
    )


def _describe_range(minimum: float | None, maximum: float | None, is_open: bool) -> str:
    if minimum is None or maximum is None:
        return ""
    low, high = (format_count(int(end)) if end == int(end) else f"{end:g}" for end in (minimum, maximum))
    return f"above {low}, up to {high}" if is_open else f"{low} to {high}"


class FieldInput:
    """An input for one field.

    :param field: The field.
    :param on_change: Called after every change.
    :param suggestions: Names to suggest while something is typed; what is typed is the value in any case.
    :param is_wide: Whether it takes a whole line.
    """

    def __init__(
        self,
        field: Field,
        on_change: Callable[[], Any],
        suggestions: Iterable[str] | None = None,
        is_wide: bool = False,
    ) -> None:
        self.field = field
        self.title = name_setting(field.name)
        with make_box("field wide" if is_wide else "field") as self._box:
            with make_box("field-name"):
                label = Text(self.title, tag="label")
                Text(field.name, tag="code")
            self._input = self._make_input(field)
            # NiceGUI gives its own id to the box around the input.
            label.props["for"] = f"{self._input.html_id}-input"
            self._input.props(f"outlined dense hide-bottom-space for={self._input.html_id}-input")
            if suggestions is not None:
                self._suggest(list(suggestions))
            self._input.on_value_change(self._forget)
            self._input.on_value_change(on_change)
            hint = f"{field.description} {field.rule[:1].upper()}{field.rule[1:]}.".removesuffix(" .")
            ui.html(_write_code(hint), sanitize=False).classes("hint")

    @property
    def value(self) -> Any:
        """The value to send; None if it is left out. Unreadable text is sent unchanged, for the server to refuse."""
        value = self._input.value
        if isinstance(value, str):
            value = value.strip()
        if value is None or value == "":
            return None
        if self.field.kind in ("integer", "number"):
            return read_number(value, is_whole=self.field.kind == "integer")
        if self.field.kind in ("json", "flag"):
            return _read_json(value) if isinstance(value, str) else value
        if self.field.kind == "sizes":
            return _read_sizes(value)
        return _read_weights(value) if self.field.kind == "weights" else value

    def fill(self, value: Any) -> None:
        """Set the input to a value of the configuration."""
        if self.field.kind == "json":
            value = json.dumps(value) if value else ""
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or _NO_SIZES
        elif isinstance(value, dict) and self.field.kind == "weights":
            value = ", ".join(f"{name}: {str(weight).removesuffix('.0')}" for name, weight in value.items())
        elif isinstance(value, dict):  # more than yes: a choice of its own
            choice, value = write_setting(value), json.dumps(value)
            self._input.set_options({**self._input.options, value: choice})
        self._input.value = value if self._is_choice else str(value)

    def explain(self, problem: str) -> str:
        """Say what is wrong with the value: that its text cannot be read, or else the server's words."""
        if not isinstance(self.value, str) or self.field.kind not in _KINDS_IN_WORDS:
            return problem
        return f"“{self.value}” cannot be read: this takes {_KINDS_IN_WORDS[self.field.kind]}."

    def show_choice(self, value: Any, origin: str) -> None:
        """Show what applies if the field is left as it is.

        :param value: The value.
        :param origin: Who chose it: ``preset`` or ``default``.
        """
        source = "from the preset" if origin == "preset" else "by default"
        choice = f"{write_named_setting(self.field.name, value)} ({source})"
        if self._is_choice:
            self._input.set_options({**self._input.options, "": choice})
        else:
            self._input.props["placeholder"] = choice
        self._input.classes(**{"add" if origin == "preset" else "remove": "preset"})

    def show_problem(self, problem: str | None) -> None:
        """Show a problem at the input; None removes it."""
        self._input.error = problem

    def focus(self) -> None:
        """Focus the input and scroll it into view."""
        self._input.run_method("focus")
        ui.run_javascript(f"getHtmlElement({self._box.id})?.scrollIntoView({{block: 'center'}})")

    def _forget(self) -> None:
        """Remove what was said about the previous value."""
        self.show_problem(None)
        self._input.classes(remove="preset")

    @property
    def _is_choice(self) -> bool:
        return self.field.kind in ("choice", "flag")

    def _make_input(self, field: Field) -> Any:
        default = describe_default(field)
        if self._is_choice:
            known = _FLAGS if field.kind == "flag" else {choice: choice for choice in field.choices}
            return ui.select({"": default, **known}, value="")
        # Numbers are typed as text too: a browser's own number field shows what it does not send, such as "1e".
        keyboard = {"integer": "numeric", "number": "decimal"}.get(field.kind, "text")
        return ui.input(placeholder=default).props(f"autocomplete=off spellcheck=false inputmode={keyboard}")

    def _suggest(self, names: list[str]) -> None:
        self._input.props("role=combobox aria-autocomplete=list aria-expanded=false")
        with self._input.add_slot("append"):
            ui.icon("arrow_drop_down").props("aria-hidden=true")
        ui.run_javascript(f"grpoSuggestions.set({json.dumps(f'{self._input.html_id}-input')}, {json.dumps(names)})")


def describe_default(field: Field) -> str:
    """Say what comes in the place of a field that is left out."""
    if field.default is None:
        return _DRAWN.get(field.name, "by default")
    if isinstance(field.default, list):
        return ", ".join(map(str, field.default))
    return f"{field.default:g}" if isinstance(field.default, float) else str(field.default)


def _write_code(text: str) -> str:
    return _CODE.sub(r"<code>\1</code>", html.escape(text))


def read_number(text: str, is_whole: bool) -> float | str:
    """Read a number; return other text, or a fraction where a whole number is asked for, as it is.

    :param is_whole: Whether to read a whole number, which may have commas between its thousands.
    """
    if is_whole and _GROUPED.fullmatch(text):
        text = text.replace(",", "")
    try:
        number = float(text)
    except ValueError:
        return text
    if not math.isfinite(number):
        return text
    return int(number) if is_whole and number.is_integer() else number


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_sizes(text: str) -> list[int] | str:
    if text == _NO_SIZES:
        return []
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) for part in parts] if all(part.isdecimal() for part in parts) else text


def _read_weights(text: str) -> dict[str, float] | str:
    pairs = [part.partition(":") for part in text.split(",") if part.strip()]
    try:
        return {name.strip(): float(weight) for name, _, weight in pairs}
    except ValueError:
        return text
