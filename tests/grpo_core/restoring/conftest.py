"""The clock of trials."""

import time
from types import SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def _own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trials measure the time that they themselves compute: on a busy machine they would try out less."""
    monkeypatch.setattr("grpo_core.restoring.proving.proof.time", SimpleNamespace(perf_counter=time.thread_time))
