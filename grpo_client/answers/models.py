"""The server's answers about models, their versions and their films."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from grpo_client.answers.evaluations import Evaluation, FinalEvaluation, ValueCheck
from grpo_client.answers.reading import Answer


@dataclass(frozen=True, kw_only=True)
class ModelSummary(Answer):
    """One line of the model list."""

    name: str
    status: str


@dataclass(frozen=True, kw_only=True)
class ModelCard(Answer):
    """The contents of a model's file, without its arrays; None for each fact that it lacks."""

    name: str
    status: str
    n_bytes: int
    sha256: str | None
    modified_at: datetime
    env_name: str | None
    env_kwargs: Mapping[str, Any] | None
    wrappers: tuple[Mapping[str, Any], ...] | None
    observation_space: Mapping[str, Any] | None
    action_space: Mapping[str, Any] | None
    reward_function: str | list[str] | None
    hyperparameters: Mapping[str, Any] | None
    config: Mapping[str, Any] | None
    network: Mapping[str, Any] | None
    num_timesteps: int | None
    n_updates: int | None
    n_parameters: int | None
    normalization: Mapping[str, Any] | None
    evaluation: Evaluation | None
    value_check: ValueCheck | None
    final_evaluation: FinalEvaluation | None
    versions: Mapping[str, str] | None
    lineage: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Video(Answer):
    """A saved film.

    :param reward: Sum of the episode's rewards.
    :param n_steps: Length of the episode.
    :param checkpoint_timesteps: Steps of the checkpoint whose policy it shows; None of a saved model.
    """

    path: Path
    n_bytes: int
    reward: float
    n_steps: int
    checkpoint_timesteps: int | None = None


@dataclass(frozen=True, kw_only=True)
class Deleted(Answer):
    """Confirmation that a model was removed."""

    model_name: str
    message: str


@dataclass(frozen=True, kw_only=True)
class ModelVersion(Answer):
    """One version of a model, and who made it from what.

    :param is_newest: Whether the plain name means it.
    :param job_id: The job that trained it; None if it was uploaded.
    :param lineage: The model it was trained on from, if any.
    """

    version: int
    is_newest: bool
    aliases: tuple[str, ...]
    status: str
    n_bytes: int
    sha256: str | None
    created_at: datetime
    job_id: str | None
    env_name: str | None
    num_timesteps: int | None
    lineage: Mapping[str, Any] | None
    evaluation: Evaluation | None


@dataclass(frozen=True, kw_only=True)
class ModelVersions(Answer):
    """The versions of a model, the newest first, and its aliases: versions by alias."""

    model_name: str
    versions: tuple[ModelVersion, ...]
    aliases: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Alias(Answer):
    """An alias of a model.

    :param version: The version that it points at; None if it was deleted.
    :param previous_version: The one that it pointed at before, if any.
    """

    model_name: str
    alias: str
    version: int | None
    previous_version: int | None


@dataclass(frozen=True, kw_only=True)
class RolledBack(Answer):
    """Confirmation that an earlier version is the newest again.

    :param version: Number of the newest version now.
    :param restored_version: The version whose file it has.
    """

    model_name: str
    message: str
    version: int
    restored_version: int
