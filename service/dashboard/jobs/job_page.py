"""The page of one job: its status, curves, film, lineage, configuration, evaluations and events."""

import json
from collections import Counter
from functools import partial
from typing import Any

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.app import Service
from service.dashboard.current_service import get_service
from service.dashboard.frame import show_frame
from service.dashboard.jobs.actions import JobActions
from service.dashboard.jobs.address import read_view
from service.dashboard.jobs.curves import REWARD, describe_curves
from service.dashboard.jobs.job_film import JobFilm
from service.dashboard.jobs.job_head import JobHead
from service.dashboard.jobs.lineage import describe_loss, find_family, show_lineage
from service.dashboard.jobs.record_tables import show_configuration, show_evaluations, show_events
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, make_link, make_note
from service.errors import NotFoundError, ServiceError
from service.http.browser_rules import DASHBOARD_PATH
from service.jobs.job import Job

_REFRESH_SECONDS = 1.0
#: What every job's page draws; any other metric can be added.
METRICS = (REWARD, "train/entropy_loss", "train/approx_kl", "rollout/zero_std_group_fraction")


async def show_job(job_id: str) -> None:
    """Show the page of a job."""
    service = get_service()
    try:
        job = await run_in_threadpool(service.registry.get, job_id)
    except ServiceError as error:
        with show_frame("Job", "Training"):
            is_missing = isinstance(error, NotFoundError)
            make_note("There is no such job." if is_missing else error.detail, "bad", "error")
            make_link("All jobs", f"{DASHBOARD_PATH}/", "button", "arrow_back")
        ui.context.client.status_code = error.status_code
        return
    metric = read_view(dict(ui.context.client.request.query_params)).metric
    with show_frame(_get_title(job), "Training"):
        page = _JobPage(service, job, metric)
    ui.on("jobs_view", page.look)
    ui.run_javascript(f"grpoCurves.start('c{page.charts.id}', {json.dumps(METRICS)}, grpoAskJob)")
    ui.timer(_REFRESH_SECONDS, page.refresh)
    ui.timer(_REFRESH_SECONDS, page.film)


def _get_title(job: Job) -> str:
    return job.labels.display_name or job.config.model_name


class _JobPage:
    """Everything on the page that changes.

    :param metric: A metric to draw beside the usual ones.
    """

    def __init__(self, service: Service, job: Job, metric: str) -> None:
        self._service, self._job, self._metric = service, job, metric
        self._actions = JobActions(service, self.refresh)
        self._sent: tuple[int, str] | None = None
        self._listed_event = -1
        # What the lineage was last shown for.
        self._family_state: object = None
        with make_box("head"):
            with make_box("stack").style("gap: 0; min-width: 0"):
                self._title = Text(_get_title(job), tag="h1").style("overflow-wrap: anywhere")
                Text(f"{job.config.env_name} · seed {job.config.seed} · {job.job_id}", "muted", "p")
            make_link("All jobs", f"{DASHBOARD_PATH}/", "button", "arrow_back")
        with make_box("job-page"):
            self._head_place = make_box("job-head")
            with make_box("stack wide job-main"):
                with make_box("stack", "section", aria_label="Curves") as self.charts:
                    make_box("curve-bar")
                    make_box("curves")
            with make_box("stack wide job-aside"):
                self._film = JobFilm(service, job)
                with make_box("card stack", "section", aria_label="Lineage"):
                    make_heading("Lineage")
                    self._lineage = make_box()
        with make_box("records"):
            with make_box("card stack", "section", aria_label="Configuration"):
                make_heading("Configuration")
                show_configuration(job)
            with make_box("card stack", "section", aria_label="Evaluations"):
                make_heading("Evaluations")
                self._evaluations = make_box()
            with make_box("card stack", "section", aria_label="Events"):
                make_heading("Events")
                self._events = make_box()
        self._make_head()
        self._list_records()

    async def look(self, event: Any) -> None:
        """Draw another metric too."""
        if isinstance(event.args, str):
            self._metric, self._sent = event.args[:200], None
            await self.refresh()

    async def refresh(self) -> None:
        """Show the job as it is now."""
        try:
            self._job = await run_in_threadpool(self._service.registry.get, self._job.job_id)
        except NotFoundError:  # it was deleted
            ui.navigate.to("/")
            return
        except ServiceError:
            return
        self._title.set_text(_get_title(self._job))
        if self._head.job is not self._job:
            self._make_head()
        self._head.update()
        last_event_id = self._job.history.last_event_id
        if self._sent != (last_event_id, self._metric):
            self._sent = last_event_id, self._metric
            curves = await run_in_threadpool(partial(describe_curves, self._job, [*METRICS, self._metric]))
            ui.run_javascript(f"grpoCurves.set({json.dumps(curves)}, 0)")
        self._list_records()
        await self._show_family()

    async def film(self) -> None:
        """Film the job's newest policy, if the film is of another one."""
        await self._film.refresh(self._job)

    def _list_records(self) -> None:
        """List the evaluations and events again if there are new ones."""
        events = self._job.history.list_kept_events()
        if (newest := events[-1].event_id if events else 0) != self._listed_event:
            self._listed_event = newest
            for place, show in (
                (self._evaluations, partial(show_evaluations, self._job)),
                (self._events, partial(show_events, events)),
            ):
                place.clear()
                with place:
                    show()

    async def _show_family(self) -> None:
        """Show where the job comes from and what became of its model and checkpoint, if that may have changed."""
        registry, store, now = self._service.registry, self._service.store, self._job.state
        saved = now.last_saved
        name = "" if saved is None else saved[0]
        n_jobs = Counter(line.status.is_final for line in registry.list_lines())
        signature = store.folder.get_signature(name) if name else None
        state = saved, now.status, now.checkpoint, now.n_restarts, signature, n_jobs, self._head
        if state == self._family_state:
            return
        self._family_state = state
        family = await run_in_threadpool(find_family, registry, store, self._job)
        self._head.offer_model(family.model, describe_loss(name, store) if name else "")
        self._lineage.clear()
        with self._lineage:
            show_lineage(self._job, store, family)

    def _make_head(self) -> None:
        self._head_place.clear()
        with self._head_place:
            self._head = JobHead(self._job, self._act)

    async def _act(self, action: str) -> None:
        await self._actions.act(action, self._job.job_id)
