"""Tasks in threads give way to requests, and nobody hears of those that are abandoned."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from service.workers.task import Progress, Task
from service.workers.threads import ThreadExecutor
from tests.support import PATIENCE_SECONDS, let_requests_go_first


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere, threads share the niceness of their process")
@pytest.mark.parametrize(("before", "after"), [(0, 10), (12, 12)])
def test_a_task_gives_way_to_requests_and_never_takes_back_what_the_server_gave_up(before: int, after: int) -> None:
    def find_niceness() -> int:
        thread_id = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread_id, max(before, os.getpriority(os.PRIO_PROCESS, thread_id)))
        let_requests_go_first()
        return os.getpriority(os.PRIO_PROCESS, thread_id)

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(find_niceness).result() == max(after, os.getpriority(os.PRIO_PROCESS, os.getpid()))


def report_when(may_report: threading.Event, progress: Progress) -> bytes:
    progress.advance(1)
    assert may_report.wait(PATIENCE_SECONDS)
    progress.advance(2)
    return b""


def test_nobody_hears_of_an_abandoned_task() -> None:
    heard: list[int] = []
    may_report, has_begun = threading.Event(), threading.Event()

    class Listener:
        def advance(self, current_timesteps: int) -> None:
            heard.append(current_timesteps)
            has_begun.set()

    listener: Any = Listener()
    run = ThreadExecutor().start(Task(f"{__name__}:report_when", (may_report,), None), listener)
    assert has_begun.wait(PATIENCE_SECONDS)
    run.kill()
    may_report.set()
    assert run.wait(PATIENCE_SECONDS)
    assert heard == [1]


def stop_when(may_begin: threading.Event, progress: Progress) -> bytes:
    assert may_begin.wait(PATIENCE_SECONDS)
    n_stops: list[None] = []
    progress.attach_stop(lambda: n_stops.append(None))
    return bytes(len(n_stops))


def test_one_that_is_abandoned_before_it_can_be_stopped_is_stopped_then() -> None:
    may_begin, nobody = threading.Event(), object()
    run = ThreadExecutor().start(Task(f"{__name__}:stop_when", (may_begin,), None), cast(Any, nobody))
    run.kill()
    may_begin.set()
    assert run.wait(PATIENCE_SECONDS)
    assert len(run.get_content()) == 2
