"""Answers as text for a terminal."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_client.answers import (
    Comparison,
    EnvironmentSummary,
    EpisodeFigures,
    JobSummary,
    ModelSummary,
    ModelVersions,
    Prediction,
    RewardFunction,
    TrainingStatus,
)
from grpo_client.sweep_answers import SettingRow, Sweep, SweepSummary

_NONE = "-"


def clean(text: str) -> str:
    """Escape control characters, with which a server could steer the terminal; keep newlines and tabs."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _tabulate(rows: Sequence[Mapping[str, Any]]) -> str:
    """Align rows below their keys; no rows make an empty text."""
    if not rows:
        return ""
    lines = [list(rows[0]), *([_NONE if cell is None else str(cell) for cell in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def list_jobs(jobs: Sequence[JobSummary]) -> str:
    """Format the job list."""
    return _tabulate(
        [
            {
                "job": job.job_id,
                "status": job.status,
                "done": f"{job.progress:.0%}",
                "environment": job.env_name,
                "reward": None if job.mean_reward is None else f"{job.mean_reward:.4g}",
                "model": job.display_name or job.model_name,
            }
            for job in jobs
        ]
    )


def describe_labels(job: JobSummary) -> str:
    """Format what is written on a job."""
    lines = [f"{job.display_name or job.model_name}{' (hidden)' if job.hidden else ''}, job {job.job_id}"]
    lines += [f"tags: {', '.join(job.tags)}"] if job.tags else []
    return "\n".join([*lines, job.note] if job.note else lines)


def describe_status(status: TrainingStatus) -> str:
    """Format the status of a job."""
    steps = f"{status.current_timesteps:,} of {status.total_timesteps:,} steps"
    lines = [f"{status.status}: {steps}{_format_times(status)}, job {status.job_id}"]
    if status.error_message is not None:
        lines.append(f"error: {status.error_message}")
    if status.final_evaluation is not None:
        cut = "" if status.final_evaluation.complete else "; time ran out before there were more"
        lines.append(f"the saved policy: {_describe_evaluation(status.final_evaluation)}{cut}")
    lines.append(f"verdict: {status.verdict.text}")
    if status.final_evaluation is None and status.evaluation is not None:
        lines.append(f"latest evaluation: {_describe_evaluation(status.evaluation)}")
    if status.best_evaluation is not None and status.config.get("keep_best"):
        lines.append(f"best evaluation: {_describe_evaluation(status.best_evaluation)}")
    if "rollout/ep_rew_mean" in status.metrics:
        lines.append(f"mean reward while training: {status.metrics['rollout/ep_rew_mean']:.1f}")
    lines += [f"warning: {warning}" for warning in status.warnings]
    if status.model_name is not None:
        lines.append(f"model: {status.model_name}")
    return "\n".join(lines)


def list_sweeps(sweeps: Sequence[SweepSummary]) -> str:
    """Format the list of sweeps."""
    return _tabulate(
        [
            {
                "sweep": sweep.sweep_id,
                "name": sweep.name,
                "status": sweep.status,
                "environment": sweep.env_name,
                "settings": sweep.n_settings,
                "jobs": _format_counts(sweep.counts),
                "best": None if sweep.best_mean_reward is None else f"{sweep.best_mean_reward:.2f}",
            }
            for sweep in sweeps
        ]
    )


def describe_sweep(sweep: Sweep) -> str:
    """Format a sweep: its status, a table of its settings, the best first, and how sure that is."""
    lines = [
        f"{sweep.status}: {sweep.name} in {sweep.env_name}, {_format_counts(sweep.counts)}, sweep {sweep.sweep_id}"
    ]
    if sweep.held_by is not None:
        lines.append(f"waiting: {sweep.held_by}")
    lines.append(_tabulate([_describe_setting(row) for row in sweep.settings]))
    if sweep.best is not None:
        lines.append(f"best: {sweep.best.text}")
        lines += [] if sweep.best.model_name is None else [f"model: {sweep.best.model_name}"]
    errors = {trial.error_message for row in sweep.settings for trial in row.trials if trial.error_message is not None}
    return "\n".join([*lines, *(f"error: {error}" for error in sorted(errors))])


def _describe_setting(row: SettingRow) -> dict[str, Any]:
    return {
        "setting": row.number,
        **{name: _format_fact(value) for name, value in row.values.items()},
        "steps": f"{row.total_timesteps:,}",
        "reward": None if row.mean_reward is None else f"{row.mean_reward:.2f}",
        "spread": _describe_spread(row),
        "seeds": row.n_seeds,
    }


def _describe_spread(row: SettingRow) -> str | None:
    """Format the interval of a setting's reward, or what its seeds have earned where these are too few for one."""
    if (interval := row.mean_reward_ci95) is not None:
        return f"95 % interval {interval[0]:.2f} to {interval[1]:.2f}, over {row.ci95_over}"
    if len(row.rewards) < 2:
        return None
    return f"seeds from {min(row.rewards):.2f} to {max(row.rewards):.2f}"


def _format_counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {status}" for status, n in counts.items())


def _format_times(status: TrainingStatus) -> str:
    return f" in {status.elapsed_seconds:.1f} s" + (
        "" if status.eta_seconds is None else f", {status.eta_seconds:.0f} s left"
    )


def _describe_evaluation(evaluation: EpisodeFigures) -> str:
    interval = evaluation.mean_reward_ci95
    spread = "" if interval is None else f" (95 % interval {interval[0]:.2f} to {interval[1]:.2f})"
    success = "" if evaluation.success_rate is None else f", success {evaluation.success_rate:.0%}"
    return (
        f"mean reward {evaluation.mean_reward:.2f}{spread}, standard deviation {evaluation.std_reward:.2f}, "
        f"{evaluation.n_episodes} episodes{success}"
    )


def describe_prediction(prediction: Prediction) -> str:
    """Format a policy's answer to one observation."""
    return describe_facts(
        {
            "action": prediction.action,
            "probabilities": prediction.action_probs,
            "value": "not known" if prediction.value is None else f"{prediction.value:.4f}",
        }
    )


def describe_comparison(comparison: Comparison) -> str:
    """Format the evaluations of a policy and of random actions."""
    verdict = "better than random" if comparison.better_than_random else "not clearly better than random"
    return "\n".join(
        [
            f"{comparison.model_name} in {comparison.env_name}: {verdict}",
            f"policy: {_describe_evaluation(comparison.evaluation)}",
            f"random actions: {_describe_evaluation(comparison.random)}",
        ]
    )


def list_models(models: Sequence[ModelSummary]) -> str:
    """Format the model list."""
    return _tabulate([{"model": model.name, "status": model.status} for model in models])


def list_versions(listed: ModelVersions) -> str:
    """List the versions of a model, the newest first."""
    return _tabulate(
        [
            {
                "version": version.version,
                "aliases": ", ".join(version.aliases) or None,
                "status": version.status,
                "created": f"{version.created_at:%Y-%m-%d %H:%M}",
                "steps": None if version.num_timesteps is None else f"{version.num_timesteps:,}",
                "reward": None if version.evaluation is None else f"{version.evaluation.mean_reward:.2f}",
                "job": version.job_id,
                "sha256": None if version.sha256 is None else version.sha256[:12],
            }
            for version in listed.versions
        ]
    )


def list_environments(environments: Sequence[EnvironmentSummary]) -> str:
    """Format the environment list."""
    return _tabulate(
        [
            {
                "environment": one.env_name,
                "longest episode": one.max_episode_steps,
                "solved at": one.reward_threshold,
                "preset": "yes" if one.has_preset else None,
            }
            for one in environments
        ]
    )


def list_rewards(rewards: Sequence[RewardFunction]) -> str:
    """Format the list of reward functions."""
    return _tabulate(
        [
            {
                "name": reward.name,
                "environments": "any" if reward.environments is None else ", ".join(reward.environments),
                "description": None if reward.description is None else " ".join(reward.description.split()),
            }
            for reward in rewards
        ]
    )


def describe_facts(facts: Mapping[str, Any]) -> str:
    """Format names and values one per line, nested values as JSON."""
    width = max(map(len, facts))
    return "\n".join(f"{name:{width}}  {_format_fact(fact)}" for name, fact in facts.items())


def _format_fact(fact: Any) -> str:
    if fact is None:
        return _NONE
    return fact if isinstance(fact, str) else json.dumps(fact)
