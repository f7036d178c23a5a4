"""The jobs' file survives the server, and whatever is wrong with it, the server starts."""

import json
import os
import resource
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from service.jobs.job import Job, JobServices
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.records.database import FILE_NAME, SCHEMA_VERSION, JournalError
from service.jobs.records.journal import JobJournal, open_journal
from service.jobs.records.record import JobRecord
from service.jobs.records.recorder import JobRecorder
from service.jobs.totals import JobTotals
from service.schemas.jobs import JobLabels, JobStatus
from tests.support import make_evaluation, make_final_evaluation, make_plan, wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / FILE_NAME


def make_job(**request: Any) -> Job:
    return Job(make_plan(total_timesteps=100, **request))


def make_services(recorder: JobRecorder) -> JobServices:
    return JobServices(JobTotals(), recorder.end)


def run_for_a_while(job: Job) -> None:
    assert job.start()
    for i in range(1, 6):
        job.progress.advance(10 * i)
        job.progress.publish_metrics({"rollout/ep_rew_mean": i / 3, "train/approx_kl": float("nan") if i == 3 else 0.1})
    job.progress.publish_evaluation(make_evaluation(20).model_dump(exclude={"elapsed_seconds"}))
    job.warn("it's a \N{SNOWMAN}; DROP TABLE jobs")


def write(path: Path, *jobs: Job) -> None:
    journal = JobJournal(path)
    journal.write([job.make_record(0, 1) for job in jobs])
    journal.close()


def load(journal: JobJournal, job_id: str) -> JobRecord:
    record = journal.load(job_id)
    assert record is not None
    return record


def test_the_log_names_what_lets_interrupted_jobs_go_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job()
    run_for_a_while(job)
    write(path, job)
    open_journal(path.parent)[0].close()
    assert "1 job was interrupted when the last server ended" in caplog.text
    assert "python -m grpo_client resume interrupted lets all go on, POST /training/{job_id}/resume one" in caplog.text


def test_the_ids_of_events_that_a_killed_server_has_sent_and_not_written_are_not_used_again(path: Path) -> None:
    job = make_job()
    run_for_a_while(job)
    write(path, job)
    for _ in range(100):
        job.warn("the file has no room for this")
    seen = job.history.last_event_id
    journal, _ = open_journal(path.parent)
    restored = Job.restore(load(journal, job.job_id))
    assert [event.name for event in restored.history.list_events(after=seen)] == ["job.failed"]
    assert Job.restore(load(journal, job.job_id)).history.last_event_id == restored.history.last_event_id
    journal.close()


def test_nor_are_they_of_a_job_that_goes_on_however_often_its_server_is_killed(path: Path) -> None:
    job = make_job()
    run_for_a_while(job)
    write(path, job)
    for _ in range(3):
        seen = job.history.last_event_id + 100
        journal, _ = open_journal(path.parent, keeps_running=True)
        job = Job.revive(load(journal, job.job_id), JobServices(JobTotals()))
        job.warn("the server is killed before this is written")
        assert [event.payload for event in job.history.list_events(after=seen)] == [
            {"warning": "the server is killed before this is written"}
        ]
        journal.close()


@pytest.mark.parametrize("status", [JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.STOPPED])
def test_an_ended_job_is_read_as_it_was(path: Path, status: JobStatus) -> None:
    job = make_job(model_name="m", seed=3)
    run_for_a_while(job)
    job.progress.publish_final_evaluation(make_final_evaluation(2.5).model_dump())
    job.record_saved_model("m", "ab" * 32)
    job.finish(status, "it's over" if status is JobStatus.FAILED else None)
    write(path, job)
    journal, obstacle = open_journal(path.parent)
    assert obstacle is None
    (listed,) = journal.list_jobs()
    assert listed.summary == job.summarize()
    record = journal.load(job.job_id)
    assert record is not None
    restored = Job.restore(record)
    assert restored.describe().model_dump_json() == job.describe().model_dump_json()
    assert repr(restored.history.list_rows()) == repr(job.history.list_rows())
    events = [json.dumps(one.history.list_events(), default=str) for one in (restored, job)]
    assert events[0] == events[1]
    times = [event.created_at for event in restored.history.list_kept_events()]
    assert None not in times
    assert times[-1] == job.describe().end_time
    assert all("event_time" not in event.payload for event in restored.history.list_events())
    assert restored.finished.is_set()
    assert restored.plan.config == job.plan.config
    assert journal.load("' OR 1 = 1 --") is None
    journal.close()


@pytest.mark.parametrize("stopped_by", [None, "stop", "shutdown"])
def test_jobs_that_had_not_ended_were_interrupted(path: Path, stopped_by: Any) -> None:
    queued, running = make_job(), make_job()
    run_for_a_while(running)
    if stopped_by is not None:  # and its server was killed before it had saved its policy
        running.stop(stopped_by)
    write(path, queued, running)
    for _ in range(2):  # and stay so
        journal, _obstacle = open_journal(path.parent)
        assert [job.status for job in journal.list_jobs()] == [JobStatus.FAILED] * 2
        record = journal.load(running.job_id)
        assert record is not None
        status = Job.restore(record).describe()
        assert (status.status, status.current_timesteps, status.ended_by) == (JobStatus.FAILED, 50, "restart")
        assert status.error_message is not None
        assert status.error_message.startswith("interrupted by restart: the server ended while the job was running;")
        resume = f"POST /training/{running.job_id}/resume"
        assert status.error_message.endswith(f"{resume} starts again from step 0: it has no checkpoint.")
        waiting = Job.restore(load(journal, queued.job_id)).describe()
        assert (waiting.error_message or "").endswith("/resume lets it begin.")
        assert status.end_time is not None
        assert status.start_time is not None
        assert status.end_time >= status.start_time
        journal.close()


def test_an_interrupted_job_says_from_where_a_resume_goes_on(path: Path, tmp_path: Path) -> None:
    job = Job(
        make_plan(total_timesteps=100),
        JobServices(JobTotals(), checkpoints=CheckpointFolder(tmp_path, lambda job_id: False, 1 << 20)),
    )
    run_for_a_while(job)
    job.progress.publish_checkpoint({"timesteps": 40}, b"content")
    write(path, job)
    journal, _ = open_journal(path.parent)
    message = Job.restore(load(journal, job.job_id)).describe().error_message or ""
    assert message.endswith(f"POST /training/{job.job_id}/resume goes on from step 40.")
    journal.close()


def test_only_the_owner_may_read_it(path: Path) -> None:
    JobJournal(path).close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough" * 100, b"SQLite format 3\0" * 500])
def test_a_damaged_file_is_moved_aside_and_a_new_one_begins(
    path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(content)
    journal, obstacle = open_journal(path.parent)
    assert obstacle is None
    assert "is damaged" in caplog.text
    journal.write([make_job().make_record(0, 1)])
    journal.close()
    (aside,) = path.parent.glob(f"{FILE_NAME}.damaged-*")
    assert aside.read_bytes() == content
    assert len(JobJournal(path).list_jobs()) == 1


def test_damage_in_the_middle_is_noticed(path: Path) -> None:
    write(path, *(make_job() for _ in range(20)))
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)
    journal, obstacle = open_journal(path.parent)
    assert (journal.list_jobs(), obstacle) == ([], None)
    assert len(list(path.parent.glob(f"{FILE_NAME}.damaged-*"))) == 1
    journal.close()


@pytest.mark.parametrize(
    ("column", "value", "shown"),
    [
        ("status", "'bogus'", "stopped"),  # which the rest of the record says as well
        ("status", "CAST(x'ff' AS TEXT)", "stopped"),
        ("created_at", "'x'", None),
        ("created_at", "'2026-01-01T00:00:00'", None),  # no other can be compared with it
        ("tags", "'x'", "[]"),
        ("progress", "'x'", "0.0"),
        ("seed", "'x'", "7"),
        ("recipe", "x'ff'", None),
        ("total_timesteps", "'x'", "100"),
        ("elapsed_seconds", "'x'", None),
        ("model_name", "CAST(x'6dff' AS TEXT)", "m1"),
    ],
)
def test_a_damaged_line_hides_no_other_job_and_is_read_from_the_rest_of_its_record(
    path: Path, column: str, value: str, shown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """What a line shows where ``shown`` is None is what it was."""
    jobs = [make_job(model_name=f"m{i}", seed=7) for i in range(3)]
    for job in jobs:
        job.finish(JobStatus.STOPPED)
    write(path, *jobs)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE jobs SET {column} = {value} WHERE number = 2")
        connection.commit()
    journal, obstacle = open_journal(path.parent)
    lines = [job.summary for job in journal.list_jobs()]
    assert obstacle is None
    assert lines == [jobs[0].summarize(), lines[1], jobs[2].summarize()]
    assert str(getattr(lines[1], column)) == (shown or str(getattr(jobs[1].summarize(), column)))
    assert "row 2" in caplog.text
    assert column in caplog.text
    assert load(journal, jobs[1].job_id).state.status == "stopped"
    assert not journal.lacks_jobs
    journal.close()


def damage(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_line_says_what_nothing_else_in_its_record_does(path: Path) -> None:
    write(path, make_job())
    damage(
        path, "UPDATE jobs SET plan = '{', state = '{', seed = 'x', created_at = 'x', status = 'x', env_name = x'ff'"
    )
    journal, _ = open_journal(path.parent)
    (job,) = journal.list_jobs()
    line = job.summary
    assert (line.status, line.env_name, line.seed, line.created_at.year) == ("failed", "(damaged)", 0, 1970)
    journal.close()


def test_a_plan_that_lacks_a_name_still_says_the_rest(path: Path) -> None:
    job = make_job(seed=3)
    write(path, job)
    damage(path, "UPDATE jobs SET plan = json_remove(plan, '$.config.env_name'), seed = 'x', recipe = x'ff'")
    journal, _ = open_journal(path.parent)
    (line,) = (past.summary for past in journal.list_jobs())
    assert (line.seed, line.env_name, line.recipe != "") == (3, job.config.env_name, True)
    journal.close()


@pytest.mark.parametrize("job_id", ["x'00'", "'nonsense'", "CAST(x'ff' AS TEXT)"])
def test_a_row_whose_id_is_damaged_is_kept_and_not_listed(
    path: Path, job_id: str, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [make_job() for _ in range(3)]
    write(path, *jobs)
    damage(path, f"UPDATE jobs SET job_id = {job_id}, seed = 'x', plan = '{{' WHERE number = 2")
    for _ in range(2):
        journal, _ = open_journal(path.parent)
        assert [job.job_id for job in journal.list_jobs()] == [jobs[0].job_id, jobs[2].job_id]
        assert journal._connection.execute("SELECT count(*) FROM jobs").fetchone() == (3,)
        assert journal.lacks_jobs
        journal.close()
    assert "row 2: job_id, seed, plan; the job is not listed" in caplog.text


@pytest.mark.parametrize(
    ("part", "place", "value"),
    [
        *((part, f"jobs SET {part}", "CAST('{' || x'ff' AS TEXT)") for part in ("plan", "state", "history")),
        ("history", "jobs SET history", f"'{'[' * 100_000}'"),
        ("written_at", "jobs SET written_at", "1e17"),
        ("events", "events SET payload", "CAST('{' || x'ff' AS TEXT)"),
        ("events", "events SET name", "CAST(x'ff' AS TEXT)"),
        ("metrics", "metrics SET numbers", "CAST('{' || x'ff' AS TEXT)"),
    ],
    ids=lambda value: value if len(value) < 20 else "",
)
def test_what_is_damaged_of_a_record_is_named(
    path: Path, part: str, place: str, value: str, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job()
    run_for_a_while(job)
    job.finish(JobStatus.STOPPED)
    write(path, job)
    damage(path, f"UPDATE {place} = {value}")
    journal, _ = open_journal(path.parent)
    if part not in ("events", "metrics"):
        assert f"job {job.job_id} (row 1): {part};" in caplog.text
    with pytest.raises(JournalError, match=f"damaged {part}"):
        journal.load(job.job_id)
    journal.close()


def test_what_is_written_on_a_job_leaves_the_rest_as_it_is(path: Path) -> None:
    job = make_job()
    write(path, job)
    damage(path, "UPDATE jobs SET note = CAST(x'61ff' AS TEXT), tags = 'x'")
    journal, _ = open_journal(path.parent)
    journal.write_labels(job.job_id, {"display_name": "d"})
    written = "SELECT hex(note), tags, display_name FROM jobs"
    assert journal._connection.execute(written).fetchone() == ("61FF", "x", "d")
    journal.close()


def test_a_file_whose_tables_have_lost_a_column_is_moved_aside(path: Path) -> None:
    write(path, make_job())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE jobs RENAME COLUMN plan TO plam")
    journal, obstacle = open_journal(path.parent)
    assert (journal.list_jobs(), obstacle) == ([], None)
    assert len(list(path.parent.glob(f"{FILE_NAME}.damaged-*"))) == 1
    journal.close()


def test_what_is_written_on_a_job_outlives_what_the_job_reports(path: Path) -> None:
    job = make_job()
    write(path, job)
    journal = JobJournal(path)
    labels = JobLabels(display_name="it's", tags=["a", "\N{SNOWMAN}"], note="'); DROP TABLE jobs; --", hidden=True)
    journal.write_labels(job.job_id, dict(labels))
    run_for_a_while(job)
    journal.write([job.make_record(0, 1)])  # made before the job knew
    record = journal.load(job.job_id)
    assert record is not None
    assert Job.restore(record).labels == labels
    assert journal.list_jobs()[0].summary.display_name == "it's"
    with pytest.raises(JournalError, match="not in the jobs' file"):
        journal.write_labels("nobody", dict(labels))
    journal.close()


def test_the_success_of_an_ended_job_is_listed(path: Path) -> None:
    job = make_job()
    job.start()
    job.progress.publish_final_evaluation({**make_final_evaluation(0.5).model_dump(), "success_rate": 0.5})
    job.finish(JobStatus.COMPLETED)
    assert job.summarize().success_rate == 0.5
    write(path, job)
    assert JobJournal(path).list_jobs()[0].summary == job.summarize()


def refuse(path: Path, expected: str, caplog: pytest.LogCaptureFixture) -> None:
    before = path.read_bytes() if path.is_file() else None
    journal, obstacle = open_journal(path.parent)
    assert obstacle is not None
    assert expected in obstacle
    assert f"{FILE_NAME} cannot be used ({obstacle})" in caplog.text
    assert caplog.text.count("\n") == 1
    job = make_job()
    journal.write([job.make_record(0, 1)])
    assert journal.load(job.job_id) is not None
    journal.close()
    assert (path.read_bytes() if path.is_file() else None) == before


@pytest.mark.parametrize(
    ("version", "remedy"),
    [(SCHEMA_VERSION + 1, "upgrade the server"), (SCHEMA_VERSION - 1, "move it away"), (-1, "move it away")],
)
def test_a_file_of_another_version_stays_as_it_is(
    path: Path, version: int, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(path, make_job())
    damage(path, f"PRAGMA user_version = {version}")
    refuse(path, f"it has schema version {version}, this server knows {SCHEMA_VERSION}; {remedy}", caplog)


def test_a_file_keeps_sweeps(path: Path) -> None:
    write(path, make_job())
    journal, obstacle = open_journal(path.parent)
    assert obstacle is None
    assert len(journal.list_jobs()) == 1
    journal.write_sweep("s", "first")
    journal.write_sweep("t", "other")
    journal.write_sweep("s", "second")
    journal.close()
    journal, _ = open_journal(path.parent)
    assert journal.list_sweeps() == ["second", "other"]
    journal.forget_sweep("s")
    assert journal.list_sweeps() == ["other"]
    journal.close()


def test_another_programs_database_stays_as_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE jobs (id)")
    connection.close()
    refuse(path, "another program's database", caplog)


def test_a_file_in_use_stays_as_it_is(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(path, make_job())
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    refuse(path, "locked", caplog)
    connection.close()


def test_what_is_no_file_is_not_used(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.mkdir()
    refuse(path, "not a regular file", caplog)


def test_a_configuration_of_another_version_is_read(path: Path) -> None:
    job = make_job()
    record = job.make_record(0, 1)
    config = {name: value for name, value in record.plan.config.items() if name != "clip_range"} | {"unknown": 1}
    journal = JobJournal(path)
    journal.write([record._replace(plan=record.plan.model_copy(update={"config": config}))])
    read = journal.load(job.job_id)
    assert read is not None
    assert Job.restore(read).config == job.config
    journal.close()


def test_a_disk_that_refuses_fails_no_job_and_is_told_once(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the file's size stands for a disk that is full, and ends as one does."""
    journal = JobJournal(path)
    (n_pages,) = journal._connection.execute("PRAGMA page_count").fetchone()
    journal._connection.execute(f"PRAGMA max_page_count = {n_pages}")
    recorder = JobRecorder(journal)
    jobs = [Job(make_plan(), make_services(recorder)) for _ in range(4)]
    for job in jobs:
        recorder.begin(job)
    for job in reversed(jobs):
        job.start()
        job.finish(JobStatus.COMPLETED)
        assert job.status is JobStatus.COMPLETED
    assert not recorder.has_written(jobs[-1].job_id)
    assert recorder.problem is not None
    assert "full" in recorder.problem
    assert caplog.text.count("cannot be written") == 1
    with journal._lock:
        journal._connection.execute("PRAGMA max_page_count = 100000")
    wait_until(lambda: all(recorder.has_written(job.job_id) for job in jobs))
    assert recorder.problem is None
    in_order = [job.job_id for job in jobs]
    assert [past.job_id for past in recorder.journal.list_jobs()] == in_order
    recorder.close()


def refuse_writes(journal: JobJournal, does_refuse: bool) -> None:
    with journal._lock:
        journal._connection.execute(f"PRAGMA query_only = {int(does_refuse)}")


def test_a_round_without_a_write_does_not_end_a_refusal(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    journal = JobJournal(path)
    recorder = JobRecorder(journal)
    refuse_writes(journal, True)
    recorder.begin(make_job())
    recorder._write([], {}, [])
    assert recorder.problem is not None
    assert "has everything" not in caplog.text
    refuse_writes(journal, False)
    wait_until(lambda: recorder.problem is None)
    assert "has everything" in caplog.text
    recorder.close()


def test_an_end_that_a_disk_refuses_is_not_promised_for_later(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = make_job()
    write(path, job)
    journal = JobJournal(path)
    recorder = JobRecorder(journal)
    refuse_writes(journal, True)
    recorder.interrupt(job.job_id)
    assert f"job {job.job_id} cannot be marked as failed" in caplog.text
    assert "when it can be" not in caplog.text
    recorder.close()


def test_an_ended_job_is_at_no_time_left_out_of_what_is_to_be_written(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = JobRecorder(JobJournal(path))

    class Looking(threading.Condition):
        def __exit__(self, *error: Any) -> None:
            assert recorder._unwritten <= {getattr(order.subject, "job_id", None) for order in recorder._orders}
            super().__exit__(*error)

    monkeypatch.setattr(recorder, "_news", Looking())
    recorder.end(make_job().make_record(0, 1))
    recorder.close()


def test_a_start_on_a_full_disk_knows_earlier_jobs_and_writes_new_ones_later(path: Path) -> None:
    earlier, interrupted, job = make_job(), make_job(), make_job()
    earlier.finish(JobStatus.STOPPED)
    run_for_a_while(interrupted)
    write(path, earlier, interrupted)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        recorder = JobRecorder(*open_journal(path.parent))
        assert recorder.problem is None
        recorder.begin(job)
        assert recorder.problem is not None
        past = [earlier.job_id, interrupted.job_id]
        assert [each.job_id for each in recorder.journal.list_jobs()] == past
        shown = recorder.journal.load(interrupted.job_id)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wait_until(lambda: recorder.problem is None)
    assert [each.job_id for each in recorder.journal.list_jobs()] == [*past, job.job_id]
    assert [each.status for each in recorder.journal.list_jobs()] == ["stopped", "failed", "queued"]
    written = recorder.journal.load(interrupted.job_id)
    assert written is not None
    assert shown is not None
    assert written.state == shown.state
    assert written.history.last_event_id == shown.history.last_event_id > interrupted.history.last_event_id
    recorder.close()


def test_a_job_that_cannot_be_written_costs_no_other(path: Path) -> None:
    recorder = JobRecorder(JobJournal(path))
    absurd, sound = (Job(make_plan(total_timesteps=100), make_services(recorder)) for _ in range(2))
    absurd.state.current_timesteps = 2**70  # SQLite's integers have 64 bits
    for job in (absurd, sound):
        recorder.begin(job)
        job.start()
        job.finish(JobStatus.COMPLETED)
    assert [job.job_id for job in recorder.journal.list_jobs()] == [sound.job_id]
    assert recorder.problem is None
    recorder.close()


def test_a_job_whose_record_cannot_be_made_costs_no_other(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JobJournal(path)
    recorder = JobRecorder(journal)
    broken, sound = (Job(make_plan(), make_services(recorder)) for _ in range(2))
    for job in (broken, sound):
        recorder.begin(job)
        job.start()
    monkeypatch.setattr(broken, "make_record", lambda *seen: 1 / 0)
    broken.warn("changed")
    sound.warn("written")
    wait_until(lambda: (record := journal.load(sound.job_id)) is not None and "written" in record.state.warnings)
    assert broken.job_id in caplog.text
    assert recorder.problem is None
    recorder.close()


def test_what_running_jobs_report_is_written_without_being_asked(path: Path) -> None:
    journal = JobJournal(path)
    recorder = JobRecorder(journal)
    job = Job(make_plan(), make_services(recorder))
    recorder.begin(job)
    run_for_a_while(job)

    def count_rows() -> int:
        record = journal.load(job.job_id)
        assert record is not None
        return sum(len(rows.ids) for rows in record.history.rows)

    wait_until(lambda: count_rows() == 5)
    job.progress.publish_metrics({"rollout/ep_rew_mean": 9.0})
    wait_until(lambda: count_rows() == 6)
    recorder.close()
    with pytest.raises(JournalError):
        journal.load(job.job_id)


def test_old_jobs_are_found_and_forgotten(path: Path) -> None:
    jobs = [make_job() for _ in range(3)]
    for job in jobs[:2]:
        job.start()
        job.finish(JobStatus.COMPLETED)
    journal = JobJournal(path)
    journal.write([job.make_record(0, 1) for job in jobs])
    assert journal.list_old(60.0) == []
    assert journal.list_old(-60.0) == [job.job_id for job in jobs[:2]]
    journal.forget([jobs[0].job_id])
    assert [job.job_id for job in journal.list_jobs()] == [job.job_id for job in jobs[1:]]
    assert journal._connection.execute("SELECT count(DISTINCT number) FROM events").fetchone() == (2,)
    journal.close()
