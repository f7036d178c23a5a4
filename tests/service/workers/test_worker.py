"""What a worker reports to the server."""

import json
import os
import threading
from contextlib import suppress
from multiprocessing import Pipe
from types import SimpleNamespace
from typing import Any

import pytest

from service.jobs.job import Job
from service.workers.messages import CLOSED_STATUS, BrokenMessageError, deliver, read_message
from service.workers.worker import Reporter, _end_all
from tests.support import make_evaluation, make_plan


def test_nothing_is_said_of_steps_before_any_are_known() -> None:
    job = Job(make_plan(total_timesteps=100))
    job.start()
    job.progress.advance(64)  # of the checkpoint that the training goes on from
    here, there = Pipe()
    with here, there:
        reporter = Reporter(there)
        reporter.publish_warning("it went on with new episodes")
        reporter.publish_metrics({"train/loss": 0.5})
        reporter.publish_warning("as the last one")
        while here.poll():
            kind, value = json.loads(here.recv_bytes())
            deliver(job.progress, kind, value, b"")
    assert (job.describe().current_timesteps, job.state.repeated_timesteps) == (64, 0)
    assert job.describe().warnings == ["it went on with new episodes", "as the last one"]
    assert job.describe().metrics == {"train/loss": 0.5}


def test_a_child_that_an_environment_has_forked_reports_nothing_and_ends() -> None:
    here, there = Pipe()
    with here, there:
        reporter = Reporter(there)
        child = os.fork()
        if child == 0:
            try:
                reporter.publish_warning("it is no worker")
            finally:
                os._exit(1)
        assert os.waitpid(child, 0) == (child, 0)
        assert not here.poll()


def test_a_worker_whose_environment_has_closed_the_connection_says_so_when_it_is_stopped() -> None:
    here, there = Pipe()
    with here, there:
        child = os.fork()
        if child == 0:
            try:
                os.close(there.fileno())
                Reporter(there).listen()
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == CLOSED_STATUS


def test_a_value_that_breaks_a_rule_is_no_garbage() -> None:
    sent = json.dumps(["evaluation", {**make_evaluation(0).model_dump(), "std_reward": float("inf")}]).encode()
    with pytest.raises(BrokenMessageError, match="'evaluation' std_reward: Input should be a finite number, not inf"):
        read_message(sent)


@pytest.mark.parametrize(
    "sent",
    [
        b"5",
        b"[]",
        b'["unknown", 5]',
        b'[["progress"], 5]',
        b'["progress", 5]',
        b'["progress", [[1e999, {}]]]',
        b'["progress", [[64, {"train/loss": "a"}]]]',
        b'["evaluation", {"a": 1}]',
        b'["final_evaluation", {"a": 1}]',
        b'["checkpoint", 5]',
        b'["warning", {}]',
        b'["ended_by", "chance"]',
        b'["failure", null]',
        b'["refusal", [400]]',
        b'["lost", [1]]',
    ],
)
def test_what_an_environment_writes_to_the_connection_is_not_taken_for_a_message(sent: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_message(sent)


def test_a_second_thread_that_ends_a_worker_does_not_end_it_before_its_group_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened, group, second_is_there, lock = [], [1], threading.Event(), threading.Lock()

    def acquire() -> None:
        if threading.current_thread() is second:
            second_is_there.set()
        lock.acquire()

    def leave_the_group(*arguments: int) -> None:
        group[0] = 0
        second.start()
        second_is_there.wait()

    def end(*arguments: int) -> None:
        happened.append("end")
        second_is_there.set()
        raise SystemExit

    def end_in_thread() -> None:
        with suppress(SystemExit):
            _end_all(CLOSED_STATUS)

    fake: dict[str, Any] = {"getpid": lambda: 1, "getpgrp": lambda: group[0], "getppid": lambda: 0}
    fake |= {"getpgid": lambda pid: 0, "setpgid": leave_the_group, "_exit": end}
    fake["killpg"] = lambda *arguments: happened.append("kill the group")
    monkeypatch.setattr("service.workers.worker.os", SimpleNamespace(**fake))
    monkeypatch.setattr("service.workers.worker._ENDING", SimpleNamespace(acquire=acquire), raising=False)
    second = threading.Thread(target=end_in_thread, daemon=True)
    end_in_thread()
    assert happened[0] == "kill the group"
    lock.release()
    second.join()
