"""Evaluate a policy over whole episodes by the environment's own reward, with confidence intervals."""

import copy
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import PolicyActor
from grpo_core.environments.action_masks import get_action_masks, sample_action
from grpo_core.environments.first_calls import check_step, is_usual
from grpo_core.spaces import is_image_space
from grpo_core.success import judge_success

# Takes an observation and the flags of the allowed actions (None allows all), and returns an action.
Policy = Callable[[Any, Any], Any]
Interval = tuple[float, float]

_CONFIDENCE = 0.95
# The 97.5 % quantile of the standard normal distribution.
_Z = 1.959964
_N_RESAMPLES = 10_000


class Episode(NamedTuple):
    """One whole episode.

    :param reward: Sum of the environment's own rewards.
    :param n_steps: Steps taken.
    :param is_success: Whether it succeeded, as ``grpo_core.success`` judges; None if nothing says what success is.
    """

    reward: float
    n_steps: int
    is_success: bool | None


@dataclass(frozen=True)
class Evaluation:
    """Statistics of some episodes of a policy.

    :param n_episodes: Number of episodes.
    :param mean_reward: Mean over episodes of the sum of the environment's own rewards.
    :param std_reward: Population standard deviation of these sums, as in SB3's ``evaluate_policy``.
    :param mean_reward_ci95: Bootstrapped 95 % interval of the mean; None for a single episode.
    :param min_reward: Sum of the worst episode.
    :param max_reward: Sum of the best episode.
    :param mean_length: Mean number of steps.
    :param success_rate: Share of successful episodes, in [0, 1]; None if success is not defined.
    :param success_rate_ci95: Wilson's 95 % interval of this share.
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


def make_policy(actor: PolicyActor, deterministic: bool, rng: np.random.Generator) -> Policy:
    """Make a policy in which an actor chooses actions for single observations, as the environment returns them.

    :param deterministic: Take the most likely actions instead of drawing them.
    :param rng: Generator to draw actions from.
    """

    def choose(observation: Any, action_masks: Any) -> Any:
        batch = to_batch(actor.observation_space, observation)
        masks = None if action_masks is None else np.asarray(action_masks)[None]
        if deterministic:
            actions = actor.best_actions(batch, masks)
        else:
            actions, _ = actor.sample_actions(batch, rng, masks)
        return actor.clip_actions(actions)[0]

    return choose


def make_random_policy(action_space: spaces.Space[Any], seed: int) -> Policy:
    """Make a policy that draws uniformly among the allowed actions.

    :param action_space: The action space; its own generator is not used.
    :param seed: Seed of the draws.
    """
    space = copy.deepcopy(action_space)
    space.seed(seed)
    return lambda observation, action_masks: sample_action(space, action_masks)


def check_spaces(actor: PolicyActor, env: gym.Env[Any, Any]) -> None:
    """Check that a policy fits an environment.

    :raises ValueError: If their observations or actions differ in kind or shape.
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

    :param seed: Seed of the reset.
    :param max_steps: Largest number of steps; a longer episode is cut.
    :param on_step: Called after the reset and after every step; an exception it raises ends the episode.
    :raises InvalidEnvironmentError: If ``is_success`` is there but says neither yes nor no.
    """
    steps = step_episode(env, policy, seed, max_steps)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            episode: Episode = end.value
            return episode
        on_step()


def step_episode(
    env: gym.Env[Any, Any], policy: Policy, seed: int, max_steps: float = math.inf
) -> Generator[None, None, Episode]:
    """Play one episode to its end, and pause after its reset and after every step.

    :param seed: Seed of the reset.
    :param max_steps: Largest number of steps; a longer episode is cut.
    :raises InvalidEnvironmentError: If a step returns what it must not, or too large a reward.
    """
    observation, _ = env.reset(seed=seed)
    yield
    reward, n_steps, terminated, over = 0.0, 0, False, False
    info: dict[str, Any] = {}
    while not over and n_steps < max_steps:
        returned: Any = env.step(policy(observation, get_action_masks(env)))
        if not is_usual(returned):
            check_step(type(env.unwrapped).__name__, returned)
        observation, step_reward, terminated, truncated, info = returned
        reward, n_steps, over = reward + float(step_reward), n_steps + 1, bool(terminated or truncated)
        yield
    return Episode(reward, n_steps, judge_success(env, info, bool(terminated), reward))


def play_episodes(
    env: gym.Env[Any, Any],
    policy: Policy,
    n_episodes: int,
    seed: int,
    max_steps: float = math.inf,
    on_step: Callable[[], None] = lambda: None,
) -> list[Episode]:
    """Play episodes with ``play_episode``, their resets seeded with ``seed``, ``seed + 1`` and so on."""
    return [play_episode(env, policy, seed + i, max_steps, on_step) for i in range(n_episodes)]


def summarize_episodes(episodes: Sequence[Episode]) -> Evaluation:
    """Compute the statistics of episodes.

    If some episodes say whether they succeeded, the others count as failed: many environments report only success.

    :param episodes: At least one episode.
    """
    rewards = np.array([episode.reward for episode in episodes])
    is_defined = any(episode.is_success is not None for episode in episodes)
    n_successes, n = sum(episode.is_success is True for episode in episodes), len(episodes)
    return Evaluation(
        n_episodes=len(episodes),
        mean_reward=float(rewards.mean()),
        std_reward=float(rewards.std()),
        mean_reward_ci95=compute_mean_interval(rewards),
        min_reward=float(rewards.min()),
        max_reward=float(rewards.max()),
        mean_length=float(np.mean([episode.n_steps for episode in episodes])),
        success_rate=n_successes / n if is_defined else None,
        success_rate_ci95=compute_rate_interval(n_successes, n) if is_defined else None,
    )


def compute_mean_interval(numbers: npt.NDArray[np.float64]) -> Interval | None:
    """Bootstrap the 95 % percentile interval of a mean with 10,000 resamples, from a fixed seed.

    :param numbers: The numbers, of shape ``(n,)``.
    :return: The interval; None for fewer than two numbers.
    """
    if len(numbers) < 2:
        return None
    rng = np.random.default_rng(0)
    # Drawing n of n numbers with replacement gives multinomial counts; drawing the counts saves an index per draw.
    counts = rng.multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), _N_RESAMPLES)
    low, high = np.quantile(counts @ numbers / len(numbers), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def compute_rate_interval(n_successes: int, n: int) -> Interval:
    """Compute Wilson's 95 % interval of a rate (Wilson 1927, equation 4), clipped to [0, 1].

    :param n_successes: Number of successes.
    :param n: Number of trials, at least 1.
    """
    rate, z2 = n_successes / n, _Z**2
    centre = rate + z2 / (2 * n)
    spread = _Z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2))
    low, high = (centre - spread) / (1 + z2 / n), (centre + spread) / (1 + z2 / n)
    # Exactly 0 and 1 where rounding would leave a little.
    return max(0.0, low) if n_successes > 0 else 0.0, min(1.0, high) if n_successes < n else 1.0


def to_batch(space: spaces.Space[Any], observation: Any) -> Any:
    """Make a batch of one observation; an image's channels come first, as the networks need them."""
    if isinstance(space, spaces.Dict):
        return {key: to_batch(part, observation[key]) for key, part in space.spaces.items()}
    array = np.asarray(observation)
    if array.shape != space.shape and array.ndim == 3 and is_image_space(space):
        array = array.transpose(2, 0, 1)
    return array[None]


def _describe_kind(space: spaces.Space[Any]) -> Any:
    """Describe a space without what a policy does not depend on: the bounds of a Box and the order of image axes."""
    if isinstance(space, spaces.Dict):
        return {key: _describe_kind(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Box):
        return "Box", sorted(space.shape) if len(space.shape) == 3 else space.shape
    return space
