"""``grpo evaluate``: play whole episodes with a policy and with random actions."""

import argparse
import math
from contextlib import closing
from typing import Any

import numpy as np

from grpo_cli.model import make_playable_env, open_model
from grpo_cli.options import (
    DEFAULT_EPISODES,
    add_parser,
    add_playing_options,
    describe_setup,
    make_int_parser,
    write,
)
from grpo_core.actor.actor import PolicyActor
from grpo_core.environments.making import EnvSetup
from grpo_core.environments.registered_limits import find_max_steps
from grpo_core.evaluation import Evaluation, make_policy, make_random_policy, play_episodes, summarize_episodes
from grpo_core.options.checks import MAX_EPISODE_STEPS


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    parser = add_parser(commands, "evaluate", _run, "compare a policy with random actions")
    add_playing_options(parser)
    parser.add_argument(
        "-n",
        "--episodes",
        type=make_int_parser(1),
        default=DEFAULT_EPISODES,
        help="number of episodes (%(default)s)",
    )


def _run(options: argparse.Namespace) -> int:
    content, setup = open_model(options)
    print_evaluation(content.make_actor(), setup, options.episodes, options.seed, not options.stochastic)
    return 0


def print_evaluation(actor: PolicyActor, setup: EnvSetup, n_episodes: int, seed: int, deterministic: bool) -> None:
    """Play the same episodes with a policy and with random actions, and print both results."""
    with closing(make_playable_env(setup, actor)) as env:
        max_steps = find_max_steps(env.spec, MAX_EPISODE_STEPS)
        policies = {
            "policy": make_policy(actor, deterministic, np.random.default_rng(seed)),
            "random": make_random_policy(env.action_space, seed),
        }
        evaluations = {
            name: summarize_episodes(play_episodes(env, policy, n_episodes, seed, max_steps))
            for name, policy in policies.items()
        }
    env_name = setup.env_name
    actions = "most likely" if deterministic else "drawn"
    write(f"{n_episodes} episodes of {describe_setup(setup)} from seed {seed}, {actions} actions")
    if math.isfinite(max_steps):
        write(f"{env_name} has no time limit: episodes are cut after {max_steps:,} steps")
    write(f"{'':22}{'policy':>26}{'random actions':>26}")
    rows = {name: _format_rows(evaluation) for name, evaluation in evaluations.items()}
    for label, cell in rows["policy"].items():
        write(f"{label:22}{cell:>26}{rows['random'][label]:>26}")


def _format_rows(evaluation: Evaluation) -> dict[str, str]:
    rate = evaluation.success_rate
    return {
        "mean reward": f"{evaluation.mean_reward:.2f}",
        "95 % interval": _format_interval(evaluation.mean_reward_ci95, 1.0),
        "standard deviation": f"{evaluation.std_reward:.2f}",
        "worst to best": _format_interval((evaluation.min_reward, evaluation.max_reward), 1.0),
        "mean length": f"{evaluation.mean_length:.1f}",
        "success rate, %": "not defined" if rate is None else f"{100 * rate:.1f}",
        "its 95 % interval": _format_interval(evaluation.success_rate_ci95, 100.0),
    }


def _format_interval(interval: tuple[float, float] | None, scale: float) -> str:
    return "-" if interval is None else f"{scale * interval[0]:.2f} to {scale * interval[1]:.2f}"
