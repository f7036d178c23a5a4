"""Sliders for an observation, and bars for the policy's answer."""

import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.models.action_bars import Bar, list_bars
from service.dashboard.models.environment_labels import Labels
from service.dashboard.models.slider_ranges import Range, complete_angle, join_numbers, list_ranges
from service.dashboard.widgets.html_elements import (
    Text,
    fill_track,
    make_box,
    make_button,
    make_note,
    make_track,
    set_attributes,
    show_problem,
)
from service.dashboard.widgets.number_format import format_number, write_exactly
from service.errors import ServiceError
from service.inference.infer import LARGE_MODEL_BYTES, infer
from service.models.served import ServedModel
from service.schemas.models import ValueFigures
from service.spaces import count_numbers

_MAX_SLIDERS = 64
_N_STOPS = 200
# A share of the range in which values were tested: so little beyond it, they are as good as within.
_MARGIN = 0.01
_EMIT_TEXT = "(event) => emit(event.target.value)"


class _Slider(ui.slider):
    """A slider that moves at once, without waiting for the server's answer."""

    LOOPBACK = False


class _NumberSlider:
    """One number of an observation: a slider, and a field to type it into.

    :param name: Name of the number.
    :param span: Its range.
    :param start: Its first number.
    :param on_change: Called when another number is chosen.
    """

    def __init__(self, name: str, span: Range, start: float, on_change: Callable[[], Awaitable[None]]) -> None:
        self.range, self.start, self.number = span, start, start
        # The sine to a cosine, and the reverse: both must be of one angle, or no state has them.
        self.partner: _NumberSlider | None = None
        self._on_change = on_change
        with make_box("slider"):
            self._name = Text("", "ellipsis")
            step = 1 if span.is_whole else (span.high - span.low) / _N_STOPS
            self._slider = _Slider(min=span.low, max=span.high, step=step, value=start)
            self._slider.on_value_change(self._slide)
            self._field = make_box("number", "input", inputmode="decimal", autocomplete="off")
            self._field.on("change", lambda event: self._type(event.args), js_handler=_EMIT_TEXT)
            self._message = Text("", "message").props("role=status")
        self.label(name)
        self._write()

    def label(self, name: str) -> None:
        """Show another name."""
        self._name.set_text(name)
        set_attributes(self._name, title=name)
        set_attributes(self._slider, aria_label=name)
        set_attributes(self._field, aria_label=f"Type {name}")

    def set(self, number: float, message: str = "") -> None:
        """Choose a number of the range, without asking for an answer."""
        self.number = self._slider.value = number
        self._write(message)

    def move_partner(self) -> None:
        """Choose the partner's number, on the side of 0 where it was."""
        if self.partner is not None:
            self.partner.set(complete_angle(self.number, self.partner.number))

    async def _slide(self) -> None:
        if self._slider.value is None or self._slider.value == self.number:
            return
        self.number = self.range.round(self._slider.value)
        self._write()
        self.move_partner()
        await self._on_change()

    async def _type(self, text: str) -> None:
        number, message = self.range.read(text)
        self.set(self.number if number is None else number, message)
        self.move_partner()
        # The field may hold another text than the server last sent.
        ui.run_javascript(f"getHtmlElement({self._field.id}).value = {json.dumps(write_exactly(self.number))}")
        await self._on_change()

    def _write(self, message: str = "") -> None:
        set_attributes(self._field, value=write_exactly(self.number))
        self._message.set_text(message)
        self._message.set_visibility(bool(message))


class _Subspace(NamedTuple):
    """One space of an observation and its sliders.

    :param key: Key in a Dict observation; None for the whole observation.
    """

    key: str | None
    space: spaces.Space[Any]
    sliders: list[_NumberSlider]


class ObservationSliders:
    """Sliders for an observation, and bars for the answer.

    :param model: Model that answers.
    :param labels: Names of numbers and actions.
    :param value_meaning: What its values mean, in words.
    :param value_check: The range in which they were tested; None if unknown.
    """

    def __init__(
        self, model: ServedModel, labels: Labels, value_meaning: str, value_check: ValueFigures | None
    ) -> None:
        self._model, self._value_meaning, self._value_check = model, value_meaning, value_check
        self._labels = labels
        space = model.actor.observation_space
        subspaces: dict[Any, spaces.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        n_numbers = sum(map(count_numbers, subspaces.values()))
        self._parts: list[_Subspace] = []
        if n_numbers > _MAX_SLIDERS:
            make_note(
                f"An observation of this policy has {n_numbers:,} numbers, too many for sliders: send it to POST "
                "/inference instead."
            )
            return
        with make_box("sliders"):
            self._parts += [self._make_part(key, part) for key, part in subspaces.items()]
        rng = np.random.default_rng()
        with make_box("row-flex wrap"):
            make_button("Centre", lambda: self._set(lambda one: one.start), "tiny", "filter_center_focus")
            make_button("Random", lambda: self._set(lambda one: one.range.draw(rng)), "tiny", "shuffle")
        self._answer = make_box("stack")
        self._shown: _AnswerBars | None = None

    async def answer(self) -> None:
        """Ask the policy, and show its answer."""
        if not self._parts:
            return
        observation: dict[str | None, Any] = {}
        for part in self._parts:
            observation[part.key] = join_numbers(part.space, [float(one.number) for one in part.sliders])
        arguments = (self._model, observation.get(None, observation), True)
        try:
            is_small = self._model.n_bytes < LARGE_MODEL_BYTES
            answer = infer(*arguments) if is_small else await run_in_threadpool(infer, *arguments)
        except ServiceError as error:
            self._shown = None
            show_problem(self._answer, error.detail)
        else:
            self._show(list_bars(answer, self._model.actor.action_space, self._labels.actions), answer.value)

    async def label(self, labels: Labels) -> None:
        """Show other names."""
        for part in self._parts:
            # With other arguments than the model's, the environment may show other numbers.
            if part.key is None and len(part.sliders) == len(labels.observations):
                for slider, name in zip(part.sliders, labels.observations, strict=True):
                    slider.label(name)
        space = self._model.actor.action_space
        if isinstance(space, spaces.Discrete) and space.n == len(labels.actions):
            self._labels, self._shown = labels, None
            await self.answer()

    def _make_part(self, key: str | None, space: spaces.Space[Any]) -> _Subspace:
        names = self._labels.observations
        if key is not None:
            Text(key, "muted small", "h3")
        sliders = []
        ranges = list(list_ranges(space))
        cosines = self._labels.list_cosines() if key is None and len(ranges) == len(names) else []
        for place, span in enumerate(ranges):
            name = names[place] if place < len(names) and key is None else f"number {place}"
            sliders.append(_NumberSlider(name, span, span.high if place in cosines else span.middle, self.answer))
        for place in cosines:
            cosine, sine = sliders[place : place + 2]
            cosine.partner, sine.partner = sine, cosine
        return _Subspace(key, space, sliders)

    async def _set(self, choose: Callable[[_NumberSlider], float]) -> None:
        for part in self._parts:
            for one in part.sliders:
                one.set(one.range.round(choose(one)))
                one.move_partner()
        await self.answer()

    def _show(self, bars: list[Bar], value: float | None) -> None:
        if self._shown is None:
            self._answer.clear()
            with self._answer:
                self._shown = _AnswerBars(bars)
        self._shown.update(bars, describe_value(value, self._value_meaning, self._value_check))


class _AnswerBars:
    """The bars of an answer.

    :param bars: First answer; later ones have the same names.
    """

    def __init__(self, bars: list[Bar]) -> None:
        self._rows = []
        with make_box("bars"):
            for bar in bars:
                with make_box("probability") as row:
                    Text(bar.name, "ellipsis").props["title"] = bar.name
                    track, filling = make_track(bar.name)
                    self._rows.append((row, track, filling, Text("", "number")))
        with make_box("row-flex") as self._value_box:
            self._value = Text("", "figure number")
            self._meaning = Text("", "muted small")

    def update(self, bars: list[Bar], value: tuple[str, str]) -> None:
        """Show another answer, and the value as ``describe_value`` writes it."""
        for bar, (row, track, filling, reading) in zip(bars, self._rows, strict=True):
            fill_track(track, filling, bar.share)
            reading.set_text(bar.text)
            row.classes(replace="probability chosen" if bar.is_chosen else "probability")
        figure, meaning = value
        self._value_box.set_visibility(bool(meaning))
        self._value.set_visibility(bool(figure))
        self._value.set_text(figure)
        self._meaning.set_text(meaning)


def describe_value(value: float | None, meaning: str, check: ValueFigures | None) -> tuple[str, str]:
    """Return a value as a figure, and its meaning in words; the figure is empty where it cannot be relied on.

    Outside the range in which it was tested, the value network only guesses, and may promise more than can be earned.

    :param value: What the policy expects to earn; None if it cannot tell, and then there are no words either.
    :param meaning: What the figure means, in words.
    :param check: The range in which the model's values were tested; None if unknown.
    """
    if value is None:
        return "", ""
    if check is None:
        return "", "value: not shown, because its tested range is unknown"
    margin = _MARGIN * (check.highest - check.lowest)
    if not check.lowest - margin <= value <= check.highest + margin:
        return "", "value: outside the tested range"
    return format_number(value), meaning
