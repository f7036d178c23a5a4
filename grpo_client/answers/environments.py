"""The server's answers about environments and reward functions."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpo_client.answers.reading import Answer


@dataclass(frozen=True, kw_only=True)
class EnvironmentSummary(Answer):
    """One line of the environment list."""

    env_name: str
    max_episode_steps: int | None
    reward_threshold: float | None
    has_preset: bool
    is_latest: bool


@dataclass(frozen=True, kw_only=True)
class Environment(Answer):
    """An environment: its spaces, its limits and what jobs can do in it.

    :param restorable: Whether groups can start from states in the middle of an episode.
    :param obstacle: Why they cannot, or why no job can train in it.
    :param env_kwargs: The arguments that its constructor takes, with their defaults; None if it takes any.
    :param wrappers: Wrappers that make it fit, where its spaces do not.
    """

    env_name: str
    observation_space: Mapping[str, Any]
    action_space: Mapping[str, Any]
    restorable: bool
    obstacle: str | None
    group_mode: str | None
    max_episode_steps: int | None
    reward_threshold: float | None
    env_kwargs: Mapping[str, Any] | None
    wrappers: tuple[Mapping[str, Any], ...]
    preset_name: str | None
    preset: Mapping[str, Any] | None
    default_reward_function: str
    reward_functions: tuple[str, ...]
    render_modes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class RewardFunction(Answer):
    """A reward function that a job can name.

    :param environments: The environments that it understands; None for all.
    """

    name: str
    description: str | None
    environments: tuple[str, ...] | None
