"""Whether a job's rollouts have anything to learn from: in each group, some branches must earn more than others."""

# Shorter runs without a signal happen by chance, or before a rare reward is first found.
_MIN_ROLLOUTS_TO_WARN = 10
_MIN_STEPS_TO_WARN = 2000


class NoSignalCounter:
    """Counts consecutive rollouts in which the branches of every group earned the same.

    :param n_rollouts: Rollouts without a signal since the last one that had any.
    :param since_timesteps: Simulator steps at the end of the last rollout with a signal; 0 if there was none.
    """

    def __init__(self, n_rollouts: int = 0, since_timesteps: int = 0) -> None:
        self.n_rollouts = n_rollouts
        self.since_timesteps = since_timesteps
        self._has_warned = False

    def count_rollout(self, zero_std_fraction: float, timesteps: int) -> str | None:
        """Count a rollout; return a warning once the signal has been missing for long, and only once each time.

        :param zero_std_fraction: Share of the rollout's groups without a signal, in [0, 1].
        :param timesteps: Simulator steps taken so far.
        """
        if zero_std_fraction < 1.0:
            self.n_rollouts, self.since_timesteps, self._has_warned = 0, timesteps, False
            return None
        self.n_rollouts += 1
        warning = None if self._has_warned else self.make_warning(timesteps)
        self._has_warned = self._has_warned or warning is not None
        return warning

    def make_warning(self, timesteps: int, is_over: bool = False) -> str | None:
        """Return the warning that is due; None if the signal has not been missing for long.

        :param timesteps: Simulator steps taken so far.
        :param is_over: Whether no more will follow.
        """
        n_steps = timesteps - self.since_timesteps
        if self.n_rollouts < _MIN_ROLLOUTS_TO_WARN or n_steps < _MIN_STEPS_TO_WARN:
            return None
        remedy = "Use" if is_over else "A rare reward may still be found; otherwise use"
        return (
            f"no signal in the last {self.n_rollouts} rollouts ({n_steps} steps): in every group, all branches "
            f"earned the same. {remedy} a reward that differs between branches, a longer horizon or a larger "
            "group_size."
        )
