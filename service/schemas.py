"""What requests and responses look like, with every limit in the schema."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema, model_validator

from service.model_store import MODEL_NAME_PATTERN, ModelStatus, is_model_name

# No colon: "module:EnvId" would make Gymnasium import the module.
_ENV_NAME_PATTERN = r"^[A-Za-z0-9_./-]+$"
_REWARD_NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
_MAX_OBSERVATION_NUMBERS = 65_536
_MAX_OBSERVATION_DEPTH = 4
_MAX_FIELDS = 64
_FLOAT32_MAX = float(np.finfo(np.float32).max)
MAX_SEED = 2**32 - 1


class JobStatus(StrEnum):
    """Where a training job is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_final(self) -> bool:
        """Whether it can no longer change."""
        return self not in (JobStatus.QUEUED, JobStatus.RUNNING)


def _check_model_name(name: str) -> str:
    if not is_model_name(name):
        raise ValueError("this name is reserved by some operating systems; pick another")
    return name


def _check_observation(value: Any) -> Any:
    """Accept a finite number or rectangular nested lists of them.

    :raises ValueError: With the rule that is broken.
    """
    _measure_observation(value, _MAX_OBSERVATION_DEPTH)
    if np.size(value) > _MAX_OBSERVATION_NUMBERS:
        raise ValueError(f"an observation has at most {_MAX_OBSERVATION_NUMBERS} numbers")
    return value


def _measure_observation(value: Any, depth_left: int) -> tuple[int, ...]:
    if isinstance(value, list):
        if len(value) > _MAX_OBSERVATION_NUMBERS:
            raise ValueError(f"an observation has at most {_MAX_OBSERVATION_NUMBERS} numbers")
        if depth_left == 0:
            raise ValueError(f"an observation is nested at most {_MAX_OBSERVATION_DEPTH} deep")
        shapes = {_measure_observation(item, depth_left - 1) for item in value}
        if len(shapes) > 1:
            raise ValueError("the lists of an observation must all have the same length and depth")
        return (len(value), *shapes.pop()) if shapes else (0,)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an observation holds numbers only")
    if not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:  # exact for integers of any length, and false for NaN
        raise ValueError("an observation holds finite numbers within the range of a 32-bit float")
    return ()


ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=100), AfterValidator(_check_model_name)]
Observation = Annotated[
    Any,
    PlainValidator(_check_observation),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "array", "items": {}}]}),
]


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _check_field_count(cls, body: Any) -> Any:
        # Else every unknown field of a large body would get an error of its own, which takes a second to make.
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise ValueError(f"a request has at most {_MAX_FIELDS} fields")
        return body


class TrainRequest(_Request):
    """What to train; every field is optional."""

    env_name: str = Field(
        "CartPole-v1",
        min_length=1,
        max_length=128,
        pattern=_ENV_NAME_PATTERN,
        description="Id of a registered Gymnasium environment whose simulator can be restored.",
    )
    total_timesteps: int = Field(
        10_000, ge=1, le=10_000_000, description="Simulator steps to train for; every step of every branch counts."
    )
    learning_rate: float = Field(
        3e-4, gt=0, le=1, description="Step size of Adam at the start; it falls linearly to 0."
    )
    n_steps: int = Field(
        32, ge=2, le=16_384, description="Simulator steps per environment and rollout, a multiple of group x horizon."
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="Steps per minibatch.")
    n_epochs: int = Field(10, ge=1, le=100, description="Passes over each rollout.")
    reward_function_type: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        pattern=_REWARD_NAME_PATTERN,
        description="Name of a reward function, or `environment` for the environment's own reward. "
        "Default: `optimized_cartpole` on CartPole, `environment` elsewhere.",
    )
    model_name: ModelName | None = Field(None, description="Name to save the policy under. Default: a generated one.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Makes the job repeatable. Default: drawn.")
    n_envs: int = Field(1, ge=1, le=64, description="Environments whose groups fill one rollout.")
    group_size: int = Field(2, ge=2, le=256, description="Branches that start from the same simulator state.")
    horizon: int | None = Field(
        None, ge=1, le=16_384, description="Most simulator steps per branch. Default: close to 16, fitting `n_steps`."
    )
    gamma: float = Field(0.99, ge=0, le=1, description="Discount factor.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes CUDA if there is any.")
    net_arch: list[Annotated[int, Field(ge=1, le=1024)]] = Field(
        [64, 64], max_length=4, description="Units per hidden layer, of the policy and of the value network each."
    )


class TrainConfig(BaseModel):
    """What a job trains with, every default filled in; sent again as a request it repeats the job."""

    model_config = ConfigDict(frozen=True)

    env_name: str
    total_timesteps: int
    learning_rate: float
    n_steps: int
    batch_size: int
    n_epochs: int
    reward_function_type: str
    model_name: str
    seed: int
    n_envs: int
    group_size: int
    horizon: int
    gamma: float
    device: Literal["cpu", "cuda"]
    net_arch: list[int]


class TrainResponse(BaseModel):
    """A job was accepted."""

    job_id: str
    message: str
    config: TrainConfig


class TrainingStatus(BaseModel):
    """Where a job is. Times are UTC."""

    job_id: str
    status: JobStatus
    progress: float = Field(ge=0, le=1)
    current_timesteps: int
    total_timesteps: int
    created_at: datetime
    start_time: datetime | None = Field(description="None while the job is queued.")
    end_time: datetime | None
    error_message: str | None
    metrics: dict[str, float] = Field(description="Stable-Baselines3's log keys, as of the latest rollout.")
    warnings: list[str]
    model_name: str | None = Field(description="Where the policy is kept; None as long as there is none.")
    sha256: str | None = Field(description="SHA-256 of the model file.")
    config: TrainConfig


class JobSummary(BaseModel):
    """One line of the job list."""

    job_id: str
    status: JobStatus
    progress: float


class JobList(BaseModel):
    """All jobs the server remembers, oldest first."""

    jobs: list[JobSummary]


class StopResponse(BaseModel):
    """A job was told to stop."""

    message: str
    job_id: str


class InferenceRequest(_Request):
    """A state to act on."""

    model_name: ModelName = Field(description="Name of a trained model.")
    observation: Observation = Field(
        description="One observation in the shape of the model's observation space; one integer if that is Discrete.",
        examples=[[0.1, 0.0, 0.05, 0.0]],
    )
    deterministic: bool = Field(True, description="Take the most likely action instead of drawing one.")


class InferenceResponse(BaseModel):
    """What to do."""

    action: int | list[Any] = Field(description="An integer for Discrete actions, a list for Box actions.")
    action_probs: list[float] | None = Field(description="Probability of every Discrete action; None for Box.")
    value: float = Field(description="The value network's estimate of the discounted return from here.")


class ModelSummary(BaseModel):
    """One line of the model list."""

    name: str
    status: ModelStatus


class ModelList(BaseModel):
    """The model files, by name."""

    models: list[ModelSummary]


class DeleteResponse(BaseModel):
    """A model was removed."""

    message: str
    model_name: str


class Health(BaseModel):
    """That the server lives, and what it holds."""

    status: Literal["healthy"]
    timestamp: datetime
    active_jobs: int = Field(description="Queued and running.")
    loaded_models: int


class ServerInfo(BaseModel):
    """What the server offers."""

    message: str
    version: str
    endpoints: dict[str, str]


class ErrorResponse(BaseModel):
    """Every error."""

    detail: str
    errors: list[dict[str, str]] | None = Field(None, description="Field by field, with status 422 only.")
