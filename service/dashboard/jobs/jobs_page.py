"""The page of jobs: a table, beside the curves of the chosen ones."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.jobs.actions import JobActions
from service.dashboard.jobs.address import MAX_SHOWN, JobsView, read_view, write_shown
from service.dashboard.jobs.curve_sender import CurveSender
from service.dashboard.jobs.table import make_table
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_link
from service.dashboard.widgets.setting_text import name_setting
from service.http.browser_rules import DASHBOARD_PATH
from service.jobs.records.record import PastJob
from service.jobs.registry import JobRegistry
from service.schemas.jobs import JobStatus

_REFRESH_SECONDS = 1.0
# Jobs that the page chooses by itself: the newest one, and those in training.
_MAX_BY_ITSELF = 6
_GROUPINGS = (
    ("", "A row per job"),
    ("env_name", "A row per environment"),
    ("recipe", "A row per setting, any seed"),
)


async def show_jobs() -> None:
    """Show the page of jobs, as the address asks for it."""
    parameters = dict(ui.context.client.request.query_params)
    with show_frame("Training", "Training"):
        with make_box("head"), make_box("stack").style("gap: 0"):
            make_heading("Training", 1)
            summary = Text("", tag="p")
        with make_box("training") as content:
            with make_box("stack jobs-side", "section", aria_label="Jobs"):
                _make_bar()
                table = _make_frame_of_table()
            with make_box("stack curves-side", "section", aria_label="Curves") as charts:
                make_box("curve-bar")
                make_box("curves")
        empty = _make_empty()
    page = _JobsPage(get_service().registry, parameters, summary, content, empty)
    ui.on("jobs_view", page.look)
    ui.on("jobs_act", page.act)
    ui.run_javascript(f"grpoJobs.start('c{table.id}', 'c{charts.id}', {MAX_SHOWN})")
    await page.refresh()
    ui.timer(_REFRESH_SECONDS, page.refresh)


class _JobsPage:
    """Sends the browser the table and the curves that the address asks for, and what changes in them.

    :param parameters: The query of the address.
    """

    def __init__(
        self,
        registry: JobRegistry,
        parameters: Mapping[str, str],
        summary: Text,
        content: ui.element,
        empty: ui.element,
    ) -> None:
        self._registry = registry
        self._view = read_view(parameters)
        self._summary, self._content, self._empty = summary, content, empty
        self._actions = JobActions(get_service(), self.refresh)
        # Configurations of ended jobs never change.
        self._configs: dict[str, Mapping[str, Any]] = {}
        self._by_itself: dict[str, int] = {}
        self._seen: set[str] = set()
        # The last table that was sent, and what it was made of.
        self._asked: _Asked | None = None
        self._sent = ""
        self._curves = CurveSender(registry)

    async def look(self, event: Any) -> None:
        """Follow a change of the address."""
        query = event.args if isinstance(event.args, str) else ""
        before, self._view = self._view, read_view(dict(parse_qsl(query, keep_blank_values=True)))
        if self._view._replace(metric="") != before._replace(metric=""):
            self._sent = ""  # what was clicked is answered, even if the table is the same
        await self.refresh()

    async def act(self, event: Any) -> None:
        """Carry out an action that was clicked."""
        action, job_id = event.args.get("action"), event.args.get("id")
        if isinstance(action, str) and isinstance(job_id, str):
            await self._actions.act(action, job_id)

    async def refresh(self) -> None:
        """Send the table and the curves, if they have changed."""
        lines, view = self._registry.list_lines(), self._view
        colours = self._choose_colours(lines)
        self._curves.choose(view.metric, lines, colours)
        asked = _Asked(lines, view._replace(metric=""), colours)
        if not self._sent or asked != self._asked:
            page = await run_in_threadpool(self._write_page, view, lines, colours)  # which may read the disk
            if view is not self._view:  # the visitor went on meanwhile
                return
            self._show_table(asked, page)
        await self._curves.send()

    def _show_table(self, asked: "_Asked", page: str) -> None:
        """Send the table if it has changed, and count its jobs."""
        self._asked = asked
        if page != self._sent:
            self._sent = page
            ui.run_javascript(f"grpoJobs.show({page})")
        self._summary.set_text(_count_jobs(asked.lines))
        self._content.set_visibility(bool(asked.lines))
        self._empty.set_visibility(not asked.lines)

    def _write_page(self, view: JobsView, lines: Sequence[PastJob], colours: Mapping[str, int]) -> str:
        """Write the table as JSON."""
        table = make_table(lines, view, self._list_configs)
        page = {
            "rows": table.rows,
            "settings": [(name, name_setting(name)) for name in table.settings],
            "pages": table.n_pages,
            "colours": colours,
            "show": None if view.shown is None else write_shown(view.shown),
            "envs": sorted({line.summary.env_name for line in lines}),
            "tags": sorted({tag for line in lines for tag in line.summary.tags}),
            "hidden": sum(line.summary.hidden for line in lines),
        }
        return json.dumps(page)

    def _list_configs(self, job_ids: Any) -> dict[str, Mapping[str, Any]]:
        wanted = list(job_ids)
        missing = [job_id for job_id in wanted if job_id not in self._configs]
        self._configs |= self._registry.list_configs(missing) if missing else {}
        return {job_id: self._configs[job_id] for job_id in wanted if job_id in self._configs}

    def _choose_colours(self, lines: Sequence[PastJob]) -> dict[str, int]:
        """Choose the jobs in the charts, and their colours: those of the address, or else the ones worth watching."""
        if self._view.shown is not None:
            return _find_jobs(lines, self._view.shown)
        if not self._by_itself and lines:
            self._by_itself = {lines[-1].job_id: 0}
        for line in lines:
            is_new = line.job_id not in self._seen and not line.status.is_final
            if is_new and line.job_id not in self._by_itself and len(self._by_itself) < _MAX_BY_ITSELF:
                self._by_itself[line.job_id] = min(set(range(MAX_SHOWN)) - set(self._by_itself.values()))
        self._seen = {line.job_id for line in lines}
        self._by_itself = {job_id: colour for job_id, colour in self._by_itself.items() if job_id in self._seen}
        return dict(self._by_itself)


class _Asked(NamedTuple):
    """Everything that the table is made of."""

    lines: Sequence[PastJob]
    view: JobsView
    colours: Mapping[str, int]


def _find_jobs(lines: Sequence[PastJob], shown: Mapping[str, int]) -> dict[str, int]:
    """Expand the id prefixes in an address."""
    lengths = {len(beginning) for beginning in shown}
    found = {}
    for line in lines:
        for n in lengths:
            if (colour := shown.get(line.job_id[:n])) is not None:
                found[line.job_id] = colour
    return found


def _make_bar() -> None:
    with make_box("jobs-bar", role="search"):
        make_box("search-box", "input", type="search", name="q", placeholder="Search", aria_label="Search the jobs")
        for name, label in (("status", "Status"), ("env", "Environment"), ("tag", "Tag")):
            with make_box("", "label"):
                Text(label, "visually-hidden")
                make_box("", "select", name=name)
        with make_box("", "label"):
            Text("Rows", "visually-hidden")
            with make_box("", "select", name="group"):
                for value, text in _GROUPINGS:
                    Text(text, tag="option").props["value"] = value
        with make_box("check hidden-box", "label"):
            make_box("", "input", type="checkbox", name="hidden")
            Text("Hidden jobs")


def _make_frame_of_table() -> ui.element:
    with make_box("card table-card"):
        with make_box("table-scroll", tabindex=0, role="region", aria_label="Table of jobs"):
            with make_box("jobs-table", "table") as table:
                make_box("", "thead")
                make_box("", "tbody")
        with make_box("jobs-empty hidden"):
            Text("No jobs match.", tag="p")
            with make_box("button clear", "button", type="button"):
                Text("Show all")
    make_box("pager row-flex hidden")
    return table


def _make_empty() -> ui.element:
    with make_box("empty") as empty:
        ui.icon("show_chart").props("aria-hidden=true")
        Text("No jobs yet. The defaults learn to balance CartPole in a few seconds.")
        make_link("Start the first one", f"{DASHBOARD_PATH}/new", "button primary", "add")
    return empty


def _count_jobs(lines: Sequence[PastJob]) -> str:
    if not lines:
        return "Nothing has been trained yet"
    n = Counter(line.status for line in lines)
    texts = [f"{len(lines):,} {'job' if len(lines) == 1 else 'jobs'}"]
    texts += [f"{n[status]} {status}" for status in (JobStatus.RUNNING, JobStatus.QUEUED) if n[status]]
    return " · ".join(texts)
