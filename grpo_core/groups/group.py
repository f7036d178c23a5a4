"""A group of branches, and how the groups of a rollout are played."""

from dataclasses import dataclass
from typing import NamedTuple

from grpo_core.banks.single_env import Observed
from grpo_core.options.choices import AnchorSelection, GroupMode
from grpo_core.restoring.simulator import SimulatorState

#: A rollout that is filled holds at most this many times the groups that would fill it if no branch ended early: groups
#: are stored side by side, padded to the longest branch.
MAX_FILLED = 8


@dataclass(frozen=True)
class GroupPlan:
    """The number of groups in a rollout, and the way they are played.

    :param mode: ``"branch"``: groups start from states on the way. ``"action"``: likewise, and branch ``b`` takes
        action ``b`` first. ``"episode"``: the members of a group share one seeded reset and play whole episodes.
    :param group_size: Branches per group, at least 2.
    :param horizon: Most steps per branch; None lets the episode's end end it, or ``MAX_EPISODE_STEPS``, as a time limit
        would.
    :param n_steps: Steps per environment and rollout. In the modes with a horizon, groups fill them exactly if no
        branch ends early; in ``"episode"`` mode, another group starts as long as fewer were taken.
    :param fill_rollouts: Whether groups from new episodes use up the steps left over when branches end early or not
        every action was legal; only in modes with a horizon.
    :param common_random_numbers: Whether captured states include the environments' random generators.
    :param anchor_selection: ``"continue"``: groups start where a branch of the last group got to. ``"archive"``: some
        start from states of an ``AnchorArchive``.
    :param antithetic_actions: Whether branches draw opposite noise, in pairs.
    """

    mode: GroupMode
    group_size: int
    horizon: int | None
    n_steps: int
    fill_rollouts: bool = False
    common_random_numbers: bool = False
    anchor_selection: AnchorSelection = "continue"
    antithetic_actions: bool = False

    @property
    def n_groups_per_env(self) -> int:
        """Groups per environment that fill a rollout if no branch ends early, in the modes with a horizon."""
        assert self.horizon is not None
        return self.n_steps // (self.group_size * self.horizon)


class AnchorState(NamedTuple):
    """A full simulator state that a group starts from.

    :param observed: The environment's observation there, not normalised.
    :param simulator_state: The state that the simulator captured there.
    :param discounted_return: Discounted rewards of the episode so far; only reward normalisation uses it.
    :param episode_return: The environment's own rewards of the episode so far.
    :param episode_length: Its steps so far.
    """

    observed: Observed
    simulator_state: SimulatorState | None
    discounted_return: float = 0.0
    episode_return: float = 0.0
    episode_length: int = 0


@dataclass(slots=True)
class Group:
    """A group under way.

    :param index: Its place in the rollout.
    :param env_index: The environment that all of its branches are played in.
    :param anchor: Where it starts; None if its members share a seeded reset instead.
    :param seed: Seed of the reset that its members share, at least 0; None if it starts at an anchor.
    :param kept_branch: The branch that the next rollout continues from.
    :param kept_t: The step of that branch after which it continues.
    :param kept: Observation and state after that step; None if the episode was over.
    :param kept_episode: Return and length of the episode after that step.
    :param n_steps: Simulator steps that its branches took.
    """

    index: int
    env_index: int
    anchor: AnchorState | None = None
    seed: int | None = None
    kept_branch: int = 0
    kept_t: int = 0
    kept: tuple[Observed, SimulatorState] | None = None
    kept_episode: tuple[float, int] = (0.0, 0)
    n_steps: int = 0
