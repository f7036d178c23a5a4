"""How long runs will take, from those that are finished."""

from collections.abc import Sequence
from statistics import median

from benchmarks.lib.runs import Run, RunSpec

# Stable-Baselines3 takes about a thousand steps a second, learning included.
_SECONDS_PER_STEP = 1e-3


def estimate_seconds(spec: RunSpec, finished: Sequence[Run]) -> float:
    """Estimate the duration of a run: by runs of its method on its environment, else by runs of its algorithm."""
    alike = [run for run in finished if (run.env, run.method) == (spec.env, spec.method)]
    alike = alike or [run for run in finished if run.algorithm == spec.algorithm]
    rates = [run.wall_seconds / run.total_timesteps for run in alike]
    return spec.budget * (median(rates) if rates else _SECONDS_PER_STEP)


def format_duration(seconds: float) -> str:
    """Format a duration: ``"50 s"``, ``"12 min"``, ``"3 h 20 min"``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
