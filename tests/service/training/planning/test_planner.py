"""Plans are made by tasks, once for all requests that differ only by name and seed."""

import threading
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import pytest

from grpo_core.options.rewards import RewardFunction
from grpo_core.saving import model_file
from service.errors import InvalidRequestError
from service.schemas.training import TrainRequest
from service.training.planning.planner import Planner
from service.workers.short_tasks import ShortTasks
from service.workers.threads import ThreadExecutor
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.models import make_model
from tests.support import PATIENCE_SECONDS

RewardFunctions = dict[str, RewardFunction]


@pytest.fixture
def built() -> list[bool]:
    """Record every environment that is built."""
    return []


@pytest.fixture
def env_name(register_env: RegisterEnv, built: list[bool]) -> str:
    return register_env(lambda: note(built))


def note(built: list[bool]) -> LineEnv:
    built.append(True)
    return LineEnv()


def make_planner(limit_seconds: float = PATIENCE_SECONDS) -> Planner:
    return Planner(ShortTasks(ThreadExecutor(), limit_seconds, threading.Event()), {})


def test_a_repeated_request_builds_nothing_and_gets_its_own_name_and_seed(env_name: str, built: list[bool]) -> None:
    planner = make_planner()
    request: dict[str, Any] = {"env_name": env_name, "n_epochs": 3}
    first = planner.plan(TrainRequest(**request)).config
    second = planner.plan(TrainRequest(**request, model_name="mine", seed=7)).config
    third = planner.plan(TrainRequest(**request)).config
    assert len(built) == 1
    assert (second.model_name, second.seed) == ("mine", 7)
    assert len({config.model_name for config in (first, second, third)}) == 3
    assert len({config.seed for config in (first, second, third)}) == 3
    assert second == first.model_copy(update={"model_name": "mine", "seed": 7})


def test_a_different_request_is_planned_again(env_name: str, built: list[bool]) -> None:
    planner = make_planner()
    request: dict[str, Any] = {"env_name": env_name, "n_epochs": 3}
    assert planner.plan(TrainRequest(env_name=env_name)).config.n_epochs == 10
    assert planner.plan(TrainRequest(**request)).config.n_epochs == 3
    assert len(built) == 2


def test_an_environment_registered_again_is_planned_again(
    env_name: str, built: list[bool], register_env: RegisterEnv
) -> None:
    planner = make_planner()
    planner.plan(TrainRequest(env_name=env_name))
    del gym.registry[env_name]
    register_env(lambda: note(built), env_name)
    planner.plan(TrainRequest(env_name=env_name))
    assert len(built) == 2


def test_a_model_with_the_same_weights_and_other_metadata_is_planned_again() -> None:
    planner = make_planner()
    content = make_model("CartPole-v1").to_bytes(env_name="CartPole-v1")
    meta = model_file.from_bytes(content).meta
    request = TrainRequest(env_name="CartPole-v1", init_model="base", reward_function_type="environment")
    activations = []
    for name in ("Tanh", "ReLU"):
        network = {**meta["network"], "activation": name}
        activations.append(planner.plan(request, {**meta, "network": network}).config.activation)
    assert activations == ["tanh", "relu"]


@pytest.mark.parametrize("field", ["reward_function_type", "reward_functions"])
def test_a_reward_function_registered_again_is_planned_again(env_name: str, built: list[bool], field: str) -> None:
    request = TrainRequest.model_validate(
        {"env_name": env_name, field: "mine" if field == "reward_function_type" else {"mine": 2.0, "environment": 1.0}}
    )
    functions: RewardFunctions = {"mine": lambda state, action, next_state: action}
    planner = Planner(ShortTasks(ThreadExecutor(), PATIENCE_SECONDS, threading.Event()), functions)
    for _ in range(2):
        planner.plan(request)
    assert len(built) == 1
    functions["mine"] = lambda state, action, next_state: -action
    planned = planner.plan(request)
    assert len(built) == 2
    assert functions["mine"] in (planned.reward if isinstance(planned.reward, list) else [planned.reward])


def test_a_refusal_is_not_remembered(register_env: RegisterEnv, built: list[bool]) -> None:
    def build() -> LineEnv:
        if not built:
            built.append(True)
            raise OSError("not yet")
        return LineEnv()

    planner, request = make_planner(), TrainRequest(env_name=register_env(build))
    with pytest.raises(InvalidRequestError, match="not yet"):
        planner.plan(request)
    assert planner.plan(request).config.env_name == "Line-v0"


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.admit()


def test_a_constructor_that_hangs_is_refused_as_an_invalid_request(register_env: RegisterEnv, gate: Gate) -> None:
    def build() -> LineEnv:
        gate.pass_through()
        return LineEnv()

    with pytest.raises(InvalidRequestError, match=r"longer than 0\.2 s, the limit that GRPO_TASK_SECONDS .* fix it"):
        make_planner(limit_seconds=0.2).plan(TrainRequest(env_name=register_env(build)))
