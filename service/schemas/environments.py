"""Environments and reward functions."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from service.schemas.spaces import SpaceDescription


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
