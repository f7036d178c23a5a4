"""A film of a job's newest checkpoint, renewed with each checkpoint."""

import asyncio

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from service.app import Service
from service.dashboard.widgets.html_elements import Text, make_box, make_heading, set_attributes
from service.dashboard.widgets.number_format import format_count, format_number
from service.errors import ServiceError
from service.jobs.job import Job
from service.models.playing.play import FILM_STEPS, FilmOrder

# The server has too much to do just now.
_BUSY_STATUSES = (429, 503)
_SEED = 0
_ORDER = FilmOrder("gif", _SEED, deterministic=True, max_steps=FILM_STEPS)


class JobFilm:
    """A film beside the curves; every policy plays the same seed, so that films can be compared."""

    def __init__(self, service: Service, job: Job) -> None:
        self._service = service
        # The filmed policy: the steps it was trained for, or its hash.
        self._filmed: object = None
        self._is_filming = asyncio.Lock()
        with make_box("card stack", "section", aria_label="Watch it play"):
            make_heading("Watch it play")
            with make_box("stage", aria_live="polite") as self._screen:
                self._image = make_box("", "img", alt=f"An episode of {job.config.model_name}", width=600, height=400)
                self._image.on("error", lambda: self._say("The film cannot be shown: it is gone."), [])
                self._problem = Text("", "over")
                with make_box("over") as self._waiting, make_box("row-flex"):
                    ui.spinner(size="40px").props('aria-label="Rendering an episode"')
                    self._is_filmed = Text("")
            self._caption = Text("", "muted small", "p")
        self._image.set_visibility(False)
        self._waiting.set_visibility(False)

    async def refresh(self, job: Job) -> None:
        """Film the newest policy, unless the film is of it."""
        status = job.describe()
        kept = status.checkpoint
        newest = status.sha256 or (None if kept is None else kept.timesteps)
        if newest is None:
            self._filmed = None
            self._say("Nothing was saved." if job.status.is_final else _describe_beginning(job))
            return
        if newest == self._filmed or self._is_filming.locked():
            return
        async with self._is_filming:
            if self._filmed is None:
                policy = "The saved policy" if kept is None or status.sha256 else _name_policy(kept.timesteps)
                self._is_filmed.set_text(f"{policy} is being filmed.")
                self._problem.set_visibility(False)
                self._waiting.set_visibility(True)
            try:
                taken = await run_in_threadpool(self._service.films.film, job.job_id, _ORDER)
            except ServiceError as error:
                self._say(error.detail)
                if error.status_code not in _BUSY_STATUSES:  # otherwise the next look tries again
                    self._filmed = newest
            else:
                self._filmed = newest
                film, timesteps = taken
                # This film: a newer policy may be there by the time the browser asks.
                query = f"seed={_SEED}&max_steps={FILM_STEPS}&of={film.digest}"
                set_attributes(self._image, src=f"/training/{job.job_id}/video?{query}")
                self._image.set_visibility(True)
                self._problem.set_visibility(False)
                policy = "The saved policy" if timesteps is None else _name_policy(timesteps)
                self._caption.set_text(
                    f"{policy}: reward {format_number(film.reward)} in {format_count(film.n_steps)} steps, seed {_SEED}"
                )
            self._waiting.set_visibility(False)

    def _say(self, text: str) -> None:
        self._image.set_visibility(False)
        self._problem.set_text(text)
        self._problem.set_visibility(True)


def _name_policy(timesteps: int) -> str:
    return f"The policy after {format_count(timesteps)} steps"


def _describe_beginning(job: Job) -> str:
    """Say when there will be something to film."""
    every = job.config.checkpoint_every
    first = "a minute after the start" if every is None else f"at step {format_count(every)}"
    return f"The first film comes with the first checkpoint, {first}; a shorter job is filmed at its end."
