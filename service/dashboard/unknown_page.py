"""The page for addresses below the dashboard that lead nowhere."""

from nicegui import ui

from service.dashboard.frame import show_frame
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_link
from service.http.browser_rules import DASHBOARD_PATH


def show_unknown() -> None:
    """Say that there is no such page, with links to those there are."""
    with show_frame("No such page", ""), make_box("empty"):
        ui.icon("explore_off").props("aria-hidden=true")
        make_heading("There is no such page", 1)
        Text("The address may be wrong, or the page was removed.")
        make_link("Start page", f"{DASHBOARD_PATH}/", "button primary", "home")
    ui.context.client.status_code = 404
