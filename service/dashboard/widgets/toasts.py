"""Short messages above the page; ``static/toasts.js`` shows them."""

import json

from nicegui import ui


def show_success(text: str, link: str = "", href: str = "") -> None:
    """Say in green what went well, for a few seconds.

    :param link: Text of a link to what the message speaks of; empty without one.
    :param href: Where it leads.
    """
    _show(tone="good", text=text, link=link, href=href)


def show_error(text: str) -> None:
    """Say in red what failed, until the visitor closes it."""
    _show(tone="bad", text=f"{text[:1].upper()}{text[1:]}")


def _show(**toast: str) -> None:
    ui.run_javascript(f"grpoToasts.show({json.dumps(toast)})")
