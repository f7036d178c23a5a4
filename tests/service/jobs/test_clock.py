"""A job's clock counts running time only."""

import pytest

from service.jobs.clock import JobClock


def test_it_goes_on_from_what_was_measured_before() -> None:
    clock = JobClock(100.0)
    assert clock.elapsed_seconds == 100.0
    clock.start()
    assert clock.elapsed_seconds >= 100.0


def test_it_stands_still_once_the_job_has_ended_perhaps_some_time_ago() -> None:
    clock = JobClock(100.0)
    clock.start()
    clock.end(age_seconds=30.0)
    assert clock.elapsed_seconds == clock.elapsed_seconds == pytest.approx(70.0, abs=10.0)


def test_an_end_before_the_start_takes_no_time() -> None:
    clock = JobClock()
    clock.start()
    clock.end(age_seconds=30.0)
    assert clock.elapsed_seconds == 0.0


def test_the_time_between_two_runs_is_not_counted() -> None:
    clock = JobClock(100.0)
    clock.start()
    clock.end(age_seconds=30.0)
    clock.reset()
    before = clock.elapsed_seconds
    assert before == clock.elapsed_seconds == pytest.approx(70.0, abs=10.0)
    clock.start()
    clock.end()
    assert clock.elapsed_seconds == pytest.approx(before, abs=10.0)


def test_a_start_and_a_step_are_signs_of_life() -> None:
    clock = JobClock()
    clock._last_active_seconds -= 1000.0
    assert clock.inactive_seconds >= 1000.0
    clock.wake()
    assert clock.inactive_seconds < 1000.0
    clock._last_active_seconds -= 1000.0
    clock.start()
    assert clock.inactive_seconds < 1000.0
