"""Record real trainings for ``test_recorded_runs.py``: ``python -m tests.service.jobs.judging.record_runs [NAME ...]``.

Without names, all are recorded, which takes some minutes. Each is kept as the evidence that its verdict is based on:
once it has ended, or at the first report after some steps. Evaluations come when time allows, so that two recordings
differ a little. Read the verdicts that are printed, and change ``test_recorded_runs.py`` where a run turned out
otherwise.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym

from service.errors import describe_error
from service.jobs.description import gather_evidence
from service.jobs.job import Job
from service.jobs.judging.verdict import Evidence, judge
from service.schemas.jobs import EpisodeFigures, EvaluationRow, JobStatus
from service.training.order import TrainingOrder
from service.training.train import train_policy
from tests.environments import FloatArray, LineEnv
from tests.support import make_plan

FILE = Path(__file__).with_name("recorded_runs.json")
# Enough for thirds of a curve and their spread.
_N_POINTS = 48
_METRICS = ("train/entropy_loss", "train/std", "rollout/zero_std_group_fraction")
_OWN = {"reward_function_type": "environment", "preset": "none"}


class Run(NamedTuple):
    """A job to record.

    :param request: Fields of ``POST /train``.
    :param at_timesteps: Record it once it has taken so many steps; None at its end.
    :param stops: Whether to stop it then.
    """

    request: dict[str, Any]
    at_timesteps: int | None = None
    stops: bool = False


class BrokenEnv(LineEnv):
    """Breaks after 500 steps."""

    def __init__(self) -> None:
        super().__init__(self._count)
        self._n_steps = 0

    def _count(self) -> None:
        self._n_steps += 1
        if self._n_steps == 500:
            raise RuntimeError("the motor broke")


class TrickyEnv(LineEnv):
    """Cannot be reset with the seeds of evaluations."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        if seed is not None and seed >= 1_000_000:
            raise ValueError("seeds have at most six digits")
        return super().reset(seed=seed)


class IdleEnv(LineEnv):
    """Pays nothing for anything."""

    def step(self, action: Any) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, 0.0, terminated, truncated, info


_ENVS: Mapping[str, type[LineEnv]] = {
    "Broken-v0": BrokenEnv,
    "Tricky-v0": TrickyEnv,
    "Idle-v0": IdleEnv,
}

RUNS: Mapping[str, Run] = {
    "queued": Run({}, at_timesteps=-1),
    "worker_starting": Run({}, at_timesteps=0),
    "first_steps": Run({"seed": 1, "n_eval_episodes": 0}, at_timesteps=64),
    "cartpole": Run({"seed": 0}),
    "cartpole_other_seed": Run({"seed": 7}),
    "cartpole_simple_reward": Run({"seed": 1, "reward_function_type": "simple_cartpole"}),
    "cartpole_half_way": Run({"seed": 2, "total_timesteps": 6_000}, at_timesteps=2_000),
    "cartpole_stopped_early": Run({"seed": 3}, at_timesteps=600, stops=True),
    "cartpole_very_short": Run({"seed": 4, "total_timesteps": 300}),
    "cartpole_out_of_time": Run({"seed": 5, "total_timesteps": 1_000_000, "max_seconds": 1.0}),
    "cartpole_stop_reward": Run({"seed": 6, "total_timesteps": 50_000, "stop_reward": 400.0, "eval_freq": 500}),
    "cartpole_patience": Run({"seed": 6, "total_timesteps": 50_000, "patience": 4, "eval_freq": 1_000}),
    "cartpole_without_evaluations": Run({"seed": 0, "n_eval_episodes": 0}),
    "cartpole_own_reward": Run({"seed": 0, "reward_function_type": "environment"}),
    "cartpole_own_reward_other_seed": Run({"seed": 5, "reward_function_type": "environment"}),
    "cartpole_own_reward_plain": Run({"seed": 1, **_OWN, "total_timesteps": 20_000}),
    "cartpole_own_reward_constant_rate": Run(
        {"seed": 2, **_OWN, "n_steps": 256, "horizon": 32, "learning_rate": 3e-3, "lr_schedule": "constant"}
    ),
    "cartpole_rate_too_large": Run({"seed": 0, "learning_rate": 0.05, "lr_schedule": "constant"}),
    "cartpole_rate_too_large_but_kept": Run(
        {"seed": 3, "learning_rate": 0.02, "lr_schedule": "constant", "eval_freq": 300}
    ),
    "cartpole_fallen_from_its_peak": Run(
        {"seed": 4, **_OWN, "n_steps": 256, "learning_rate": 0.02, "lr_schedule": "constant", "total_timesteps": 20_000}
    ),
    "cartpole_rate_too_small": Run({"seed": 0, "learning_rate": 1e-8}),
    "cartpole_taught_to_fall": Run({"seed": 0, "reward_functions": {"simple_cartpole": -1.0}, "learning_rate": 1e-3}),
    "acrobot": Run({"env_name": "Acrobot-v1", "seed": 0}),
    "acrobot_other_seed": Run({"env_name": "Acrobot-v1", "seed": 3}),
    "acrobot_rate_too_small": Run({"env_name": "Acrobot-v1", "seed": 0, "learning_rate": 1e-6}),
    "acrobot_half_way": Run({"env_name": "Acrobot-v1", "seed": 1}, at_timesteps=9_000),
    "pendulum": Run({"env_name": "Pendulum-v1", "seed": 0}),
    "pendulum_too_short": Run({"env_name": "Pendulum-v1", "seed": 1, "total_timesteps": 3_000}),
    "pendulum_half_way": Run({"env_name": "Pendulum-v1", "seed": 2}, at_timesteps=20_000),
    "pendulum_small_rate": Run(
        {"env_name": "Pendulum-v1", "seed": 2, "learning_rate": 1e-6, "total_timesteps": 20_000}
    ),
    "mountain_car": Run({"env_name": "MountainCar-v0", "seed": 0}),
    "mountain_car_never_found": Run(
        {"env_name": "MountainCar-v0", "seed": 0, "preset": "none", "total_timesteps": 15_000}
    ),
    "frozen_lake": Run({"env_name": "FrozenLake-v1", "seed": 0}),
    "frozen_lake_collapsed": Run(
        {"env_name": "FrozenLake-v1", "seed": 1, "ent_coef": 0.0, "learning_rate": 0.03, "total_timesteps": 10_000}
    ),
    "lunar_lander_too_short": Run({"env_name": "LunarLander-v3", "seed": 0, "total_timesteps": 20_000}),
    "hopper_too_short": Run({"env_name": "Hopper-v5", "seed": 0, "total_timesteps": 30_000}),
    "nothing_to_earn": Run({"env_name": "Idle-v0", "seed": 0, "total_timesteps": 4_000}),
    "environment_breaks": Run({"env_name": "Broken-v0", "seed": 0}),
    "evaluations_fail": Run({"env_name": "Tricky-v0", "seed": 0, "total_timesteps": 4_000}),
}


class _EndedError(BaseException):
    """The run has been recorded as it was on its way."""


def _watch(job: Job, run: Run) -> None:
    """Stop a job, or leave its training, once it has taken the steps that a run says."""
    advance = job.progress.advance
    seen: list[int] = []

    def advance_and_look(current_timesteps: int) -> None:
        advance(current_timesteps)
        if run.at_timesteps is not None and not seen and current_timesteps >= max(1, run.at_timesteps):
            if not run.stops:
                raise _EndedError
            seen.append(current_timesteps)
            job.stop()

    job.progress.advance = advance_and_look  # type: ignore[method-assign]


def record(run: Run) -> Evidence:
    """Train as a worker does, and return the evidence."""
    job = Job(make_plan(**run.request))
    _watch(job, run)
    if run.at_timesteps is not None and run.at_timesteps < 0:
        return _gather(job)
    job.start()
    if run.at_timesteps == 0:
        return _gather(job)
    try:
        train_policy(TrainingOrder(job.config, job.plan.reward), job.progress)
    except _EndedError:
        return _gather(job)
    except Exception as error:  # foreign code: one of the environments is broken
        job.finish(JobStatus.FAILED, describe_error(error))
    else:
        outcome = job.settle_outcome()
        assert outcome is not None
        job.finish(outcome)
    return _gather(job)


def _gather(job: Job) -> Evidence:
    return gather_evidence(job.plan, job.make_record(0, 1).state, job.history)


def to_json(evidence: Evidence) -> dict[str, Any]:
    """Write evidence in few numbers."""
    final = evidence.final_evaluation
    return {
        "status": evidence.status,
        "n_timesteps": evidence.n_timesteps,
        "ended_by": evidence.ended_by,
        "keep_best": evidence.config.keep_best,
        "lr_schedule": evidence.config.lr_schedule,
        "rollout_rewards": _thin(evidence.rollout_rewards),
        "evaluations": [_shorten(figures) for figures in evidence.evaluations],
        "final_evaluation": None if final is None else _shorten(final),
        "reward_threshold": evidence.reward_threshold,
        "no_signal_warning": evidence.no_signal_warning,
        "had_signal": evidence.had_signal,
        "kls": _thin(evidence.kls),
        "metrics": {key: _round(evidence.metrics[key]) for key in _METRICS if key in evidence.metrics},
    }


def from_json(run: Mapping[str, Any]) -> Evidence:
    """Read evidence."""
    rest = {key: value for key, value in run.items() if key not in ("keep_best", "lr_schedule")}
    changes = {"keep_best": run["keep_best"], "lr_schedule": run["lr_schedule"]}
    final = run["final_evaluation"]
    return Evidence(
        **{
            **rest,
            "status": JobStatus(run["status"]),
            "config": _get_config().model_copy(update=changes),
            "evaluations": [_lengthen(*numbers[:3], timesteps=i) for i, numbers in enumerate(run["evaluations"])],
            "final_evaluation": None if final is None else _lengthen(*final),
        }
    )


def _get_config() -> Any:
    return make_plan(seed=0, model_name="m").config


def _thin(values: Any) -> list[float]:
    stride = max(1, -(-len(values) // _N_POINTS))
    return [_round(value) for value in reversed(values[::-1][::stride])]


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def _shorten(figures: EpisodeFigures) -> tuple[int, float, float]:
    return figures.n_episodes, _round(figures.mean_reward), _round(figures.std_reward)


def _lengthen(n_episodes: int, mean_reward: float, std_reward: float, *, timesteps: int = 1) -> EvaluationRow:
    return EvaluationRow(
        timesteps=timesteps,
        elapsed_seconds=0.0,
        n_episodes=n_episodes,
        mean_reward=mean_reward,
        std_reward=std_reward,
        mean_reward_ci95=None,
        min_reward=mean_reward,
        max_reward=mean_reward,
        mean_length=1.0,
        success_rate=None,
        success_rate_ci95=None,
    )


def main(names: list[str]) -> None:
    """Record the named runs, or all of them, and print their verdicts."""
    for env_name, make_env in _ENVS.items():
        gym.register(
            env_name,
            entry_point=make_env,  # type: ignore[arg-type]  # a class makes them
            max_episode_steps=50,
        )
    runs = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in names or RUNS:
        evidence = record(RUNS[name])
        runs[name] = to_json(evidence)
        verdict = judge(from_json(runs[name]))
        sys.stdout.write(f"{name}: {verdict.state}\n    {verdict.text}\n")
        sys.stdout.flush()
        lines = [f"{json.dumps(name)}: {json.dumps(runs[name])}" for name in RUNS if name in runs]
        FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*")
    main(parser.parse_args().names)
