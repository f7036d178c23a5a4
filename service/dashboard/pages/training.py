"""The page of jobs and their curves."""

from collections.abc import Sequence

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.dashboard.current_service import get_client, get_service
from service.dashboard.mount import PREFIX
from service.dashboard.pages.frame import show_frame
from service.dashboard.widgets.confirmation import confirm
from service.dashboard.widgets.curve_charts import MAX_SHOWN, CurveCharts
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, make_link
from service.dashboard.widgets.job_row import JobRow
from service.dashboard.widgets.toasts import show_error
from service.errors import ServiceError
from service.jobs.job import Job
from service.jobs.record import PastJob
from service.jobs.registry import JobRegistry
from service.models.store import ModelStore
from service.schemas.jobs import JobStatus

_REFRESH_SECONDS = 1.0
_PAGE_SIZE = 25


def show_training() -> None:
    """Show the page of jobs."""
    with show_frame("Training", "Training"):
        with make_box("head"):
            with make_box("stack").style("gap: 0"):
                make_heading("Training", 1)
                summary = Text("", tag="p")
        service = get_service()
        jobs = _Jobs(service.registry, service.store, summary)
    ui.timer(_REFRESH_SECONDS, jobs.refresh)


class _Jobs:
    """The list of jobs beside the curves of the selected ones.

    :param summary: Text to keep up to date with the numbers of jobs.
    """

    def __init__(self, registry: JobRegistry, store: ModelStore, summary: Text) -> None:
        self._registry, self._store = registry, store
        self._summary = summary
        self._n_listed = _PAGE_SIZE
        self._rows: dict[str, JobRow] = {}
        self._colours: dict[str, int] = {}
        with make_box("training"):
            with make_box("stack", "section", aria_label="Jobs"):
                self._empty = _make_empty()
                self._list = make_box("jobs", "ul")
                self._more = make_button("Show older jobs", self._list_more, "quiet")
            with make_box("stack", "section", aria_label="Curves") as self._charts:
                self._curves = CurveCharts()
        self.refresh()
        self._select_first()

    def refresh(self) -> None:
        """Show the jobs as they are now."""
        jobs = self._registry.list_jobs()
        listed = jobs[-self._n_listed :]
        self._remove_forgotten({job.job_id for job in listed})
        for place, job in enumerate(reversed(listed)):
            if job.job_id in self._rows and self._rows[job.job_id].is_outdated:
                self._replace_row(self._registry.get(job.job_id), place)
        for job in listed:
            if job.job_id not in self._rows:
                self._add_row(self._registry.get(job.job_id))
        for row in self._rows.values():
            row.update()
        for job_id in self._colours:
            self._curves.update(self._rows[job_id].job)
        self._empty.set_visibility(not jobs)
        self._charts.set_visibility(bool(jobs))
        self._more.set_visibility(len(jobs) > len(listed))
        self._summary.set_text(_count_jobs(jobs))

    def _list_more(self) -> None:
        self._n_listed += _PAGE_SIZE
        older = self._registry.list_jobs()[-self._n_listed :]
        for job in reversed(older):
            if job.job_id not in self._rows:
                self._add_row(self._registry.get(job.job_id), place=None)
        self.refresh()

    def _add_row(self, job: Job, place: int | None = 0) -> None:
        """Add a job to the list.

        :param place: Where it goes; None puts it at the end, as one of those that are older than all others.
        """
        with self._list:
            row = JobRow(
                job,
                on_select=lambda is_selected: self._select(job, is_selected),
                on_stop=lambda: self._stop(job),
                on_resume=lambda: self._resume(job),
                is_saved=self._store.exists,
            )
        if place is not None:
            row.element.move(target_index=place)
        self._rows[job.job_id] = row
        if place is not None and not job.status.is_final:
            self._make_room()
            if len(self._colours) < MAX_SHOWN:
                self._select(job, True)

    def _replace_row(self, job: Job, place: int) -> None:
        """Show a job anew that has ended and goes on again."""
        self._select(job, False)
        self._rows.pop(job.job_id).element.delete()
        self._add_row(job, place)

    def _make_room(self) -> None:
        """Take a job that has ended out of the charts if they are full: a new one is what people want to watch."""
        if len(self._colours) >= MAX_SHOWN:
            ended = [self._rows[job_id].job for job_id in self._colours if self._rows[job_id].job.status.is_final]
            for job in ended[:1]:
                self._select(job, False)

    def _remove_forgotten(self, listed: set[str]) -> None:
        for job_id in self._rows.keys() - listed:
            self._select(self._rows[job_id].job, False)
            self._rows.pop(job_id).element.delete()

    def _select_first(self) -> None:
        if not self._colours and self._rows:
            self._select(list(self._rows.values())[-1].job, True)

    def _select(self, job: Job, is_selected: bool) -> None:
        row = self._rows[job.job_id]
        if is_selected and len(self._colours) >= MAX_SHOWN:
            row.untick()
            show_error(f"The charts show {MAX_SHOWN} jobs at most; take one away first.")
        elif is_selected and job.job_id not in self._colours:
            self._colours[job.job_id] = min(set(range(MAX_SHOWN)) - set(self._colours.values()))
            self._curves.show(job, self._colours[job.job_id])
        elif not is_selected and self._colours.pop(job.job_id, None) is not None:
            self._curves.hide(job.job_id)
        row.mark_shown(self._colours.get(job.job_id))

    async def _stop(self, job: Job) -> None:
        question = f"Stop {job.config.model_name}?"
        if not await confirm(question, "The policy so far is kept, and can be played.", "Stop the job"):
            return
        try:
            await run_in_threadpool(job.stop)
        except ServiceError as error:
            show_error(error.detail)
        self.refresh()

    async def _resume(self, job: Job) -> None:
        try:
            await run_in_threadpool(get_service().resume_job, job.job_id, get_client())
        except ServiceError as error:
            show_error(error.detail)
        # The next refresh shows it, and replaces the row that this button belongs to, and with it this call's place.


def _make_empty() -> ui.element:
    empty = make_box("empty")
    with empty:
        ui.icon("show_chart").props("aria-hidden=true")
        Text("No jobs yet. The defaults learn to balance CartPole within a minute.")
        make_link("Start the first job", f"{PREFIX}/new", "button primary", "add")
    return empty


def _count_jobs(jobs: Sequence[Job | PastJob]) -> str:
    statuses = [job.status for job in jobs]
    n_running, n_queued = statuses.count(JobStatus.RUNNING), statuses.count(JobStatus.QUEUED)
    return f"{n_running} running, {n_queued} queued, {len(jobs) - n_running - n_queued} ended"
