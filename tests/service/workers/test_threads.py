import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support import let_requests_go_first


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
