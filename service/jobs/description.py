"""The status of a job, as clients see it."""

import math
from typing import Any

from service.jobs.judging.no_signal import describe_silence
from service.jobs.judging.verdict import Evidence, judge
from service.jobs.records.history import JobHistory
from service.jobs.records.record import JobState
from service.schemas.jobs import JobLabels, JobStatus, TrainingStatus
from service.schemas.training import TrainConfig
from service.training.planning.plan import TrainingPlan

_REWARD_KEY = "rollout/ep_rew_mean"
_KL_KEY = "train/approx_kl"
#: Characters of a job's id that identify it in names.
SHORT_ID_CHARS = 8
# More points of a curve would not change the verdict.
_MAX_JUDGED_POINTS = 200


def describe_job(
    job_id: str, plan: TrainingPlan, state: JobState, history: JobHistory, labels: JobLabels
) -> TrainingStatus:
    """Return the full status of a job."""
    evidence = gather_evidence(plan, state, history)
    no_signal = [] if evidence.no_signal_warning is None else [evidence.no_signal_warning]
    return TrainingStatus(
        job_id=job_id,
        status=state.status,
        **describe_progress(plan.config, state),
        created_at=state.created_at,
        start_time=None if state.status is JobStatus.QUEUED else state.start_time,
        end_time=state.end_time,
        error_message=state.error_message,
        metrics=state.metrics,
        warnings=[*state.warnings, *no_signal],
        model_name=state.model_name,
        sha256=state.sha256,
        verdict=judge(evidence),
        evaluation=state.evaluation,
        best_evaluation=state.best_evaluation,
        final_evaluation=state.final_evaluation,
        ended_by=state.ended_by if state.status.is_final else None,
        checkpoint=state.checkpoint,
        n_restarts=state.n_restarts,
        tensorboard_run=name_tensorboard_run(job_id, plan.config),
        sweep_id=plan.sweep_id,
        config=plan.config,
        config_origins=plan.config_origins,
        **dict(labels),
    )


def describe_progress(config: TrainConfig, state: JobState) -> dict[str, Any]:
    """Return the part of a status that changes with every step."""
    return {
        "progress": state.compute_progress(config.total_timesteps),
        "current_timesteps": state.current_timesteps,
        "total_timesteps": config.total_timesteps,
        "elapsed_seconds": state.elapsed_seconds,
        "eta_seconds": _compute_eta(config, state),
    }


def gather_evidence(plan: TrainingPlan, state: JobState, history: JobHistory) -> Evidence:
    """Return the evidence for the verdict on a job."""
    evidence = Evidence(
        status=state.status,
        config=plan.config,
        n_timesteps=state.current_timesteps,
        ended_by=state.ended_by,
        rollout_rewards=history.list_values(_REWARD_KEY, _MAX_JUDGED_POINTS),
        evaluations=history.list_evaluations(),
        final_evaluation=state.final_evaluation,
        reward_threshold=plan.reward_threshold,
        had_signal=state.last_signal_timesteps > 0,
        kls=history.list_values(_KL_KEY, _MAX_JUDGED_POINTS),
        metrics=state.metrics,
        is_saved=state.model_name is not None or not state.status.is_final,
    )
    silence = describe_silence(state.n_silent_rollouts, state.n_silent_timesteps, evidence.is_over)
    return evidence._replace(no_signal_warning=silence)


def name_tensorboard_run(job_id: str, config: TrainConfig) -> str | None:
    """Return the name of a job's TensorBoard folder; None if none was requested."""
    # Model names are checked and so safe in paths.
    return f"{config.model_name}-{job_id[:SHORT_ID_CHARS]}" if config.tensorboard_log else None


def _compute_eta(config: TrainConfig, state: JobState) -> float | None:
    # Steps that were taken twice took time as well.
    n_taken = state.current_timesteps + state.repeated_timesteps
    if state.status is not JobStatus.RUNNING or n_taken == 0:
        return None
    n_left = max(0, config.planned_timesteps - state.current_timesteps)
    # The limit counts the time up to the checkpoint that was gone on from, and not what was lost after it.
    counted = state.elapsed_seconds * (state.current_timesteps / n_taken)
    most = math.inf if config.max_seconds is None else max(0.0, config.max_seconds - counted)
    # Once training is over, evaluations follow, and nobody knows how long they take.
    return min(most, state.elapsed_seconds * n_left / n_taken) or None
