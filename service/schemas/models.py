"""Model files: their list, cards and evaluations."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from service.schemas.fields import MAX_PLAY_SEED, Request
from service.schemas.jobs import EpisodeFigures, FinalEvaluation
from service.schemas.spaces import SpaceDescription

VideoFormat = Literal["gif", "mp4"]
ExportFormatName = Literal["onnx", "torchscript"]


class ModelStatus(StrEnum):
    """The status of a model file."""

    LOADED = "loaded"  # in memory
    SAVED = "saved"  # on disk and usable, as far as ModelStore.list_models knows
    CORRUPT = "corrupt"  # damaged, or contradicts its metadata
    UNSAFE = "unsafe"  # not written by GRPO; its content is never loaded


class ModelSummary(BaseModel):
    """One line of the model list."""

    name: str
    status: ModelStatus


class ModelList(BaseModel):
    """The model files, by name."""

    models: list[ModelSummary]


class ValueFigures(BaseModel):
    """How well a model's values agree with what followed, in episodes that they were not fitted to."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    is_meaningful: bool = Field(
        description="Whether `/inference` shows values: the error is at most 0.2, and the correlation at least 0.8 "
        "unless the returns hardly differ."
    )
    gamma: float = Field(ge=0, le=1, description="Discount factor of the returns.")
    n_states: int = Field(ge=0, description="States compared.")
    correlation: float | None = Field(ge=-1, le=1, description="Null where the values or the returns do not differ.")
    error: float | None = Field(ge=0, description="Mean size of the error, in shares of the mean size of the return.")
    spread: float | None = Field(ge=0, description="Standard deviation of the returns, in the same shares.")
    lowest: float = Field(description="The least of the values and returns compared: beyond it nothing was tested.")
    highest: float = Field(description="The greatest of them.")


class ModelLineage(BaseModel):
    """The model that a policy was trained on from."""

    model_name: str = Field(description="Its name at that time.")
    sha256: str = Field(description="SHA-256 of its file.")
    num_timesteps: int = Field(ge=0, description="Simulator steps that it had been trained for.")


class ModelCard(BaseModel):
    """A model as its file describes it. Facts that the file lacks, or that cannot be right, are null."""

    name: str
    status: ModelStatus
    n_bytes: int = Field(description="Size of the file.")
    sha256: str | None = Field(description="SHA-256 of the file; null if it is too large to be read.")
    modified_at: datetime = Field(description="When the file was saved, in UTC.")
    env_name: str | None = Field(None, description="The environment it was trained in.")
    env_kwargs: dict[str, Any] | None = Field(None, description="The arguments of its constructor.")
    wrappers: list[dict[str, Any]] | None = Field(None, description="What it was put into, the innermost first.")
    observation_space: SpaceDescription | None = None
    action_space: SpaceDescription | None = None
    reward_function: str | list[str] | None = Field(
        None, description="The reward it was trained on; also null for the environment's own."
    )
    hyperparameters: dict[str, Any] | None = Field(None, description="Arguments of `GRPO`.")
    config: dict[str, Any] | None = Field(None, description="The `config` of the job that trained it, if one did.")
    network: dict[str, Any] | None = Field(None, description="Layers, activation and optimizer.")
    lineage: ModelLineage | None = Field(None, description="The model it was trained on from, if any.")
    num_timesteps: int | None = Field(None, description="Simulator steps it was trained for, its lineage's included.")
    n_updates: int | None = None
    n_parameters: int | None = Field(None, description="Number of weights in the policy and the value network.")
    normalization: dict[str, Any] | None = Field(None, description="Settings of `VecNormalize`, if it was used.")
    evaluation: EpisodeFigures | None = Field(
        None,
        description="The latest `POST /models/{model_name}/evaluate` of this file, with `deterministic`, since the "
        "server started, or else its `final_evaluation`.",
    )
    value_check: ValueFigures | None = Field(
        None, description="What is known about the `value` of `POST /inference`; null if it was not measured."
    )
    final_evaluation: FinalEvaluation | None = Field(
        None, description="The evaluation with which the job that trained it ended."
    )
    versions: dict[str, str] | None = Field(None, description="Versions of the libraries that saved it.")


class ModelVersion(BaseModel):
    """One version of a model, and who made it from what. Facts that its file lacks are null."""

    version: int = Field(description="Its number; they count up from 1.")
    is_newest: bool = Field(description="Whether the plain name means it.")
    aliases: list[str] = Field(description="Aliases that point at it.")
    status: ModelStatus
    n_bytes: int = Field(description="Size of the file.")
    sha256: str | None = Field(description="SHA-256 of the file; null if it is too large to be read.")
    created_at: datetime = Field(description="When the file was saved, in UTC.")
    job_id: str | None = Field(description="The job of this server that trained it; null if it was uploaded.")
    env_name: str | None = Field(description="The environment it was trained in.")
    num_timesteps: int | None = Field(description="Simulator steps it was trained for, its lineage's included.")
    lineage: ModelLineage | None = Field(description="The model it was trained on from, if any.")
    evaluation: EpisodeFigures | None = Field(description="As in the card.")


class ModelVersions(BaseModel):
    """The versions of a model, the newest first, and its aliases."""

    model_name: str
    versions: list[ModelVersion]
    aliases: dict[str, int] = Field(description="Versions by alias.")


class AliasRequest(Request):
    """The version that an alias is to point at."""

    version: int | None = Field(None, ge=1, le=999_999_999, description="Its number. Default: the newest.")


class AliasResponse(BaseModel):
    """What an alias points at, and what before."""

    model_name: str
    alias: str
    version: int | None = Field(description="Null if the alias was deleted.")
    previous_version: int | None = Field(description="Null if the alias is new.")


class RollbackRequest(Request):
    """The version to go back to."""

    version: int | None = Field(
        None, ge=1, le=999_999_999, description="Its number. Default: the one before the newest."
    )


class RollbackResponse(BaseModel):
    """Confirms that an earlier version is the newest again."""

    message: str
    model_name: str
    version: int = Field(description="Number of the newest version now.")
    restored_version: int = Field(description="The version whose file it has.")


class EvaluateRequest(Request):
    """How to evaluate a model; every field is optional."""

    n_episodes: int = Field(20, ge=1, le=1000, description="Number of whole episodes, each with its own seed.")
    seed: int = Field(0, ge=0, le=MAX_PLAY_SEED, description="Seed of the first episode; the others count up from it.")
    deterministic: bool = Field(True, description="Take the most likely actions instead of sampling them.")


class ModelFigures(BaseModel):
    """The results of a model, and of random actions on the same seeds."""

    evaluation: EpisodeFigures
    random: EpisodeFigures
    warnings: list[str]


class EvaluateResponse(BaseModel):
    """The evaluation of a model."""

    model_name: str
    env_name: str
    seed: int
    deterministic: bool
    evaluation: EpisodeFigures = Field(description="The model's results.")
    random: EpisodeFigures = Field(description="The results of uniformly random actions on the same seeds.")
    better_than_random: bool = Field(description="Whether the model's 95 % interval lies above that of random actions.")
    seconds: float = Field(description="Time that the evaluation took.")
    warnings: list[str] = Field(
        description="Says how many episodes lasted for 10,000 steps, after which one is cut where the environment "
        "declares no limit."
    )


class DeleteResponse(BaseModel):
    """Confirms that a model was deleted."""

    message: str
    model_name: str
