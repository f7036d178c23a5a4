"""A run starts its task in a slot, and leaves none behind that it does not use."""

from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from service.logs import LogStyle
from service.training.order import TrainingOrder
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_run import RayRun
from service.workers.cluster.slot_pool import Needs, SlotHandle, SlotPool
from service.workers.task import TaskDrainedError
from tests.support import Recorder, make_plan

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]


class Node:
    """A slot as Ray shows it, and what of the module ``ray`` starts a task there.

    :param while_it_starts: Called once, before the worker is ready.
    :param error: What the start ends with; None if it succeeds.
    """

    exceptions = SimpleNamespace(RayError=ConnectionError, RayTaskError=ConnectionError)

    def __init__(self, while_it_starts: Callable[[], None] = lambda: None, error: Exception | None = None) -> None:
        self._while_it_starts, self._error = while_it_starts, error
        self._actor_id = SimpleNamespace(hex=lambda: "actor")
        self._has_waited = False
        #: What the slot was asked for, and what with.
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.was_killed = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> str:
            self.calls.append((name, arguments))
            return name

        return SimpleNamespace(remote=call)

    def wait(self, asked: list[str], timeout: float) -> tuple[list[str], list[str]]:
        if asked == ["begin"] and not self._has_waited:
            self._has_waited = True
            self._while_it_starts()
            return [], asked
        return asked, []

    def get(self, asked: str) -> None:
        if asked == "begin" and self._error is not None:
            raise self._error

    def kill(self, actor: "Node") -> None:
        self.was_killed = True


def join(node: Node, monkeypatch: pytest.MonkeyPatch) -> SlotPool:
    """Make a pool that has a slot there."""
    pool = SlotPool(LogStyle(), RayOptions())
    pool._idle.append((SlotHandle(node, Needs(0.0, 0.0), "id", "node"), 0.0))
    monkeypatch.setattr(pool._connection, "open", lambda check: node)
    return pool


def test_a_stop_while_a_worker_starts_is_sent_when_it_has_started_if_something_was_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = Node(while_it_starts=lambda: run.stop())
    pool = join(node, monkeypatch)
    run = RayRun(pool, Recorder(), None)
    run.begin(Needs(0.0, 0.0), 60.0, b"", has_learned=True)
    assert [name for name, _ in node.calls] == ["release", "begin", "stop", "poll"]
    assert node.calls[2] == ("stop", (pool.owner, 1))


def test_only_a_job_that_goes_on_from_a_checkpoint_has_learned_something_before_it_starts() -> None:
    order = TrainingOrder(make_plan(env_name="CartPole-v1", total_timesteps=64).config, None)
    assert [order._replace(checkpoint=content).make_task().goes_on for content in (None, b"one")] == [False, True]


def test_a_stop_while_a_worker_starts_ends_that_if_nothing_was_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(while_it_starts=lambda: run.stop())
    pool = join(node, monkeypatch)
    run = RayRun(pool, Recorder(), None)
    with pytest.raises(TaskDrainedError, match="the job was stopped before it was started"):
        run.begin(Needs(0.0, 0.0), 60.0, b"", has_learned=False)
    assert node.was_killed
    assert pool.n_running == 0


def test_a_slot_is_given_up_whatever_its_start_ends_with(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(error=ZeroDivisionError("a fault"))
    pool = join(node, monkeypatch)
    with pytest.raises(ZeroDivisionError):
        RayRun(pool, Recorder(), None).begin(Needs(0.0, 0.0), 60.0, b"", has_learned=True)
    assert node.was_killed
    assert pool.n_running == 0
