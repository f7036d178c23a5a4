"""Model files: their list, their cards, and how good they are."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.fields import MAX_PLAY_SEED, Request
from service.schemas.jobs import EpisodeFigures
from service.schemas.spaces import SpaceDescription

VideoFormat = Literal["gif", "mp4"]


class ModelStatus(StrEnum):
    """What the listing says of a file."""

    LOADED = "loaded"  # in memory
    SAVED = "saved"  # on disk, and usable: see ModelStore.list_models
    CORRUPT = "corrupt"  # damaged, or not what its metadata says
    UNSAFE = "unsafe"  # not written by GRPO, its contents never loaded


class ModelSummary(BaseModel):
    """One line of the model list."""

    name: str
    status: ModelStatus


class ModelList(BaseModel):
    """The model files, by name."""

    models: list[ModelSummary]


class ModelCard(BaseModel):
    """What a model's file says of it. A fact that the file lacks, or that cannot be right, is null."""

    name: str
    status: ModelStatus
    n_bytes: int = Field(description="Size of the file.")
    sha256: str | None = Field(description="SHA-256 of the file; null of one too large to be read.")
    modified_at: datetime = Field(description="When the file was saved. UTC.")
    env_name: str | None = Field(None, description="What it was trained in.")
    observation_space: SpaceDescription | None = None
    action_space: SpaceDescription | None = None
    reward_function: str | list[str] | None = Field(
        None, description="What it was trained on; null of the environment's own reward too."
    )
    hyperparameters: dict[str, Any] | None = Field(None, description="Arguments of `GRPO`.")
    config: dict[str, Any] | None = Field(None, description="What `POST /train` answered, if a job trained it.")
    network: dict[str, Any] | None = Field(None, description="Layers, activation and optimizer.")
    num_timesteps: int | None = Field(None, description="Simulator steps it was trained for.")
    n_updates: int | None = None
    n_parameters: int | None = Field(None, description="Weights that answer, of the policy and the value network.")
    normalization: dict[str, Any] | None = Field(None, description="Settings of `VecNormalize`, if one was in use.")
    evaluation: EpisodeFigures | None = Field(
        None,
        description="The latest `POST /models/{model_name}/evaluate` of this very file since the server was started, "
        "else the one that the file brings along.",
    )
    versions: dict[str, str] | None = Field(None, description="Of the libraries that saved it.")


class EvaluateRequest(Request):
    """How to judge a model; every field is optional."""

    n_episodes: int = Field(20, ge=1, le=1000, description="Whole episodes, each from a seed of its own.")
    seed: int = Field(0, ge=0, le=MAX_PLAY_SEED, description="Of the first episode; the others count up from it.")
    deterministic: bool = Field(True, description="Take the most likely actions instead of drawing them.")


class ModelFigures(BaseModel):
    """How a model did, and random actions on the same seeds."""

    evaluation: EpisodeFigures
    random: EpisodeFigures


class EvaluateResponse(BaseModel):
    """How good a model is."""

    model_name: str
    env_name: str
    seed: int
    deterministic: bool
    evaluation: EpisodeFigures = Field(description="Of the model.")
    random: EpisodeFigures = Field(description="Of uniformly random actions on the same seeds.")
    better_than_random: bool = Field(description="Whether the model's 95 % interval lies above that of random actions.")
    seconds: float = Field(description="How long it took.")


class DeleteResponse(BaseModel):
    """A model was removed."""

    message: str
    model_name: str
