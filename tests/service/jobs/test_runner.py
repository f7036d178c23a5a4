"""The runner tells a worker that hangs from one that gets no processor."""

import pytest

from service.jobs.runner import _StallWatch


def test_the_time_in_which_others_had_the_processor_is_not_idle() -> None:
    watch = _StallWatch()
    assert watch.measure_idle(30.0, delay_seconds=28.0) == pytest.approx(2.0)
    assert watch.measure_idle(0.1, delay_seconds=29.0) == pytest.approx(0.1)  # it has moved
    assert watch.measure_idle(10.0, delay_seconds=29.0) == pytest.approx(10.0)  # it hangs
    assert watch.measure_idle(20.0, delay_seconds=34.0) == pytest.approx(15.0)


def test_a_first_look_counts_the_delays_since_the_start() -> None:
    assert _StallWatch().measure_idle(10.0, delay_seconds=9.0) == pytest.approx(1.0)
