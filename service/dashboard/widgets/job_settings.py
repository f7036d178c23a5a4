"""What a job trains with, and who chose it."""

import json
from typing import Any

from service.dashboard.widgets.html_elements import Text, make_box
from service.dashboard.widgets.number_format import format_count
from service.jobs.job import Job

ORIGINS = {"request": "yours", "preset": "preset", "default": "default"}
_TONES = {"request": "own", "preset": "preset"}


class JobSettings:
    """A list of a job's settings that is made when it is opened.

    :param job: The job.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._is_made = False
        with make_box("settings", "details").on("toggle", self._make, []):
            with make_box("", "summary"):
                Text("Settings")
            self._list = make_box("pairs", "dl")

    def _make(self) -> None:
        if self._is_made:
            return
        self._is_made = True
        origins = self._job.plan.config_origins
        with self._list:
            for name, value in self._job.config.model_dump().items():
                Text(name, tag="dt")
                with make_box("row-flex between", "dd"):
                    Text(str(value) if name == "seed" else write_setting(value))
                    origin = origins.get(name, "default")
                    Text(ORIGINS[origin], f"chip {_TONES.get(origin, '')}")


def write_setting(value: Any) -> str:
    """Write a setting as the form takes it."""
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_count(value)
    if isinstance(value, list):
        return ", ".join(part if isinstance(part, str) else json.dumps(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {write_setting(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
