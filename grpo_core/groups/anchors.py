"""Choose where the groups of the next rollout start: on the way of earlier groups, at new episodes, in an archive."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from grpo_core.groups.archive import ARCHIVE_SHARE, AnchorArchive, compute_spreads
from grpo_core.groups.group import AnchorState, Group, GroupPlan
from grpo_core.groups.rollout import GroupRollout
from grpo_core.restoring.simulator import SimulatorState

# Starts new episodes: takes seeds by environment (None lets its generator go on) and returns where they start.
Reset = Callable[[Mapping[int, int | None]], Mapping[int, AnchorState]]
# Brings states, each with the index of its environment, up to what environments are now, and returns them.
Renew = Callable[[Sequence[tuple[int, SimulatorState]]], Sequence[SimulatorState]]


class Anchors:
    """Where the groups of a rollout start, interleaved: group ``i`` belongs to environment ``i % n_envs``.

    :param n_envs: Number of environments.
    :param plan: How the groups are played; whole episodes have no anchors.
    :param reset: Starts new episodes; None leaves that to whoever plays a group, and such groups start at None.
    :param draws_seeds: Whether each new episode gets a seed: where restoring a state rewinds the environment's
        generators, they would otherwise begin episodes that were already played.
    """

    def __init__(self, n_envs: int, plan: GroupPlan, reset: Reset | None, draws_seeds: bool = False) -> None:
        self._n_envs, self._plan, self._reset, self._draws_seeds = n_envs, plan, reset, draws_seeds
        #: The states that the next rollout goes on from, None for a new episode; empty if it begins with those alone.
        self.starts: list[AnchorState | None] = []
        #: How many of them are from the archive.
        self.n_archived = 0
        #: Earlier anchor states that groups may start from again; None if they never do.
        self.archive = AnchorArchive(n_envs) if plan.anchor_selection == "archive" else None

    def forget(self) -> None:
        """Forget the anchor states and the archive: the next rollout begins with new episodes."""
        self.starts, self.n_archived = [], 0
        if self.archive is not None:
            self.archive = AnchorArchive(self._n_envs)

    def renew(self, renew: Renew) -> None:
        """Bring all anchor states up to what the environments are now, those of the archive, too."""
        starts = [(i, start) for i, start in enumerate(self.starts) if start is not None]
        archived = [] if self.archive is None else self.archive.list_anchors()
        states = [(i % self._n_envs, start.simulator_state) for i, start in starts]
        states += [(env_index, anchor.simulator_state) for env_index, anchor in archived]
        renewed = iter(renew(states))
        for i, start in starts:
            self.starts[i] = start._replace(simulator_state=next(renewed))
        if self.archive is not None:
            self.archive.replace_anchors([anchor._replace(simulator_state=next(renewed)) for _, anchor in archived])

    def complete(self, rng: np.random.Generator, should_stop: Callable[[], bool]) -> bool:
        """Begin the new episodes that the next rollout starts from, all of them where there are no anchor states yet.

        :param should_stop: Asked between resets, which may be slow.
        :return: False if it was stopped.
        """
        for i, start in enumerate(self.starts):
            if start is None:
                if should_stop():
                    return False
                self.starts[i] = self._begin_episode(i % self._n_envs, rng)
        while len(self.starts) < self._plan.n_groups_per_env * self._n_envs:
            if should_stop():
                self.starts = []
                return False
            self.starts.extend(self.begin_episodes(rng))
        return True

    def begin_episodes(self, rng: np.random.Generator) -> list[AnchorState | None]:
        """Begin a new episode in every environment, and return where they start."""
        if self._reset is None:
            return [None] * self._n_envs
        starts = self._reset({i: self._draw_seed(rng) for i in range(self._n_envs)})
        return [starts[i] for i in range(self._n_envs)]

    def choose(
        self,
        rollout: GroupRollout,
        groups: Sequence[Group],
        discounted_returns: npt.NDArray[np.float64] | None = None,
        *,
        restart_probability: float,
        rng: np.random.Generator,
        should_stop: Callable[[], bool],
    ) -> None:
        """Let the next rollout go on from a random step of a random branch of each group, or from a new episode.

        With an archive, a share of the groups starts from there instead.

        :param rollout: The one just played; an archive needs its value targets.
        :param groups: Its groups, by index.
        :param discounted_returns: Discounted rewards of the episodes up to each step, shape
            ``(horizon, n_groups, group_size)``; None without a ``VecNormalize``.
        :param restart_probability: How often to begin anew although the episode could go on.
        :param should_stop: Asked between resets; True leaves the next rollout to begin with new episodes.
        """
        if self._plan.mode == "episode":
            return
        predecessors = self.draw_predecessors(groups, rng)
        kept = [_make_anchor(group, discounted_returns) for group in predecessors]
        archived: dict[int, AnchorState] = {}
        if self.archive is not None:
            spreads = compute_spreads(rollout.value_targets, rollout.step_mask).tolist()
            _fill(self.archive, groups, spreads)
            archived = self._draw_archived(self.archive, predecessors, kept, spreads, rng)
        self.starts, self.n_archived = [], 0  # a reset that fails leaves new episodes to begin with
        starts: list[AnchorState | None] = []
        for i, (group, anchor) in enumerate(zip(predecessors, kept, strict=True)):
            if i in archived:
                anchor = archived[i]
            elif anchor is None or rng.random() < restart_probability:
                if should_stop():
                    return
                anchor = self._begin_episode(group.env_index, rng)
            starts.append(anchor)
        self.starts, self.n_archived = starts, len(archived)

    def draw_predecessors(self, groups: Sequence[Group], rng: np.random.Generator) -> Sequence[Group]:
        """Draw the groups that those of the next rollout go on from, interleaved likewise.

        Where more were played than planned, longer ones are likelier, so that few go on from a branch that was about to
        end.
        """
        if len(groups) == len(self.starts):
            return groups
        drawn: list[list[Group]] = []
        for env_index in range(self._n_envs):
            theirs = [group for group in groups if group.env_index == env_index]
            n_steps = np.array([group.n_steps for group in theirs])
            chosen = rng.choice(len(theirs), len(self.starts) // self._n_envs, replace=False, p=n_steps / n_steps.sum())
            drawn.append([theirs[i] for i in chosen])
        return [group for turn in zip(*drawn, strict=True) for group in turn]

    def _draw_archived(
        self,
        archive: AnchorArchive,
        predecessors: Sequence[Group],
        kept: Sequence[AnchorState | None],
        spreads: Sequence[float],
        rng: np.random.Generator,
    ) -> dict[int, AnchorState]:
        """Draw the anchor states of some of the next groups from the archive.

        Those that they would have gone on from are not lost: they are archived with their predecessor's spread.

        :param predecessors: The group that each of the next ones would go on from.
        :param kept: The anchor state that it would start from; None if that episode is over.
        :return: Anchor states by the indices of the next groups.
        """
        leaving = [i for i in range(len(predecessors)) if rng.random() < ARCHIVE_SHARE]
        for i in leaving:
            if (anchor := kept[i]) is not None:
                archive.keep(predecessors[i].env_index, anchor, spreads[predecessors[i].index])
        archived: dict[int, AnchorState] = {}
        for env_index in range(self._n_envs):
            theirs = [i for i in leaving if predecessors[i].env_index == env_index]
            archived |= dict(zip(theirs, archive.draw(env_index, len(theirs), rng), strict=False))
        return archived

    def _begin_episode(self, env_index: int, rng: np.random.Generator) -> AnchorState | None:
        """Begin a new episode in one environment, and return where it starts."""
        return None if self._reset is None else self._reset({env_index: self._draw_seed(rng)})[env_index]

    def _draw_seed(self, rng: np.random.Generator) -> int | None:
        """Choose the seed of a new episode; None lets the environment's generator go on."""
        return int(rng.integers(2**31)) if self._draws_seeds else None


def _make_anchor(group: Group, discounted_returns: npt.NDArray[np.float64] | None) -> AnchorState | None:
    """Make the anchor state that a group's kept step led to; None if that ended the episode."""
    if group.kept is None:
        return None
    place = group.kept_t, group.index, group.kept_branch
    so_far = 0.0 if discounted_returns is None else float(discounted_returns[place])
    return AnchorState(*group.kept, so_far, *group.kept_episode)


def _fill(archive: AnchorArchive, groups: Sequence[Group], spreads: Sequence[float]) -> None:
    """Put the anchor states of a rollout's groups into the archive."""
    archive.count_rollout()
    for group in groups:
        assert group.anchor is not None
        archive.keep(group.env_index, group.anchor, spreads[group.index])
