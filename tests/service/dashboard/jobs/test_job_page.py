"""The page of one job."""

from datetime import UTC, datetime

import anyio
from fastapi import FastAPI
from nicegui import Client, ui

from service.dashboard.jobs.job_page import _JobPage
from service.jobs.job import Job
from service.schemas.jobs import JobCheckpoint
from tests.support import make_plan


def test_the_lineage_of_a_running_job_has_its_newest_checkpoint(app: FastAPI) -> None:
    job = Job(make_plan())
    job.start()
    with Client(ui.page("/job")) as client:
        page = _JobPage(app.state.service, job, "")

    def list_shown() -> list[str]:
        anyio.run(page._show_family)
        texts = [getattr(element, "text", "") for element in client.elements.values()]
        return [text for text in texts if text.startswith("at step ")]

    assert list_shown() == []
    now = datetime.now(UTC)
    for timesteps in (500, 900):
        job.state.checkpoint = JobCheckpoint(timesteps=timesteps, created_at=now, exact=True, note=None)
        assert list_shown() == [f"at step {timesteps}, "]
    (age,) = (element for element in client.elements.values() if element.tag == "grpo-age")
    assert age.props["moment"] == now.isoformat()
