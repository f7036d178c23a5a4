"""What a job has measured over time, as JSON and as a table."""

import csv
import io
from collections.abc import Sequence

from service.jobs.history import MetricRow
from service.jobs.job import Job
from service.schemas.jobs import HistoryRow, JobMetrics


def describe_metrics(job: Job) -> JobMetrics:
    """List all that a job has measured."""
    rows = job.history.list_rows()
    return JobMetrics(
        job_id=job.job_id,
        keys=list_keys(rows),
        # They were floats all along; to check each of tens of thousands again would take longer than to read them.
        rows=[HistoryRow.model_construct(**row._asdict()) for row in rows],
        evaluations=job.history.list_evaluations(),
    )


def list_keys(rows: Sequence[MetricRow]) -> list[str]:
    """List the keys that any of the rows has, sorted."""
    return sorted(set().union(*(row.metrics for row in rows)))


def write_csv(rows: Sequence[MetricRow]) -> str:
    """Write a table with a line per row; a cell is empty where a row lacks its key."""
    keys = list_keys(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, ["timesteps", "elapsed_seconds", *keys])
    writer.writeheader()
    writer.writerows(
        {"timesteps": row.timesteps, "elapsed_seconds": row.elapsed_seconds, **row.metrics} for row in rows
    )
    return file.getvalue()
