"""A job's metrics over time, as JSON and as CSV."""

import csv
import io
from collections.abc import Sequence

from service.jobs.job import Job
from service.jobs.records.history import MetricRow
from service.schemas.jobs import HistoryRow, JobMetrics


def describe_metrics(job: Job) -> JobMetrics:
    """Return a job's metrics and evaluations."""
    rows = job.history.list_rows()
    return JobMetrics(
        job_id=job.job_id,
        keys=list_keys(rows),
        # Unchecked: they are floats already, and checking tens of thousands would take longer than reading them.
        rows=[HistoryRow.model_construct(**row._asdict()) for row in rows],
        evaluations=job.history.list_evaluations(),
        final_evaluation=job.state.final_evaluation,
    )


def list_keys(rows: Sequence[MetricRow]) -> list[str]:
    """List the keys of all rows, sorted."""
    return sorted(set().union(*(row.metrics for row in rows)))


def write_csv(rows: Sequence[MetricRow]) -> str:
    """Return a CSV table with a line per row; a cell is empty if its row lacks the key."""
    keys = list_keys(rows)
    file = io.StringIO()
    writer = csv.DictWriter(file, ["timesteps", "elapsed_seconds", *keys])
    writer.writeheader()
    writer.writerows(
        {"timesteps": row.timesteps, "elapsed_seconds": row.elapsed_seconds, **row.metrics} for row in rows
    )
    return file.getvalue()
