"""Lists and comparisons as text for a terminal."""

from collections.abc import Sequence

from grpo_client.answers.environments import EnvironmentSummary, RewardFunction
from grpo_client.answers.evaluations import Comparison, ValueCheck, describe_evaluation
from grpo_client.answers.jobs import JobSummary
from grpo_client.answers.models import ModelSummary, ModelVersions
from grpo_client.answers.predictions import Prediction
from grpo_client.answers.sweeps import SweepSummary
from grpo_client.answers.text import describe_facts, format_counts, tabulate

_NO_VALUE = (
    "not known: only a server's job checks them, and they may not follow its episodes (see value_check in its card)"
)


def list_jobs(jobs: Sequence[JobSummary]) -> str:
    """Format the job list."""
    return tabulate(
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


def list_sweeps(sweeps: Sequence[SweepSummary]) -> str:
    """Format the list of sweeps."""
    return tabulate(
        [
            {
                "sweep": sweep.sweep_id,
                "name": sweep.name,
                "status": sweep.status,
                "environment": sweep.env_name,
                "settings": sweep.n_settings,
                "jobs": format_counts(sweep.counts),
                "best": None if sweep.best_mean_reward is None else f"{sweep.best_mean_reward:.2f}",
            }
            for sweep in sweeps
        ]
    )


def describe_prediction(prediction: Prediction, value_check: ValueCheck | None) -> str:
    """Format a policy's answer to one observation, and why it has no value."""
    return describe_facts(
        {
            "action": prediction.action,
            "probabilities": prediction.action_probs,
            "value": _say_why_none(value_check) if prediction.value is None else f"{prediction.value:.4f}",
        }
    )


def _say_why_none(value_check: ValueCheck | None) -> str:
    if value_check is None or value_check.is_meaningful:
        return _NO_VALUE
    error, correlation = (
        "unknown" if figure is None else f"{figure:.4g}" for figure in (value_check.error, value_check.correlation)
    )
    return (
        f"not shown: the check of its values failed (error {error}, at most 0.2; correlation {correlation}, at least "
        "0.8 unless the returns hardly differ)"
    )


def describe_comparison(comparison: Comparison) -> str:
    """Format the evaluations of a policy and of random actions."""
    verdict = "better than random" if comparison.better_than_random else "not clearly better than random"
    return "\n".join(
        [
            f"{comparison.model_name} in {comparison.env_name}: {verdict}",
            f"policy: {describe_evaluation(comparison.evaluation)}",
            f"random actions: {describe_evaluation(comparison.random)}",
            *comparison.warnings,
        ]
    )


def list_models(models: Sequence[ModelSummary]) -> str:
    """Format the model list."""
    return tabulate([{"model": model.name, "status": model.status} for model in models])


def list_versions(listed: ModelVersions) -> str:
    """List the versions of a model, the newest first."""
    return tabulate(
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
    return tabulate(
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
    return tabulate(
        [
            {
                "name": reward.name,
                "environments": "any" if reward.environments is None else ", ".join(reward.environments),
                "description": None if reward.description is None else " ".join(reward.description.split()),
            }
            for reward in rewards
        ]
    )
