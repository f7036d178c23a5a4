"""A server that starts again finds its slots, and takes none for gone that may be there."""

import time
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from service.logs import LogStyle
from service.workers.cluster import ray_search
from service.workers.cluster.ray_connection import RayOptions
from service.workers.cluster.ray_search import RaySearch
from service.workers.cluster.ray_slot import Described
from service.workers.cluster.slot_pool import SlotPool
from service.workers.task import ClusterLostError

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
# The errors of Ray that are told apart.
RAY_ERROR = type("RayError", (Exception,), {})
EXCEPTIONS = SimpleNamespace(
    RayError=RAY_ERROR,
    ActorUnavailableError=type("ActorUnavailableError", (RAY_ERROR,), {}),
    GetTimeoutError=type("GetTimeoutError", (RAY_ERROR, TimeoutError), {}),
)


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


def join(cluster: ForeignCluster, monkeypatch: pytest.MonkeyPatch) -> RaySearch:
    """Make a search on a cluster."""
    pool = SlotPool(LogStyle(), RayOptions("127.0.0.1:9"))
    monkeypatch.setattr(pool._connection, "open", lambda check: cluster)
    for pause in ("_RETRY_SECONDS", "_CLAIM_PAUSE_SECONDS"):
        monkeypatch.setattr(ray_search, pause, 0.0)
    return RaySearch(pool, "me")


def test_a_slot_that_does_not_answer_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = (Described(None, "id", "node", job_id, 0) for job_id in ("here", "there"))
    answers = {"me-1": [here], "me-2": [TimeoutError(), EXCEPTIONS.ActorUnavailableError(), there]}
    search = join(ForeignCluster(answers), monkeypatch)
    warnings: list[str] = []
    deadline = time.monotonic() + 600.0
    found = search._find("here", 0, deadline, warnings.append)
    assert (found is not None and found[0].name, warnings) == ("me-1", []), "it need not wait for the other one"
    found = search._find("there", 0, deadline, warnings.append)
    assert found is not None
    assert found[0].name == "me-2"
    assert len(warnings) == 1
    assert "1 of the server's 2 processes on the Ray cluster do not answer" in warnings[0]
    assert search._find("gone", 0, deadline, warnings.append) is None
    silent = join(ForeignCluster({"me-1": [TimeoutError()] * 2}), monkeypatch)
    with pytest.raises(ClusterLostError, match="do not answer"):
        silent._find("there", 0, 0.0, warnings.append)
    gone = join(ForeignCluster({"me-1": [EXCEPTIONS.RayError()]}), monkeypatch)
    assert gone._find("there", 0, 0.0, warnings.append) is None


def test_a_slot_that_waits_for_room_runs_nothing_and_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    other = Described(None, "id", "node", "a job", 0)
    cluster = ForeignCluster({"me-1": [TimeoutError()] * 2, "you-1": [other]})
    cluster.state = "PENDING_CREATION"
    assert join(cluster, monkeypatch)._find("a job", 0, 0.0, lambda warning: None) is None
    assert cluster.killed == ["me-1"], "nobody would use it"


def test_a_slot_is_waited_for_while_it_takes_the_server_before_for_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (Described(None, "id", "node", job_id, 0) for job_id in ("mine", "other"))
    deadline = time.monotonic() + 600.0

    def claim(*answers: Any) -> int | None:
        cluster = ForeignCluster({"me-1": list(answers)})
        return join(cluster, monkeypatch)._claim(cluster.get_actor("me-1", "grpo"), "mine", 0, deadline)

    assert claim(None, mine, EXCEPTIONS.GetTimeoutError(), None, mine, 2) == 2
    assert claim(None, other) is None
    assert claim(EXCEPTIONS.RayError()) is None
    deadline = 0.0
    monkeypatch.setattr(ray_search, "_CLAIM_SECONDS", 0.01)
    with pytest.raises(ClusterLostError, match="another server follows it"):
        claim(*[None, mine] * 10_000)
