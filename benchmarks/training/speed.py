"""Measure how fast GRPO trains, beside SB3's PPO, and print Markdown tables.

``python -m benchmarks.training.speed --parts A B``; one thread throughout. Methods that are compared take turns, so
that other work on the machine slows all of them: trust the ratios more than the times. Parts A to D take about three
minutes.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from stable_baselines3 import PPO

from benchmarks.learning.cartpole import ENV_NAME, TOTAL_TIMESTEPS
from benchmarks.lib.http_jobs import make_plan, serve, train_over_http
from benchmarks.lib.timing import Comparison, format_comparison, take_turns
from benchmarks.training.step_speed import MEASURED_STEPS, ROLLOUT_STEPS, compare_collection, compare_training
from benchmarks.training.time_to_policy import compare_cold_start, compare_times_to_policy
from benchmarks.training.update_speed import compare_updates
from service.jobs.job import Job
from service.training.order import TrainingOrder
from service.training.train import train_policy

FIRST_SEED = 2000
_LEGEND = 'A column "x ..." says how many times as fast the median of a row is; n counts the measurements.'


def compare_jobs(n_repetitions: int, total_timesteps: int) -> list[Comparison]:
    """Time whole trainings on CartPole."""
    request: dict[str, Any] = {"seed": 0, "total_timesteps": total_timesteps}
    answers: list[float] = []

    def train_alone() -> float:
        plan, started_at = make_plan(request), time.perf_counter()
        train_policy(TrainingOrder(plan.config, plan.reward), Job(plan).progress)
        return time.perf_counter() - started_at

    def train_ppo() -> float:
        started_at = time.perf_counter()
        PPO("MlpPolicy", ENV_NAME, seed=0, device="cpu").learn(total_timesteps)
        return time.perf_counter() - started_at

    with serve() as (client, _):

        def train_in_the_service() -> float:
            training = train_over_http(client, request)
            answers.append(1e3 * training.answer_seconds)
            return training.total_seconds

        reference = "SB3 PPO, defaults"
        cases = {
            "POST /train's defaults, request to completed": train_in_the_service,
            "POST /train's defaults, the training alone": train_alone,
            reference: train_ppo,
        }
        timings = take_turns(cases, n_repetitions)
    title = f"{ENV_NAME}: seconds for {total_timesteps:,} steps"
    return [
        Comparison(title, timings, [reference], n_decimals=2),
        Comparison("milliseconds until answered", {"POST /train": answers[1:]}, []),
    ]


def _compare_arrivals(arguments: argparse.Namespace) -> list[Comparison]:
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.n_seeds)
    return [
        *compare_cold_start(seeds[0], arguments.job_timesteps),
        *compare_times_to_policy(seeds, arguments.job_timesteps, arguments.ppo_timesteps),
    ]


PARTS: dict[str, tuple[str, Callable[[argparse.Namespace], list[Comparison]]]] = {
    "A": ("One update step", lambda a: compare_updates(a.n_repetitions, a.n_rollouts, a.compile)),
    "B": ("Collecting, with untrained policies", lambda a: compare_collection(a.n_repetitions, a.n_timesteps)),
    "C": ("Whole jobs", lambda a: compare_jobs(a.n_repetitions, a.job_timesteps)),
    "D": ("Collecting and learning", lambda a: compare_training(a.n_repetitions, a.n_timesteps, a.rollout_steps)),
    "E": ("Time to a policy", _compare_arrivals),
}


def _describe_machine() -> str:
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "stable-baselines3", "gymnasium", "numpy"))
    return f"{versions}; {os.cpu_count()} cores, one thread."


def main(argv: Sequence[str]) -> None:
    """Print the tables, part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--n-repetitions", type=int, default=5, help="parts A to D")
    parser.add_argument("--n-rollouts", type=int, default=4, help="per measurement, part A")
    parser.add_argument("--rollout-steps", nargs="+", type=int, default=ROLLOUT_STEPS, help="part D")
    parser.add_argument("--n-timesteps", type=int, default=MEASURED_STEPS, help="per measurement, parts B and D")
    parser.add_argument("--job-timesteps", type=int, default=TOTAL_TIMESTEPS, help="parts C and E")
    parser.add_argument("--ppo-timesteps", type=int, default=100_000, help="part E")
    parser.add_argument("--n-seeds", type=int, default=10, help="part E")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="part E")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well in part A; a minute more")
    parser.add_argument("--write", type=Path, help="write the Markdown to this file too")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    command = " ".join(["python -m benchmarks.training.speed", *argv])
    pages = [f"# Speed of training\n\n```console\n{command}\n```\n\n{_describe_machine()}\n\n{_LEGEND}"]
    print(pages[0])
    for part in arguments.parts:
        title, compare = PARTS[part]
        tables = [format_comparison(comparison) for comparison in compare(arguments)]
        pages.append("\n\n".join([f"## {part}. {title}", *tables]))
        print(f"\n{pages[-1]}", flush=True)
    if arguments.write is not None:
        arguments.write.write_text("\n\n".join(pages) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
