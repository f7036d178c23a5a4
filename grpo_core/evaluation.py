"""Judge a policy by whole episodes of an environment's own reward, with confidence intervals."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import Actor
from grpo_core.simulators.action_masks import get_action_masks, sample_action
from grpo_core.spaces import is_image_space

# From an observation and the flags of the allowed actions (None allows all) to an action.
Policy = Callable[[Any, Any], Any]
Interval = tuple[float, float]

_CONFIDENCE = 0.95
# Quantile of the normal distribution that leaves 2.5 % above it.
_Z = 1.959964
_N_RESAMPLES = 10_000


class Episode(NamedTuple):
    """One whole episode.

    :param reward: Sum of the environment's own rewards.
    :param n_steps: Steps taken.
    :param is_success: What the environment says of it at its end, under ``is_success`` of its info; None if nothing.
    """

    reward: float
    n_steps: int
    is_success: bool | None


@dataclass(frozen=True)
class Evaluation:
    """Statistics of some episodes of a policy.

    :param n_episodes: How many there were.
    :param mean_reward: Mean sum of the environment's own rewards.
    :param std_reward: Their standard deviation (of the sample itself, as SB3's ``evaluate_policy`` has it).
    :param mean_reward_ci95: 95 % interval of the mean, bootstrapped; None of a single episode.
    :param min_reward: The worst episode.
    :param max_reward: The best one.
    :param mean_length: Mean number of steps.
    :param success_rate: Share of episodes that succeeded, in [0, 1]; None where success is not defined.
    :param success_rate_ci95: Its 95 % interval (Wilson's).
    """

    n_episodes: int
    mean_reward: float
    std_reward: float
    mean_reward_ci95: Interval | None
    min_reward: float
    max_reward: float
    mean_length: float
    success_rate: float | None
    success_rate_ci95: Interval | None


def make_policy(actor: Actor, deterministic: bool, rng: np.random.Generator) -> Policy:
    """Let an actor choose actions for single observations, as the environment gives them.

    :param deterministic: Take the most likely actions instead of drawing them.
    :param rng: What actions are drawn from.
    """

    def choose(observation: Any, action_masks: Any) -> Any:
        batch = _to_batch(actor.observation_space, observation)
        masks = None if action_masks is None else np.asarray(action_masks)[None]
        if deterministic:
            actions = actor.best_actions(batch, masks)
        else:
            actions, _ = actor.sample_actions(batch, rng, masks)
        return actor.clip_actions(actions)[0]

    return choose


def make_random_policy(action_space: spaces.Space[Any], seed: int) -> Policy:
    """Draw actions uniformly, allowed ones only.

    :param action_space: Copied, so that its own generator is left alone.
    """
    space = copy.deepcopy(action_space)
    space.seed(seed)
    return lambda observation, action_masks: sample_action(space, action_masks)


def check_spaces(actor: Actor, env: gym.Env[Any, Any]) -> None:
    """Check that a policy was made for an environment like this.

    :raises ValueError: If observations or actions differ in kind or shape.
    """
    for role, own, other in (
        ("observations", actor.observation_space, env.observation_space),
        ("actions", actor.action_space, env.action_space),
    ):
        if _describe_kind(own) != _describe_kind(other):
            raise ValueError(f"the policy's {role} are {own}, but those of the environment are {other}.")


def play_episode(
    env: gym.Env[Any, Any],
    policy: Policy,
    seed: int,
    max_steps: float = math.inf,
    on_step: Callable[[], None] = lambda: None,
) -> Episode:
    """Play one episode to its end.

    :param seed: Of the reset.
    :param max_steps: The episode is cut after so many.
    :param on_step: Called after the reset and after every step: to render, to count, or to raise and so give up.
    """
    observation, _ = env.reset(seed=seed)
    on_step()
    reward, n_steps, over = 0.0, 0, False
    info: dict[str, Any] = {}
    while not over and n_steps < max_steps:
        observation, step_reward, terminated, truncated, info = env.step(policy(observation, get_action_masks(env)))
        reward, n_steps, over = reward + float(step_reward), n_steps + 1, bool(terminated or truncated)
        on_step()
    success = info.get("is_success")
    return Episode(reward, n_steps, None if success is None else bool(success))


def play_episodes(
    env: gym.Env[Any, Any],
    policy: Policy,
    n_episodes: int,
    seed: int,
    max_steps: float = math.inf,
    on_step: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Play episodes whose resets are seeded with ``seed``, ``seed + 1`` and so on; see ``play_episode``."""
    return [play_episode(env, policy, seed + i, max_steps, on_step) for i in range(n_episodes)]


def summarize_episodes(episodes: Sequence[Episode], reward_threshold: float | None = None) -> Evaluation:
    """Compute the statistics of episodes.

    :param episodes: At least one.
    :param reward_threshold: Where the environment does not tell success, an episode with this reward or more is one;
        None leaves success undefined.
    """
    rewards = np.array([episode.reward for episode in episodes])
    successes = [
        episode.is_success
        if episode.is_success is not None or reward_threshold is None
        else episode.reward >= reward_threshold
        for episode in episodes
    ]
    known = [success for success in successes if success is not None]
    return Evaluation(
        n_episodes=len(episodes),
        mean_reward=float(rewards.mean()),
        std_reward=float(rewards.std()),
        mean_reward_ci95=compute_mean_interval(rewards),
        min_reward=float(rewards.min()),
        max_reward=float(rewards.max()),
        mean_length=float(np.mean([episode.n_steps for episode in episodes])),
        success_rate=sum(known) / len(known) if known else None,
        success_rate_ci95=compute_rate_interval(sum(known), len(known)) if known else None,
    )


def compute_mean_interval(numbers: npt.NDArray[np.float64]) -> Interval | None:
    """Return the 95 % percentile interval of the mean under 10,000 resamples, the same every time; None of one number.

    :param numbers: ``(n,)``.
    """
    if len(numbers) < 2:
        return None
    rng = np.random.default_rng(0)
    # Counts of a multinomial are those of drawing n of n with replacement, without an index per draw.
    counts = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), _N_RESAMPLES)
    low, high = np.quantile(counts @ numbers / len(numbers), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def compute_rate_interval(n_successes: int, n: int) -> Interval:
    """Return Wilson's 95 % interval of a rate (Wilson 1927, equation 4), within [0, 1] also at its ends."""
    rate, z2 = n_successes / n, _Z**2
    centre = rate + z2 / (2 * n)
    spread = _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    return max(0.0, (centre - spread) / (1 + z2 / n)), min(1.0, (centre + spread) / (1 + z2 / n))


def _to_batch(space: spaces.Space[Any], observation: Any) -> Any:
    """Make a batch of one; images get their channels first, as the networks have them."""
    if isinstance(space, spaces.Dict):
        return {key: _to_batch(part, observation[key]) for key, part in space.spaces.items()}
    array = np.asarray(observation)
    if array.shape != space.shape and array.ndim == 3 and is_image_space(space):
        array = array.transpose(2, 0, 1)
    return array[None]


def _describe_kind(space: spaces.Space[Any]) -> Any:
    """Describe what makes two spaces exchangeable for a policy: all but the bounds of a Box, and an image's layout."""
    if isinstance(space, spaces.Dict):
        return {key: _describe_kind(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return "Box", sorted(space.shape) if len(space.shape) == 3 else space.shape
    return space
