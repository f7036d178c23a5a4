"""The time that collecting takes."""

import time

from stable_baselines3.common.callbacks import BaseCallback


class RolloutTimer(BaseCallback):
    """Adds up the time of rollouts."""

    seconds = 0.0

    def _on_rollout_start(self) -> None:
        self._started_at = time.perf_counter()

    def _on_rollout_end(self) -> None:
        self.seconds += time.perf_counter() - self._started_at

    def _on_step(self) -> bool:
        return True
