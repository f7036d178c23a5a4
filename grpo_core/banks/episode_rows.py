"""Keep the files of SB3's monitors true where branches share the steps before their anchor.

Every branch that ends an episode reports it whole, from its reset on. If each got a row, a step that ten branches share
would be counted ten times, and a curve over the sum of ``l`` would run past the steps that were taken.
"""

import time
from collections.abc import Iterator
from typing import Any

from stable_baselines3.common.monitor import Monitor, ResultsWriter
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, unwrap_vec_wrapper

from grpo_core.environments.nested import Env, list_nested_envs

Row = dict[str, Any]


class EpisodeRows:
    """Chooses the episodes that get a row, so that all rows together have no more steps than were taken.

    An episode that is too long waits until enough steps have been taken, and those that end meanwhile are left out.
    Their length has no part in that, so what is written is a sample of what ended. Where no steps are shared, every
    episode has its row at once.
    """

    def __init__(self) -> None:
        self._n_written = 0
        self._waiting: Row | None = None

    def choose(self, row: Row, n_steps_taken: int) -> Iterator[Row]:
        """Yield the rows to write now that an episode has ended.

        :param row: That episode.
        :param n_steps_taken: Simulator steps so far.
        """
        candidates = [row] if self._waiting is None else [self._waiting, row]
        for self._waiting in candidates:
            if self._n_written + self._waiting["l"] > n_steps_taken:
                return
            self._n_written += self._waiting["l"]
            yield self._waiting
        self._waiting = None


class SampledWriter(ResultsWriter):
    """Replaces a ``Monitor``'s writer and passes on only the rows that ``EpisodeRows`` chooses."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor, self._writer = monitor, monitor.results_writer
        self._rows, self._n_steps_before = EpisodeRows(), monitor.total_steps

    def write_row(self, epinfo: Row) -> None:
        # The monitor counts the step that ended the episode only afterwards.
        n_steps_taken = self._monitor.total_steps + 1 - self._n_steps_before
        for row in self._rows.choose(epinfo, n_steps_taken):
            self._writer.write_row(row)  # type: ignore[union-attr]  # only a monitor that has one is given this

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._writer, name)


def sample_rows(env: Env) -> None:
    """Let the ``Monitor`` around an environment whose branches share steps write no more of them than were taken."""
    for layer in list_nested_envs(env):
        if isinstance(layer, Monitor) and layer.results_writer and not isinstance(layer.results_writer, SampledWriter):
            layer.results_writer = SampledWriter(layer)


class VecMonitorFeed:
    """Tells a ``VecMonitor``, which groups bypass, of the episodes that ended.

    :param vec_monitor: The wrapper.
    """

    def __init__(self, vec_monitor: VecMonitor) -> None:
        self._vec_monitor, self._rows = vec_monitor, EpisodeRows()
        #: Simulator steps that were taken.
        self.n_steps_taken = 0

    def report(self, info: dict[str, Any], episode_return: float, episode_length: int) -> None:
        """Put an episode into the step's info, as the wrapper does, and into its file.

        :param info: Of the step that ended the episode.
        """
        monitor = self._vec_monitor
        row: Row = {"r": episode_return, "l": episode_length, "t": round(time.time() - monitor.t_start, 6)}
        row |= {key: info[key] for key in monitor.info_keywords}
        info["episode"] = row
        monitor.episode_count += 1
        if monitor.results_writer:
            for chosen in self._rows.choose(row, self.n_steps_taken):
                monitor.results_writer.write_row(chosen)


def find_vec_monitor(env: VecEnv) -> VecMonitorFeed | None:
    """Find the ``VecMonitor`` around a vectorised environment; None without one."""
    vec_monitor = unwrap_vec_wrapper(env, VecMonitor)
    return None if vec_monitor is None else VecMonitorFeed(vec_monitor)
