"""Choose the jobs that a list shows, and their order, by their lines in memory."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import dropwhile, islice
from typing import Any, NamedTuple

from service.jobs.records.record import PastJob
from service.schemas.jobs import JobSort, JobStatus, JobSummary, fold_text

OLDEST_FIRST: JobSort = "created_at"
NEWEST_FIRST: JobSort = "-created_at"
_KEYS: Mapping[str, Callable[[JobSummary], Any]] = {
    "env_name": lambda line: line.env_name.casefold(),
    "status": lambda line: line.status.value,
    "mean_reward": lambda line: line.mean_reward,
    "current_timesteps": lambda line: line.current_timesteps,
    "elapsed_seconds": lambda line: line.elapsed_seconds,
    "seed": lambda line: line.seed,
    "name": lambda line: fold_text(line.display_name or line.model_name),
}


class JobQuery(NamedTuple):
    """Which jobs a list is to show.

    :param statuses: Only jobs with one of these; None takes all.
    :param env_name: Only jobs in this environment.
    :param tag: Only jobs with this tag.
    :param hidden: Only hidden jobs, or only those that are not; None takes both.
    :param recipe: Only jobs with these settings, whatever their seeds.
    :param search: Words that all have to be in a job's names, id, environment, status, tags or note.
    :param sort: Field to sort by; a minus before it turns the order around. Jobs without a value come last.
    """

    statuses: frozenset[JobStatus] | None = None
    env_name: str | None = None
    tag: str | None = None
    hidden: bool | None = None
    recipe: str | None = None
    search: str = ""
    sort: JobSort = OLDEST_FIRST


class JobPage(NamedTuple):
    """A part of a list.

    :param jobs: Its lines.
    :param n_jobs: Number of jobs in the whole list.
    """

    jobs: list[PastJob]
    n_jobs: int


def choose_page(
    jobs: Sequence[PastJob], query: JobQuery, after: str | None = None, limit: int | None = None
) -> JobPage:
    """Choose jobs, and sort them.

    :param jobs: All jobs, oldest first.
    :param after: Id of one of them; the page begins behind it, whether it is chosen or not.
    :param limit: Largest number of jobs on the page.
    """
    chosen = list(_choose(jobs, query))
    n_jobs = len(chosen)
    if after is None:
        ordered: Iterable[PastJob] = _sort(chosen, query.sort)
    else:
        ids = {job.job_id for job in chosen}
        with_after = chosen if after in ids else [job for job in jobs if job.job_id in ids or job.job_id == after]
        ordered = islice(dropwhile(lambda job: job.job_id != after, _sort(with_after, query.sort)), 1, None)
    return JobPage(list(islice(ordered, limit)), n_jobs)


def _choose(jobs: Iterable[PastJob], query: JobQuery) -> Iterable[PastJob]:
    if query.statuses is not None:
        statuses = query.statuses
        jobs = [job for job in jobs if job.summary.status in statuses]
    if query.env_name is not None:
        jobs = [job for job in jobs if job.summary.env_name == query.env_name]
    if query.tag is not None:
        tag = fold_text(query.tag)
        jobs = [job for job in jobs if tag in map(fold_text, job.summary.tags)]
    if query.hidden is not None:
        jobs = [job for job in jobs if job.summary.hidden is query.hidden]
    if query.recipe is not None:
        jobs = [job for job in jobs if job.summary.recipe == query.recipe]
    for word in fold_text(query.search).split():
        jobs = [job for job in jobs if word in job.search_text]
    return jobs


def _sort(jobs: Sequence[PastJob], sort: JobSort) -> Sequence[PastJob]:
    """Sort jobs that are given oldest first; of equal ones, the newest comes first."""
    field, is_descending = sort.removeprefix("-"), sort.startswith("-")
    if field == OLDEST_FIRST:
        return jobs[::-1] if is_descending else jobs
    read = _KEYS[field]
    keyed = [(read(job.summary), job) for job in reversed(jobs)]
    known = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0], reverse=is_descending)
    return [job for _, job in known] + [job for key, job in keyed if key is None]
