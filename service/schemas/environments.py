"""Environments and reward functions."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.spaces import SpaceDescription


class EnvironmentSummary(BaseModel):
    """One line of the environment list."""

    env_name: str
    max_episode_steps: int | None = Field(description="Time limit of an episode; null without one.")
    reward_threshold: float | None = Field(
        description="Reward of an episode from which the environment counts as solved; null if unknown."
    )
    has_preset: bool
    is_latest: bool = Field(description="Whether it is the latest version.")


class EnvironmentList(BaseModel):
    """The registered environments."""

    environments: list[EnvironmentSummary]


class EnvironmentFacts(BaseModel):
    """Facts about an environment that only building it can tell.

    :param is_trainable: Whether the networks support its spaces.
    :param obstacle: Why not, or why its state cannot be restored; None if both work.
    :param observation_names: What it calls the numbers of its observations, if it does.
    :param action_names: Likewise its discrete actions.
    """

    observation_space: SpaceDescription
    action_space: SpaceDescription
    is_trainable: bool
    obstacle: str | None
    env_kwargs: dict[str, Any] | None
    wrappers: list[dict[str, Any]]
    general_preset: str | None
    render_modes: list[str]
    observation_names: list[str]
    action_names: list[str]


class EnvironmentDescription(BaseModel):
    """A description of an environment."""

    env_name: str
    observation_space: SpaceDescription
    action_space: SpaceDescription
    restorable: bool = Field(description="Whether its state can be restored, so that groups can start mid-episode.")
    obstacle: str | None = Field(description="Why not, or why it cannot be trained in at all; null if it can.")
    group_mode: Literal["branch", "episode"] | None = Field(
        description="The `group_mode` that `auto` chooses; null if it cannot be trained in."
    )
    max_episode_steps: int | None
    reward_threshold: float | None
    env_kwargs: dict[str, Any] | None = Field(
        description="Arguments of its constructor that `env_kwargs` of `POST /train` may set, with their defaults as "
        "far as JSON can tell them; null if it takes any."
    )
    wrappers: list[dict[str, Any]] = Field(
        description="Wrappers that make it fit, where its spaces do not; `POST /train` takes them as they are."
    )
    preset_name: str | None = Field(
        description="The preset that `POST /train` takes for its own reward; null if it cannot be trained in."
    )
    preset: dict[str, Any] | None = Field(description="Settings tuned on it, which `POST /train` fills in.")
    default_reward_function: str
    reward_functions: list[str] = Field(description="Names of the reward functions that fit it.")
    render_modes: list[str] = Field(description="Its render modes; films need `rgb_array`.")


class RewardFunctionSummary(BaseModel):
    """A reward function."""

    name: str
    description: str | None = Field(description="First paragraph of its docstring.")
    environments: list[str] | None = Field(description="The only environments that it fits; null means any.")


class RewardFunctionList(BaseModel):
    """The reward functions that a job can name."""

    reward_functions: list[RewardFunctionSummary]
