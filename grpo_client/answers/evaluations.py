"""Figures of a policy's episodes, beside random actions, and beside its own values."""

from dataclasses import dataclass

from grpo_client.answers.reading import Answer, Interval


@dataclass(frozen=True, kw_only=True)
class EpisodeFigures(Answer):
    """Statistics of whole episodes. Rewards are the environment's own.

    :param mean_length: Steps per episode.
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


@dataclass(frozen=True, kw_only=True)
class Evaluation(EpisodeFigures):
    """An evaluation of a policy.

    :param timesteps: Simulator steps trained until then; None outside a job.
    :param elapsed_seconds: Time since the job was started; None outside a job.
    """

    timesteps: int | None = None
    elapsed_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinalEvaluation(EpisodeFigures):
    """The evaluation with which a job ends: that of the policy it saves.

    :param timesteps: Simulator steps that the policy had been trained for.
    :param seconds: How long it took; None on a model card.
    :param complete: False if time ran out before all episodes were played.
    """

    timesteps: int
    complete: bool
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class ValueCheck(Answer):
    """How well a model's values agree with what followed, in episodes that they were not fitted to.

    :param is_meaningful: Whether a prediction has a value at all.
    :param gamma: Discount factor of the returns, in [0, 1].
    :param n_states: States compared.
    :param correlation: Of values and returns, in [-1, 1]; None where either do not differ.
    :param error: Mean size of the error, in shares of the mean size of the return.
    :param spread: Standard deviation of the returns, in the same shares.
    :param lowest: The least of the values and returns compared: beyond it nothing was tested.
    :param highest: The greatest of them.
    """

    is_meaningful: bool
    gamma: float
    n_states: int
    correlation: float | None
    error: float | None
    spread: float | None
    lowest: float
    highest: float


@dataclass(frozen=True, kw_only=True)
class Comparison(Answer):
    """Evaluations of a policy and of random actions on the same seeds.

    :param better_than_random: Whether the policy's 95 % interval lies above that of random actions.
    :param seconds: How long the episodes took.
    :param warnings: Says whose episodes were cut, where the environment has no time limit.
    """

    model_name: str
    env_name: str
    seed: int
    deterministic: bool
    evaluation: Evaluation
    random: Evaluation
    better_than_random: bool
    seconds: float
    warnings: tuple[str, ...] = ()


def describe_evaluation(evaluation: EpisodeFigures) -> str:
    """Format an evaluation in one line."""
    interval = evaluation.mean_reward_ci95
    spread = "" if interval is None else f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
    success = "" if evaluation.success_rate is None else f", success {evaluation.success_rate:.0%}"
    return (
        f"mean reward {evaluation.mean_reward:.2f}{spread}, standard deviation {evaluation.std_reward:.2f}, "
        f"{evaluation.n_episodes} episodes{success}"
    )
