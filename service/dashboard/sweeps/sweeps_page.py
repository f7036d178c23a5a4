"""The page of all sweeps."""

from nicegui import ui

from service.dashboard.current_service import get_service, get_url
from service.dashboard.frame import show_frame
from service.dashboard.widgets.html_elements import Text, make_age, make_box, make_heading, make_link
from service.dashboard.widgets.number_format import format_count, format_items, format_number
from service.http.browser_rules import DASHBOARD_PATH
from service.schemas.sweeps import SweepStatus, SweepSummary
from service.sweeps.registry import SweepRegistry

_REFRESH_SECONDS = 2.0
_PAGE_SIZE = 50
TONES = {SweepStatus.RUNNING: "live", SweepStatus.STOPPING: "live", SweepStatus.COMPLETED: "good"}


def show_sweeps() -> None:
    """Show the page of sweeps."""
    with show_frame("Sweeps", "Sweeps"):
        with make_box("head"), make_box("stack").style("gap: 0"):
            make_heading("Sweeps", 1)
            Text("The same task trained with several settings, each judged by what its policies earn.", tag="p")
        sweeps = _Sweeps(get_service().sweeps)
    ui.timer(_REFRESH_SECONDS, sweeps.refresh)


class _Sweeps:
    """The list of sweeps, the newest first."""

    def __init__(self, registry: SweepRegistry) -> None:
        self._registry = registry
        self._shown: list[SweepSummary] | None = None
        self._list = make_box("sweeps", "ul")
        self.refresh()

    def refresh(self) -> None:
        """Show the sweeps as they are now."""
        sweeps, n_total = self._registry.list_page(_PAGE_SIZE)
        if sweeps == self._shown:
            return
        self._shown = sweeps
        self._list.clear()
        with self._list:
            for sweep in sweeps:
                _show_line(sweep)
            if not sweeps:
                _show_empty()
            elif n_total > len(sweeps):
                rest = f"Of {format_count(n_total)} sweeps, these are the newest; GET /sweeps?limit=200 lists more."
                Text(rest, "muted small", "li")


def _show_line(sweep: SweepSummary) -> None:
    with make_box("card sweep", "li"):
        with make_box("row-flex between wrap"):
            make_link(sweep.name, f"{DASHBOARD_PATH}/sweeps/{sweep.sweep_id}", "sweep-name")
            Text(str(sweep.status), f"chip {TONES.get(sweep.status, '')}")
        with make_box("facts wrap"):
            Text(f"{sweep.env_name}, {sweep.method}, {format_items(sweep.n_settings, 'setting')}")
            Text(f"best: {describe_best(sweep)}")
            Text(describe_counts(sweep))
            with make_box():
                Text(f"{format_count(sweep.timesteps)} steps, ")
                make_age(sweep.created_at)


def describe_best(sweep: SweepSummary) -> str:
    """Say what the best setting has earned."""
    if sweep.best_mean_reward is not None:
        return format_number(sweep.best_mean_reward)
    return "not evaluated yet" if sweep.status.is_active else "not evaluated"


def describe_counts(sweep: SweepSummary) -> str:
    """Say how many jobs a sweep has of each status."""
    return ", ".join(f"{n} {status}" for status, n in sweep.counts.items())


def _show_empty() -> None:
    with make_box("empty", "li"):
        ui.icon("tune").props("aria-hidden=true")
        Text("No sweeps yet. Start one from the form of a new job, or with a command:")
        options = "--try learning_rate=0.0003,0.001 --seeds 0 1 2"
        Text(f"python -m grpo_client --url {get_url()} sweep start {options}", tag="code")
