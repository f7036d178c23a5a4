"""The records of a job: its configuration, its evaluations and its events."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from service.dashboard.widgets.html_elements import Text, make_box
from service.dashboard.widgets.number_format import (
    format_count,
    format_interval,
    format_number,
    format_share,
    format_success,
)
from service.dashboard.widgets.setting_text import ORIGIN_TONES, ORIGINS, write_named_setting
from service.jobs.job import Job
from service.jobs.records.history import HistoryEvent
from service.schemas.jobs import EpisodeFigures, EvaluationRow, FinalEvaluation

_MAX_EVENTS = 200


def show_configuration(job: Job) -> None:
    """Show a job's settings: first those that its request chose, then all of them."""
    origins, config = job.plan.config_origins, job.config.model_dump()
    own = [name for name in config if origins.get(name) == "request"]
    Text(count_origins(config, origins, job.config.preset), "muted small", "p")
    _make_settings(own, config, origins)
    with make_box("settings", "details"):
        with make_box("", "summary"):
            Text(f"All {len(config)} settings")
        _make_settings(list(config), config, origins)


def count_origins(names: Collection[str], origins: Mapping[str, str], preset: str) -> str:
    """Say how many of these settings the request chose, and where the others come from."""
    counts = Counter(origins.get(name, "default") for name in names)
    of_preset = f", {counts['preset']} from the preset {preset}" if counts["preset"] else ""
    return f"Of {len(names)} settings: {counts['request']} chosen{of_preset}, {counts['default']} left at the default."


def _make_settings(names: Sequence[str], config: dict[str, Any], origins: Any) -> None:
    if not names:
        return
    with make_box("record-table", "table"), make_box("", "tbody"):
        for name in names:
            origin = origins.get(name, "default")
            with make_box("own" if origin == "request" else "", "tr"):
                Text(name, "setting-name", "th").props["scope"] = "row"
                Text(str(config[name]) if name == "seed" else write_named_setting(name, config[name]), "number", "td")
                with make_box("", "td"):
                    Text(ORIGINS[origin], f"chip {ORIGIN_TONES.get(origin, '')}")


def show_evaluations(job: Job) -> None:
    """Show a job's evaluations, the final one first."""
    status = job.describe()
    best, final = status.best_evaluation, status.final_evaluation
    rows: list[EvaluationRow | FinalEvaluation] = [*reversed(job.history.list_evaluations())]
    if final is not None:
        rows.insert(0, final)
    if not rows:
        Text("None yet." if not job.status.is_final else "None were made.", "muted small", "p")
        return
    is_beaten = best is not None and final is not None and final.mean_reward >= best.mean_reward
    if is_beaten or len(rows) == 1:  # and the only one is the best of nothing
        best = None
    with (
        make_box("table-scroll", tabindex=0, role="region", aria_label="Table of evaluations"),
        make_box("record-table", "table"),
    ):
        with make_box("", "thead"), make_box("", "tr"):
            columns = list_columns(rows)
            for title in columns:
                Text(title, "" if title == "" else "number", "th").props["scope"] = "col"
        with make_box("", "tbody"):
            for row in rows:
                _show_evaluation(row, is_final=row is final, is_best=row == best, has_success="Success" in columns)


def list_columns(rows: Iterable[EpisodeFigures]) -> list[str]:
    """List the columns of a table of evaluations."""
    success = ["Success"] if any(row.success_rate is not None for row in rows) else []
    return ["Steps", "Mean reward, 95 % interval", *success, "Episodes", "Length", ""]


def _show_evaluation(row: EvaluationRow | FinalEvaluation, is_final: bool, is_best: bool, has_success: bool) -> None:
    with make_box("own" if is_final else "", "tr"):
        Text(format_count(row.timesteps), "number", "td")
        with make_box("number", "td"):
            Text(format_number(row.mean_reward))
            Text(format_interval(row.mean_reward_ci95), "muted small interval-of")
        if has_success:
            Text("" if row.success_rate is None else format_share(row.success_rate), "number", "td")
        Text(str(row.n_episodes), "number", "td")
        Text(format_number(row.mean_length), "number", "td")
        with make_box("", "td"):
            if is_final:
                Text("final", "chip live-quiet")
            elif is_best:
                Text("best", "chip good")


def show_events(events: Sequence[HistoryEvent]) -> None:
    """Show what happened to a job, the latest first."""
    with make_box("events", "ol"):
        for event in [*reversed(events)][:_MAX_EVENTS]:
            tone, text = describe_event(event)
            with make_box(tone, "li"):
                if event.created_at is not None:
                    moment = event.created_at
                    when = Text(f"{moment:%Y-%m-%d %H:%M:%S} UTC", "event-time muted", "time")
                    when.props["datetime"] = moment.isoformat(timespec="seconds")
                Text(text)


def describe_event(event: HistoryEvent) -> tuple[str, str]:
    """Return the tone of an event and a sentence about it."""
    payload = event.payload
    match event.name:
        case "job.warning":
            warning = str(payload["warning"])
            return "warn", f"{warning[:1].upper()}{warning[1:]}"
        case "job.evaluation" | "job.final_evaluation":
            interval = format_interval(payload["mean_reward_ci95"])
            kind = "Final evaluation" if event.name == "job.final_evaluation" else "Evaluation"
            figures = format_number(payload["mean_reward"]) + (f" ({interval})" if interval else "")
            success = format_success(payload["success_rate"])
            text = ", ".join(filter(None, (figures, success)))
            return "", f"{kind} at step {format_count(payload['timesteps'])}: {text}"
        case "job.failed":
            return "bad", f"Failed at step {format_count(payload['current_timesteps'])}: {payload['error_message']}"
        case "job.completed" | "job.stopped":
            word = event.name.removeprefix("job.").capitalize()
            saved = payload["model_name"]
            where = "nothing was saved" if saved is None else f"saved as {saved}"
            more = f". {payload['error_message']}" if payload["error_message"] else ""
            return "good", f"{word} at step {format_count(payload['current_timesteps'])}, {where}{more}"
        case "job.status":
            return "", {"queued": "Queued", "running": "Started"}.get(payload["status"], str(payload["status"]))
    return "", event.name
