"""A job's metrics can be read as JSON and as a table."""

from service.jobs.job import Job
from service.jobs.records.history import MetricRow
from service.jobs.views.metrics_table import describe_metrics, list_keys, write_csv
from tests.support import make_evaluation, make_plan

ROWS = [MetricRow(64, 0.5, {"b": 1.0}), MetricRow(128, 1.25, {"a": -0.125, "b": 2.0})]


def test_the_keys_are_those_of_any_row_in_order() -> None:
    assert list_keys(ROWS) == ["a", "b"]
    assert list_keys([]) == []


def test_the_table_has_a_line_per_row_and_leaves_empty_what_was_not_measured() -> None:
    assert write_csv(ROWS) == "timesteps,elapsed_seconds,a,b\r\n64,0.5,,1.0\r\n128,1.25,-0.125,2.0\r\n"
    assert write_csv([]) == "timesteps,elapsed_seconds\r\n"


def test_rows_and_evaluations_are_described() -> None:
    job = Job(make_plan())
    for row in ROWS:
        job.history.append_metrics(*row)
    job.history.append_evaluation(make_evaluation(128))
    described = describe_metrics(job)
    assert (described.job_id, described.keys) == (job.job_id, ["a", "b"])
    assert [tuple(dict(row).values()) for row in described.rows] == ROWS
    assert described.evaluations == [make_evaluation(128)]
