"""The table of jobs: its rows, its groups, and the settings in which jobs differ."""

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from service.dashboard.jobs.address import PAGE_SIZE, JobsView
from service.dashboard.widgets.number_format import (
    format_count,
    format_duration,
    format_interval,
    format_items,
    format_margin,
    format_number,
    format_range,
    format_success,
)
from service.dashboard.widgets.setting_text import name_setting, write_setting
from service.jobs.records.record import PastJob
from service.jobs.views.listing import choose_page
from service.schemas.jobs import JobStatus, JobSummary
from service.sweeps.ranking import compute_seed_interval

# These have columns of their own, or none because they do not change what is learned.
_OTHER = frozenset(
    {"env_name", "seed", "model_name", "replace", "tensorboard_log", "device", "checkpoint_every", "max_restarts"}
)
_REWARD = "reward_function_type"
_MAX_SETTINGS = 8
_MAX_MEMBERS = 100
# Groups are sorted by the figures in their rows.
_GROUP_FIGURES: Mapping[str, Callable[[Sequence[PastJob]], float | None]] = {
    "mean_reward": lambda members: _compute_mean(members),
    "current_timesteps": lambda members: max(job.summary.current_timesteps for job in members),
    "elapsed_seconds": lambda members: sum(job.summary.elapsed_seconds for job in members),
}

Configs = Mapping[str, Mapping[str, Any]]


class JobsTable(NamedTuple):
    """A page of the table.

    :param rows: Jobs, or groups of them with the jobs of those that are open, as the browser draws them.
    :param settings: Names of the settings with a column of their own.
    :param n_pages: Number of pages.
    """

    rows: list[dict[str, Any]]
    settings: list[str]
    n_pages: int


def make_table(lines: Sequence[PastJob], view: JobsView, list_configs: Callable[[Iterable[str]], Configs]) -> JobsTable:
    """Make the page that an address asks for.

    :param lines: The lines of all jobs, oldest first.
    :param list_configs: Returns the configurations of the jobs with these ids; only the page's are asked for.
    """
    jobs = choose_page(lines, view.query).jobs
    if not view.grouping:
        n_pages = _count_pages(len(jobs))
        shown = jobs[PAGE_SIZE * (min(view.page, n_pages) - 1) :][:PAGE_SIZE]
        configs = _unite_rewards(list_configs([job.job_id for job in shown]))
        settings = find_differences(shown, configs)
        rows = [_describe(job, configs, settings) for job in shown]
        return JobsTable(rows, settings, n_pages)
    groups: dict[str, list[PastJob]] = {}
    for job in jobs:
        groups.setdefault(str(getattr(job.summary, view.grouping)), []).append(job)
    n_pages = _count_pages(len(groups))
    listed = _sort_groups(groups, view.query.sort)[PAGE_SIZE * (min(view.page, n_pages) - 1) :][:PAGE_SIZE]
    opened = [job for key, members in listed if key in view.opened for job in members[:_MAX_MEMBERS]]
    first = [members[0] for _, members in listed]
    configs = _unite_rewards(list_configs({job.job_id for job in [*first, *opened]}))
    settings = find_differences([*first, *opened], configs)
    described = {key: _describe_group(key, members, view, configs, settings) for key, members in listed}
    _tell_apart(described.values(), settings)
    rows = []
    for key, members in listed:
        rows.append(described[key])
        if key in view.opened:
            rows += [{**_describe(job, configs, settings), "member": True} for job in members[:_MAX_MEMBERS]]
            if len(members) > _MAX_MEMBERS:
                rows.append({"rest": f"{_MAX_MEMBERS} of {len(members):,} jobs are listed; a search finds the others."})
    return JobsTable(rows, settings, n_pages)


def _sort_groups(groups: Mapping[str, list[PastJob]], sort: str) -> list[tuple[str, list[PastJob]]]:
    """Sort groups by their figures; those without one come last."""
    figure = _GROUP_FIGURES.get(sort.removeprefix("-"))
    if figure is None:  # in the order of their first members
        return list(groups.items())
    figures = {key: figure(members) for key, members in groups.items()}
    sign = -1.0 if sort.startswith("-") else 1.0
    return sorted(groups.items(), key=lambda group: (figures[group[0]] is None, sign * (figures[group[0]] or 0.0)))


def _unite_rewards(configs: Configs) -> Configs:
    """Write a sum of reward functions in the place of the single one, so that both have one column."""
    united = {}
    for job_id, config in configs.items():
        own = dict(config)
        if (summed := own.pop("reward_functions", None)) is not None:
            own[_REWARD] = summed
        united[job_id] = own
    return united


def find_differences(jobs: Iterable[PastJob], configs: Configs) -> list[str]:
    """Find the settings in which jobs of the same environment differ.

    The reward function comes first, because no reward can be read without it; then those with the most values.
    """
    values: dict[str, dict[str, set[str]]] = {}
    for job in jobs:
        for name, value in configs.get(job.job_id, {}).items():
            if name not in _OTHER:
                values.setdefault(name, {}).setdefault(job.summary.env_name, set()).add(repr(value))
    n_values = {name: max(map(len, by_env.values())) for name, by_env in values.items()}
    differing = [name for name, n in n_values.items() if n > 1]
    return sorted(differing, key=lambda name: (name != _REWARD, -n_values[name]))[:_MAX_SETTINGS]


def _choose_evaluated(members: Sequence[PastJob]) -> list[JobSummary]:
    """Choose the jobs whose final rewards a group's figures are of: completed ones, or else those that ended early.

    Running jobs would pull the mean down. Each seed counts once: a repetition tells nothing new.
    """
    ended = [job.summary for job in members if job.status.is_final and job.summary.mean_reward is not None]
    completed = [line for line in ended if line.status is JobStatus.COMPLETED]
    return list({(line.env_name, line.seed): line for line in completed or ended}.values())


def _list_rewards(lines: Sequence[JobSummary]) -> list[float]:
    return [line.mean_reward for line in lines if line.mean_reward is not None]


def _compute_mean(members: Sequence[PastJob]) -> float | None:
    rewards = _list_rewards(_choose_evaluated(members))
    return statistics.fmean(rewards) if rewards else None


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
        "success": format_success(line.success_rate),
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
    key: str, members: Sequence[PastJob], view: JobsView, configs: Configs, settings: Sequence[str]
) -> dict[str, Any]:
    lines = [job.summary for job in members]
    first = lines[0]
    evaluated = _choose_evaluated(members)
    rewards = _list_rewards(evaluated)
    rates = [line.success_rate for line in evaluated if line.success_rate is not None]
    n_seeds = len({line.seed for line in lines})
    is_recipe = view.grouping == "recipe"
    has_reward = bool(rewards) and is_recipe
    config = configs.get(first.job_id, {})
    return {
        "group": key,
        "open": key in view.opened,
        "name": _name_group(lines) if is_recipe else first.env_name,
        "n": len(lines),
        "ids": [line.job_id for line in lines],
        "status": _describe_statuses(lines),
        "env": first.env_name if is_recipe else "",
        "reward": format_number(statistics.fmean(rewards)) if has_reward else "",
        "margin": format_margin(compute_seed_interval(rewards)) if has_reward else "",
        "interval": format_range(rewards) if has_reward else "",
        "success": format_success(statistics.fmean(rates) if rates and is_recipe else None),
        "steps": format_count(max(line.current_timesteps for line in lines)),
        "steps_of": "" if len(lines) == 1 else "max" if len({line.current_timesteps for line in lines}) > 1 else "each",
        "time": format_duration(sum(line.elapsed_seconds for line in lines)),
        "time_of": "" if len(lines) == 1 else "total",
        "seed": format_items(n_seeds, "seed") if is_recipe else "",
        "settings": [write_setting(config.get(name)) if config and is_recipe else "" for name in settings],
    }


def _name_group(lines: Sequence[JobSummary]) -> str:
    """Name a group by the prefix that its jobs' names share, or else after one of them."""
    names = list(dict.fromkeys(line.display_name or line.model_name for line in lines))
    if len(names) == 1:
        return names[0]
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    shared = "".join(letters[0] for letters in alike).rstrip("0123456789-._ ")
    return shared or f"{names[0]} and others"


def _tell_apart(groups: Iterable[dict[str, Any]], settings: Sequence[str]) -> None:
    """Add, to a name that several groups share, the settings in which these groups differ."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for group in groups:
        by_name.setdefault(group["name"], []).append(group)
    for alike in by_name.values():
        differs = [len(set(values)) > 1 for values in zip(*(group["settings"] for group in alike), strict=True)]
        for group in alike:
            own = zip(settings, group["settings"], differs, strict=True)
            words = [f"{name_setting(name).lower()} {value}" for name, value, is_other in own if is_other]
            group["name"] = " · ".join([group["name"], *words])


def _describe_statuses(lines: Sequence[JobSummary]) -> str:
    """Return the status of all jobs, or else how many have which."""
    counts = Counter(line.status for line in lines)
    if len(counts) == 1:
        return str(lines[0].status)
    return ", ".join(f"{n} {status}" for status in JobStatus if (n := counts[status]))
