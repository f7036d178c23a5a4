"""A cluster that cannot be reached is nobody's mistake: whoever needs it is asked to come back."""

import threading
import time
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from service.errors import ClusterUnavailableError
from service.logs import LogStyle
from service.workers.cluster import ray_executor
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_executor import RayExecutor
from service.workers.cluster.ray_slot import Described
from service.workers.receipts import Receipts
from service.workers.short_tasks import ShortTasks
from service.workers.task import ClusterLostError, Task, TaskDrainedError
from tests.support import Recorder

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
# Where nothing listens.
NOWHERE = "127.0.0.1:9"
# The errors of Ray that are told apart.
RAY_ERROR = type("RayError", (Exception,), {})
EXCEPTIONS = SimpleNamespace(
    RayError=RAY_ERROR,
    ActorUnavailableError=type("ActorUnavailableError", (RAY_ERROR,), {}),
    GetTimeoutError=type("GetTimeoutError", (RAY_ERROR, TimeoutError), {}),
)
TASK = Task("service.training.train:train_in_task", (), "CartPole-v1")


def test_whoever_needs_a_cluster_that_is_away_is_asked_to_come_back() -> None:
    short_tasks = ShortTasks(RayExecutor(LogStyle(), RayOptions(NOWHERE)), 60.0, threading.Event())
    with pytest.raises(ClusterUnavailableError, match=r"the Ray cluster 127\.0\.0\.1:9 cannot be used") as refusal:
        short_tasks.run(TASK, "")
    assert refusal.value.status_code == 503
    assert int(refusal.value.headers["Retry-After"]) > 0


def test_jobs_of_a_cluster_that_is_away_are_looked_for_until_the_limit_or_the_end() -> None:
    recorder = Recorder()
    with pytest.raises(ClusterLostError):
        RayExecutor(LogStyle(), RayOptions(NOWHERE, wait_seconds=0.0)).adopt("a job", recorder, Receipts())
    executor = RayExecutor(LogStyle(), RayOptions(NOWHERE))
    executor.drain()
    with pytest.raises(TaskDrainedError, match="the server ended"):
        executor.adopt("a job", recorder, Receipts())
    # A stop does not end the search: the job may go on somewhere, and is stopped once it is found.
    stopped = Recorder()
    stopped.attach_stop = lambda stop: stop()  # type: ignore[method-assign]
    ending = RayExecutor(LogStyle(), RayOptions(NOWHERE))

    def end_server(warning: str) -> None:
        assert "until the cluster answers" in warning
        ending.drain()

    stopped.publish_warning = end_server  # type: ignore[method-assign]
    with pytest.raises(TaskDrainedError, match="the server ended"):
        ending.adopt("a job", stopped, Receipts())


class ForeignCluster:
    """What is asked of the module ``ray`` by a server that looks for its slots.

    :param answers: What each slot answers, call after call; a ``TimeoutError`` stands for none in time.
    """

    exceptions = EXCEPTIONS

    def __init__(self, answers: dict[str, list[Any]]) -> None:
        self._answers = answers
        self.util = SimpleNamespace(list_named_actors=self._list_named_actors)
        #: Of all slots.
        self.state = "ALIVE"
        self._private = SimpleNamespace(state=SimpleNamespace(actors=lambda actor_id: {"State": self.state}))
        self.killed: list[str] = []

    def _list_named_actors(self, all_namespaces: bool) -> list[dict[str, str]]:
        return [{"namespace": "grpo", "name": name} for name in self._answers]

    def get_actor(self, name: str, namespace: str) -> Any:
        call = SimpleNamespace(remote=lambda *arguments: (name, len(self._answers[name])))
        actor_id = SimpleNamespace(hex=lambda: name)
        return SimpleNamespace(name=name, describe=call, attach=call, _actor_id=actor_id)

    def kill(self, actor: Any) -> None:
        self.killed.append(actor.name)

    def wait(self, asked: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        silent = [each for each in asked if isinstance(self._answers[each[0]][0], TimeoutError)]
        for name, _ in silent:
            self._answers[name].pop(0)
        return [each for each in asked if each not in silent], silent

    def get(self, asked: tuple[str, int], timeout: float = 0.0) -> Any:
        answers = self._answers[asked[0]]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def join(answers: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> RayExecutor:
    """Make an executor on a cluster with slots that answer so."""
    executor, ray = RayExecutor(LogStyle(), RayOptions(NOWHERE, server_id="me")), ForeignCluster(answers)
    executor._ray = ray
    monkeypatch.setattr(executor._connection, "open", lambda check: ray)
    for pause in ("_RETRY_SECONDS", "_CLAIM_PAUSE_SECONDS"):
        monkeypatch.setattr(ray_executor, pause, 0.0)
    return executor


def test_a_slot_that_does_not_answer_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (Described(None, "id", "node", job_id, 0) for job_id in ("here", "there"))
    executor = join({"me-1": [here], "me-2": [TimeoutError(), EXCEPTIONS.ActorUnavailableError(), there]}, monkeypatch)
    warnings: list[str] = []
    deadline = time.monotonic() + 600.0
    found = executor._find_abandoned("here", 0, deadline, warnings.append)
    assert (found is not None and found[0].name, warnings) == ("me-1", []), "it need not wait for the other one"
    found = executor._find_abandoned("there", 0, deadline, warnings.append)
    assert found is not None
    assert found[0].name == "me-2"
    assert len(warnings) == 1
    assert "1 of the server's 2 processes on the Ray cluster do not answer" in warnings[0]
    assert executor._find_abandoned("gone", 0, deadline, warnings.append) is None
    silent = join({"me-1": [TimeoutError()] * 2}, monkeypatch)
    with pytest.raises(ClusterLostError, match="do not answer"):
        silent._find_abandoned("there", 0, 0.0, warnings.append)
    assert join({"me-1": [EXCEPTIONS.RayError()]}, monkeypatch)._find_abandoned("x", 0, 0.0, warnings.append) is None
    waiting = join({"me-1": [TimeoutError()] * 2, "you-1": [there]}, monkeypatch)
    waiting._ray.state = "PENDING_CREATION"
    assert waiting._find_abandoned("there", 0, 0.0, warnings.append) is None
    assert waiting._ray.killed == ["me-1"], "nobody would use it"


def test_a_slot_is_waited_for_while_it_takes_the_server_before_for_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (Described(None, "id", "node", job_id, 0) for job_id in ("mine", "other"))
    deadline = time.monotonic() + 600.0

    def claim(*answers: Any) -> int | None:
        executor = join({"me-1": list(answers)}, monkeypatch)
        return executor._claim(executor._ray.get_actor("me-1", "grpo"), "mine", 0, deadline)

    assert claim(None, mine, EXCEPTIONS.GetTimeoutError(), None, mine, 2) == 2
    assert claim(None, other) is None
    assert claim(EXCEPTIONS.RayError()) is None
    deadline = 0.0
    monkeypatch.setattr(ray_executor, "_CLAIM_SECONDS", 0.01)
    with pytest.raises(ClusterLostError, match="another server follows it"):
        claim(*[None, mine] * 10_000)
