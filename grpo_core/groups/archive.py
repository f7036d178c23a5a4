"""Captured simulator states that groups may start from again, drawn by what they still teach.

What a group teaches is how its members differ. The archive keeps the anchor states of groups that were played, each
with the *spread* of its latest group: the standard deviation, over the members, of what they earned from the anchor on.
States are ranked by it, and drawn with a probability that falls with the rank; some draws go to those that have waited
longest, since a spread ages with the policy that it was measured under. Both rules are those of prioritised level
replay (arXiv 2010.03934, equations 1 to 3), with simulator states in the place of levels.
"""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from grpo_core.groups.advantage import Bools, Floats, compute_deviation
from grpo_core.groups.group import AnchorState

#: Share of groups that start from the archive.
ARCHIVE_SHARE = 0.5
#: States that the archives of all environments hold at most, and the bytes that these may take.
MAX_ARCHIVED_STATES = 2048
MAX_ARCHIVE_BYTES = 64 * 2**20
# Assumed size of a state that cannot be pickled.
_UNKNOWN_BYTES = 2**20
# How fast the probability falls with the rank, 1 / rank^(1 / temperature), and the share of draws that go by age. Both
# are chosen, as are the sizes above.
_RANK_TEMPERATURE = 0.3
_AGE_SHARE = 0.1


@dataclass(slots=True)
class _Entry:
    """An archived state.

    :param spread: Standard deviation of what the members of its latest group earned, at least 0.
    :param played_at: The rollout of that group, counted from 1.
    """

    anchor: AnchorState
    spread: float
    played_at: int


class AnchorArchive:
    """Keeps the anchor states of groups that were played, one per observation, and draws those that still teach.

    Every environment has a shelf of its own, since a state of one need not fit another. Where a shelf is full, the
    state that was played longest ago makes room.

    :param n_envs: Number of environments.
    """

    def __init__(self, n_envs: int) -> None:
        # By the bytes of their observations, those played longest ago first.
        self._shelves: list[dict[bytes, _Entry]] = [{} for _ in range(n_envs)]
        self._n_rollouts = 0
        self._capacity = max(1, MAX_ARCHIVED_STATES // n_envs)  # of a shelf
        self._is_measured = False  # whether it fits the size of a state of this rollout

    def __len__(self) -> int:
        return sum(map(len, self._shelves))

    def to_state(self) -> list[Any]:
        """Return all that it holds, as lists of plain values and anchor states."""
        shelves = [
            [(key, entry.anchor, entry.spread, entry.played_at) for key, entry in shelf.items()]
            for shelf in self._shelves
        ]
        return [shelves, self._n_rollouts, self._capacity]

    @classmethod
    def from_state(cls, state: list[Any]) -> "AnchorArchive":
        """Return an archive that holds what ``to_state`` returned."""
        shelves, n_rollouts, capacity = state
        archive = cls(len(shelves))
        archive._shelves = [{key: _Entry(*entry) for key, *entry in shelf} for shelf in shelves]
        archive._n_rollouts, archive._capacity = n_rollouts, capacity
        return archive

    def list_anchors(self) -> list[tuple[int, AnchorState]]:
        """List all states, each with the index of its environment."""
        return [(i, entry.anchor) for i, shelf in enumerate(self._shelves) for entry in shelf.values()]

    def replace_anchors(self, anchors: Sequence[AnchorState]) -> None:
        """Replace all states, in the order of ``list_anchors``."""
        entries = [entry for shelf in self._shelves for entry in shelf.values()]
        for entry, anchor in zip(entries, anchors, strict=True):
            entry.anchor = anchor

    def count_rollout(self) -> None:
        """Age all states by one rollout, whose first will be measured: states may grow, as logs do."""
        self._n_rollouts += 1
        self._is_measured = False

    def keep(self, env_index: int, anchor: AnchorState, spread: float) -> None:
        """Keep a state, in the place of an earlier one with the same observation.

        :param env_index: The environment that it was captured in.
        :param spread: Standard deviation of what the members of its group earned, or of the group that it comes from.
        """
        if not self._is_measured:
            self._capacity = min(self._capacity, _compute_capacity(anchor, len(self._shelves)))
            self._is_measured = True
        shelf, key = self._shelves[env_index], _to_bytes(anchor.observed.observation)
        shelf.pop(key, None)  # so that it moves to the end
        shelf[key] = _Entry(anchor, spread, self._n_rollouts)
        while len(shelf) > self._capacity:
            del shelf[next(iter(shelf))]

    def draw(self, env_index: int, n_states: int, rng: np.random.Generator) -> list[AnchorState]:
        """Draw states of one environment, none of them twice; fewer than asked for where it has no more."""
        entries = list(self._shelves[env_index].values())
        spreads, played_at = (np.array([getattr(e, name) for e in entries]) for name in ("spread", "played_at"))
        probabilities = compute_draw_probabilities(spreads, self._n_rollouts - played_at)
        chosen = rng.choice(len(entries), min(n_states, len(entries)), replace=False, p=probabilities)
        return [entries[i].anchor for i in chosen]


def compute_spreads(value_targets: Floats, step_mask: Bools) -> Floats:
    """Compute how much the members of each group differed in what they earned from the anchor on.

    :param value_targets: The lambda-returns, shape ``(horizon, n_groups, group_size)``.
    :param step_mask: Bool, same shape; a branch that took no step does not count.
    :return: Standard deviations of those of the first step, shape ``(n_groups,)``.
    """
    deviations = compute_deviation(value_targets[:1], step_mask[:1], axis=(2,))[0]
    return np.asarray(np.sqrt(np.mean(np.square(deviations), axis=-1, where=step_mask[0])))


def compute_draw_probabilities(spreads: npt.NDArray[Any], ages: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Compute how likely each archived state is to be drawn, shape ``(n_states,)``.

    ``P_i = (1 - a) (1 / rank_i)^(1 / temperature) / Z + a age_i / sum(age)``, where the state with the largest spread
    has rank 1 and ``a`` is the share of draws that go by age (arXiv 2010.03934, equations 1 to 3).

    :param spreads: Shape ``(n_states,)``.
    :param ages: Rollouts since each was played, shape ``(n_states,)``.
    """
    by_rank = np.arange(1, len(spreads) + 1) ** (-1.0 / _RANK_TEMPERATURE)
    # Equal spreads share what their ranks have together.
    _, place, n_equal = np.unique(-spreads, return_inverse=True, return_counts=True)
    starts = np.concatenate([[0], n_equal.cumsum()[:-1]])
    by_rank = (np.add.reduceat(by_rank, starts) / n_equal)[place] / by_rank.sum()
    if not ages.any():
        return np.asarray(by_rank)
    return np.asarray((1.0 - _AGE_SHARE) * by_rank + _AGE_SHARE * ages / ages.sum())


def _to_bytes(observation: Any) -> bytes:
    if isinstance(observation, dict):
        return b"".join(np.asarray(part).tobytes() for part in observation.values())
    return np.asarray(observation).tobytes()


def _compute_capacity(anchor: AnchorState, n_envs: int) -> int:
    """Compute how many states like this one an environment's shelf may hold, at least 1."""
    try:
        n_bytes = len(pickle.dumps(anchor))
    except Exception:  # pickling may call foreign code
        n_bytes = _UNKNOWN_BYTES
    return max(1, min(MAX_ARCHIVED_STATES, MAX_ARCHIVE_BYTES // n_bytes) // n_envs)
