"""The HTML elements of all pages; ``static/style.css`` styles them."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

LOGO = (
    '<svg width="{0}" height="{0}" viewBox="0 0 32 32" aria-hidden="true"><rect width="32" height="32" rx="8" '
    'fill="#0b7a6b"/><path d="M8 23 L14 15 L14 9 M14 15 L20 19 L24 11" fill="none" stroke="#fff" stroke-width="2.6" '
    'stroke-linecap="round" stroke-linejoin="round"/></svg>'
)


class Text(TextElement):
    """Text in a tag, never read as HTML."""

    def __init__(self, text: str = "", classes: str = "", tag: str = "span") -> None:
        super().__init__(tag=tag, text=text)
        self.classes(classes)


def make_box(classes: str = "", tag: str = "div", **attributes: Any) -> ui.element:
    """Make an element that holds others.

    :param attributes: Attributes of the tag; underscores stand for hyphens.
    """
    box = ui.element(tag).classes(classes)
    set_attributes(box, **attributes)
    return box


def set_attributes(element: ui.element, **attributes: Any) -> None:
    """Set attributes, and send only the changed ones; None removes an attribute."""
    changed = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
    changed = {name: value for name, value in changed.items() if element.props.get(name) != value}
    for name, value in changed.items():
        if value is None:
            element.props.pop(name, None)
        else:
            element.props[name] = value


def make_heading(text: str, level: int = 2) -> Text:
    """Make a heading."""
    return Text(text, tag=f"h{level}")


def make_link(text: str, href: str, classes: str = "button", icon: str | None = None, **attributes: Any) -> ui.element:
    """Make a link; by default it looks like a button."""
    link = make_box(classes, "a", href=href, **attributes)
    with link:
        _fill(text, icon)
    return link


def make_button(
    text: str,
    on_click: Callable[..., Any] | None,
    classes: str = "",
    icon: str | None = None,
    label: str | None = None,
    kind: str = "button",
) -> ui.element:
    """Make a button.

    :param label: Name for screen readers, if the text does not suffice.
    :param kind: ``submit`` sends the form around the button.
    """
    button = make_box(f"button {classes}", "button", type=kind, aria_label=label)
    if on_click is not None:
        button.on("click", on_click, [])
    with button:
        _fill(text, icon)
    return button


def make_note(text: str, tone: str = "", icon: str = "info") -> ui.element:
    """Make a highlighted note.

    :param tone: ``good``, ``warn``, ``bad`` or neutral.
    """
    note = make_box(f"note {tone}", role="alert" if tone == "bad" else "note")
    with note:
        ui.icon(icon).props("aria-hidden=true").style("font-size: 20px")
        Text(text)
    return note


def show_problem(box: ui.element, problem: str) -> None:
    """Show a problem in the place of all that is in a box."""
    box.clear()
    with box:
        make_note(problem, "bad", "error")


def make_age(moment: datetime) -> ui.element:
    """Make a text that says how long ago a time was, and goes on saying it; after a week, as a date."""
    return make_box("", "grpo-age", moment=moment.isoformat())


def make_pairs(pairs: Mapping[str, str | datetime]) -> None:
    """Make a list of names and values; a time is shown as an age."""
    with make_box("pairs", "dl"):
        for name, value in pairs.items():
            Text(name, tag="dt")
            if isinstance(value, str):
                Text(value, tag="dd")
            else:
                with make_box("", "dd"):
                    make_age(value)


def make_track(label: str) -> tuple[ui.element, ui.element]:
    """Make an empty progress bar; return the bar and its filling."""
    track = make_box("track", role="progressbar", aria_label=label, aria_valuemin=0, aria_valuemax=100)
    with track:
        return track, ui.element("div")


def fill_track(track: ui.element, filling: ui.element, share: float) -> None:
    """Fill a progress bar to a share in [0, 1]."""
    set_attributes(track, aria_valuenow=round(100 * share))
    filling.style(replace=f"width: {100 * share:.1f}%")


def _fill(text: str, icon: str | None) -> None:
    if icon is not None:
        ui.icon(icon).props("aria-hidden=true")
    if text:
        Text(text)
