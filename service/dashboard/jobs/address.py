"""The query of a page's address: which jobs are shown and how, so that a reload or a second tab shows the same."""

import re
from collections.abc import Mapping
from typing import Literal, NamedTuple, cast, get_args

from service.jobs.views.listing import NEWEST_FIRST, JobQuery
from service.schemas.jobs import JobSort, JobStatus

Grouping = Literal["", "env_name", "recipe"]

PAGE_SIZE = 50
# More lines cannot be told apart, even with dashes.
MAX_SHOWN = 20
_SHOWN = re.compile(r"([0-9a-f-]{8,36})\.(\d{1,2})")
_MAX_TEXT_CHARS = 200


class JobsView(NamedTuple):
    """The jobs that the page shows, and how it shows them.

    :param query: Which jobs the table lists, and in which order.
    :param grouping: What the jobs of a group have in common; empty does not group.
    :param opened: Keys of the groups whose jobs are listed.
    :param page: Number of the table's page, from 1.
    :param shown: Id prefixes of the jobs in the charts, to the indices of their colours; None leaves the choice to the
        page.
    :param metric: What the charts show: ``reward`` or a log key.
    """

    query: JobQuery
    grouping: Grouping
    opened: frozenset[str]
    page: int
    shown: Mapping[str, int] | None
    metric: str


def read_view(parameters: Mapping[str, str]) -> JobsView:
    """Read an address's query, and ignore what cannot be read."""
    names = set(filter(None, parameters.get("status", "").split(",")))
    statuses = frozenset(status for status in JobStatus if status in names)
    sort = parameters.get("sort", NEWEST_FIRST)
    query = JobQuery(
        statuses=statuses or None,
        env_name=parameters.get("env") or None,
        tag=parameters.get("tag") or None,
        hidden=parameters.get("hidden") == "1",
        search=parameters.get("q", "")[:_MAX_TEXT_CHARS],
        sort=cast(JobSort, sort) if sort in get_args(JobSort) else NEWEST_FIRST,
    )
    grouping = parameters.get("group", "")
    page = parameters.get("page", "1")
    return JobsView(
        query=query,
        grouping=cast(Grouping, grouping) if grouping in get_args(Grouping) else "",
        opened=frozenset(parameters.get("open", "").split(",")),
        page=max(1, int(page)) if page.isascii() and page.isdigit() and len(page) < 6 else 1,
        shown=_read_shown(parameters["show"]) if "show" in parameters else None,
        metric=parameters.get("y", "reward")[:_MAX_TEXT_CHARS] or "reward",
    )


def write_shown(shown: Mapping[str, int]) -> str:
    """Write the jobs in the charts as in the address."""
    return ",".join(f"{job_id}.{colour}" for job_id, colour in shown.items())


def _read_shown(text: str) -> dict[str, int]:
    found = [_SHOWN.fullmatch(part) for part in text.split(",")]
    shown = {match[1]: int(match[2]) for match in found if match is not None and int(match[2]) < MAX_SHOWN}
    return dict(list(shown.items())[:MAX_SHOWN])
