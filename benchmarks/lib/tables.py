"""The statistics and the Markdown tables of finished runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.lib.runs import Run
from benchmarks.lib.tasks import Task

Scores = npt.NDArray[np.float64]

_N_RESAMPLES = 10_000
_CONFIDENCE = 0.95
# The bootstrap over fewer seeds gives intervals that are too narrow, and over two, the two.
MIN_SEEDS_OF_INTERVAL = 5
_HEADER = "| method | seeds | IQM [95 % interval] | mean | worst | steps taken | scores, sorted |"
_RULE = "|---|---|---|---|---|---|---|"


def compute_iqm(scores: Scores) -> Scores:
    """Compute the interquartile mean: the mean without the lowest and the highest quarter, each rounded down.

    The definition is rliable's (https://arxiv.org/abs/2108.13264); below 4 seeds it is the mean.

    :param scores: Shape ``(n_seeds, ...)``.
    :return: Shape ``(...)``.
    """
    n_cut = len(scores) // 4
    kept: Scores = np.sort(scores, axis=0)[n_cut : len(scores) - n_cut]
    return np.asarray(kept.mean(axis=0))


def compute_interval(scores: Scores) -> tuple[Scores, Scores]:
    """Compute the 95 % interval of the interquartile mean by the percentile bootstrap over seeds.

    This is rliable's stratified bootstrap for a single task, whose seeds are the only stratum. rliable 1.2.0 itself
    needs pandas < 3 (through arch), and ignores ``random_state`` in favour of NumPy's process-wide generator.

    :param scores: Shape ``(n_seeds, ...)``.
    :return: Lower and upper bounds, shape ``(...)`` each.
    """
    return _cut_tails(_resample_iqm(scores, np.random.default_rng(0)))


def compute_difference(scores: Scores, others: Scores) -> tuple[float, float, float]:
    """Compute how far an interquartile mean lies above another, and the 95 % interval of that, as above.

    :param scores: Shape ``(n_seeds,)``.
    :param others: Shape ``(n_other_seeds,)``.
    :return: The difference, and its lower and upper bound.
    """
    rng = np.random.default_rng(0)
    low, high = _cut_tails(_resample_iqm(scores, rng) - _resample_iqm(others, rng))
    return float(compute_iqm(scores) - compute_iqm(others)), float(low), float(high)


def _resample_iqm(scores: Scores, rng: np.random.Generator) -> Scores:
    """Return the interquartile means of seeds drawn with replacement, shape ``(n_resamples, ...)``."""
    return compute_iqm(scores[rng.integers(len(scores), size=(len(scores), _N_RESAMPLES))])


def _cut_tails(resampled: Scores) -> tuple[Scores, Scores]:
    tail = (1 - _CONFIDENCE) / 2
    lower, upper = np.quantile(resampled, [tail, 1 - tail], axis=0)
    return np.asarray(lower), np.asarray(upper)


def get_scores(runs: Sequence[Run]) -> Scores:
    """Return the final scores, shape ``(n_runs,)``."""
    return np.array([run.score for run in runs])


def format_table(rows: Mapping[str, Sequence[Run]], n_decimals: int) -> str:
    """Format one row per label as Markdown.

    :param rows: Label to its runs; a label without runs is left out.
    :param n_decimals: Decimals of the interquartile mean, the mean and the worst score; the list has one less.
    """
    lines = [_format_row(label, runs, n_decimals) for label, runs in rows.items() if runs]
    return "\n".join([_HEADER, _RULE, *lines])


def format_score(runs: Sequence[Run], n_decimals: int) -> str:
    """Format the interquartile mean, its 95 % interval and the number of seeds; a dash without runs."""
    if not runs:
        return "-"
    return f"{_format_iqm(get_scores(runs), n_decimals)}, {len(runs)} seed{'' if len(runs) == 1 else 's'}"


def format_difference(runs: Sequence[Run], others: Sequence[Run], n_decimals: int) -> str:
    """Format how far the runs' interquartile mean lies above the others', with its interval; a dash for few seeds."""
    if min(len(runs), len(others)) < MIN_SEEDS_OF_INTERVAL:
        return "-"
    difference, low, high = (
        f"{value:+,.{n_decimals}f}" for value in compute_difference(get_scores(runs), get_scores(others))
    )
    return f"{difference} [{low}, {high}]"


def _format_iqm(scores: Scores, n_decimals: int) -> str:
    iqm = f"{compute_iqm(scores):,.{n_decimals}f}"
    if len(scores) < MIN_SEEDS_OF_INTERVAL:
        return iqm
    low, high = (f"{value:,.{n_decimals}f}" for value in compute_interval(scores))
    return f"{iqm} [{low}, {high}]"


def _format_row(label: str, runs: Sequence[Run], n_decimals: int) -> str:
    scores = get_scores(runs)
    mean, worst = (f"{value:,.{n_decimals}f}" for value in (scores.mean(), scores.min()))
    steps = f"{np.mean([run.total_timesteps for run in runs]):,.0f}"
    listed = ", ".join(f"{score:.{n_decimals - 1}f}" for score in np.sort(scores))
    return f"| {label} | {len(runs)} | {_format_iqm(scores, n_decimals)} | {mean} | {worst} | {steps} | {listed} |"


def list_aims(task: Task, grpo: Sequence[Run], ppo: Sequence[Sequence[Run]]) -> dict[str, bool]:
    """List the aims of a task in words, and whether GRPO reached each; none is reached without runs.

    :param grpo: Runs of GRPO.
    :param ppo: Runs of PPO, one sequence per variant; the best variant counts.
    """
    scores = get_scores(grpo)
    iqm, worst = (float(compute_iqm(scores)), float(scores.min())) if grpo else (-np.inf, -np.inf)
    ppo_iqms = [float(compute_iqm(get_scores(runs))) for runs in ppo if runs]
    aims = {}
    if task.aim is not None:
        aims[f"an IQM of at least {task.aim:,g}"] = iqm >= task.aim
    if task.worst_aim is not None:
        aims[f"no seed below {task.worst_aim:,g}"] = worst >= task.worst_aim
    if ppo_iqms:
        aims["an IQM of at least the best PPO's"] = iqm >= max(ppo_iqms)
    return aims


def format_aims(task: Task, grpo: Sequence[Run], ppo: Sequence[Sequence[Run]]) -> str:
    """Format the aims of a task, and which of them are reached, see ``list_aims``."""
    aims = list_aims(task, grpo, ppo)
    listed = [
        f"{aim}: **{'reached' if is_reached else 'missed'}**" if grpo else aim for aim, is_reached in aims.items()
    ]
    few = f", judged by {len(grpo)} of {task.n_seeds} seeds" if 0 < len(grpo) < task.n_seeds else ""
    n_seeds = [str(len(runs)) for runs in ppo if runs]
    peers = f" Seeds of each of PPO's settings: {', '.join(n_seeds)}." if n_seeds else ""
    return f"Aims for GRPO{few}: {'; '.join(listed)}.{peers}"
