"""The page of the server: its load, its settings and where help is."""

from collections.abc import Callable

import psutil
from nicegui import ui

from grpo_core import __version__
from service.app import Service
from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_link, make_pairs
from service.dashboard.widgets.number_format import format_duration, format_size
from service.jobs.registry import JobRegistry
from service.monitoring.memory import get_available_bytes
from service.schemas.jobs import JobStatus
from service.settings import Settings

_REFRESH_SECONDS = 2.0
_EXECUTORS = {
    "auto": "a process for each job on Linux, threads of the server elsewhere",
    "thread": "jobs run in threads of the server",
    "process": "a process for each job",
    "ray": "jobs run on a Ray cluster",
}
_LINKS = (
    ("Try the API", "Swagger UI: every endpoint, ready to send", "/docs", "bolt"),
    ("API reference", "Every field, its range and its default", "/redoc", "menu_book"),
    ("OpenAPI schema", "For code generators", "/openapi.json", "data_object"),
    ("Metrics", "For Prometheus", "/metrics", "query_stats"),
)


def show_server() -> None:
    """Show the page of the server."""
    service = get_service()
    with show_frame("Server", "Server"):
        with make_box("head"), make_box("stack").style("gap: 0"):
            make_heading("Server", 1)
            Text(f"GRPO API {__version__}", tag="p")
        tiles = _Tiles(service)
        make_heading("Use it from anywhere")
        with make_box("links"):
            for link in _LINKS:
                _show_link(*link)
        with make_box("split"):
            with make_box("card stack", "section", aria_label="First steps"):
                make_heading("First steps")
                _show_steps()
            with make_box("card stack", "section", aria_label="Settings"):
                make_heading("Settings")
                _show_settings(service.settings)
    ui.timer(_REFRESH_SECONDS, tiles.refresh)


def _show_link(title: str, subtitle: str, href: str, icon: str) -> None:
    with make_box("card", "a", href=href):
        ui.icon(icon).props("aria-hidden=true")
        with make_box():
            Text(title, tag="h3")
            Text(subtitle, "muted small")


class _Tiles:
    """Figures of a service, read again and again.

    :param service: The service to read.
    """

    def __init__(self, service: Service) -> None:
        registry, store, settings = service.registry, service.store, service.settings
        self._readers: list[tuple[Text, Callable[[], str]]] = []
        with make_box("tiles"):
            n_slots, n_places = settings.max_running_jobs, settings.max_queued_jobs
            self._add("Jobs running", lambda: f"{_count(registry, JobStatus.RUNNING)} of {n_slots}")
            self._add("Jobs waiting", lambda: f"{_count(registry, JobStatus.QUEUED)} of {n_places}")
            n_cached = settings.max_cached_models
            self._add("Models in memory, the others on disk", lambda: f"{store.n_loaded} of up to {n_cached}")
            self._add("Memory of the server", lambda: format_size(psutil.Process().memory_info().rss))
            self._add("Memory left", lambda: format_size(get_available_bytes()))
        self.refresh()

    def refresh(self) -> None:
        """Read all figures."""
        for text, read in self._readers:
            text.set_text(read())

    def _add(self, title: str, read: Callable[[], str]) -> None:
        with make_box("card tile"):
            Text(title, "muted small")
            self._readers.append((Text("", "figure number"), read))


def _count(registry: JobRegistry, status: JobStatus) -> int:
    return len(registry.list_jobs(status))


def _show_steps() -> None:
    with make_box("stack", "ol").style("padding-left: 20px"):
        for step in (
            "New job: the defaults balance CartPole in a few seconds. The form also shows the command.",
            "Watch the episode reward rise. A sentence on a job's page says whether it is learning and what to try.",
            "Models: watch the policy play, try observations, and compare it with random actions.",
        ):
            Text(step, tag="li")
        with make_box("", "li"):
            make_link("API reference", "/redoc", "")
            Text(": every field. docs/method.md, which comes with the source, explains the method.")


def _show_settings(settings: Settings) -> None:
    make_pairs(
        {
            "Models folder": str(settings.models_dir.name),
            "Job executor": f"{settings.executor}: {_EXECUTORS[settings.executor]}",
            "Stalled after": format_duration(settings.stall_seconds),
            "Jobs remembered": str(settings.max_kept_jobs),
            "API key": "needed" if settings.api_key is not None else "not needed",
        }
    )
