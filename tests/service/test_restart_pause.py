"""Pauses before restarts."""

import pytest

from service.restart_pause import RestartPause


@pytest.mark.parametrize(
    ("is_first_at_once", "expected"),
    [(False, [1, 2, 4, 8, 16, 32, 60, 60]), (True, [0, 1, 2, 4, 8, 16, 32, 60, 60])],
)
def test_pauses_double_up_to_a_minute_and_begin_anew_after_one(is_first_at_once: bool, expected: list[float]) -> None:
    pause = RestartPause(is_first_at_once)
    assert [pause.choose(ran_seconds=60.0) for _ in expected] == expected
    assert pause.choose(ran_seconds=60.1) == expected[0]
    assert pause.choose(ran_seconds=0.0) == expected[1]
