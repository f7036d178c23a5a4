"""Run the training of a job right here."""

from typing import Any

import numpy as np
import pytest

from grpo_core.options.rewards import REWARD_FUNCTIONS
from grpo_core.saving import model_file
from service.training.order import TrainingOrder
from service.training.train import train_policy
from tests.support import Recorder, make_plan


def run_job(
    recorder: Recorder | None = None, checkpoint: bytes | None = None, **request: Any
) -> tuple[model_file.ModelContent, Recorder]:
    """Train a few rollouts, perhaps from a checkpoint on, and return the model file and what was reported."""
    recorder = recorder or Recorder()
    config = make_plan(**{"total_timesteps": 640, "n_steps": 64, "seed": 0} | request).config
    reward = REWARD_FUNCTIONS.get(config.reward_function_type or "")
    content = train_policy(TrainingOrder(config, reward, checkpoint=checkpoint), recorder)
    return model_file.from_bytes(content, with_optimizer=True), recorder


def assert_trained_alike(one: model_file.ModelContent, other: model_file.ModelContent) -> None:
    """Compare policies, and by the optimizer's moments value networks: these may have been fitted after training."""
    assert one.weights.keys() == other.weights.keys()
    for name, weights in one.weights.items():
        if "value_net" not in name:
            assert np.array_equal(weights, other.weights[name]), name
    assert one.optimizer.keys() == other.optimizer.keys() != set()
    for name, moments in one.optimizer.items():
        assert np.array_equal(moments, other.optimizer[name]), name


class Clock:
    """A clock that an environment moves on, for modules that read the time, that of the processor included.

    :param monkeypatch: Lets modules of ``service.training`` read it.
    :param modules: Their names.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
        self.seconds = 0.0
        for module in modules:
            monkeypatch.setattr(f"service.training.{module}.time", self)

    def monotonic(self) -> float:
        """Return the time."""
        return self.seconds

    thread_time = monotonic
