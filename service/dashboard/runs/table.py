"""The table of runs: its rows, its groups, and the settings in which runs differ."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from service.dashboard.runs.address import PAGE_SIZE, RunsView
from service.dashboard.widgets.number_format import (
    format_count,
    format_duration,
    format_interval,
    format_number,
)
from service.dashboard.widgets.setting_text import write_setting
from service.jobs.listing import choose_page
from service.jobs.record import PastJob
from service.schemas.jobs import JobStatus

# Columns of their own have these, or no column: they do not change what is learnt.
_OTHER = frozenset(
    {"env_name", "seed", "model_name", "replace", "tensorboard_log", "device", "checkpoint_every", "max_restarts"}
)
_MAX_SETTINGS = 8
_MAX_MEMBERS = 100
# Half widths of 95 % intervals of a mean in standard errors, by degrees of freedom (Student's t).
_T95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10)

Configs = Mapping[str, Mapping[str, Any]]


class RunsTable(NamedTuple):
    """A page of the table.

    :param rows: Runs, or groups of them with the runs of those that are open, as the browser draws them.
    :param settings: Names of the settings with a column of their own.
    :param n_runs: Number of runs on all pages.
    :param n_pages: Number of pages.
    """

    rows: list[dict[str, Any]]
    settings: list[str]
    n_runs: int
    n_pages: int


def make_table(lines: Sequence[PastJob], view: RunsView, list_configs: Callable[[Iterable[str]], Configs]) -> RunsTable:
    """Make the page that an address asks for.

    :param lines: The lines of all jobs, oldest first.
    :param list_configs: Returns the configurations of the jobs with these ids; only the page's are asked for.
    """
    if not view.grouping:
        page = choose_page(lines, view.query, offset=PAGE_SIZE * (view.page - 1), limit=PAGE_SIZE)
        configs = list_configs([job.job_id for job in page.jobs])
        settings = find_differences(page.jobs, configs)
        rows = [_describe(job, configs, settings) for job in page.jobs]
        return RunsTable(rows, settings, page.n_jobs, _count_pages(page.n_jobs))
    jobs = choose_page(lines, view.query).jobs
    groups: dict[str, list[PastJob]] = {}
    for job in jobs:
        groups.setdefault(str(getattr(job.summary, view.grouping)), []).append(job)
    listed = list(groups.items())[PAGE_SIZE * (view.page - 1) :][:PAGE_SIZE]
    opened = [job for key, members in listed if key in view.opened for job in members[:_MAX_MEMBERS]]
    first = [members[0] for _, members in listed]
    configs = list_configs({job.job_id for job in [*first, *opened]})
    settings = find_differences([*first, *opened], configs)
    rows = []
    for key, members in listed:
        rows.append(_describe_group(key, members, view, configs, settings))
        if key in view.opened:
            rows += [{**_describe(job, configs, settings), "member": True} for job in members[:_MAX_MEMBERS]]
    return RunsTable(rows, settings, len(jobs), _count_pages(len(groups)))


def find_differences(jobs: Iterable[PastJob], configs: Configs) -> list[str]:
    """Find the settings in which runs of the same environment differ, those with the most values first."""
    values: dict[str, dict[str, set[str]]] = {}
    for job in jobs:
        for name, value in configs.get(job.job_id, {}).items():
            if name not in _OTHER:
                values.setdefault(name, {}).setdefault(job.summary.env_name, set()).add(repr(value))
    n_values = {name: max(map(len, by_env.values())) for name, by_env in values.items()}
    differing = [name for name, n in n_values.items() if n > 1]
    return sorted(differing, key=lambda name: -n_values[name])[:_MAX_SETTINGS]


def compute_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Compute the 95 % interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    n_free = len(values) - 1
    factor = _T95[n_free - 1] if n_free <= len(_T95) else 1.96
    half = factor * statistics.stdev(values) / len(values) ** 0.5
    mean = statistics.fmean(values)
    return mean - half, mean + half


def _count_pages(n_rows: int) -> int:
    return max(1, -(-n_rows // PAGE_SIZE))


def _describe(job: PastJob, configs: Configs, settings: Sequence[str]) -> dict[str, Any]:
    line = job.summary
    config = configs.get(line.job_id, {})
    return {
        "id": line.job_id,
        "name": line.display_name or line.model_name,
        "env": line.env_name,
        "status": line.status,
        "progress": round(line.progress, 3),
        "reward": "" if line.mean_reward is None else format_number(line.mean_reward),
        "interval": format_interval(line.mean_reward_ci95),
        "steps": format_count(line.current_timesteps),
        "time": "" if line.status is JobStatus.QUEUED else format_duration(line.elapsed_seconds),
        "created": line.created_at.isoformat(),
        "seed": str(line.seed),
        "tags": line.tags,
        "note": line.note,
        "hidden": line.hidden,
        "settings": [write_setting(config.get(name)) if config else "" for name in settings],
    }


def _describe_group(
    key: str, members: Sequence[PastJob], view: RunsView, configs: Configs, settings: Sequence[str]
) -> dict[str, Any]:
    lines = [job.summary for job in members]
    first = lines[0]
    rewards = [line.mean_reward for line in lines if line.mean_reward is not None]
    config = configs.get(first.job_id, {})
    is_recipe = view.grouping == "recipe"
    return {
        "group": key,
        "open": key in view.opened,
        "name": (first.display_name or first.model_name) if is_recipe else first.env_name,
        "n": len(lines),
        "ids": [line.job_id for line in lines],
        "env": first.env_name if is_recipe else "",
        "reward": format_number(statistics.fmean(rewards)) if rewards and is_recipe else "",
        "interval": format_interval(compute_interval(rewards)) if is_recipe else "",
        "steps": format_count(max(line.current_timesteps for line in lines)),
        "time": format_duration(sum(line.elapsed_seconds for line in lines)),
        "seed": f"{len({line.seed for line in lines})} seeds" if is_recipe else "",
        "settings": [write_setting(config.get(name)) if config and is_recipe else "" for name in settings],
    }
