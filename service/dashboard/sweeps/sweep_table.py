"""The table of a sweep's settings, in one piece of HTML: hundreds of rows would be thousands of elements."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from service.dashboard.widgets.number_format import (
    format_count,
    format_interval,
    format_margin,
    format_number,
    format_range,
    format_success,
    has_no_width,
)
from service.http.browser_rules import DASHBOARD_PATH
from service.schemas.sweeps import SettingRow, SweepDescription, Trial, TrialStatus

_NONE = "-"


def write_sweep_table(sweep: SweepDescription, models: Mapping[str, str]) -> str:
    """Write the rows as HTML, the best first.

    :param models: What names the trials' models now, by the names they were saved under; the others are deleted.
    """
    fields = list(sweep.settings[0].values) if sweep.settings else []
    names = [escape(name) for name in (*fields, "Steps", "Evaluated reward", "Spread", "Jobs", "Model")]
    head = "".join(f'<th scope="col">{name}</th>' for name in ("Setting", *names))
    body = "".join(_write_row(row, names, sweep, models) for row in sweep.settings)
    return f'<table class="settings-table"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _write_row(row: SettingRow, names: Sequence[str], sweep: SweepDescription, models: Mapping[str, str]) -> str:
    # One setting alone is the best of nothing.
    is_best = sweep.best is not None and sweep.best.setting == row.number and len(sweep.settings) > 1
    spread = describe_spread(row)
    cells = [
        *(escape(spell_value(value)) for value in row.values.values()),
        format_count(row.total_timesteps),
        _NONE if row.mean_reward is None else f"<b>{format_number(row.mean_reward)}</b>{_write_success(row)}",
        f'<span class="small">{spread}</span>' if spread else _NONE,
        _describe_jobs(row.trials),
        " ".join(_link_model(trial.model_name, models) for trial in row.trials if trial.model_name is not None)
        or _NONE,
    ]
    # On a phone, a row's cells stand below each other, beside these names.
    columns = "".join(f'<td data-name="{name}">{cell}</td>' for name, cell in zip(names, cells, strict=True))
    chip = ' <span class="chip good">best</span>' if is_best else ""
    return f'<tr class="{"best" if is_best else ""}"><th scope="row">{row.number}{chip}</th>{columns}</tr>'


def _write_success(row: SettingRow) -> str:
    success = format_success(row.success_rate)
    return f' <span class="small">{success}</span>' if success else ""


def describe_spread(row: SettingRow) -> str:
    """Say how much of a setting's result may be chance; empty if unknown."""
    if row.ci95_over == "episodes" and row.mean_reward_ci95 is not None:
        words = format_interval(row.mean_reward_ci95)
        return words if has_no_width(row.mean_reward_ci95) else f"95 % interval {words} over episodes"
    margin = f"{format_margin(row.mean_reward_ci95)} (95 %), " if row.mean_reward_ci95 is not None else ""
    return margin + format_range(row.rewards)


def _describe_jobs(trials: list[Trial]) -> str:
    """Write the jobs' statuses, links to their pages, and why some have failed."""
    counts = Counter(trial.status for trial in trials)
    jobs = " ".join(_link_job(trial) for trial in trials if trial.job_id is not None)
    parts = [str(status) if len(trials) == 1 else f"{n} {status}" for status, n in counts.items()]
    errors = sorted({trial.error_message for trial in trials if trial.error_message})
    tone, words = "bad" if counts[TrialStatus.FAILED] else "", escape(", ".join(parts))
    state = f'<span class="jobs-of {tone}">{words}</span>'
    if errors:
        reasons = "".join(f"<p>{escape(error)}</p>" for error in errors)
        state = f'<details class="settings why"><summary class="jobs-of {tone}">{words}</summary>{reasons}</details>'
    return f'{state}<span class="small jobs-links">{jobs}</span>' if jobs else state


def _link_job(trial: Trial) -> str:
    rung = f", rung {trial.rung}" if trial.rung else ""
    return f'<a href="{DASHBOARD_PATH}/jobs/{trial.job_id}">seed {trial.seed}{rung}</a>'


def _link_model(name: str, models: Mapping[str, str]) -> str:
    if (reference := models.get(name)) is None:
        return f'<span class="muted">{escape(name)}, deleted</span>'
    return f'<a href="{DASHBOARD_PATH}/models/{quote(reference, safe="@")}">{escape(reference)}</a>'


def spell_value(value: Any) -> str:
    """Write a field's value for people."""
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)
