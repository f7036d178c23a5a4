"""Whether a job's rollouts have anything to learn from: in each group, some branches must earn more than others."""

# Shorter runs without a signal happen by chance, or before a rare reward is first found. Both are chosen.
_MIN_ROLLOUTS_TO_WARN = 10
_MIN_STEPS_TO_WARN = 2000


def describe_silence(n_rollouts: int, n_steps: int, is_over: bool = False) -> str | None:
    """Warn that the branches of every group have earned the same for long; return None if it has not been long.

    :param n_rollouts: Rollouts since the last one in which any earned more than others.
    :param n_steps: Simulator steps since the end of that rollout, or since the start.
    :param is_over: Whether no more will follow.
    """
    if n_rollouts < _MIN_ROLLOUTS_TO_WARN or n_steps < _MIN_STEPS_TO_WARN:
        return None
    remedy = "Use" if is_over else "A rare reward may still be found; otherwise use"
    return (
        f"no signal in the last {n_rollouts} rollouts ({n_steps} steps): in every group, all branches earned the same. "
        f"{remedy} a reward that differs between branches, a longer horizon or a larger group_size."
    )
