"""What requests and responses look like, with every limit in the schema."""

import math
from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from grpo_core.choices import (
    AdvantageScaling,
    Baseline,
    GroupMode,
    ImportanceLevel,
    LossNormalization,
    LossType,
    Supervision,
)
from service.model_store import MODEL_NAME_PATTERN, ModelStatus, is_model_name
from service.suggestions import list_close

# No colon: "module:EnvId" would make Gymnasium import the module.
ENV_NAME_PATTERN = r"^[A-Za-z0-9_./-]+$"
MAX_ENV_NAME_CHARS = 128
_REWARD_NAME_PATTERN = r"^[A-Za-z0-9_.-]+$"
MAX_OBSERVATION_NUMBERS = 65_536
MAX_BATCH_ITEMS = 65_536
_MAX_OBSERVATION_DEPTH = 4
_MAX_MASK_FLAGS = 65_536
_MAX_REWARD_FUNCTIONS = 16
_MAX_FIELDS = 64
FLOAT32_MAX = float(np.finfo(np.float32).max)
_TOO_MANY_NUMBERS = f"an observation has at most {MAX_OBSERVATION_NUMBERS} numbers"
NOT_FINITE = "an observation holds finite numbers within the range of a 32-bit float"
MAX_SEED = 2**32 - 1
# Some simulators take no larger seed.
MAX_PLAY_SEED = 2**31 - 1
MAX_FILM_STEPS = 5000


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
    """Accept a finite number, rectangular nested lists of them, or an object of these.

    :raises ValueError: With the rule that is broken.
    """
    parts = list(value.values()) if isinstance(value, dict) else [value]
    if not parts:
        raise ValueError("an observation has at least one key, or none at all")
    if len(parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    if sum(math.prod(_measure_observation(part, _MAX_OBSERVATION_DEPTH)) for part in parts) > MAX_OBSERVATION_NUMBERS:
        raise ValueError(_TOO_MANY_NUMBERS)
    return value


def _measure_observation(value: Any, depth_left: int) -> tuple[int, ...]:
    if isinstance(value, list):
        if len(value) > MAX_OBSERVATION_NUMBERS:
            raise ValueError(_TOO_MANY_NUMBERS)
        if depth_left == 0:
            raise ValueError(f"an observation is nested at most {_MAX_OBSERVATION_DEPTH} deep")
        # A row of an image is judged at once: one call per number would keep other requests waiting.
        if set(map(type, value)) <= {int, float}:
            if not all(map(FLOAT32_MAX.__ge__, map(abs, value))):  # as below
                raise ValueError(NOT_FINITE)
            return (len(value),)
        shapes = {_measure_observation(item, depth_left - 1) for item in value}
        if len(shapes) > 1:
            raise ValueError("the lists of an observation must all have the same length and depth")
        return (len(value), *shapes.pop())
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("an observation holds numbers only")
    if not -FLOAT32_MAX <= value <= FLOAT32_MAX:  # exact for integers of any length, and false for NaN
        raise ValueError(NOT_FINITE)
    return ()


def _check_action_masks(value: Any) -> Any:
    """Accept flags in one list, or in one list per component.

    :raises ValueError: With the rule that is broken.
    """
    if not isinstance(value, list):
        raise ValueError("action_masks is a list")
    lists = value if value and all(isinstance(part, list) for part in value) else [value]
    if sum(map(len, lists)) > _MAX_MASK_FLAGS or len(lists) > _MAX_MASK_FLAGS:
        raise ValueError(f"action_masks has at most {_MAX_MASK_FLAGS} flags")
    if not all(isinstance(flag, bool) or (type(flag) is int and flag in (0, 1)) for part in lists for flag in part):
        raise ValueError("action_masks holds true and false, or 1 and 0, in one list or in one list per component")
    return value


ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=100), AfterValidator(_check_model_name)]
_OBSERVATION_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "number"}, {"type": "array", "items": {}}, {"type": "object"}]
}
Observation = Annotated[Any, PlainValidator(_check_observation), WithJsonSchema(_OBSERVATION_SCHEMA)]
_FLAG_SCHEMA: dict[str, Any] = {"anyOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 1}]}
_MASKS_SCHEMA = {"type": "array", "items": {"anyOf": [_FLAG_SCHEMA, {"type": "array", "items": _FLAG_SCHEMA}]}}
ActionMasks = Annotated[Any, PlainValidator(_check_action_masks), WithJsonSchema(_MASKS_SCHEMA)]
# Items are checked one by one, so that one that is wrong leaves the others answered.
ObservationBatch = Annotated[
    list[Any],
    Field(min_length=1),
    WithJsonSchema({"type": "array", "items": _OBSERVATION_SCHEMA, "minItems": 1, "maxItems": MAX_BATCH_ITEMS}),
]
MaskBatch = Annotated[
    list[Any], WithJsonSchema({"type": "array", "items": {"anyOf": [_MASKS_SCHEMA, {"type": "null"}]}, "minItems": 1})
]
RewardName = Annotated[str, Field(min_length=1, max_length=64, pattern=_REWARD_NAME_PATTERN)]
EnvName = Annotated[str, Field(min_length=1, max_length=MAX_ENV_NAME_CHARS, pattern=ENV_NAME_PATTERN)]
LayerSize = Annotated[int, Field(ge=1, le=1024)]
LearningRateSchedule = Literal["linear", "constant"]
EndedBy = Literal["total_timesteps", "stop_reward", "patience", "max_seconds", "stop"]
VerdictState = Literal["waiting", "starting", "learning", "solved", "steady", "flat", "worse", "no_signal", "failed"]
VideoFormat = Literal["gif", "mp4"]
# The names of grpo_core.actor.ACTIVATIONS, in lower case.
Activation = Literal["tanh", "relu", "elu", "leakyrelu"]


def name_known_fields(error: ValidationError, known: Iterable[str]) -> ValidationError:
    """Say of every unknown field which of the known ones it resembles.

    :param known: The fields of the request itself; those of objects in it are not looked at.
    """
    violations = error.errors(include_url=False)
    if not any(violation["type"] == "extra_forbidden" for violation in violations):
        return error
    return ValidationError.from_exception_data(
        error.title,
        [
            InitErrorDetails(type=_describe_type(violation, known), loc=violation["loc"], input=violation["input"])
            for violation in violations
        ],
    )


def _describe_type(violation: ErrorDetails, known: Iterable[str]) -> PydanticCustomError:
    message = violation["msg"]
    if violation["type"] == "extra_forbidden":
        message = "unknown field"
        if len(violation["loc"]) == 1 and (close := list_close(str(violation["loc"][0]), known, n_most=1)):
            message = f"unknown field; did you mean {close[0]}?"
    # The message is a template, in which only what the context names is filled in.
    return PydanticCustomError(violation["type"], message, violation.get("ctx"))


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    @model_validator(mode="wrap")
    @classmethod
    def _check_field_names(cls, body: Any, build: ModelWrapValidatorHandler[Self]) -> Self:
        # Else every unknown field of a large body would get an error of its own, which takes a second to make.
        if isinstance(body, dict) and len(body) > _MAX_FIELDS:
            raise ValueError(f"a request has at most {_MAX_FIELDS} fields")
        try:
            return build(body)
        except ValidationError as error:
            raise name_known_fields(error, cls.model_fields) from error


class Normalization(BaseModel):
    """What is normalised by running statistics."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    norm_obs: bool = Field(True, description="Observations: those numbers of them that are no images.")
    norm_reward: bool = Field(True, description="Rewards.")


class TrainRequest(_Request):
    """What to train; every field is optional."""

    env_name: EnvName = Field("CartPole-v1", description="Id of a registered Gymnasium environment.")
    preset: EnvName | None = Field(
        None,
        description="Environment whose preset fills in what is left out, or `none`. Default: `env_name` itself, if it "
        "has a preset and its own reward is trained on.",
    )
    total_timesteps: int = Field(
        10_000, ge=1, le=10_000_000, description="Simulator steps to train for; every step of every branch counts."
    )
    learning_rate: float = Field(3e-4, gt=0, le=1, description="Step size of Adam at the start; see `lr_schedule`.")
    n_steps: int = Field(
        32,
        ge=2,
        le=16_384,
        description="Simulator steps per environment and rollout, a multiple of `group_size * horizon`; in episodes a "
        "lower bound.",
    )
    batch_size: int = Field(64, ge=1, le=65_536, description="Steps per minibatch.")
    n_epochs: int = Field(10, ge=1, le=100, description="Passes over each rollout.")
    reward_function_type: RewardName | None = Field(
        None,
        description="Name of a reward function, or `environment` for the environment's own reward. "
        "Default: `optimized_cartpole` on CartPole, `environment` elsewhere.",
    )
    reward_functions: dict[RewardName, Annotated[float, Field(ge=-1e6, le=1e6)]] | None = Field(
        None,
        min_length=1,
        max_length=_MAX_REWARD_FUNCTIONS,
        description="Several reward functions and their weights, instead of `reward_function_type`.",
    )
    model_name: ModelName | None = Field(None, description="Name to save the policy under. Default: a generated one.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Makes the job repeatable. Default: drawn.")
    n_envs: int = Field(1, ge=1, le=64, description="Environments whose groups fill one rollout.")
    group_mode: Literal["auto", "branch", "episode", "action"] | None = Field(
        None,
        description="How groups are played. Default: by preset, else `auto`: `branch` if the environment can be "
        "restored, `episode` if not.",
    )
    group_size: int = Field(2, ge=2, le=256, description="Branches of a group.")
    horizon: int | None = Field(
        None,
        ge=1,
        le=16_384,
        description="Most simulator steps per branch. Default: close to the preset's, or to 16, fitting `n_steps`; in "
        "episodes no limit.",
    )
    gamma: float = Field(0.99, ge=0, le=1, description="Discount factor.")
    gae_lambda: float | None = Field(None, ge=0, le=1, description="Lambda of the lambda-returns.")
    baseline: Baseline | None = Field(None, description="What a step's return is compared with.")
    supervision: Supervision | None = Field(None, description="Whether steps or whole branches are credited.")
    advantage_scaling: AdvantageScaling | None = Field(None, description="What advantages are divided by.")
    bootstrap_value: bool | None = Field(None, description="Whether the value network tells what follows a cut branch.")
    clip_range: float | None = Field(None, gt=0, le=10, description="Trust interval of the probability ratio.")
    clip_range_high: float | None = Field(None, gt=0, le=10, description="How far the ratio may rise above 1.")
    loss_type: LossType | None = Field(None, description="Surrogate of the policy's loss.")
    importance_level: ImportanceLevel | None = Field(None, description="Whether ratios are of steps or branches.")
    loss_normalization: LossNormalization | None = Field(None, description="What counts alike in the loss.")
    ent_coef: float | None = Field(None, ge=0, le=10, description="Weight of the entropy bonus.")
    vf_coef: float | None = Field(None, ge=0, le=100, description="Weight of the value network's squared error.")
    vf_lr_factor: float | None = Field(
        None, ge=0, le=1000, description="Step size of the value network in multiples of `learning_rate`."
    )
    max_grad_norm: float | None = Field(None, ge=0, le=1e6, description="Largest norm of a gradient.")
    target_kl: float | None = Field(
        None, gt=0, le=100, description="Ends the updates of a rollout beyond 1.5 times it."
    )
    kl_coef: float | None = Field(None, ge=0, le=100, description="Weight of the KL divergence from the reference.")
    ref_sync_steps: int | None = Field(
        None, ge=1, le=10_000_000, description="Simulator steps after which the policy becomes the reference anew."
    )
    restart_probability: float | None = Field(None, ge=0, le=1, description="How often groups start new episodes.")
    common_random_numbers: bool | None = Field(None, description="Whether a group meets the same noise.")
    filter_zero_std_groups: bool | None = Field(None, description="Whether groups without a signal are left out.")
    normalize: bool | Normalization | None = Field(
        None, description="Whether observations and rewards are normalised by running statistics, or which of them."
    )
    lr_schedule: LearningRateSchedule | None = Field(
        None, description="Whether the learning rate falls linearly to 0 over the job."
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="`auto` takes CUDA if there is any.")
    net_arch: list[LayerSize] = Field(
        [64, 64],
        max_length=4,
        description="Units per hidden layer, of the policy and of the value network each. After the convolutions of "
        "images there are none unless given.",
    )
    activation: Activation | None = Field(None, description="What follows each hidden layer.")
    log_std_init: float | None = Field(
        None, ge=-10, le=5, description="Logarithm of the first standard deviation of continuous actions."
    )
    eval_freq: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Simulator steps between two evaluations of the policy. Default: none are made, or about 20 over "
        "the job where `stop_reward`, `patience` or `keep_best` needs them.",
    )
    n_eval_episodes: int = Field(10, ge=1, le=1000, description="Whole episodes of an evaluation.")
    keep_best: bool | None = Field(
        None,
        description="Whether to save the policy that did best in an evaluation and not the last one. Default: `true` "
        "where there are evaluations.",
    )
    stop_reward: float | None = Field(
        None, ge=-1e9, le=1e9, description="Mean reward of an evaluation that is good enough to end the training."
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Evaluations in a row without a new best one that end the training."
    )
    max_seconds: float | None = Field(
        None, gt=0, le=86_400, description="Longest time that training may take; what was learnt by then is saved."
    )
    tensorboard_log: bool = Field(False, description="Whether to write a folder that TensorBoard reads.")


class TrainConfig(BaseModel):
    """What a job trains with, every default filled in; sent again as a request it repeats the job."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_name: str
    preset: str = Field(description="Whose preset filled in what was left out, or `none`.")
    total_timesteps: int
    learning_rate: float
    n_steps: int
    batch_size: int
    n_epochs: int
    reward_function_type: str | None = Field(description="None with `reward_functions`.")
    reward_functions: dict[str, float] | None
    model_name: str
    seed: int
    n_envs: int
    group_mode: GroupMode
    group_size: int
    horizon: int | None = Field(description="None for episodes without a limit of their own.")
    gamma: float
    gae_lambda: float
    baseline: Baseline
    supervision: Supervision
    advantage_scaling: AdvantageScaling
    bootstrap_value: bool
    clip_range: float
    clip_range_high: float | None
    loss_type: LossType
    importance_level: ImportanceLevel
    loss_normalization: LossNormalization
    ent_coef: float
    vf_coef: float
    vf_lr_factor: float
    max_grad_norm: float
    target_kl: float | None
    kl_coef: float
    ref_sync_steps: int | None
    restart_probability: float
    common_random_numbers: bool
    filter_zero_std_groups: bool
    normalize: Literal[False] | Normalization
    lr_schedule: LearningRateSchedule
    device: Literal["cpu", "cuda"]
    net_arch: list[int]
    activation: Activation
    log_std_init: float
    eval_freq: int | None = Field(description="None where no evaluation is made.")
    n_eval_episodes: int
    keep_best: bool
    stop_reward: float | None
    patience: int | None
    max_seconds: float | None
    tensorboard_log: bool


class TrainResponse(BaseModel):
    """A job was accepted."""

    job_id: str
    message: str
    config: TrainConfig


class EpisodeFigures(BaseModel):
    """What some whole episodes say of a policy. Rewards are the environment's own."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    n_episodes: int = Field(ge=1)
    mean_reward: float = Field(description="Mean sum of rewards of an episode.")
    std_reward: float = Field(ge=0, description="Standard deviation of the sums.")
    mean_reward_ci95: tuple[float, float] | None = Field(description="95 % interval; null of a single episode.")
    min_reward: float
    max_reward: float
    mean_length: float = Field(ge=0, description="Steps per episode.")
    success_rate: float | None = Field(ge=0, le=1, description="Null where success is not defined.")
    success_rate_ci95: tuple[float, float] | None


class EvaluationRow(EpisodeFigures):
    """What some whole episodes say of a job's policy as it was at one time."""

    timesteps: int = Field(description="Simulator steps that the policy had been trained for.")
    elapsed_seconds: float = Field(description="Time since the job was started.")


class Verdict(BaseModel):
    """Whether a job is learning, in a word and in a sentence."""

    state: VerdictState
    text: str = Field(description="What it means and, where something can be done, what to try.")


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
    elapsed_seconds: float = Field(description="Time since the job was started; 0 while it is queued.")
    eta_seconds: float | None = Field(description="Time that is left at the pace so far; None if unknown.")
    verdict: Verdict
    evaluation: EvaluationRow | None = Field(description="The latest evaluation.")
    best_evaluation: EvaluationRow | None = Field(description="The one with the highest mean reward.")
    ended_by: EndedBy | None = Field(description="Why the training ended; None while it goes on, or if it failed.")
    tensorboard_run: str | None = Field(description="Name of the run in TensorBoard; None where none was asked for.")
    config: TrainConfig


class JobSummary(BaseModel):
    """One line of the job list."""

    job_id: str
    status: JobStatus
    progress: float
    env_name: str
    model_name: str = Field(description="The name that was asked for.")
    current_timesteps: int
    total_timesteps: int
    created_at: datetime


class JobList(BaseModel):
    """All jobs the server remembers, oldest first."""

    jobs: list[JobSummary]


class HistoryRow(BaseModel):
    """What one rollout and the update before it measured."""

    timesteps: int
    elapsed_seconds: float
    metrics: dict[str, float]


class JobMetrics(BaseModel):
    """What a job has measured over time."""

    job_id: str
    keys: list[str] = Field(description="Every key of the rows' metrics, sorted.")
    rows: list[HistoryRow] = Field(description="Oldest first: all, or every second, fourth, ... of a long job.")
    evaluations: list[EvaluationRow]


class StopResponse(BaseModel):
    """A job was told to stop."""

    message: str
    job_id: str


class InferenceRequest(_Request):
    """A state to act on."""

    model_name: ModelName = Field(description="Name of a trained model.")
    observation: Observation = Field(
        description="One observation in the shape of the model's observation space; one integer if that is Discrete, "
        "an object with an entry per key if it is a Dict.",
        examples=[[0.1, 0.0, 0.05, 0.0]],
    )
    deterministic: bool = Field(True, description="Take the most likely action instead of drawing one.")
    action_masks: ActionMasks | None = Field(
        None, description="Which actions are allowed, in one list or in one list per component. Default: all."
    )


class InferenceResponse(BaseModel):
    """What to do."""

    action: int | list[Any] = Field(description="An integer for Discrete actions, a list for all others.")
    action_probs: list[float] | list[list[float]] | None = Field(
        description="Probability of every Discrete action, a list of such per component of a MultiDiscrete action, "
        "the probability of 1 per digit of a MultiBinary action; None for Box."
    )
    value: float = Field(description="The value network's estimate of the discounted return from here.")


class BatchRequest(_Request):
    """States to act on."""

    model_name: ModelName = Field(description="Name of a trained model.")
    observations: ObservationBatch = Field(
        description="Observations, each as `POST /inference` takes one.",
        examples=[[[0.1, 0.0, 0.05, 0.0], [0.0, 0.5, -0.1, -0.5]]],
    )
    deterministic: bool = Field(True, description="Take the most likely actions instead of drawing them.")
    action_masks: MaskBatch | None = Field(
        None, description="Per observation which actions are allowed, as `POST /inference` takes it, or null for all."
    )

    @model_validator(mode="after")
    def _check_masks(self) -> "BatchRequest":
        if self.action_masks is not None and len(self.action_masks) != len(self.observations):
            raise ValueError("action_masks has one entry per observation; null allows all actions")
        return self


class ItemError(BaseModel):
    """An observation that was not answered."""

    error: str = Field(description="What `POST /inference` would say.")


class BatchResponse(BaseModel):
    """What to do in each state."""

    answers: list[InferenceResponse | ItemError] = Field(description="One per observation, in their order.")


class ModelSummary(BaseModel):
    """One line of the model list."""

    name: str
    status: ModelStatus


class ModelList(BaseModel):
    """The model files, by name."""

    models: list[ModelSummary]


class SpaceDescription(BaseModel):
    """A space of observations or actions; what its kind does not have is null."""

    type: str = Field(description="Its kind, such as `Box` or `Discrete`.", examples=["Box"])
    text: str = Field(description="As Gymnasium writes it.")
    shape: list[int] | None = Field(description="Of an observation or action as an array.")
    dtype: str | None = Field(description="Type of its numbers.")
    n: int | None = Field(None, description="Choices of a Discrete space, digits of a MultiBinary one.")
    nvec: list[int] | None = Field(None, description="Choices of each component of a MultiDiscrete space.")
    low: list[float | None] | None = Field(
        None,
        description="Lowest value of each number of a Box, flattened; one entry where all are the same, null where "
        "there is no bound. Null as a whole if there are more than 1,024.",
    )
    high: list[float | None] | None = Field(None, description="Highest values, likewise.")
    spaces: dict[str, "SpaceDescription"] | None = Field(None, description="The spaces of a Dict, by key.")


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


class EvaluateRequest(_Request):
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


class EnvironmentSummary(BaseModel):
    """One line of the environment list."""

    env_name: str
    max_episode_steps: int | None = Field(description="Time limit of an episode; null without one.")
    reward_threshold: float | None = Field(description="Reward of an episode that counts as solved; null if unknown.")
    has_preset: bool
    is_latest: bool = Field(description="Whether there is no later version of it.")


class EnvironmentList(BaseModel):
    """The registered environments."""

    environments: list[EnvironmentSummary]


class EnvironmentFacts(BaseModel):
    """What is found out about an environment by building it.

    :param is_trainable: Whether the networks can take its spaces.
    :param obstacle: Why not, or why groups cannot start on the way.
    """

    observation_space: SpaceDescription
    action_space: SpaceDescription
    is_trainable: bool
    obstacle: str | None
    render_modes: list[str]


class EnvironmentDescription(BaseModel):
    """An environment."""

    env_name: str
    observation_space: SpaceDescription
    action_space: SpaceDescription
    restorable: bool = Field(description="Whether groups can start from states on the way.")
    obstacle: str | None = Field(description="Why not, or why it cannot be trained in at all.")
    group_mode: Literal["branch", "episode"] | None = Field(
        description="What `group_mode` `auto` comes to; null if it cannot be trained in."
    )
    max_episode_steps: int | None
    reward_threshold: float | None
    preset: dict[str, Any] | None = Field(description="Settings that were tuned on it, as `POST /train` fills them in.")
    default_reward_function: str
    reward_functions: list[str] = Field(description="What can be trained on, by name.")
    render_modes: list[str] = Field(description="Films need `rgb_array`.")


class RewardFunctionSummary(BaseModel):
    """A reward function."""

    name: str
    description: str | None = Field(description="First paragraph of its docstring.")
    environments: list[str] | None = Field(description="The environments that it understands; null: not restricted.")


class RewardFunctionList(BaseModel):
    """The reward functions that a job can name."""

    reward_functions: list[RewardFunctionSummary]


class Health(BaseModel):
    """That the server lives, and what it holds."""

    status: Literal["healthy"]
    timestamp: datetime = Field(examples=["2026-11-25T10:00:00Z"])
    active_jobs: int = Field(description="Queued and running.", examples=[1])
    loaded_models: int = Field(description="Models in memory.", examples=[2])
    lost_slots: int = Field(description="Job slots held by stalled jobs until the server is restarted.", examples=[0])


class Liveness(BaseModel):
    """That the server lives."""

    status: Literal["alive"]


class ReadyState(BaseModel):
    """That the server can take work."""

    status: Literal["ready"]


class ServerInfo(BaseModel):
    """What the server offers."""

    message: str = Field(examples=["GRPO API Server"])
    version: str = Field(examples=["1.0.0"])
    endpoints: dict[str, str] = Field(examples=[{"train": "POST /train", "inference": "POST /inference"}])


class FieldError(BaseModel):
    """What is wrong with a field."""

    field: str = Field(
        description="Its name, with dots where it is inside of another; empty for the whole body.",
        examples=["n_step"],
    )
    message: str = Field(examples=["unknown field; did you mean n_steps?"])


class ProblemDetails(BaseModel):
    """Every error: RFC 9457."""

    type: str = Field(
        description="The kind of error, for programs: `urn:grpo:problem:` and a name that stays.",
        examples=["urn:grpo:problem:not-found"],
    )
    title: str = Field(
        description="The kind of error, in words.", examples=["There is no such job, model or environment"]
    )
    status: int = Field(description="The HTTP status, once more.", examples=[404])
    detail: str = Field(
        description="What is wrong, and the remedy if there is one.",
        examples=["there is no model 'balanse'; did you mean 'balance'?"],
    )
    instance: str = Field(
        description="The request's id, as in the header `X-Request-ID`, as a URN.",
        examples=["urn:uuid:0f8fad5b-d9cb-469f-a165-70867728950e"],
    )
    errors: list[FieldError] | None = Field(None, description="Field by field, at most ten, with status 422 only.")
    id: str | None = Field(None, description="What to look for in the server's log, with status 500 only.")
