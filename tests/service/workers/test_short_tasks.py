"""Short tasks: a few at a time, none for too long, and nothing left behind."""

import errno
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from multiprocessing import Pipe
from typing import Any

import pytest

from service.context import HAS_LEFT
from service.errors import (
    ConflictError,
    DrainingError,
    InvalidRequestError,
    NotReadyError,
    QueueFullError,
    ServiceError,
    TooLargeError,
)
from service.logs import LogStyle
from service.workers.executor import Executor
from service.workers.processes import ProcessExecutor
from service.workers.short_tasks import ShortTasks
from service.workers.task import Progress, Task
from service.workers.threads import ThreadExecutor
from tests.support import PATIENCE_SECONDS, Recorder, list_workers, wait_until

ENV_NAME = "CartPole-v1"


def answer(progress: Progress) -> bytes:
    return b"content"


def refuse(progress: Progress) -> bytes:
    raise ConflictError("not with this file.")


def fail(progress: Progress) -> bytes:
    raise OSError(2, "No such file", "/home/someone/map.txt")


def leave(progress: Progress) -> bytes:
    sys.exit(3)


def hang(progress: Progress) -> bytes:
    time.sleep(1000)
    return b""


def babble(sent: bytes, progress: Progress) -> bytes:
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                os.write(fd, sent)
    return hang(progress)


def frame(message: bytes) -> bytes:
    """Put a message's length before it, as ``multiprocessing`` does."""
    return struct.pack("!i", len(message)) + message


def make_short_tasks(executor: Executor, limit_seconds: float = PATIENCE_SECONDS, **bounds: int) -> ShortTasks:
    return ShortTasks(executor, limit_seconds, threading.Event(), **bounds)


def apply(function: Callable[[Progress], bytes], progress: Progress) -> bytes:
    return function(progress)


def make_task(function: Callable[[Progress], bytes]) -> Task:
    return Task(f"{__name__}:apply", (function,), ENV_NAME)


class Waiting:
    """A task that runs until it is told to stop or the test lets it end."""

    def __init__(self, listens: bool) -> None:
        self.let_go = threading.Event()
        self.n_begun = 0
        self._listens = listens

    def __call__(self, progress: Progress) -> bytes:
        self.n_begun += 1
        if self._listens:
            progress.attach_stop(self.let_go.set)
        self.let_go.wait()
        return b"done"


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    task = Waiting(listens=False)
    yield task
    task.let_go.set()


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessExecutor]:
    executor = ProcessExecutor(LogStyle())
    yield executor
    executor.close()


def call(callers: ThreadPoolExecutor, short_tasks: ShortTasks, function: Callable[..., bytes]) -> Future[bytes]:
    return callers.submit(short_tasks.run, make_task(function), "ask for less.")


def test_a_task_returns_its_content() -> None:
    assert make_short_tasks(ThreadExecutor()).run(make_task(answer), "") == b"content"


def test_a_refusal_keeps_its_status_in_a_thread_and_in_a_process(processes: ProcessExecutor) -> None:
    for executor in (ThreadExecutor(), processes):
        with pytest.raises(ServiceError, match=r"not with this file\.") as refusal:
            make_short_tasks(executor).run(make_task(refuse), "")
        assert refusal.value.status_code == 409


def test_an_error_in_foreign_code_names_the_environment_but_no_path(processes: ProcessExecutor) -> None:
    for executor in (ThreadExecutor(), processes):
        for function, reason in ((fail, "No such file"), (leave, "SystemExit")):
            with pytest.raises(InvalidRequestError, match=reason) as error:
                make_short_tasks(executor).run(make_task(function), "")
            assert ENV_NAME in error.value.detail
            assert "/home" not in error.value.detail


def test_a_process_that_takes_too_long_is_killed_and_the_error_names_a_remedy(processes: ProcessExecutor) -> None:
    short_tasks = make_short_tasks(processes)
    short_tasks.run(make_task(answer), "")  # afterwards workers start at once
    with pytest.raises(TooLargeError, match=r"0\.5 s.*GRPO_TASK_SECONDS.*ask for less"):
        make_short_tasks(processes, 0.5).run(make_task(hang), "ask for less.")
    wait_until(lambda: list_workers() == [])


def test_a_thread_that_takes_too_long_is_told_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    short_tasks, task = make_short_tasks(ThreadExecutor(), 0.2, max_running=1), Waiting(listens=True)
    with pytest.raises(TooLargeError):
        short_tasks.run(make_task(task), "")
    assert task.let_go.wait(PATIENCE_SECONDS)
    monkeypatch.setattr(short_tasks, "_limit_seconds", PATIENCE_SECONDS)
    assert short_tasks.run(make_task(answer), "") == b"content"


def test_a_thread_that_does_not_stop_is_abandoned_and_frees_its_place(
    waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ThreadExecutor()
    short_tasks = make_short_tasks(executor, 0.2, max_running=1)
    with pytest.raises(TooLargeError):
        short_tasks.run(make_task(waiting), "")
    monkeypatch.setattr(short_tasks, "_limit_seconds", PATIENCE_SECONDS)
    assert short_tasks.run(make_task(answer), "") == b"content"
    assert executor.is_busy
    waiting.let_go.set()
    wait_until(lambda: not executor.is_busy)


@pytest.mark.parametrize(
    "sent",
    [
        b"hello world\n",
        frame(b"no message"),
        frame(b"[" * 10**5),
        frame(b'["progress", 5]'),
        frame(b'["result", null]') + b"hello world\n",
    ],
    ids=["text", "no JSON", "too deep", "another value", "text for content"],
)
def test_a_process_that_writes_what_is_not_a_message_is_killed(processes: ProcessExecutor, sent: bytes) -> None:
    short_tasks = make_short_tasks(processes)
    short_tasks.run(make_task(answer), "")  # afterwards the forkserver is there
    n_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(
        InvalidRequestError,
        match=rf"{ENV_NAME}.*(not a worker's message|'progress': Input should be a valid list, not 5)",
    ):
        short_tasks.run(make_task(partial(babble, sent)), "")
    assert len(os.listdir("/proc/self/fd")) <= n_open
    wait_until(lambda: list_workers() == [])


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "the process that starts workers has ended"),
    ],
)
def test_a_machine_that_starts_no_process_is_not_ready_and_the_answer_says_why(
    processes: ProcessExecutor, monkeypatch: pytest.MonkeyPatch, refusal: OSError, reason: str
) -> None:
    def refuse_always() -> None:
        raise refusal

    short_tasks = make_short_tasks(processes)
    with monkeypatch.context() as patched:
        patched.setattr("service.workers.processes.Pipe", refuse_always)
        with pytest.raises(NotReadyError, match=rf"no worker process could be started \(.*{reason}\)") as error:
            short_tasks.run(make_task(answer), "")
    assert ENV_NAME not in error.value.detail
    assert not processes.is_busy
    assert short_tasks.run(make_task(answer), "") == b"content"


def test_a_process_that_is_refused_once_is_started_all_the_same(
    processes: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [OSError(errno.EMFILE, "Too many open files")]

    def refuse_once() -> Any:
        if refusals:
            raise refusals.pop()
        return Pipe()

    monkeypatch.setattr("service.workers.processes.Pipe", refuse_once)
    assert make_short_tasks(processes).run(make_task(answer), "") == b"content"


def test_a_process_that_was_killed_is_not_looked_at_to_be_killed_again(
    processes: ProcessExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = processes.start(make_task(hang), Recorder())
    run.kill()
    # By now, the numbers of its files may be those of others.
    monkeypatch.setattr("service.workers.processes.wait", lambda *_: pytest.fail("looked"))
    run.send_kill()


def test_only_processes_refuse_what_cannot_be_pickled(processes: ProcessExecutor, waiting: Waiting) -> None:
    with pytest.raises(InvalidRequestError, match=r"cannot be sent to a worker process \(cannot pickle"):
        make_short_tasks(processes).run(make_task(waiting), "")
    assert waiting.n_begun == 0


def test_callers_are_limited_and_all_accepted_ones_are_answered(callers: ThreadPoolExecutor, waiting: Waiting) -> None:
    short_tasks = make_short_tasks(ThreadExecutor(), max_running=2, max_waiting=1)
    first = [call(callers, short_tasks, waiting) for _ in range(2)]
    wait_until(lambda: waiting.n_begun == 2)
    third = call(callers, short_tasks, waiting)
    wait_until(lambda: len(short_tasks._callers) == 3)
    assert is_full(short_tasks)
    assert waiting.n_begun == 2
    waiting.let_go.set()
    assert [future.result(PATIENCE_SECONDS) for future in (*first, third)] == [b"done"] * 3
    assert not is_full(short_tasks)


def test_a_caller_whose_client_leaves_makes_room_in_the_line(callers: ThreadPoolExecutor, waiting: Waiting) -> None:
    short_tasks, has_left = make_short_tasks(ThreadExecutor(), max_running=1, max_waiting=1), threading.Event()
    first = call(callers, short_tasks, waiting)
    wait_until(lambda: waiting.n_begun == 1)
    context = copy_context()
    context.run(HAS_LEFT.set, has_left.is_set)
    second = callers.submit(context.run, short_tasks.run, make_task(waiting), "")
    wait_until(lambda: len(short_tasks._callers) == 2)
    has_left.set()
    with pytest.raises(QueueFullError, match="has left"):
        second.result(PATIENCE_SECONDS)
    assert len(short_tasks._callers) == 1
    waiting.let_go.set()
    assert first.result(PATIENCE_SECONDS) == b"done"
    assert waiting.n_begun == 1


def test_one_that_runs_without_its_client_makes_room_for_who_waits(
    callers: ThreadPoolExecutor, waiting: Waiting
) -> None:
    short_tasks, has_left = make_short_tasks(ThreadExecutor(), max_running=1, max_waiting=1), threading.Event()
    context = copy_context()
    context.run(HAS_LEFT.set, has_left.is_set)
    left = callers.submit(context.run, short_tasks.run, make_task(waiting), "")
    wait_until(lambda: waiting.n_begun == 1)
    has_left.set()
    assert short_tasks.run(make_task(answer), "") == b"content"
    with pytest.raises(QueueFullError, match="has left, and others wait"):
        left.result(PATIENCE_SECONDS)


def test_only_one_of_two_makes_room_for_one_that_waits(
    callers: ThreadPoolExecutor, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_ended = threading.Event()
    monkeypatch.setattr("service.workers.threads._ThreadRun.kill", lambda run: has_ended.wait())
    short_tasks, has_left = make_short_tasks(ThreadExecutor(), max_running=2, max_waiting=1), threading.Event()
    context = copy_context()
    context.run(HAS_LEFT.set, has_left.is_set)
    left = [callers.submit(context.copy().run, short_tasks.run, make_task(waiting), "") for _ in range(2)]
    wait_until(lambda: waiting.n_begun == 2)
    has_left.set()
    try:
        third = call(callers, short_tasks, waiting)
        wait_until(lambda: waiting.n_begun == 3)  # before the one that makes room has ended
    finally:
        has_ended.set()
        waiting.let_go.set()
    assert third.result(PATIENCE_SECONDS) == b"done"
    assert [type(future.exception(PATIENCE_SECONDS)) for future in left].count(QueueFullError) == 1


def is_full(short_tasks: ShortTasks) -> bool:
    try:
        short_tasks.run(make_task(answer), "")
    except QueueFullError:
        return True
    return False


def test_running_and_waiting_callers_are_refused_when_the_server_shuts_down(
    callers: ThreadPoolExecutor, waiting: Waiting
) -> None:
    closing = threading.Event()
    short_tasks = ShortTasks(ThreadExecutor(), PATIENCE_SECONDS, closing, max_running=1)
    futures = [call(callers, short_tasks, waiting) for _ in range(3)]
    wait_until(lambda: waiting.n_begun == 1)
    closing.set()
    for future in futures:
        with pytest.raises(DrainingError):
            future.result(PATIENCE_SECONDS)
    with pytest.raises(DrainingError):
        short_tasks.run(make_task(answer), "")
    assert waiting.n_begun == 1
