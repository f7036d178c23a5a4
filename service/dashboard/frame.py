"""The frame of every page: top bar, navigation, theme and logout."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nicegui import core, ui

from service.dashboard.current_service import get_service
from service.dashboard.widgets.html_elements import LOGO, Text, make_box, make_button, make_link
from service.http.browser_rules import DASHBOARD_PATH

_STATIC = Path(__file__).parent / "static"
_STYLES = ("style.css", "jobs.css", "sweeps.css")
_SCRIPTS = (
    "theme.js",
    "toasts.js",
    "connection.js",
    "suggestions.js",
    "edges.js",
    "ages.js",
    "address.js",
    "curves.js",
    "jobs.js",
)
_TABS = (
    ("Training", f"{DASHBOARD_PATH}/", "show_chart"),
    ("Sweeps", f"{DASHBOARD_PATH}/sweeps", "tune"),
    ("Models", f"{DASHBOARD_PATH}/models", "smart_toy"),
)
_SERVER_TAB = ("Server", f"{DASHBOARD_PATH}/server", "dns")


def install_styles() -> None:
    """Add styles and scripts to all pages, in the head so that the theme comes before anything is painted."""
    style = "".join((_STATIC / name).read_text() for name in _STYLES)
    scripts = "".join(f"<script>{(_STATIC / name).read_text()}</script>" for name in _SCRIPTS)
    ui.add_head_html(f"<style>{style}</style>{scripts}", shared=True)
    # Quasar sets its own colours when it starts.
    core.app.config.vue_config_script += "\ngrpoTheme.apply();\n"


@contextmanager
def show_frame(title: str, tab: str) -> Iterator[None]:
    """Show the frame, and the content of the block in it.

    :param title: Title of the browser's tab.
    :param tab: Text of the navigation's tab to highlight.
    """
    ui.page_title(f"{title} · GRPO")
    make_link("Skip to the content", "#main", "skip")
    with make_box("topbar", "header"):
        with make_box("brand", "a", href=f"{DASHBOARD_PATH}/", aria_label="GRPO, start page"):
            ui.html(LOGO.format(30), sanitize=False, tag="span")
            Text("GRPO")
        with make_box("tabs", "nav", aria_label="Main"):
            for text, href, icon in (*_TABS, _SERVER_TAB):
                make_link(text, href, "", icon, aria_current="page" if text == tab else None)
        make_link("New job", f"{DASHBOARD_PATH}/new", "button primary", "add")
        theme = make_button("", None, "quiet icon", "contrast", "Switch between light and dark")
        theme.on("click", js_handler="() => grpoTheme.toggle()")
        if get_service().settings.api_key is not None:
            with make_box("", "form", method="post", action="/logout"):
                make_button("", None, "quiet icon", "logout", "Log out", kind="submit")
    # NiceGUI wraps the page in a <main>.
    with make_box("page", id="main", tabindex=-1):
        yield
