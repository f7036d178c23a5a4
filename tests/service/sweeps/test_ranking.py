"""What settings earned, against arithmetic by hand."""

from collections.abc import Sequence

import pytest

from service.schemas.sweeps import SettingRow, Trial, TrialStatus
from service.sweeps.halving import choose_promoted, plan_rungs
from service.sweeps.ranking import choose_best, compute_lead_interval, compute_seed_interval, rank_settings


def make_trials(rewards: Sequence[Sequence[float | None]], rung: int = 0, numbers: Sequence[int] = ()) -> list[Trial]:
    """Make a setting's trials of each list of rewards; None has not been measured."""
    return [
        Trial(
            number=0,
            setting=number,
            rung=rung,
            seed=seed,
            total_timesteps=100 * (rung + 1),
            status=TrialStatus.RUNNING if reward is None else TrialStatus.COMPLETED,
            mean_reward=reward,
            mean_reward_ci95=None if reward is None else (reward - 1, reward + 1),
            model_name=f"m-{number}-{seed}",
        )
        for number, row in zip(numbers or range(1, len(rewards) + 1), rewards, strict=True)
        for seed, reward in enumerate(row)
    ]


def rank(trials: list[Trial]) -> list[SettingRow]:
    n_settings = max(trial.setting for trial in trials)
    return rank_settings([{"gamma": number / 10} for number in range(n_settings)], trials)


def test_the_interval_of_a_mean_is_students() -> None:
    # The mean is 3, the variance 10 / 4, and t(0.975, 4) = 2.776: 2.776 sqrt(2.5 / 5) = 1.96293.
    assert compute_seed_interval([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx((3 - 1.96293, 3 + 1.96293), abs=1e-4)
    # CartPole pays 500 at most, and Student's interval of these two would end at 564.
    assert compute_seed_interval([490.0, 500.0]) is None
    assert compute_seed_interval([1.0, 2.0, 3.0, 4.0]) is None


def test_the_interval_of_a_lead_is_welchs() -> None:
    # Variances 2.5 and 10, so 0.5 + 2 = 2.5 of the difference; 2.5² / (0.5² / 4 + 2² / 4) = 5.88 degrees of freedom,
    # taken as 5: t(0.975, 5) = 2.571.
    few, wide = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 4.0, 6.0, 8.0, 10.0]
    half = 2.571 * 2.5**0.5
    assert compute_lead_interval(wide, few) == pytest.approx((3 - half, 3 + half))
    # Alike, so that there are 2 (n - 1) = 8 degrees of freedom: t(0.975, 8) = 2.306.
    half = 2.306 * 1.0**0.5
    assert compute_lead_interval([reward + 9 for reward in few], few) == pytest.approx((9 - half, 9 + half))
    assert compute_lead_interval(few, wide[:4]) is None


def test_the_settings_come_by_their_mean_over_seeds() -> None:
    rows = rank(make_trials([[1.0, 3.0], [4.0, 2.0], [None, None], [9.0, None]]))
    # The fourth lacks a seed, the third has no figure at all.
    assert [(row.number, row.mean_reward, row.n_seeds) for row in rows] == [
        (2, 3.0, 2),
        (1, 2.0, 2),
        (4, 9.0, 1),
        (3, None, 0),
    ]
    assert [row.ci95_over for row in rows] == [None, None, "episodes", None]
    assert [row.rewards for row in rows] == [[4.0, 2.0], [1.0, 3.0], [9.0], []]
    assert rows[2].mean_reward_ci95 == (8.0, 10.0)


def test_the_success_of_a_setting_is_the_mean_over_its_evaluated_seeds() -> None:
    trials = make_trials([[1.0, 3.0, None], [4.0, 2.0, 0.0]])
    for trial, rate in zip(trials, (0.25, 0.75, 1.0), strict=False):
        trial.success_rate = rate
    assert [(row.number, row.success_rate) for row in rank(trials)] == [(2, None), (1, 0.5)]


def test_a_lead_that_may_be_chance_is_not_clear() -> None:
    best = choose_best(rank(make_trials([[1.0, 3.0, 2.0, 2.0, 2.0], [2.0, 4.0, 3.0, 3.0, 3.0]])))
    assert best is not None
    assert (best.setting, best.runner_up, best.lead, best.is_clear) == (2, 1, 1.0, False)
    assert best.model_name == "m-2-1"
    assert "may be chance" in best.text


def test_a_lead_beyond_its_interval_is_clear() -> None:
    best = choose_best(rank(make_trials([[1.0, 2.0, 3.0, 2.0, 2.0], [10.0, 11.0, 12.0, 11.0, 11.0]])))
    assert best is not None
    assert best.is_clear
    assert "the best of 2" in best.text


def test_a_single_seed_is_never_sure() -> None:
    best = choose_best(rank(make_trials([[1.0], [100.0]])))
    assert best is not None
    assert (best.lead, best.lead_ci95, best.is_clear) == (99.0, None, False)
    assert "single seed" in best.text


def test_a_few_seeds_are_not_sure_either() -> None:
    best = choose_best(rank(make_trials([[1.0, 2.0], [10.0, 11.0]])))
    assert best is not None
    assert (best.mean_reward_ci95, best.lead, best.lead_ci95, best.is_clear) == (None, 9.0, None, False)
    assert "rests on 2 seeds, and others may reverse it: send 5 or more" in best.text


def test_without_a_figure_there_is_no_best() -> None:
    assert choose_best(rank(make_trials([[None]]))) is None


def test_a_rung_counts_once_all_its_seeds_are_measured() -> None:
    first = make_trials([[5.0, 5.0], [4.0, 4.0], [3.0, 3.0]])
    rows = rank([*first, *make_trials([[1.0, None]], rung=1, numbers=[2])])
    assert [(row.number, row.rung) for row in rows] == [(1, 0), (2, 0), (3, 0)]
    rows = rank([*first, *make_trials([[1.0, 1.0]], rung=1, numbers=[2])])
    assert [(row.number, row.rung, row.mean_reward) for row in rows] == [(2, 1, 1.0), (1, 0, 5.0), (3, 0, 3.0)]
    best = choose_best(rows)
    assert best is not None
    assert "is the only one to reach 200 steps" in best.text


@pytest.mark.parametrize(
    ("rewards", "text"),
    [
        (
            [[10.0, 12.0], [400.0, None]],
            "Setting 1 is the only one with all its seeds evaluated at 100 steps so far. Setting 2 earned more with "
            "the seeds it has (1 of 2).",
        ),
        (
            [[10.0, 12.0], [4.0, None]],
            "Setting 1 is the only one with all its seeds evaluated at 100 steps so far.",
        ),
        (
            [[10.0, 10.0], [10.0, 10.0], [9.0, None], [11.0, None]],
            "Settings 1 and 2 earned the same. Setting 4 earned more with the seeds it has (1 of 2).",
        ),
    ],
)
def test_a_setting_that_lacks_a_seed_is_not_what_the_best_is_ahead_of(
    rewards: list[list[float | None]], text: str
) -> None:
    best = choose_best(rank(make_trials(rewards)))
    assert best is not None
    assert best.text == text
    assert best.lead in (None, 0.0)


@pytest.mark.parametrize(("status", "so_far"), [(TrialStatus.RUNNING, " so far"), (TrialStatus.FAILED, "")])
def test_others_that_may_still_reach_the_same_steps_did_not_end_with_fewer(status: TrialStatus, so_far: str) -> None:
    second = make_trials([[7.0, 7.0], [6.0, None]], rung=1, numbers=[1, 2])
    second[-1].status = status
    best = choose_best(rank([*make_trials([[5.0, 5.0], [4.0, 4.0], [3.0, 3.0]]), *second]))
    assert best is not None
    assert best.text == f"Setting 1 is the only one with all its seeds evaluated at 200 steps{so_far}."


def test_the_rungs_of_halving() -> None:
    def plan(*arguments: int) -> list[tuple[int, int | None]]:
        return [(rung.n_settings, rung.total_timesteps) for rung in plan_rungs(*arguments)]

    assert plan(9, 900, 3, 1) == [(9, 100), (3, 300), (1, 900)]
    assert plan(10, 900, 3, 1) == [(10, 100), (3, 300), (1, 900)]
    assert plan(9, 900, 3, 200) == [(9, 300), (3, 900)]
    assert plan(5, 8, 2, 1) == [(5, 2), (2, 4), (1, 8)]
    assert plan(2, 900, 3, 1) == [(2, 900)]


def test_the_best_of_a_rung_go_on() -> None:
    rows = rank(make_trials([[1.0], [3.0], [None], [2.0]]))
    assert choose_promoted(rows, 0, 2) == [2, 4]
    assert choose_promoted(rows, 0, 9) == [2, 4, 1]


def test_settings_that_all_lack_a_seed_of_a_later_rung_go_on_too() -> None:
    first = make_trials([[5.0, 5.0], [4.0, 4.0], [3.0, 3.0]])
    later = make_trials([[7.0, None], [None, 9.0], [None, None]], rung=1)
    assert choose_promoted(rank([*first, *later]), 1, 1) == [2]
    whole = make_trials([[7.0, None], [None, 9.0], [1.0, 1.0]], rung=1)
    assert choose_promoted(rank([*first, *whole]), 1, 3) == [3, 2, 1]


def test_what_the_seeds_of_a_single_setting_reached_is_said() -> None:
    alone = choose_best(rank(make_trials([[480.0, 500.0, 490.0]])))
    assert alone is not None
    assert alone.text == "3 seeds earned 480 to 500, 490 on average."
    first = choose_best(rank(make_trials([[480.0], [None]])))
    assert first is not None
    assert first.text == "Setting 1 is the only one with an evaluation: 1 seed earned 480."
