"""Rank settings by what they earned, and tell how sure the best one is."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from service.schemas.jobs import Interval95
from service.schemas.sweeps import BestSetting, SettingRow, Trial, TrialStatus

#: Fewer seeds say too little of their spread for an interval: that of two can reach far beyond what is possible.
MIN_SEEDS_OF_INTERVAL = 5
# The 97.5 % quantiles of Student's t distribution with 1, 2, 3, ... degrees of freedom.
_T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def rank_settings(settings: Sequence[Mapping[str, Any]], trials: Sequence[Trial]) -> list[SettingRow]:
    """Return a row per setting, the best first.

    A setting counts on the last rung on which all its seeds were evaluated. Settings that lack one come after the
    others, and those without any figure last.
    """
    by_setting: dict[int, list[Trial]] = {number: [] for number in range(1, len(settings) + 1)}
    for trial in trials:
        by_setting[trial.setting].append(trial)
    rows = [_make_row(number, dict(settings[number - 1]), own) for number, own in by_setting.items()]
    return sorted(rows, key=_get_place)


def choose_best(rows: Sequence[SettingRow]) -> BestSetting | None:
    """Describe the first row, and how sure it is that it is the best; None if nothing was measured.

    :param rows: What ``rank_settings`` returned.
    """
    if not rows or (best := rows[0]).mean_reward is None:
        return None
    others = [row for row in rows[1:] if row.mean_reward is not None and row.rung == best.rung]
    # The mean of some seeds is not comparable with that of all.
    runner_up = next((row for row in others if _is_whole(row) == _is_whole(best)), None)
    lead_ci95 = None if runner_up is None else compute_lead_interval(_list_rewards(best), _list_rewards(runner_up))
    lead = None if runner_up is None else best.mean_reward - (runner_up.mean_reward or 0.0)
    is_clear = lead_ci95 is not None and lead_ci95[0] > 0.0
    return BestSetting(
        setting=best.number,
        values=best.values,
        mean_reward=best.mean_reward,
        mean_reward_ci95=best.mean_reward_ci95,
        model_name=_find_best_model(best),
        runner_up=None if runner_up is None else runner_up.number,
        lead=lead,
        lead_ci95=lead_ci95,
        is_clear=is_clear,
        text=_describe(best, runner_up, lead, lead_ci95, rows) + _describe_higher(best, others),
    )


def is_measured(trial: Trial) -> bool:
    """Return whether a trial has a figure that can be compared: that of a training which was not cut short by hand."""
    return trial.status is TrialStatus.COMPLETED and trial.mean_reward is not None


def compute_seed_interval(rewards: Sequence[float]) -> Interval95:
    """Return Student's 95 % interval of a mean over seeds; None with fewer than ``MIN_SEEDS_OF_INTERVAL``."""
    n = len(rewards)
    if n < MIN_SEEDS_OF_INTERVAL:
        return None
    half = _get_t_quantile(n - 1) * statistics.stdev(rewards) / math.sqrt(n)
    return _put_around(statistics.fmean(rewards), half)


def compute_lead_interval(rewards: Sequence[float], others: Sequence[float]) -> Interval95:
    """Return Welch's 95 % interval of the difference of two means.

    None with fewer than ``MIN_SEEDS_OF_INTERVAL`` in either, or if neither has any spread, which says nothing of other
    seeds.
    """
    if min(len(rewards), len(others)) < MIN_SEEDS_OF_INTERVAL:
        return None
    shares = [statistics.variance(numbers) / len(numbers) for numbers in (rewards, others)]
    lead = statistics.fmean(rewards) - statistics.fmean(others)
    if sum(shares) == 0.0:
        return None
    parts = [share / sum(shares) for share in shares]
    n_free = 1.0 / sum(part**2 / (len(numbers) - 1) for part, numbers in zip(parts, (rewards, others), strict=True))
    return _put_around(lead, _get_t_quantile(max(1, math.floor(n_free + 1e-9))) * math.sqrt(sum(shares)))


def _put_around(mean: float, half: float) -> tuple[float, float]:
    return mean - half, mean + half


def _get_t_quantile(n_free: int) -> float:
    """Return the quantile for a number of degrees of freedom; beyond the table the last one, slightly wider."""
    return _T_QUANTILES[min(n_free, len(_T_QUANTILES)) - 1]


def _make_row(number: int, values: dict[str, Any], trials: list[Trial]) -> SettingRow:
    rung = _find_rung(trials)
    shown = [trial for trial in trials if trial.rung == rung]
    measured = [trial for trial in shown if is_measured(trial)]
    rewards = [trial.mean_reward for trial in measured if trial.mean_reward is not None]
    rates = [trial.success_rate for trial in measured if trial.success_rate is not None]
    interval: Interval95 = compute_seed_interval(rewards)
    if len(rewards) == 1:
        interval = measured[0].mean_reward_ci95
    return SettingRow(
        number=number,
        rewards=rewards,
        values=values,
        rung=rung,
        total_timesteps=shown[0].total_timesteps,
        n_seeds=len(rewards),
        mean_reward=statistics.fmean(rewards) if rewards else None,
        mean_reward_ci95=interval,
        ci95_over=None if interval is None else "episodes" if len(rewards) == 1 else "seeds",
        success_rate=statistics.fmean(rates) if rates else None,
        trials=trials,
    )


def _find_rung(trials: Sequence[Trial]) -> int:
    """Return the last rung with figures of all seeds, or else with any."""
    for must_be_whole in (True, False):
        for rung in range(max(trial.rung for trial in trials), -1, -1):
            measured = [is_measured(trial) for trial in trials if trial.rung == rung]
            if all(measured) if must_be_whole else any(measured):
                return rung
    return 0


def _get_place(row: SettingRow) -> tuple[bool, bool, int, float, int]:
    if row.mean_reward is None:
        return True, True, 0, 0.0, row.number
    return False, not _is_whole(row), -row.rung, -row.mean_reward, row.number


def _is_whole(row: SettingRow) -> bool:
    """Return whether all seeds of a setting's rung were evaluated."""
    return all(is_measured(trial) for trial in row.trials if trial.rung == row.rung)


def _list_rewards(row: SettingRow) -> list[float]:
    return list_rewards(row, row.rung)


def list_rewards(row: SettingRow, rung: int) -> list[float]:
    """List what a setting's trials of a rung have earned, as far as they were evaluated."""
    return [
        trial.mean_reward
        for trial in row.trials
        if trial.rung == rung and is_measured(trial) and trial.mean_reward is not None
    ]


def find_best_trial(row: SettingRow) -> Trial | None:
    """Return the trial of a setting's rung that was evaluated best and has its model still; None without one."""
    measured = [trial for trial in row.trials if trial.rung == row.rung and is_measured(trial)]
    there = [trial for trial in measured if trial.model_name is not None]
    return max(there, key=lambda trial: (trial.mean_reward or 0.0, -trial.number), default=None)


def _find_best_model(row: SettingRow) -> str | None:
    trial = find_best_trial(row)
    return None if trial is None else trial.model_name


def _describe(
    best: SettingRow,
    runner_up: SettingRow | None,
    lead: float | None,
    lead_ci95: Interval95,
    rows: Sequence[SettingRow],
) -> str:
    n_measured = sum(row.mean_reward is not None for row in rows)
    if n_measured > 1 and (runner_up is None or lead is None):
        return _describe_first(best, rows)
    if runner_up is None or lead is None:
        return _describe_alone(best, len(rows))
    if lead == 0.0:
        return f"Settings {best.number} and {runner_up.number} earned the same."
    text = f"Setting {best.number} is ahead of the next one, setting {runner_up.number}, by {lead:.4g}"
    if lead_ci95 is None and min(best.n_seeds, runner_up.n_seeds) >= MIN_SEEDS_OF_INTERVAL:
        return f"{text}. Their seeds show no spread, so how sure that is cannot be told; more seeds may."
    if lead_ci95 is None:
        n_seeds = min(best.n_seeds, runner_up.n_seeds)
        return (
            f"{text}. That rests on {'a single seed' if n_seeds == 1 else f'{n_seeds} seeds'}, and others may reverse "
            f"it: send {MIN_SEEDS_OF_INTERVAL} or more seeds to learn how sure it is."
        )
    text += f" (95 % interval {lead_ci95[0]:.4g} to {lead_ci95[1]:.4g}, over seeds)"
    if lead_ci95[0] <= 0.0:
        return f"{text}, which may be chance; more seeds may tell them apart."
    return f"{text}. As the best of {n_measured} it owes part of that to luck: with new seeds, expect a little less."


def _describe_first(best: SettingRow, rows: Sequence[SettingRow]) -> str:
    """Say what sets a setting apart that cannot be compared with the others yet, or at all."""
    rivals = [trial for row in rows if row is not best for trial in row.trials if trial.rung == best.rung]
    if not rivals:
        return (
            f"Setting {best.number} is the only one to reach {best.total_timesteps:,} steps; the others ended with "
            "fewer."
        )
    seeds = "all its seeds" if _is_whole(best) else "any seed"
    so_far = " so far" if any(trial.status.is_active or trial.status is TrialStatus.WAITING for trial in rivals) else ""
    return f"Setting {best.number} is the only one with {seeds} evaluated at {best.total_timesteps:,} steps{so_far}."


def _describe_higher(best: SettingRow, others: Sequence[SettingRow]) -> str:
    """Say which setting, if any, has earned more than the best one, though not with all its seeds."""
    partial = [row for row in others if not _is_whole(row) and (row.mean_reward or 0.0) > (best.mean_reward or 0.0)]
    if not partial:
        return ""
    highest = max(partial, key=lambda row: row.mean_reward or 0.0)
    n_seeds = sum(trial.rung == highest.rung for trial in highest.trials)
    return f" Setting {highest.number} earned more with the seeds it has ({highest.n_seeds} of {n_seeds})."


def _describe_alone(best: SettingRow, n_settings: int) -> str:
    rewards = _list_rewards(best)
    earned = f"1 seed earned {rewards[0]:.4g}"
    if len(rewards) > 1:
        mean = statistics.fmean(rewards)
        earned = f"{len(rewards)} seeds earned {min(rewards):.4g} to {max(rewards):.4g}, {mean:.4g} on average"
    if n_settings == 1:
        return f"{earned}."
    return f"Setting {best.number} is the only one with an evaluation: {earned}."
