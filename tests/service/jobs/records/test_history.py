"""A job's history keeps every event that matters, and stays small."""

import json
import threading

import pytest

from service.jobs.records.history import MAX_METRIC_ROWS, JobHistory, MetricRows
from tests.support import make_evaluation


@pytest.fixture
def history() -> JobHistory:
    return JobHistory()


def fill(history: JobHistory, n_rows: int) -> None:
    for i in range(n_rows):
        history.append_metrics(i, i / 8, {"a": i, "b": -i})


def test_a_new_one_is_empty(history: JobHistory) -> None:
    assert (history.list_rows(), history.list_evaluations(), history.list_events()) == ([], [], [])
    assert history.last_event_id == 0


def test_few_rows_are_kept_as_they_are(history: JobHistory) -> None:
    history.append_metrics(64, 0.5, {"rollout/ep_rew_mean": 20.0})
    history.append_metrics(128, 1.0, {"rollout/ep_rew_mean": 25.0, "train/approx_kl": 0.125})
    first, second = history.list_rows()
    assert (first.timesteps, first.elapsed_seconds, first.metrics) == (64, 0.5, {"rollout/ep_rew_mean": 20.0})
    assert second.metrics == {"rollout/ep_rew_mean": 25.0, "train/approx_kl": 0.125}


@pytest.mark.parametrize(
    ("n_rows", "stride"),
    [(1999, 1), (2000, 2), (3998, 2), (3999, 4), (10_000, 8)],
)
def test_many_rows_are_thinned_evenly_and_the_latest_is_always_there(
    history: JobHistory, n_rows: int, stride: int
) -> None:
    fill(history, n_rows)
    timesteps = [row.timesteps for row in history.list_rows()]
    expected = list(range(0, n_rows, stride))
    if expected[-1] != n_rows - 1:
        expected.append(n_rows - 1)
    assert timesteps == expected
    assert len(timesteps) <= MAX_METRIC_ROWS
    assert history.list_rows()[-1].metrics == {"a": n_rows - 1, "b": 1 - n_rows}


@pytest.mark.parametrize("n_left", [0, 1, 700])
def test_after_going_back_rows_are_kept_as_before(history: JobHistory, n_left: int) -> None:
    fill(history, 2001)  # of two rows one is kept, and the next one would not be
    history.rewind(2 * n_left - 1)
    history.append_metrics(5000, 0.0, {"a": 5000.0})
    history.append_metrics(5001, 0.0, {"a": 5001.0})
    history.append_metrics(5002, 0.0, {"a": 5002.0})
    assert [row.timesteps for row in history.list_rows()] == [*range(0, 2 * n_left, 2), 5000, 5002]


def test_keys_of_rows_that_are_gone_are_gone(history: JobHistory) -> None:
    fill(history, 10)
    history.append_metrics(10, 0.0, {"c": 7.0})
    assert history.list_keys() == ["a", "b", "c"]
    history.rewind(9)
    assert history.list_keys() == ["a", "b"]
    history.rewind(-1)
    assert history.list_keys() == []


def test_what_was_measured_under_one_key_can_be_had_alone_and_thinned(history: JobHistory) -> None:
    fill(history, 10)
    history.append_metrics(10, 0.0, {"c": 7.0})
    assert history.list_values("a", 10) == [float(i) for i in range(10)]
    assert history.list_values("a", 9) == [1.0, 3.0, 5.0, 7.0, 9.0]
    assert history.list_values("a", 4) == [0.0, 3.0, 6.0, 9.0]
    assert history.list_values("c", 1) == [7.0]
    assert history.list_values("d", 1) == []


@pytest.mark.parametrize("n_rows", [0, 1, 700, 3999])
def test_written_in_parts_and_read_again_it_is_the_same(history: JobHistory, n_rows: int) -> None:
    """As a recorder does: what is new goes behind what was written, unless all rows take its place."""
    history.append("job.status", {"status": "queued"})
    parts = [history.get_part(0, 1, is_last=False)]
    for i in range(n_rows):
        history.append_metrics(i, i / 8, {"a": i} if i < 10 else {"a": i, "b": -i / 3})
        if i % 300 == 0:
            history.append_evaluation(make_evaluation(i))
            history.replace_progress({"progress": i / n_rows})
            parts.append(history.get_part(parts[-1].last_event_id, parts[-1].stride, is_last=False))
    parts.append(history.get_part(parts[-1].last_event_id, parts[-1].stride, is_last=False))
    written: list[MetricRows] = []
    for part in parts:
        written = [*([] if part.replaces_rows else written), *part.rows]
    events = [event for part in parts for event in part.events]
    restored = JobHistory.restore(parts[-1]._replace(rows=written, events=events))
    kept = history.list_rows()
    # The latest is on its way until it has its place, or the job ends.
    assert restored.list_rows() == (kept if n_rows < MAX_METRIC_ROWS else kept[:-1])
    assert restored.list_evaluations() == history.list_evaluations()
    last = history.get_part(parts[-1].last_event_id, parts[-1].stride, is_last=True)
    restored = JobHistory.restore(last._replace(events=events))
    assert restored.list_rows() == kept
    assert restored.list_events() == history.list_events()
    assert restored.last_event_id == history.last_event_id


def test_events_come_in_order_with_ids_that_rise_and_can_be_asked_for_from_any_on(history: JobHistory) -> None:
    history.append("job.status", {"status": "queued"})
    history.append_metrics(64, 0.5, {"a": 1.0})
    history.append_evaluation(make_evaluation(64))
    history.append_metrics(128, 1.0, {"a": 2.0})
    history.replace_progress({"progress": 0.5})
    history.append("job.completed", {})
    events = history.list_events()
    assert [(event.event_id, event.name) for event in events] == [
        (1, "job.status"),
        (2, "job.metrics"),
        (3, "job.evaluation"),
        (4, "job.metrics"),
        (5, "job.progress"),
        (6, "job.completed"),
    ]
    assert events[1].payload == {"timesteps": 64, "elapsed_seconds": 0.5, "metrics": {"a": 1.0}}
    assert events[2].payload["mean_reward_ci95"] == [1.0, 1.0]
    assert history.last_event_id == 6
    for after in range(8):
        assert history.list_events(after) == events[after:]
    json.dumps([event.payload for event in events])


def test_only_the_latest_progress_is_kept(history: JobHistory) -> None:
    for i in range(5):
        history.replace_progress({"progress": i / 5})
    (event,) = history.list_events()
    assert (event.event_id, event.payload) == (5, {"progress": 0.8})


def test_thinning_drops_nothing_but_metrics_and_ids_go_on_rising(history: JobHistory) -> None:
    for i in range(9000):
        history.append_metrics(i, 0.0, {"a": 0.0})
        if i % 1000 == 0:
            history.append("job.warning", {"warning": str(i)})
            history.append_evaluation(make_evaluation(i))
    events = history.list_events()
    assert [event.payload["warning"] for event in events if event.name == "job.warning"] == [
        str(i) for i in range(0, 9000, 1000)
    ]
    assert [row.timesteps for row in history.list_evaluations()] == list(range(0, 9000, 1000))
    ids = [event.event_id for event in events]
    assert ids == sorted(set(ids))
    assert ids[-1] == history.last_event_id == 9018


def test_whoever_reads_while_others_write_misses_no_event_that_is_kept(history: JobHistory) -> None:
    n_writers, n_each = 4, 500

    def write(writer: int) -> None:
        for i in range(n_each):
            history.append("job.warning", {"warning": f"{writer}-{i}"})
            history.append_metrics(i, 0.0, {"a": 0.0})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(n_writers)]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    last_id = 0
    while any(thread.is_alive() for thread in threads) or last_id < history.last_event_id:
        for event in history.list_events(last_id):
            assert event.event_id > last_id
            last_id = event.event_id
            seen += [event.payload["warning"]] if event.name == "job.warning" else []
    assert sorted(seen) == sorted(f"{writer}-{i}" for writer in range(n_writers) for i in range(n_each))
