"""What to train, and what a job trains with."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from grpo_core.environments.making import EnvSetup
from grpo_core.options.choices import GroupMode
from grpo_core.options.hyperparameters import HYPERPARAMETERS, Hyperparameters, Row
from service.schemas.fields import (
    MAX_SEED,
    EnvKwargs,
    EnvName,
    ModelName,
    ModelReference,
    Request,
    RewardName,
    Wrappers,
)

_MAX_REWARD_FUNCTIONS = 16

LayerSize = Annotated[int, Field(ge=1, le=1024)]
LearningRateSchedule = Literal["linear", "constant"]
# The names of grpo_core.actor.actor.ACTIVATIONS, in lower case.
Activation = Literal["tanh", "relu", "elu", "leakyrelu"]


class Normalization(BaseModel):
    """What is normalised by running statistics."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    norm_obs: bool = Field(True, description="Observations: those numbers of them that are no images.")
    norm_reward: bool = Field(True, description="Rewards.")


def _read_normalization(value: Any) -> Any:
    """Read an object by itself: its errors would be told beside those of everything else that the field may be."""
    if isinstance(value, dict):
        return Normalization.model_validate(value)
    if value is None or isinstance(value, bool | Normalization):
        return value
    raise ValueError('it must be true, false or an object such as {"norm_reward": false}')


# Defaults that the contract states. Of other hyperparameters the schema only says that they may be left out.
_STATED_DEFAULTS: dict[str, Any] = {
    "n_steps": 32,
    **{
        name: HYPERPARAMETERS[name].default
        for name in ("learning_rate", "batch_size", "n_epochs", "group_size", "gamma")
    },
}
# What is filled in without a preset, where that is not the library's own default.
DEFAULTS_IN_WORDS = {
    "horizon": "close to 16, fitting `n_steps`; in episodes a cap of 10,000",
    "baseline": "`group` for CartPole's shipped rewards, else `adaptive`",
    "bootstrap_value": "`false` for CartPole's shipped rewards, else `true`",
}
_RequestType = TypeVar("_RequestType", bound=Request)


def _check_weights(weights: dict[str, float]) -> dict[str, float]:
    if weights and not any(weights.values()):
        raise ValueError("all weights are 0, so there is nothing to learn from; give one another weight")
    return weights


RewardWeights = Annotated[
    dict[RewardName, Annotated[float, Field(ge=-1e6, le=1e6)]],
    Field(min_length=1, max_length=_MAX_REWARD_FUNCTIONS),
    AfterValidator(_check_weights),
]


def _with_hyperparameters(request: type[_RequestType]) -> type[_RequestType]:
    """Add a field per hyperparameter, after those of the request itself."""
    fields: dict[str, Any] = {name: _make_field(row) for name, row in HYPERPARAMETERS.items()}
    return create_model(
        request.__name__, __base__=request, __doc__=request.__doc__, __module__=request.__module__, **fields
    )


def _make_field(row: Row) -> tuple[Any, Any]:
    """Describe a field: its type, and its default, limits and meaning."""
    description = f"{row.meaning[0].upper()}{row.meaning[1:]}."
    if row.name in DEFAULTS_IN_WORDS:
        description += f" Default: by preset, else {DEFAULTS_IN_WORDS[row.name]}."
    default = _STATED_DEFAULTS.get(row.name)
    annotation = row.annotation | None if default is None else row.annotation
    if row.kind not in (int, float):
        return annotation, Field(default, description=description)
    smallest: dict[str, Any] = {"gt": row.above} if row.above > -math.inf else {"ge": row.request_least}
    return annotation, Field(default, description=description, le=row.request_most, **smallest)


@_with_hyperparameters
class TrainRequest(Request):
    """What to train; every field is optional."""

    env_name: EnvName = Field("CartPole-v1", description="Id of a registered Gymnasium environment.")
    env_kwargs: EnvKwargs | None = Field(
        None, description="Arguments of the environment's constructor: numbers, words, flags and lists of these."
    )
    wrappers: Wrappers | None = Field(
        None,
        description="What the environment is put into, the innermost first: names, or objects with a `name` and "
        "options.",
    )
    preset: EnvName | None = Field(
        None,
        description="What fills in the fields that are left out: an environment's preset by its name, `general`, or "
        "`none`. Default: the environment's own preset or a general one, but none for CartPole's shipped rewards.",
    )
    total_timesteps: int = Field(
        10_000, ge=1, le=10_000_000, description="Simulator steps to train for; every step of every branch counts."
    )
    reward_function_type: RewardName | None = Field(
        None,
        description="Name of a reward function, or `environment` for the environment's own reward. "
        "Default: `optimized_cartpole` on CartPole, `environment` elsewhere.",
    )
    reward_functions: RewardWeights | None = Field(
        None,
        description="Several reward functions and their weights, instead of `reward_function_type`.",
    )
    model_name: ModelName | None = Field(None, description="Name to save the policy under. Default: a generated one.")
    replace: bool = Field(True, description="Whether the policy may replace a model of that name; `false` refuses.")
    init_model: ModelReference | None = Field(
        None, description="A model to train on: its weights, optimizer and statistics are where training begins."
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Makes the job repeatable. Default: random.")
    n_envs: int = Field(1, ge=1, le=64, description="Environments whose groups fill one rollout.")
    normalize: Annotated[bool | Normalization | None, BeforeValidator(_read_normalization)] = Field(
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
        description="Simulator steps between two evaluations of the policy. Default: about 20 over the job where "
        "`stop_reward`, `patience` or `keep_best` needs them, else up to 20, for a small share of its steps and time.",
    )
    n_eval_episodes: int = Field(
        10,
        ge=0,
        le=1000,
        description="Whole episodes of an evaluation, of the final one in classic control ten times as many (at most "
        "1,000); 0 makes none, not even at the end.",
    )
    keep_best: bool | None = Field(
        None,
        description="Whether to save the policy that did best in an evaluation and not the last one. Default: `true` "
        "with `eval_freq`, `stop_reward` or `patience`, else `false`.",
    )
    stop_reward: float | None = Field(
        None, ge=-1e9, le=1e9, description="Mean reward of an evaluation that is good enough to end the training."
    )
    patience: int | None = Field(
        None, ge=1, le=1000, description="Evaluations in a row without a new best one that end the training."
    )
    max_seconds: float | None = Field(
        None, gt=0, le=86_400, description="Longest time that training may take; what was learned by then is saved."
    )
    checkpoint_every: int | None = Field(
        None,
        ge=1,
        le=10_000_000,
        description="Simulator steps between two checkpoints, from which the job can go on. Default: one a minute.",
    )
    max_restarts: int = Field(
        1, ge=0, le=100, description="How often the job goes on by itself, from its checkpoint, after its worker died."
    )
    tensorboard_log: bool = Field(False, description="Whether to write a folder that TensorBoard reads.")


class _JobConfig(BaseModel):
    """The part of a job's configuration that is not a hyperparameter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    env_name: str
    env_kwargs: EnvKwargs
    wrappers: Wrappers
    preset: str = Field(description="Whose preset filled in what was left out, or `none`.")
    total_timesteps: int
    reward_function_type: str | None = Field(description="None with `reward_functions`.")
    reward_functions: dict[str, float] | None
    model_name: str
    replace: bool = True
    init_model: str | None = Field(None, description="The model that training began from.")
    seed: int
    n_envs: int
    normalize: Literal[False] | Normalization
    lr_schedule: LearningRateSchedule
    device: Literal["cpu", "cuda"]
    net_arch: list[int]
    activation: Activation
    log_std_init: float
    eval_freq: int | None = Field(
        description="None where there are up to 20, for a small share of the steps and the time."
    )
    n_eval_episodes: int
    keep_best: bool
    stop_reward: float | None
    patience: int | None
    max_seconds: float | None
    checkpoint_every: int | None = Field(None, description="None where the clock decides when checkpoints are taken.")
    max_restarts: int = 1
    tensorboard_log: bool


class TrainConfig(Hyperparameters, _JobConfig):
    """What a job trains with, every default filled in; sent again as a request it repeats the job."""

    @property
    def env_setup(self) -> EnvSetup:
        """The environment to train and evaluate in."""
        return EnvSetup(self.env_name, self.env_kwargs, self.wrappers)

    @property
    def planned_timesteps(self) -> int:
        """The simulator steps of the job in whole rollouts: the one under way is completed."""
        n_rollout_steps = self.n_steps * self.n_envs
        return -(-self.total_timesteps // n_rollout_steps) * n_rollout_steps

    @classmethod
    @cache
    def list_defaults(cls) -> dict[str, Any]:
        """List what a configuration may lack, since an earlier version did not have it, and what that then did."""
        return {name: row.default for name, row in HYPERPARAMETERS.items()} | {
            name: field.default for name, field in cls.model_fields.items() if not field.is_required()
        }

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "TrainConfig":
        """Read a configuration that was written down, perhaps by another version.

        What no longer passes the checks is kept as it is: it is history by now.
        """
        defaults = cls.list_defaults()
        known = {name: fields.get(name, defaults.get(name)) for name in cls.model_fields}
        try:
            return cls.model_validate(known)
        except ValidationError:
            return cls.model_construct(None, **known)

    def is_written_as(self, fields: Mapping[str, Any]) -> bool:
        """Tell whether what was written down is this configuration, perhaps by a version that had fewer fields."""
        return fields.keys() <= type(self).model_fields.keys() and self.read(fields) == self

    # Pydantic makes a field of each annotation in the table; two say more here.
    group_mode: GroupMode
    horizon: int | None = Field(description="None for episodes without a limit of their own.")


ConfigOrigin = Literal["request", "preset", "default"]
ConfigOrigins = Annotated[
    dict[str, ConfigOrigin],
    Field(description="Who chose each field of `config`: the request, the preset, or the server by its defaults."),
]


class TrainResponse(BaseModel):
    """A job was accepted."""

    job_id: str
    message: str
    config: TrainConfig
    config_origins: ConfigOrigins
    warnings: list[str] = Field(description="What the client should know before the job ends.")
