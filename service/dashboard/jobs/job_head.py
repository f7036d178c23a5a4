"""The card at the head of a job's page: its status, and buttons for its actions."""

from collections.abc import Callable
from typing import Any

from nicegui import ui

from service.dashboard.widgets.headline import HeadlineText, choose_headline
from service.dashboard.widgets.html_elements import (
    Text,
    fill_track,
    make_box,
    make_button,
    make_link,
    make_track,
    set_attributes,
)
from service.dashboard.widgets.number_format import format_count, format_duration
from service.http.browser_rules import DASHBOARD_PATH
from service.jobs.job import Job
from service.schemas.jobs import JobLabels, JobStatus, TrainingStatus, VerdictState

_CHIP_TONES = {
    JobStatus.RUNNING: "live",
    JobStatus.COMPLETED: "good",
    JobStatus.FAILED: "bad",
}
_VERDICT_TONES = {
    "learning": "good",
    "solved": "good",
    "flat": "warn",
    "no_signal": "warn",
    "worse": "bad",
    "failed": "bad",
}


def choose_tone(state: VerdictState, status: JobStatus) -> str:
    """Return the tone of a verdict; while a job goes on, what fell may rise again."""
    return "warn" if state == "worse" and not status.is_final else _VERDICT_TONES.get(state, "")


class JobHead:
    """A card that follows a job until it ends.

    :param on_act: Called with ``stop``, ``resume``, ``edit`` or ``delete`` when the visitor wants it.
    """

    def __init__(self, job: Job, on_act: Callable[[str], Any]) -> None:
        self.job = job
        self._on_act = on_act
        # Links to the job's model; None before it has ended with one.
        self._links: tuple[ui.element, ui.element] | None = None
        self._shows_end = False
        self._shown_warnings: list[str] = []
        self._shown_labels: JobLabels | None = None
        name = job.config.model_name
        self.element = make_box("card job", "section", aria_label=f"Job {name}")
        with self.element:
            with make_box("job-top"):
                with make_box("stack job-words"):
                    with make_box("row-flex wrap"):
                        self._chip = Text("", "chip")
                        self._tags = make_box("row-flex tags")
                    self._environment = Text("", "muted small")
                    self._note = Text("", "job-note", "p")
                self._headline = HeadlineText()
            self._track, self._filling = make_track(f"Progress of {name}")
            with make_box("facts"):
                self._steps, self._time = Text("", "number"), Text("", "number")
            self._verdict = Text("", "verdict", "p")
            self._warnings = make_box("stack")
            self._actions = make_box("row-flex wrap end")
            with self._actions:
                self._make_edit()
                make_button("Stop", lambda: on_act("stop"), "tiny danger", "stop", f"Stop {name}")
        self.update()

    def _make_edit(self) -> None:
        label = f"Edit the name, tags and note of {self.job.config.model_name}"
        make_button("Name, tags, note", lambda: self._on_act("edit"), "tiny quiet", "edit", label)

    def _show_labels(self) -> None:
        labels = self.job.labels
        if labels != self._shown_labels:
            self._shown_labels = labels
            self._note.set_text(labels.note)
            self._note.set_visibility(bool(labels.note))
            self._tags.clear()
            with self._tags:
                for tag in labels.tags:
                    Text(tag, "tag")

    def update(self) -> None:
        """Show the status of the job."""
        self._show_labels()
        if self._shows_end:
            return
        status = self.job.describe()
        self._show_state(status)
        self._steps.set_text(
            f"{format_count(status.current_timesteps)} of {format_count(status.total_timesteps)} steps"
        )
        self._time.set_text(_describe_time(status))
        fill_track(self._track, self._filling, status.progress)
        self._headline.show(choose_headline(status))
        if status.status.is_final:
            self._shows_end = True
            self._show_end(status)

    def _show_state(self, status: TrainingStatus) -> None:
        state = "stopping" if self.job.is_stopping and not status.status.is_final else str(status.status)
        self._chip.set_text(state)
        self._chip.classes(replace=f"chip {_CHIP_TONES.get(status.status, '')}")
        self._environment.set_text(_describe_task(status))
        self._verdict.set_text(status.error_message or status.verdict.text)
        self._verdict.classes(replace=f"verdict {choose_tone(status.verdict.state, status.status)}")
        if status.warnings != self._shown_warnings:
            self._shown_warnings = status.warnings
            self._warnings.clear()
            with self._warnings:
                for warning in status.warnings:
                    Text(f"{warning[:1].upper()}{warning[1:]}", "verdict warn", "p")

    def _show_end(self, status: TrainingStatus) -> None:
        self.element.classes(f"final {status.status}")
        self._actions.clear()
        with self._actions:
            self._make_edit()
            name = status.config.model_name
            make_button("Delete", lambda: self._on_act("delete"), "tiny quiet", "delete", f"Delete the job {name}")
            again = f"{DASHBOARD_PATH}/new?from={status.job_id}"
            make_link("Repeat", again, "button tiny quiet", "replay", aria_label=f"Repeat {status.config.model_name}")
            if status.status is not JobStatus.COMPLETED:
                make_button("Resume", lambda: self._on_act("resume"), "tiny quiet", "play_circle", f"Resume {name}")
            if status.model_name is not None:
                self._gone = Text("", "muted small")
                label = f"Train {status.model_name} further"
                onward = make_link("Train further", "", "button tiny quiet", "trending_up", aria_label=label)
                play = make_link("Play", "", "button tiny", "play_arrow", aria_label=f"Play {status.model_name}")
                self._links = onward, play
                for link in (self._gone, *self._links):  # until it is known where it is
                    link.set_visibility(False)

    def offer_model(self, reference: str | None, loss: str) -> None:
        """Offer to play the job's model, and to train it on, while it is there.

        :param reference: Its name, with a version if it is not the newest; None if it is gone.
        :param loss: Why it is gone.
        """
        if self._links is None:
            return
        onward, play = self._links
        if reference is not None:
            set_attributes(onward, href=f"{DASHBOARD_PATH}/new?from={self.job.job_id}&init_model={reference}")
            set_attributes(play, href=f"{DASHBOARD_PATH}/models/{reference}")
        for link in self._links:
            link.set_visibility(reference is not None)
        self._gone.set_text(f"The model is gone: {loss}.")
        self._gone.set_visibility(reference is None)


def _describe_task(status: TrainingStatus) -> str:
    config = status.config
    reward = config.reward_function_type or " + ".join(config.reward_functions or ())
    return config.env_name if reward == "environment" else f"{config.env_name} · {reward}"


def _describe_time(status: TrainingStatus) -> str:
    if status.status is JobStatus.QUEUED:
        return "waiting"
    if status.status.is_final:
        return f"took {format_duration(status.elapsed_seconds)}"
    elapsed = format_duration(status.elapsed_seconds)
    return elapsed if status.eta_seconds is None else f"{elapsed} · {format_duration(status.eta_seconds)} left"
