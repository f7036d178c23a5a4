"""What to train, and what a job trains with."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from grpo_core.options.choices import (
    AdvantageScaling,
    Baseline,
    GroupMode,
    ImportanceLevel,
    LossNormalization,
    LossType,
    Supervision,
)
from service.schemas.fields import MAX_SEED, EnvName, ModelName, Request, RewardName

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


class TrainRequest(Request):
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
