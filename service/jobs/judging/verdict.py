"""Whether a job is learning: a verdict that a newcomer understands, no more certain than the evidence.

Where policies were evaluated, only that counts: the mean reward while training is earned by drawn actions, in branches,
and averages over policies that are gone.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from grpo_core.options.presets import get_preset
from service.jobs.judging.course import MIN_POINTS, Course, differs, find_course, judge_course
from service.schemas.jobs import EndedBy, EpisodeFigures, EvaluationRow, JobStatus, Verdict, VerdictState
from service.schemas.training import TrainConfig

# The fewest updates whose size says anything. Below the first KL, they hardly change the policy; above the
# second, by more than the clipped loss is made for.
_MIN_UPDATES, _SMALL_KL, _LARGE_KL = 4, 1e-5, 0.1
# Nats. A policy of discrete actions with less entropy has almost stopped exploring.
_SMALL_ENTROPY = 0.02
# With more groups without a signal than this, most of a rollout teaches nothing.
_MANY_SILENT_GROUPS = 0.9
# With fewer, the reward tells branches apart almost everywhere: what does not rise any more may be the best there is.
_FEW_SILENT_GROUPS = 0.1
# Of the planned steps: where the learning rate falls, a reward that has fallen for less long may well rise again.
_DIP_SHARE = 0.25
# Of the steps that an environment's preset takes: with fewer, nothing else is worth a try yet.
_SHORT_SHARE = 0.5


class Evidence(NamedTuple):
    """The evidence that a job is judged by.

    :param status: Its status.
    :param config: Its settings.
    :param n_timesteps: Simulator steps taken so far.
    :param ended_by: Why its training ended; None while it goes on.
    :param rollout_rewards: Mean rewards of recent episodes over time (``rollout/ep_rew_mean``), oldest first.
    :param evaluations: Evaluations on the way, oldest first.
    :param final_evaluation: The evaluation of the policy that is saved.
    :param reward_threshold: Reward from which the environment counts as solved; None if it does not say.
    :param no_signal_warning: The warning if all branches of every group have earned the same for long; else None.
    :param had_signal: Whether branches of a group have ever earned different rewards.
    :param kls: How far each update moved the policy (``train/approx_kl``), oldest first.
    :param metrics: The latest metrics, under SB3's log keys.
    :param is_saved: Whether the policy is saved, or will be.
    """

    status: JobStatus
    config: TrainConfig
    n_timesteps: int = 0
    ended_by: EndedBy | None = None
    rollout_rewards: Sequence[float] = ()
    evaluations: Sequence[EvaluationRow] = ()
    final_evaluation: EpisodeFigures | None = None
    reward_threshold: float | None = None
    no_signal_warning: str | None = None
    had_signal: bool = False
    kls: Sequence[float] = ()
    metrics: Mapping[str, float] = MappingProxyType({})
    is_saved: bool = True

    @property
    def is_over(self) -> bool:
        """Whether training is: a job still runs for a moment while it saves the policy that it evaluated last."""
        return self.status.is_final or self.final_evaluation is not None

    @property
    def limit(self) -> EndedBy | None:
        """Why its training ended; a stop that came after its last step did not end it."""
        was_late = self.ended_by in ("stop", "shutdown") and self.n_timesteps >= self.config.total_timesteps
        return "total_timesteps" if was_late else self.ended_by

    @property
    def latest(self) -> EpisodeFigures | None:
        """The evaluation of the policy that is saved, or would be saved now; None without any since it was trained."""
        since = [row for row in self.evaluations if row.timesteps > 0]
        if self.final_evaluation is not None or not since:
            return self.final_evaluation
        return max(since, key=_get_reward) if self.config.keep_best else since[-1]


def judge(evidence: Evidence) -> Verdict:
    """Judge whether a job is learning."""
    status = evidence.status
    if status is JobStatus.QUEUED:
        return Verdict(state="waiting", text="The job is waiting for its turn.")
    if status is JobStatus.FAILED:
        return Verdict(state="failed", text="The job failed; error_message says why.")
    if status is JobStatus.RUNNING and evidence.n_timesteps == 0:
        return Verdict(state="starting", text="Starting the worker: no simulator step has been taken yet.")
    threshold = evidence.reward_threshold
    if threshold is not None and _has_reached(threshold, evidence):
        solved_from = f"the environment counts as solved from {_format(threshold)} on"
        solved = "Solved" if _is_sure(threshold, evidence) else "Probably solved"
        return Verdict(state="solved", text=f"{solved}: {_say_now(evidence)}, and {solved_from}.")
    course = find_course(evidence.evaluations, evidence.final_evaluation, evidence.rollout_rewards)
    state: VerdictState | None = None if course is None else judge_course(course)
    if evidence.no_signal_warning is not None and state in (None, "flat"):
        return Verdict(state="no_signal", text=_say_there_is_no_signal(evidence))
    if course is None or state is None:
        return Verdict(state="starting", text=_say_it_is_early(evidence))
    return Verdict(state=state, text=f"{_say_course(state, course, evidence)} {_advise(state, evidence)}")


def _has_reached(threshold: float, evidence: Evidence) -> bool:
    if evidence.latest is not None:
        return evidence.latest.mean_reward >= threshold
    rewards = evidence.rollout_rewards
    return len(rewards) >= MIN_POINTS and rewards[-1] >= threshold


def _is_sure(threshold: float, evidence: Evidence) -> bool:
    """Return whether the policy was evaluated, and the whole interval of what it earns lies above the threshold."""
    if evidence.latest is None:
        return False
    interval = evidence.latest.mean_reward_ci95
    return interval is None or interval[0] >= threshold


def _say_now(evidence: Evidence) -> str:
    """Say what an episode earns now, and who plays it."""
    if evidence.latest is None:
        earns = "earned" if evidence.is_over else "earns"
        return f"while training, an episode {earns} about {_format(evidence.rollout_rewards[-1])}"
    who = "the saved policy" if evidence.final_evaluation is not None and evidence.is_saved else "the policy"
    return f"{who} earns {_format(evidence.latest.mean_reward)} per episode"


def _say_it_is_early(evidence: Evidence) -> str:
    if evidence.final_evaluation is not None:
        return f"{_capitalize(_say_now(evidence))}; too little was evaluated before to tell how much it has learned."
    if evidence.latest is not None:
        return f"{_capitalize(_say_now(evidence))}; there is no other evaluation yet to compare that with."
    if evidence.is_over and not evidence.is_saved and evidence.n_timesteps == 0:
        return "The job was stopped at step 0, and no policy was saved at its end."
    if evidence.is_over:
        policy = "the saved policy was not evaluated" if evidence.is_saved else "no policy was saved at its end"
        return f"Too few episodes have ended to tell whether it has learned, and {policy}."
    return (
        "Too few episodes have ended to tell whether it is learning, and the policy has not been evaluated since "
        "training began."
    )


def _say_there_is_no_signal(evidence: Evidence) -> str:
    now = f"{_capitalize(_say_now(evidence))}. " if evidence.is_over and evidence.latest is not None else ""
    if evidence.had_signal and _has_stopped_exploring(evidence):
        found = (
            "There is nothing more to learn from, since the policy has almost stopped trying other actions: all "
            "branches of a group earn the same."
        )
        if evidence.is_over:
            found = (
                "In the end there was nothing more to learn from, since the policy had almost stopped trying other "
                "actions: all branches of a group earned the same."
            )
        return f"{now}{found} Try a lower learning_rate, or an ent_coef such as 0.01."
    nothing = "There was nothing to learn from" if evidence.is_over else "There is nothing to learn from yet"
    return f"{now}{nothing}: {evidence.no_signal_warning}"


def _say_course(state: VerdictState, course: Course, evidence: Evidence) -> str:
    """Say how the reward changed."""
    before = max(course.start.reward, course.middle.reward) if state == "worse" else course.start.reward
    is_over = evidence.is_over
    unclear = "did not clearly change" if is_over else "has not clearly changed yet"
    if not course.is_evaluated or evidence.latest is None:
        changes = {
            "learning": "rose" if is_over else "is rising",
            "steady": "rose and then stayed as it was" if is_over else "rose and is now steady",
            "worse": "fell" if is_over else "has fallen",
        }
        change = changes.get(state, unclear)
        first, last = f"about {_format(before)}", f"about {_format(course.end.reward)}"
        moved = f"went from {first} to {last}" if is_over else f"was {first} and is {last} now"
        text = f"The mean reward while training {change}: it {moved}"
        dip = f"the mean reward while training {moved}"
    else:
        changes = {
            "learning": "got better" if is_over else "is getting better",
            "steady": "got better and then stayed as it was" if is_over else "got better and stays as it is",
            "worse": "got worse" if is_over else "is getting worse",
        }
        change = changes.get(state, unclear)
        subject = f"The policy {change}"
        if state == "flat" and differs(course):
            subject = "Its episodes differ too much to tell whether the policy changed"
        since = {"worse": "down from", "flat": "after"}.get(state, "up from")
        when = "at its best" if state == "worse" else "at the start"
        # What is kept may be better than what it has become.
        has_fallen = state == "worse" and evidence.final_evaluation is None
        figures = evidence.evaluations[-1] if has_fallen else evidence.latest
        reward = f"{_format(figures.mean_reward)} per episode, {since} about {_format(before, 3)} {when}"
        earns = "it earned" if is_over else "it now earns"
        if evidence.final_evaluation is not None and evidence.is_saved:
            earns = "the saved one earns"
        text = f"{subject}: {earns} {reward}"
        dip = f"the policy now earns {reward}"
    if state == "worse" and _may_be_dip(evidence):
        text = f"Rewards have fallen since about step {_find_peak(evidence):,}: {dip}"
    if evidence.reward_threshold is None or state == "worse":
        return f"{text}."
    return f"{text}; the environment counts as solved from {_format(evidence.reward_threshold)} on."


def _may_be_dip(evidence: Evidence) -> bool:
    """Return whether a reward that has fallen may rise again, with the smaller steps that are to come."""
    if evidence.is_over or evidence.config.lr_schedule != "linear" or _has_stopped_exploring(evidence):
        return False
    return evidence.n_timesteps - _find_peak(evidence) <= _DIP_SHARE * evidence.config.total_timesteps


def _find_peak(evidence: Evidence) -> int:
    """Return at about which step the reward was the highest, where there is a course."""
    if len(evidence.evaluations) >= 2:
        return max(evidence.evaluations, key=_get_reward).timesteps
    rewards = evidence.rollout_rewards
    return evidence.n_timesteps * int(np.argmax(rewards)) // len(rewards)


def _advise(state: VerdictState, evidence: Evidence) -> str:
    """Return a sentence that says what to try."""
    if state == "learning":
        return f"It may get better {_say_longer(evidence)}." if evidence.is_over else "Let it continue."
    if state == "worse":
        remedy = "A lower learning_rate" if evidence.config.lr_schedule == "linear" else 'lr_schedule "linear"'
        remedy = "A lower learning_rate or an ent_coef such as 0.01" if _has_stopped_exploring(evidence) else remedy
        keep = "the best evaluated policy is saved" if evidence.config.keep_best else "keep_best saves the best policy"
        keep = keep if evidence.is_saved else "no policy was saved at its end"
        if _may_be_dip(evidence):
            return f"Such dips are usual while a policy learns; {keep}."
        return f"{remedy} may prevent that; {keep}."
    specific = _find_remedy(evidence)
    if state == "steady" and specific is None and _rewards_differ(evidence):
        longer = f"it may still get better {_say_longer(evidence)}" if evidence.is_over else "let it continue"
        return f"That may be close to the best there is; {longer}."
    advice = specific or _find_general_remedy(evidence)
    return f"If that is not good enough: {advice}" if state == "steady" else _capitalize(advice)


def _find_remedy(evidence: Evidence) -> str | None:
    """Return advice for what the updates suggest is holding the policy back, unless it has hardly begun; or None."""
    # Over the whole job: where the learning rate falls, the last updates are small, and have to be.
    kl = float(np.median(evidence.kls)) if evidence.kls else None
    if kl is not None and kl > _LARGE_KL:
        return "its updates are large, so try a lower learning_rate or a target_kl."
    preset = get_preset(evidence.config.env_name)
    n_planned = evidence.config.total_timesteps
    if preset is not None and n_planned < _SHORT_SHARE * preset.n_timesteps:
        return f"its preset trains for {preset.n_timesteps:,} steps, so try more total_timesteps than {n_planned:,}."
    if _has_stopped_exploring(evidence):
        return "the policy has almost stopped trying other actions, so try an ent_coef such as 0.01."
    if evidence.metrics.get("rollout/zero_std_group_fraction", 0.0) > _MANY_SILENT_GROUPS:
        return (
            "in most groups all branches earn the same, so try a longer horizon with a larger n_steps, or a reward "
            "that differs between steps."
        )
    if kl is not None and abs(kl) < _SMALL_KL and len(evidence.kls) >= _MIN_UPDATES:
        return "its updates hardly change the policy, so try a higher learning_rate."
    return None


def _find_general_remedy(evidence: Evidence) -> str:
    """Return advice where nothing says what is holding the policy back."""
    if not evidence.is_over:
        return "let it continue; if that does not help, try a longer horizon with a larger n_steps."
    if evidence.limit not in (None, "total_timesteps"):
        return f"it may need longer, {_say_longer(evidence)}."
    if _rewards_differ(evidence):
        return "try more total_timesteps, or a longer horizon with a larger n_steps."
    return "try more total_timesteps, a longer horizon with a larger n_steps, or a reward that differs between steps."


def _rewards_differ(evidence: Evidence) -> bool:
    """Return whether the branches of almost every group earned different rewards lately."""
    return evidence.metrics.get("rollout/zero_std_group_fraction", 1.0) < _FEW_SILENT_GROUPS


def _has_stopped_exploring(evidence: Evidence) -> bool:
    entropy_loss = evidence.metrics.get("train/entropy_loss")
    # The entropy of continuous actions has no lower limit.
    return entropy_loss is not None and "train/std" not in evidence.metrics and -entropy_loss < _SMALL_ENTROPY


def _say_longer(evidence: Evidence) -> str:
    """Say how training goes on for longer."""
    remedies: Mapping[EndedBy | None, str] = {
        "max_seconds": "with more max_seconds",
        "stop": "if it is resumed",
        "shutdown": "if it is resumed",
        "stop_reward": "with a higher stop_reward",
        "patience": "with more patience",
    }
    return remedies.get(evidence.limit, "with more total_timesteps")


def _format(reward: float, n_digits: int = 4) -> str:
    return f"{reward:.{n_digits}g}" if abs(reward) < 1000 else f"{reward:.0f}"


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]


def _get_reward(figures: EpisodeFigures) -> float:
    return figures.mean_reward
