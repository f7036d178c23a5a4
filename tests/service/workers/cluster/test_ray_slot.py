"""A slot keeps what a task reports until a server has written it down, and follows one server at a time."""

import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec

import pytest

from service.logs import LogStyle
from service.workers.cluster import ray_slot
from service.workers.cluster.ray_slot import Described, Report, Slot
from service.workers.processes import pack
from service.workers.task import TaskFailedError
from tests.support import make_training_task, wait_until

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
REQUEST = {"env_name": "CartPole-v1", "n_steps": 64, "checkpoint_every": 128, "n_eval_episodes": 0}


@pytest.fixture
def slot(ray_cluster: None) -> Iterator[Slot]:
    """A slot in this process, not in an actor, with a short job that has ended."""
    slot = Slot("one", None)
    described = slot.prepare([], None, {"numpy": "any"}, tuple(LogStyle()))
    assert (described.lack or "").startswith("it has numpy")
    assert slot.prepare([], None, {}, tuple(LogStyle())).lack is None
    slot.begin("a job", None, 3, pack(make_training_task(**REQUEST, total_timesteps=512)))
    wait_until(lambda: poll(slot)[-1].kind == "result")
    yield slot
    slot.kill(slot._owner)


def poll(slot: Slot, owner: str = "one", n_taken: int = 0, n_written: int = 0) -> list[Report]:
    entries = slot.poll(owner, n_taken, n_written, 60.0)
    assert entries is not None
    return [entry._replace(age_seconds=0.0) for entry in entries]


def test_reports_are_kept_until_they_are_written_down(slot: Slot) -> None:
    entries = poll(slot)
    numbers = [entry.number for entry in entries]
    assert numbers == sorted(set(numbers))
    assert [entry.kind for entry in entries].count("checkpoint") == 1, "of these only the last one counts"
    assert len(entries[-1].content) > 1000
    # Taken is not written: a server that is killed now has another one ask again.
    assert poll(slot, n_taken=numbers[0]) == entries[1:]
    assert poll(slot) == entries
    assert poll(slot, n_taken=numbers[0], n_written=numbers[0]) == entries[1:]
    assert poll(slot) == entries[1:]
    assert not slot.release("other")
    assert poll(slot) == entries[1:]
    assert slot.release("one")
    assert slot.poll("one", 0, 0, 0.0) == []
    assert slot.describe().job_id is None


def test_a_report_says_how_old_it_is(slot: Slot) -> None:
    entries = slot.poll("one", 0, 0, 0.0)
    assert entries is not None
    ages = [entry.age_seconds for entry in entries]
    assert ages == sorted(ages, reverse=True)
    assert 0.0 <= ages[-1] <= ages[0] < 900.0


def test_a_slot_follows_one_server_at_a_time(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    described = slot.describe()
    assert isinstance(described, Described)
    assert (described.job_id, described.attempt) == ("a job", 3)
    assert slot.attach("other", "a job", 3) is None, "its server has asked just now"
    assert slot.attach("one", "a job", 2) is None, "that was another attempt"
    slot.stop("one", 1)
    slot.stop("other", 2)
    ends: list[int] = []
    slot.end_if_left("other", ends.append)
    assert ends == []
    monkeypatch.setattr(ray_slot, "OWNER_SECONDS", -1.0)
    slot.end_if_left("one", ends.append)
    assert ends == [], "its own server uses it"
    slot.end_if_left("other", ends.append)
    assert ends == [0]
    assert slot.attach("other", "another job", 3) is None
    assert slot.attach("other", "a job", 3) == 1
    assert slot.poll("one", 0, 0, 0.0) is None
    assert slot.kill("one") is None
    assert not slot.release("one")
    assert poll(slot, "other")[-1].kind == "result"


def is_lease_over(slot: Slot, silent_seconds: float) -> bool:
    """Say whether a slot ends that has heard of no server for so long, with a lease of an hour."""
    slot._heard = time.monotonic() - silent_seconds
    return slot._is_lease_over(3600.0)


def test_whatever_a_slot_does_it_ends_with_its_lease(slot: Slot) -> None:
    with_end_nobody_took = [is_lease_over(slot, seconds) for seconds in (3590.0, 3601.0)]
    slot.release("one")
    without_task = [is_lease_over(slot, seconds) for seconds in (50.0, 61.0)]
    slot.begin("a job", None, 0, pack(make_training_task(**REQUEST, total_timesteps=10_000_000)))
    assert not slot._is_lease_over(60.0), "its worker has just started"
    poll(slot)
    training = [is_lease_over(slot, seconds) for seconds in (3590.0, 3601.0)]
    assert (with_end_nobody_took, without_task, training) == ([False, True],) * 3
    # One that waited for room, and has found it after its server was killed.
    assert [is_lease_over(Slot("one", None), seconds) for seconds in (50.0, 61.0)] == [False, True]


def test_imports_of_a_worker_do_not_count_against_the_lease(slot: Slot, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(packed: bytes, receive: object) -> None:
        slot._heard -= 250.0  # as if they took that long
        assert not slot._is_lease_over(60.0)
        raise TaskFailedError("it did not start.")

    slot.release("one")
    with monkeypatch.context() as patched:
        patched.setattr(slot._executor, "start_packed", start)
        slot.begin("a job", None, 0, b"")
    assert poll(slot)[-1].kind == "lost"
    assert [is_lease_over(slot, seconds) for seconds in (3590.0, 3601.0)] == [False, True]


def test_a_slot_ends_when_no_server_has_asked_for_it_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_slot, "_WATCH_SECONDS", 0.01)
    ends: list[int] = []
    slot = Slot("one", None)
    ending = threading.Thread(target=slot._end_without_server, args=(0.5, ends.append), daemon=True)
    with monkeypatch.context() as imports:

        def fail(*arguments: object) -> None:
            ending.start()
            ending.join(1.0)
            assert ends == [], "it prepares"
            raise ZeroDivisionError

        imports.setattr(slot, "_find_lack", fail)
        with pytest.raises(ZeroDivisionError):
            slot.prepare([], None, {}, [])
    ending.join(60.0)
    assert ends == [0]
