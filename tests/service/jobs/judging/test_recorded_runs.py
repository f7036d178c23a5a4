"""Real trainings, good and bad, get the verdicts that they deserve; ``record_runs.py`` records them."""

import json
import re
from typing import Any

import pytest

from service.jobs.judging.verdict import judge
from service.schemas.jobs import JobStatus
from tests.service.jobs.judging.record_runs import FILE, RUNS, from_json

RECORDED: dict[str, dict[str, Any]] = json.loads(FILE.read_text())
# The state of each, and something that its text says.
DESERVED: dict[str, tuple[str, str]] = {
    "queued": ("waiting", "waiting for its turn"),
    "worker_starting": ("starting", "Starting the worker"),
    "first_steps": ("starting", "Too few episodes"),
    "cartpole": ("solved", "the saved policy earns 500 per episode"),
    "cartpole_other_seed": ("solved", "497.7"),
    "cartpole_simple_reward": ("solved", "481.8"),
    "cartpole_half_way": ("learning", "Let it continue"),
    "cartpole_stopped_early": ("learning", "if it is resumed"),
    "cartpole_very_short": ("learning", "more total_timesteps"),
    "cartpole_out_of_time": ("flat", "more max_seconds"),
    "cartpole_stop_reward": ("solved", "492.5"),
    "cartpole_patience": ("solved", "492.5"),
    "cartpole_without_evaluations": ("learning", "The mean reward while training rose: it went from"),
    "cartpole_own_reward": ("solved", "500"),
    "cartpole_own_reward_other_seed": ("solved", "500"),
    "cartpole_own_reward_plain": ("solved", "500"),
    "cartpole_own_reward_constant_rate": ("learning", "counts as solved from 475 on"),
    "cartpole_rate_too_large": ("worse", "lower learning_rate"),
    "cartpole_rate_too_large_but_kept": ("steady", "the saved one earns 418.8"),
    "cartpole_fallen_from_its_peak": ("worse", "down from about 265 at its best"),
    "cartpole_rate_too_small": ("flat", "higher learning_rate"),
    "cartpole_taught_to_fall": ("flat", "the saved one earns 9.5"),
    "acrobot": ("solved", "-81.1"),
    "acrobot_other_seed": ("solved", "-80.4"),
    "acrobot_rate_too_small": ("solved", "-84.2"),  # it swings up untrained
    "acrobot_half_way": ("solved", "Probably solved: while training, an episode earns about -91.34"),
    "pendulum": ("learning", "the saved one earns -99.19 per episode, up from about -1112 at the start"),
    "pendulum_too_short": ("flat", "more total_timesteps"),
    "pendulum_half_way": ("starting", "has not been evaluated since training began"),
    "pendulum_small_rate": ("flat", "higher learning_rate"),
    "mountain_car": ("learning", "-111.8 per episode, up from about -200 at the start"),
    "mountain_car_never_found": ("no_signal", "There was nothing to learn from"),
    "frozen_lake": ("solved", "0.9"),
    "frozen_lake_collapsed": ("flat", "all branches earn the same"),
    "lunar_lander_too_short": ("learning", "counts as solved from 200 on"),
    "hopper_too_short": ("learning", "more total_timesteps"),
    "nothing_to_earn": ("no_signal", "a reward that differs between branches"),
    "environment_breaks": ("failed", "error_message"),
    "evaluations_fail": ("learning", "The mean reward while training rose: it went from"),
}


def test_every_run_is_recorded_and_judged() -> None:
    assert RECORDED.keys() == RUNS.keys() == DESERVED.keys()
    assert FILE.stat().st_size < 100_000


@pytest.mark.parametrize("name", RECORDED)
def test_each_gets_the_verdict_that_it_deserves(name: str) -> None:
    state, said = DESERVED[name]
    verdict = judge(from_json(RECORDED[name]))
    assert (verdict.state, said in verdict.text) == (state, True), verdict.text


@pytest.mark.parametrize("name", RECORDED)
def test_none_contradicts_what_the_saved_policy_earns(name: str) -> None:
    evidence = from_json(RECORDED[name])
    verdict, final = judge(evidence), evidence.final_evaluation
    if final is None:
        return
    (earned,) = re.findall(r"earns (-?[\d.]+) per episode", verdict.text)
    assert float(earned) == pytest.approx(final.mean_reward, rel=1e-3)
    if evidence.reward_threshold is not None:
        assert (verdict.state == "solved") == (final.mean_reward >= evidence.reward_threshold)
    if verdict.state in ("learning", "steady"):
        assert final.mean_reward > evidence.evaluations[0].mean_reward
    if verdict.state == "worse":
        assert final.mean_reward < max(evaluation.mean_reward for evaluation in evidence.evaluations)


@pytest.mark.parametrize("name", [name for name in RECORDED if RECORDED[name]["lr_schedule"] == "linear"])
def test_a_learning_rate_that_fell_is_raised_only_where_no_update_was_large_enough(name: str) -> None:
    evidence = from_json(RECORDED[name])
    if "higher learning_rate" in judge(evidence).text:
        assert max(evidence.kls) < 1e-4


def test_the_training_mean_alone_would_have_been_wrong() -> None:
    evidence = from_json(RECORDED["cartpole"])
    assert evidence.rollout_rewards[-1] < 475.0
    blind = evidence._replace(final_evaluation=None, evaluations=())
    assert (judge(evidence).state, judge(blind).state) == ("solved", "learning")
    assert blind.status is JobStatus.COMPLETED
