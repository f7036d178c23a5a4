"""What an environment changes of torch's defaults stays with the environment."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from grpo import GRPO
from grpo_core.saving import model_file
from service.training.order import TrainingOrder
from service.training.train import train_policy
from tests.conftest import RegisterEnv
from tests.support import LineEnv, Recorder, make_plan


@pytest.fixture(autouse=True)
def defaults() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


class DoubleEnv(LineEnv):
    """Computes with torch, in double precision and without gradients, from one of its methods on."""

    def __init__(self, at: str) -> None:
        super().__init__()
        self._at = at
        self._change("constructor")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._change("reset")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        self._change("step")
        return super().step(action)

    def _change(self, at: str) -> None:
        if at == self._at:
            torch.set_default_dtype(torch.float64)
            torch.set_grad_enabled(False)


@pytest.mark.parametrize("at", ["constructor", "reset", "step"])
def test_an_environment_may_change_them(register_env: RegisterEnv, monkeypatch: pytest.MonkeyPatch, at: str) -> None:
    monkeypatch.setattr(GRPO, "use_fast_path", False)
    env_name = register_env(partial(DoubleEnv, at), max_episode_steps=20)
    model = GRPO("MlpPolicy", env_name, n_steps=64, seed=0).learn(128)
    assert {parameter.dtype for parameter in model.policy.parameters()} == {torch.float32}
    assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (torch.float32, True)


@pytest.mark.usefixtures("ample_time")
@pytest.mark.parametrize("at", ["constructor", "reset", "step"])
def test_a_job_is_trained_and_evaluated_in_such_an_environment(register_env: RegisterEnv, at: str) -> None:
    env_name = register_env(partial(DoubleEnv, at), max_episode_steps=20)
    config = make_plan(env_name=env_name, total_timesteps=256, gamma=0.5, eval_freq=128).config
    content = train_policy(TrainingOrder(config, None), Recorder())
    assert model_file.from_bytes(content).meta["value_check"] is not None
