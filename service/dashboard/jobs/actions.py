"""The actions on a job: stop, resume, label, hide and delete."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from nicegui import ui
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from service.app import Service
from service.dashboard.current_service import get_client
from service.dashboard.widgets.confirmation import confirm
from service.dashboard.widgets.html_elements import Text, make_box, make_button, make_heading, set_attributes
from service.dashboard.widgets.toasts import show_error
from service.errors import ServiceError
from service.jobs.job import Job
from service.schemas.jobs import JobStatus, LabelRequest

_PROBLEMS = {
    "display_name": "A name has at most 100 characters.",
    "tags": "A job has at most 16 tags, of at most 40 characters each.",
    "note": "A note has at most 4,000 characters.",
}


class JobActions:
    """Carries out actions: asks before what cannot be undone, and shows what the server refuses.

    :param on_done: Called after every action.
    """

    def __init__(self, service: Service, on_done: Callable[[], Awaitable[Any]]) -> None:
        self._service, self._registry = service, service.registry
        self._on_done = on_done

    async def act(self, action: str, job_id: str) -> bool:
        """Do one of ``edit``, ``hide``, ``unhide``, ``stop``, ``resume`` and ``delete``; return whether it was done."""
        actions: dict[str, Callable[[str], Awaitable[bool]]] = {
            "edit": self._edit,
            "hide": partial(self._write, hidden=True),
            "unhide": partial(self._write, hidden=False),
            "stop": self._stop,
            "resume": self._resume,
            "delete": self._delete,
        }
        if action not in actions:
            return False
        try:
            is_done = await actions[action](job_id)
        except ServiceError as error:
            show_error(error.detail)
            is_done = False
        await self._on_done()
        return is_done

    async def _write(self, job_id: str, **labels: Any) -> bool:
        await run_in_threadpool(self._registry.label, job_id, labels)
        return True

    async def _stop(self, job_id: str) -> bool:
        job = await run_in_threadpool(self._registry.get, job_id)
        if not await confirm(f"Stop {job.config.model_name}?", describe_stop(job), "Stop the job"):
            return False
        await run_in_threadpool(self._registry.stop, job)
        return True

    async def _resume(self, job_id: str) -> bool:
        await run_in_threadpool(self._service.admission.resume_job, job_id, get_client())
        return True

    async def _delete(self, job_id: str) -> bool:
        job = await run_in_threadpool(self._registry.get, job_id)
        consequence = "This deletes its curves, log and checkpoint for good; its model stays."
        if not await confirm(f"Delete the job {_name(job)}?", consequence, "Delete the job"):
            return False
        await run_in_threadpool(self._registry.delete, job_id)
        return True

    async def _edit(self, job_id: str) -> bool:
        job = await run_in_threadpool(self._registry.get, job_id)
        with ui.dialog() as dialog, make_box("dialog edit-job", role="document"):
            make_heading(f"About {_name(job)}")
            name = _make_input("Name", job.labels.display_name or "", job.config.model_name)
            tags = _make_input("Tags, separated by commas", ", ".join(job.labels.tags))
            note = ui.textarea("Note", value=job.labels.note).props("outlined dense autogrow")
            problem = Text("", "verdict bad", "p")
            problem.set_visibility(False)

            def read() -> None:
                listed = [tag.strip() for tag in str(tags.value or "").split(",") if tag.strip()]
                written = {"display_name": (name.value or "").strip() or None, "tags": listed, "note": note.value or ""}
                try:
                    dialog.submit(LabelRequest.model_validate(written).model_dump(exclude_unset=True))
                except ValidationError as error:
                    field = str(error.errors()[0]["loc"][0])
                    problem.set_text(_PROBLEMS[field])
                    problem.set_visibility(True)

            with make_box("row-flex end"):
                make_button("Cancel", lambda: dialog.submit(None))
                make_button("Save", read, "primary")
        set_attributes(dialog, aria_label=f"About {_name(job)}")
        labels = await dialog
        dialog.delete()
        return labels is not None and await self._write(job_id, **labels)


def describe_stop(job: Job) -> str:
    """Say what a stop would keep of a job."""
    if job.status is JobStatus.QUEUED and job.state.checkpoint is not None:
        return "Its checkpoint is kept, and it can be resumed."
    if job.has_stepped or job.state.checkpoint is not None:
        return "The policy learned so far is kept and can be played."
    return "It has learned nothing yet, so nothing is kept."


def _name(job: Any) -> str:
    return str(job.labels.display_name or job.config.model_name)


def _make_input(label: str, value: str, placeholder: str = "") -> ui.input:
    return ui.input(label, value=value, placeholder=placeholder).props("outlined dense stack-label")
