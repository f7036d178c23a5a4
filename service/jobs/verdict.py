"""Whether a job is learning: a verdict that a newcomer understands, no more certain than the evidence."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from service.schemas.jobs import JobStatus, Verdict, VerdictState
from service.schemas.training import TrainConfig

# With fewer points, a third of a curve says nothing about its spread.
_MIN_POINTS = 12
# A third counts as higher than another if its median lies this many of their spreads above the other's. Among twelve
# random points the last third differs this much from one of the others in 1 case of 16, among twenty in 1 of 100.
_MIN_SPREADS = 2.5
# It must also be higher by this share of its size, since a curve of means over 100 episodes wanders smoothly.
_MIN_CHANGE = 0.05
# Below the first, an update hardly changed the policy; above the second, by more than the clipped loss is made for.
_SMALL_KL, _LARGE_KL = 1e-5, 0.1
# Nats. A policy of discrete actions with less entropy has almost stopped exploring.
_SMALL_ENTROPY = 0.02


class Evidence(NamedTuple):
    """The evidence that a job is judged by.

    :param status: Its status.
    :param config: Its settings.
    :param rollout_rewards: Mean rewards of recent episodes over time (``rollout/ep_rew_mean``), oldest first.
    :param evaluation_rewards: Mean rewards of evaluations, oldest first.
    :param reward_threshold: Reward from which the environment counts as solved; None if it does not say.
    :param no_signal_warning: The warning if all branches of every group have earned the same for long; else None.
    :param metrics: The latest metrics, under SB3's log keys.
    """

    status: JobStatus
    config: TrainConfig
    rollout_rewards: Sequence[float] = ()
    evaluation_rewards: Sequence[float] = ()
    reward_threshold: float | None = None
    no_signal_warning: str | None = None
    metrics: Mapping[str, float] = MappingProxyType({})

    @property
    def curve(self) -> Sequence[float]:
        """Rewards over time: the evaluations' if there are enough, since these all play the same episodes."""
        return self.evaluation_rewards if len(self.evaluation_rewards) >= _MIN_POINTS else self.rollout_rewards

    @property
    def latest_reward(self) -> float | None:
        """Reward of the policy that will be saved if it was evaluated, else of recent episodes; None if too few."""
        if self.evaluation_rewards:
            return max(self.evaluation_rewards) if self.config.keep_best else self.evaluation_rewards[-1]
        return self.rollout_rewards[-1] if len(self.rollout_rewards) >= _MIN_POINTS else None


def judge(evidence: Evidence) -> Verdict:
    """Judge whether a job is learning."""
    status, reward, threshold = evidence.status, evidence.latest_reward, evidence.reward_threshold
    if status is JobStatus.QUEUED:
        return Verdict(state="waiting", text="The job is waiting for its turn.")
    if status is JobStatus.FAILED:
        return Verdict(state="failed", text="The job failed; error_message says why.")
    if reward is not None and threshold is not None and reward >= threshold:
        return Verdict(
            state="solved",
            text=f"Solved: an episode earns about {reward:.4g}, and the environment counts as solved from "
            f"{threshold:.4g} on.",
        )
    if evidence.no_signal_warning is not None:
        return Verdict(state="no_signal", text=f"There is nothing to learn from yet: {evidence.no_signal_warning}")
    if len(evidence.curve) < _MIN_POINTS:
        return Verdict(state="starting", text="Too few episodes have ended to tell whether it is learning.")
    return _judge_curve(evidence)


def _judge_curve(evidence: Evidence) -> Verdict:
    thirds = np.array_split(np.asarray(evidence.curve, np.float64), 3)
    first, middle, last = (float(np.median(third)) for third in thirds)
    since_first, since_middle = _compare(thirds[0], thirds[2]), _compare(thirds[1], thirds[2])
    state: VerdictState
    if since_middle > 0 or (since_first > 0 and since_middle == 0 and _is_rising(thirds[2])):
        state, trend = "learning", f"The reward per episode is rising: it was about {min(first, middle):.4g}"
    elif since_middle < 0 or since_first < 0:
        state, trend = "worse", f"The reward per episode has fallen: it was about {max(first, middle):.4g}"
    elif since_first > 0:
        state, trend = "steady", f"The reward per episode rose and is now steady: it was about {first:.4g}"
    else:
        state, trend = "flat", f"The reward per episode has not clearly changed yet: it was about {first:.4g}"
    return Verdict(state=state, text=f"{trend} and is about {last:.4g} now. {_advise(state, evidence)}")


def _compare(earlier: npt.NDArray[np.float64], later: npt.NDArray[np.float64]) -> int:
    """Return 1 if the later part of a curve, ``(n_points,)``, is clearly higher, -1 if clearly lower, else 0."""
    medians = float(np.median(earlier)), float(np.median(later))
    change = medians[1] - medians[0]
    spread = (_measure_spread(earlier) + _measure_spread(later)) / 2
    if abs(change) <= max(_MIN_SPREADS * spread, _MIN_CHANGE * max(map(abs, medians))):
        return 0
    return 1 if change > 0 else -1


def _measure_spread(part: npt.NDArray[np.float64]) -> float:
    """Return the standard deviation about the best-fitting line, so that a steady rise is no spread."""
    places = np.arange(len(part)) - (len(part) - 1) / 2
    deviations = part - part.mean()
    residuals = deviations - places * (places @ deviations) / (places @ places)
    return float(np.sqrt((residuals @ residuals) / (len(part) - 2)))


def _is_rising(part: npt.NDArray[np.float64]) -> bool:
    half = len(part) // 2
    return half >= _MIN_POINTS // 3 and _compare(part[:half], part[half:]) > 0


def _advise(state: VerdictState, evidence: Evidence) -> str:
    """Return a sentence that says what to try."""
    is_over = evidence.status.is_final
    if state == "learning":
        return "It may get better with more total_timesteps." if is_over else "Let it continue."
    if state == "worse":
        keep = "the best evaluated policy is saved" if evidence.config.keep_best else "keep_best saves the best policy"
        return f"A lower learning_rate may prevent that; {keep}."
    remedy = _find_remedy(evidence)
    return f"If that is not good enough: {remedy}" if state == "steady" else f"{remedy[0].upper()}{remedy[1:]}"


def _find_remedy(evidence: Evidence) -> str:
    """Return advice for what the latest update suggests is holding the policy back."""
    kl, entropy_loss = evidence.metrics.get("train/approx_kl"), evidence.metrics.get("train/entropy_loss")
    if kl is not None and kl > _LARGE_KL:
        return "its updates are large, so try a lower learning_rate or a target_kl."
    # The entropy of continuous actions has no lower limit.
    if entropy_loss is not None and "train/std" not in evidence.metrics and -entropy_loss < _SMALL_ENTROPY:
        return "the policy has almost stopped trying other actions, so try an ent_coef such as 0.01."
    if kl is not None and abs(kl) < _SMALL_KL:
        return "its updates hardly change the policy, so try a higher learning_rate."
    return "try more total_timesteps, a longer horizon with a larger n_steps, or a reward that differs between steps."
