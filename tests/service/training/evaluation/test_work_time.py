"""Time as the limits of evaluations count it."""

from pathlib import Path

import pytest

from service.training.evaluation.work_time import Stopwatch, TimeBudget, WorkTime


class Machine:
    """A machine whose clocks are moved by hand."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # As no clock begins at 0, nor any two together.
        self._clock, self._processor, self._delay = 7.0, 5.0, 3.0
        self._file = folder / "schedstat"
        monkeypatch.setattr("service.training.evaluation.work_time.time", self)
        monkeypatch.setattr("service.training.evaluation.work_time._SCHEDULER_FILE", self._file)
        self.go_on()

    def monotonic(self) -> float:
        return self._clock

    def thread_time(self) -> float:
        return self._processor

    def go_on(self, working: float = 0.0, waiting: float = 0.0, preempted: float = 0.0) -> None:
        self._clock += working + waiting + preempted
        self._processor, self._delay = self._processor + working, self._delay + preempted
        self._file.write_text(f"{1e9 * self._processor:.0f} {1e9 * self._delay:.0f} 7\n")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_what_others_do_on_the_processor_does_not_count(machine: Machine) -> None:
    begun = WorkTime.now()
    machine.go_on(working=0.5, preempted=100.0)
    assert WorkTime.now().since(begun) == 0.5
    stopwatch = Stopwatch(begun)
    assert stopwatch.is_past(0.5)
    assert not stopwatch.is_past(0.6)


def test_a_fifth_of_the_time_that_an_environment_waits_counts(machine: Machine) -> None:
    machine.go_on(preempted=3.0)  # before; it does not matter
    begun = WorkTime.now()
    machine.go_on(working=1.0, waiting=9.0, preempted=10.0)
    assert WorkTime.now().since(begun) == 2.0
    assert Stopwatch(begun).is_past(2.0)


def test_where_others_work_for_it_the_clock_counts(machine: Machine) -> None:
    begun = WorkTime.now(works_elsewhere=True)
    machine.go_on(waiting=4.0, preempted=1.0)
    assert WorkTime.now(works_elsewhere=True).since(begun) == 5.0
    assert Stopwatch(begun, works_elsewhere=True).is_past(5.0)


@pytest.mark.parametrize(("training_seconds", "seconds"), [(0.0, 2.0), (20.0, 2.0), (50.0, 5.0), (301.0, 30.0)])
def test_a_budget_is_a_share_within_bounds(training_seconds: float, seconds: float) -> None:
    assert TimeBudget(0.1, 2.0, 30.0).compute_seconds(training_seconds) == seconds


def test_a_stopwatch_begins_at_nothing(machine: Machine) -> None:
    assert not Stopwatch(WorkTime.now()).is_past(0.5)


def test_the_system_is_asked_only_when_the_work_may_be_done(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    stopwatch, looks = Stopwatch(WorkTime.now()), 0
    read = machine.thread_time

    def look() -> float:
        nonlocal looks
        looks += 1
        return read()

    monkeypatch.setattr(machine, "thread_time", look)
    machine.go_on(working=0.125, preempted=128.0)
    assert [stopwatch.is_past(0.5) for _ in range(1_000)] == [False] * 1_000
    machine.go_on(working=0.25)
    assert not stopwatch.is_past(0.5)
    assert looks == 1
    machine.go_on(working=0.125)
    assert stopwatch.is_past(0.5)
    assert looks == 2


def test_a_system_that_does_not_tell_what_others_do_counts_as_much_of_the_clock(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.training.evaluation.work_time._SCHEDULER_FILE", tmp_path / "missing")
    begun = WorkTime.now()
    machine.go_on(working=1.0, preempted=9.0)
    assert WorkTime.now().since(begun) == 2.0


def test_nor_what_they_do_while_the_time_is_read(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    read = machine.thread_time

    def be_preempted() -> float:
        machine.go_on(preempted=100.0)
        return read()

    monkeypatch.setattr(machine, "thread_time", be_preempted)
    begun = WorkTime.now()
    machine.go_on(working=0.5)
    assert WorkTime.now().since(begun) == 0.5
