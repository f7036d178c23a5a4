"""A training job, planned: its settings, its rewards, and what the client should know of it."""

from typing import Any, NamedTuple

from pydantic import BaseModel

from grpo_core.options.rewards import Reward
from service.schemas.training import ConfigOrigins, TrainConfig


class FilledRequest(BaseModel):
    """A request with every default filled in, checked by a worker.

    :param settings: The fields of ``TrainConfig`` but ``model_name`` and ``seed``, on which nothing else depends.
    :param warnings: Warnings for the client.
    :param reward_threshold: Reward per episode from which the environment counts as solved; None if it names none.
    :param config_origins: Who chose each of the settings.
    """

    settings: dict[str, Any]
    warnings: list[str]
    reward_threshold: float | None
    config_origins: ConfigOrigins = {}


class TrainingPlan(NamedTuple):
    """A job that is ready to start.

    :param config: The settings to train with.
    :param reward: The reward functions that the configuration names.
    :param warnings: Warnings for the client.
    :param reward_threshold: Reward per episode from which the environment counts as solved; None if it names none.
    :param config_origins: Who chose each field of the configuration.
    :param sweep_id: The sweep that the job belongs to; None without one.
    :param init_sha256: SHA-256 of the file that ``init_model`` named when the job was accepted; None without one.
    """

    config: TrainConfig
    reward: Reward | None
    warnings: tuple[str, ...]
    reward_threshold: float | None
    config_origins: ConfigOrigins
    sweep_id: str | None = None
    init_sha256: str | None = None
