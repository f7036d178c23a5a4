"""A record says how its job ended, though it be written before there was a field for that."""

import json
from datetime import UTC, datetime

import pytest

from service.jobs.records.record import EndedHow, JobState
from service.schemas.jobs import JobStatus


@pytest.mark.parametrize(
    ("error_message", "ended_how"),
    [
        ("interrupted by restart: the server ended while the job was running; POST /training/1/resume", "interrupted"),
        ("the disk is full. The finished policy is in memory: until this server ends, POST", "unsaved"),
        ("ZeroDivisionError: division by zero", None),
        (None, None),
    ],
)
def test_the_text_tells_where_no_field_does(error_message: str | None, ended_how: EndedHow | None) -> None:
    state = JobState(
        status=JobStatus.FAILED, created_at=datetime.now(UTC), warnings=[], error_message=error_message, ended_how=None
    )
    fields = json.loads(state.model_dump_json())
    del fields["ended_how"]
    assert JobState.model_validate_json(json.dumps(fields)).ended_how == ended_how


def test_the_field_counts_and_not_the_text() -> None:
    state = JobState(
        status=JobStatus.FAILED,
        created_at=datetime.now(UTC),
        warnings=[],
        error_message="interrupted by restart",
        ended_how="unsaved",
    )
    assert JobState.model_validate_json(state.model_dump_json()).ended_how == "unsaved"
