"""Evaluate the policy that a job saves, within a time that suits the job."""

from dataclasses import asdict
from typing import Any

from grpo_core.actor.actor import Actor
from grpo_core.evaluation import summarize_episodes
from service.environments.step_limit import warn_of_cuts
from service.errors import describe_error
from service.training.evaluation.evaluator import EvaluationRun, Evaluator
from service.training.evaluation.work_time import Stopwatch, TimeBudget, WorkTime
from service.training.order import UNEVALUATED
from service.training.stop_rules import StopRules
from service.workers.task import N_STOPS, Progress

# An evaluation may take this share of the training's time, but always some seconds, and never longer than people
# wait, by the clock too.
_BUDGET = TimeBudget(share=0.1, least_seconds=2.0, most_seconds=30.0)
# A stopped job should answer soon.
_SECONDS_AFTER_STOP = 1.0


def evaluate_finally(
    evaluator: Evaluator,
    actor: Actor,
    timesteps: int,
    training_seconds: float,
    stop_rules: StopRules,
    progress: Progress,
) -> dict[str, Any] | None:
    """Evaluate a policy after its training, and report the evaluation; a failure only ends in a warning.

    :param actor: The policy that will be saved.
    :param timesteps: Simulator steps that it was trained for.
    :param training_seconds: Time that the training took.
    :param stop_rules: Tells of stops, which shorten the evaluation.
    :return: The fields of ``FinalEvaluation`` but the time it took, so that jobs of one seed save the same file; None
        if no episode ended in time, or one failed.
    """
    run = evaluator.start_final(actor)
    try:
        _play(run, _BUDGET.compute_seconds(training_seconds), stop_rules)
    except (Exception, SystemExit) as error:  # foreign code: the environment may raise anything
        progress.publish_warning(f"{UNEVALUATED}, since its episodes failed ({describe_error(error)}).")
        return None
    if not run.episodes:
        if stop_rules.n_stops == 0:
            progress.publish_warning(
                f"{UNEVALUATED}, since no episode ended within {run.seconds:.0f} s; evaluate it with "
                "POST /models/{model_name}/evaluate."
            )
        return None
    remedy = 'send "env_kwargs": {"max_episode_steps": n} for another limit'
    for warning in warn_of_cuts(run.episodes, evaluator.max_steps, "the final evaluation", remedy):
        progress.publish_warning(warning)
    evaluation = {
        "timesteps": timesteps,
        **asdict(summarize_episodes(run.episodes)),
        "complete": run.is_complete,
    }
    progress.publish_final_evaluation({**evaluation, "seconds": run.seconds})
    return evaluation


def _play(run: EvaluationRun, most_seconds: float, stop_rules: StopRules) -> None:
    stopwatch = Stopwatch(WorkTime.now())

    def has_time_for(n_times: float) -> bool:
        """Return whether what was played so far could have taken ``n_times`` times as long."""
        if (n_stops := stop_rules.n_stops) > 0:
            return n_stops < N_STOPS and run.seconds * n_times < _SECONDS_AFTER_STOP
        return not stopwatch.is_past(most_seconds / n_times) and run.seconds * n_times < _BUDGET.most_seconds

    def may_go_on() -> bool:
        stop_rules.report()
        return has_time_for(1.0)

    def is_enough() -> bool:
        # Another episode as long as the others would be cut, and a long one sooner than a short one.
        return not has_time_for(1 + 1 / len(run.episodes))

    if stop_rules.n_stops < N_STOPS:
        run.advance(may_go_on, is_enough)
