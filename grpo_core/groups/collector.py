"""Play groups: which branches are under way, which simulator steps them, and what is kept of them."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import PolicyActor
from grpo_core.banks.bank import Findings, SimulatorBank
from grpo_core.banks.single_env import Observed, Order, Outcome
from grpo_core.groups.anchors import Anchors
from grpo_core.groups.antithetic import AntitheticGenerator
from grpo_core.groups.group import MAX_FILLED, AnchorState, Group, GroupPlan
from grpo_core.groups.rewards import apply_reward_functions
from grpo_core.groups.rollout import GroupRollout, Place, SteppedPlace
from grpo_core.options.checks import MAX_EPISODE_STEPS
from grpo_core.options.rewards import Reward
from grpo_core.restoring.outside_changes import OutsideChanges
from grpo_core.restoring.simulator import SimulatorState
from grpo_core.spaces import pack

# Called after every vectorised step with infos, done flags and rewards, one per environment, and the number of
# environments that took a step. It returns False to end the rollout.
VecStepCallback = Callable[[list[dict[str, Any]], npt.NDArray[np.bool_], npt.NDArray[np.float32], int], bool]


@dataclass(slots=True)
class _Branch:
    """A branch under way.

    :param group: The group that it belongs to.
    :param index: Its place in the group.
    :param observed: What its next action is chosen on.
    :param state: State to restore before the next step; None if the simulator is in it already.
    :param t: Steps that it has taken.
    :param is_live: Whether it takes another one.
    """

    group: Group
    index: int
    observed: Observed
    state: SimulatorState | None = None
    t: int = 0
    is_live: bool = True

    @property
    def place(self) -> Place:
        """Where in the rollout its next step is."""
        return self.t, self.group.index, self.index


class _Queue:
    """The branches that one environment is still to play.

    :param env_index: The environment.
    :param groups: The groups that have not begun. Empty for whole episodes, whose groups are added on the way.
    """

    def __init__(self, env_index: int, groups: Iterable[Group]) -> None:
        self.env_index = env_index
        self.groups = deque(groups)
        #: The branches that have not begun, of the group that has: each its group and its index in there.
        self.branches: deque[tuple[Group, int]] = deque()


class GroupCollector:
    """Plays all groups of a rollout, and keeps a step of each that the next one may go on from.

    :param bank: The simulators.
    :param observation_space: What the policy observes.
    :param plan: How the groups are played.
    :param begins_episodes: Whether this collector begins new episodes itself; if not, groups that start with one have
        no anchor until a worker begins it.
    """

    #: Parts that a rollout is cut into, each with random generators of its own.
    n_shards = 1
    #: Whether simulator states are rows of numbers, which only a collector of the same kind can go on from.
    has_plain_states = False

    def __init__(
        self,
        bank: SimulatorBank,
        observation_space: spaces.Space[Any],
        plan: GroupPlan,
        begins_episodes: bool = True,
    ) -> None:
        self._bank = bank
        self._observation_space = observation_space
        self._plan = plan
        self._advances_in_step = bank.findings.is_cheap and plan.mode != "episode"
        draws_seeds = plan.common_random_numbers or bool(bank.findings.rewound)
        #: Where the groups of the next rollout start.
        self.anchors = Anchors(bank.n_envs, plan, self._reset if begins_episodes else None, draws_seeds)
        #: Most threads that may step simulators at once, if they are stepped in batches; None lets the process decide.
        self.n_threads: int | None = None
        self._groups: list[Group] = []
        self._n_steps_taken = [0] * bank.n_envs
        self._has_cut = False
        # Draws actions instead of the generator that is given, in pairs.
        self._antithetic: AntitheticGenerator | None = None
        self._stepped: list[_Branch] = []
        # The place of each environment's latest step.
        self._latest: dict[int, Place] = {}

    @property
    def plan(self) -> GroupPlan:
        """How the groups are played."""
        return self._plan

    @property
    def findings(self) -> Findings:
        """The findings of trials about the environments."""
        return self._bank.findings

    @property
    def outside_changes(self) -> OutsideChanges:
        """Changes made to the environments from outside."""
        return self._bank.outside_changes

    def is_outdated(self, *, tries_capture: bool = False) -> bool:
        """Return whether environments were replaced since, see ``SimulatorBank.is_outdated``."""
        return self._bank.is_outdated(tries_capture=tries_capture)

    def follow_outside_changes(self) -> None:
        """Let the next rollout begin with what was set on the environments from outside."""
        self._bank.find_masks()
        self._bank.outside_changes.keep()
        if self._bank.outside_changes.has_changes():
            self.anchors.renew(self._bank.renew)

    @property
    def groups(self) -> Sequence[Group]:
        """The groups of the latest rollout, by index."""
        return self._groups

    def apply_reward_functions(
        self,
        rollout: GroupRollout,
        actor: PolicyActor,
        reward_function: Reward,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        """Replace the environment's rewards in the rollout just collected, see ``rewards.apply_reward_functions``."""
        return apply_reward_functions(rollout, actor.clip_actions, reward_function, weights)

    @property
    def start_returns(self) -> npt.NDArray[np.float64]:
        """Discounted rewards that each group's episode had earned before its anchor, shape ``(n_groups,)``."""
        return np.array([group.anchor.discounted_return if group.anchor else 0.0 for group in self._groups])

    def collect(
        self,
        rollout: GroupRollout,
        actor: PolicyActor,
        rng: np.random.Generator,
        on_vec_step: VecStepCallback,
        should_stop: Callable[[], bool],
    ) -> bool:
        """Let every branch of every group follow the policy to its end.

        If simulators are cheap to restore, all branches of an environment advance together and take turns in it, so
        that one forward pass serves them all. Otherwise each environment plays one branch after the other and is
        restored once for each.

        :param rollout: Cleared first, and filled.
        :param actor: Chooses the actions.
        :param rng: Draws actions, and which steps are kept.
        :param on_vec_step: Called after every vectorised step, see ``VecStepCallback``.
        :param should_stop: Asked between resets, which may be slow; ``on_vec_step`` ends a rollout elsewhere.
        :return: False if it ended early; the storage is then incomplete.
        """
        if self._plan.mode != "episode" and not self.anchors.complete(rng, should_stop):
            return False
        rollout.clear()
        self._antithetic = AntitheticGenerator(rng) if self._plan.antithetic_actions else None
        self._groups, self._n_steps_taken = [], [0] * self._bank.n_envs
        starts = self.anchors.starts
        while True:
            if not self._play(self._add_groups(starts), rollout, actor, rng, on_vec_step):
                return False
            if not (n_rounds := self._count_rounds_to_fill(rollout)):
                break
            starts = []
            for _ in range(n_rounds):
                if should_stop():
                    return False
                starts += self.anchors.begin_episodes(rng)
        rollout.trim(len(self._groups), self._plan.horizon)
        for group, n_steps in zip(self._groups, rollout.step_mask.sum(axis=(0, 2)).tolist(), strict=True):
            group.n_steps = n_steps
            if group.kept is not None:  # now, since reward functions replace the environment's rewards later
                group.kept_episode = self.count_episode(rollout, (group.kept_t, group.index, group.kept_branch))
        return True

    def list_places(self) -> list[SteppedPlace]:
        """List where in the rollout the steps of the latest vectorised step are."""
        # A branch is a step further by then.
        return [(branch.group.env_index, (branch.t - 1, branch.group.index, branch.index)) for branch in self._stepped]

    def find_latest(self, env_index: int) -> Place:
        """Return where in the rollout an environment's latest step is; it must have taken one."""
        return self._latest[env_index]

    def count_episode(self, rollout: GroupRollout, place: Place) -> tuple[float, int]:
        """Return what an episode had earned after a step, in the environment's own reward, and its length then.

        :param place: Time, group and branch of the step.
        """
        t, index, branch = place
        earned, anchor = float(rollout.rewards[: t + 1, index, branch].sum()), self._groups[index].anchor
        if anchor is None:
            return earned, t + 1
        return anchor.episode_return + earned, anchor.episode_length + t + 1

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, AnchorState]:
        """Start new episodes, see ``SimulatorBank.reset``."""
        return {i: AnchorState(*start) for i, start in self._bank.reset(seeds).items()}

    def _add_groups(self, starts: Sequence[AnchorState | None]) -> list[Group]:
        """Add groups to the rollout, interleaved: one per environment and round."""
        n_before, n_envs = len(self._groups), self._bank.n_envs
        added = [Group(n_before + i, i % n_envs, start) for i, start in enumerate(starts)]
        self._groups.extend(added)
        return added

    def _count_rounds_to_fill(self, rollout: GroupRollout) -> int:
        """Count the rounds, a group per environment, for which there is still room, if no branch ended early.

        The last one may exceed the rollout by as much as it would otherwise fall short.
        """
        plan, n_envs = self._plan, self._bank.n_envs
        if plan.mode == "episode" or not plan.fill_rollouts:
            return 0
        assert plan.horizon is not None
        n_missing = plan.n_steps * n_envs - int(rollout.step_mask.sum())
        n_steps_of_round = n_envs * plan.group_size * plan.horizon
        n_rounds = max(n_missing // n_steps_of_round, int(2 * n_missing >= n_steps_of_round))
        return min(n_rounds, (MAX_FILLED * len(self.anchors.starts) - len(self._groups)) // n_envs)

    def _play(
        self,
        groups: Sequence[Group],
        rollout: GroupRollout,
        actor: PolicyActor,
        rng: np.random.Generator,
        on_vec_step: VecStepCallback,
    ) -> bool:
        """Play all branches of some groups to their ends; return False if ``on_vec_step`` ended the rollout early.

        :param groups: Interleaved by environment. In ``"episode"`` mode empty, since groups are added on the way.
        """
        queues = self._make_queues(groups)
        if self._advances_in_step:
            live = self._start_all(queues, actor, rng)
        else:
            live = [branch for queue in queues if (branch := self._start_next(queue, actor, rng)) is not None]
        while live:
            actions = self._choose_actions(live, rollout, actor, rng)
            for vec_step in _split_into_vec_steps(live, actions):
                if not self._step_branches(vec_step, rollout, rng, on_vec_step):
                    return False
            # Where a branch has ended, the next one of its environment takes its turn.
            turns = [
                branch if branch.is_live else self._start_next(queues[branch.group.env_index], actor, rng)
                for branch in live
            ]
            live = [branch for branch in turns if branch is not None]
        return True

    def _make_queues(self, groups: Sequence[Group]) -> list[_Queue]:
        """Give each environment its groups."""
        n_envs = self._bank.n_envs
        return [_Queue(i, groups[i::n_envs]) for i in range(n_envs)]

    def _start_all(self, queues: Sequence[_Queue], actor: PolicyActor, rng: np.random.Generator) -> list[_Branch]:
        """Start all branches of all queues, sorted by environment."""
        started = []
        for queue in queues:
            while (branch := self._start_next(queue, actor, rng)) is not None:
                started.append(branch)
        return started

    def _start_next(self, queue: _Queue, actor: PolicyActor, rng: np.random.Generator) -> _Branch | None:
        """Start an environment's next branch, and its group with the first one; return None if no branch is left."""
        while not queue.branches:
            group = self._take_group(queue)
            if group is None:
                return None
            queue.branches.extend((group, index) for index in self._start_group(group, actor, rng))
        group, index = queue.branches.popleft()
        if (anchor := group.anchor) is not None:
            return _Branch(group, index, anchor.observed, anchor.simulator_state)
        observed, _ = self._bank.reset({group.env_index: group.seed})[group.env_index]
        return _Branch(group, index, observed)

    def _take_group(self, queue: _Queue) -> Group | None:
        """Return the group that an environment plays next; None if it has played its share of the rollout."""
        if self._plan.mode != "episode":
            return queue.groups.popleft() if queue.groups else None
        if self._n_steps_taken[queue.env_index] >= self._plan.n_steps:
            return None
        group = Group(len(self._groups), queue.env_index)
        self._groups.append(group)
        return group

    def _start_group(self, group: Group, actor: PolicyActor, rng: np.random.Generator) -> Sequence[int]:
        """Draw what a group needs before its first step, and return which branches it has."""
        group_size = self._plan.group_size
        if group.anchor is None:
            group.seed = int(rng.integers(2**31))
        elif self._plan.mode == "branch":
            group.kept_branch = int(rng.integers(group_size))
        else:
            observations, masks = self._to_batch([group.anchor.observed])
            probs = actor.action_probs(observations, masks)
            # The episode goes on with the action that the policy would draw, not with an enumerated one.
            group.kept_branch = int(rng.choice(group_size, p=probs[0] / probs[0].sum(dtype=np.float64)))
            if masks is not None:
                return [action for action in range(group_size) if masks[0, action]]
        return range(group_size)

    def _choose_actions(
        self, live: Sequence[_Branch], rollout: GroupRollout, actor: PolicyActor, rng: np.random.Generator
    ) -> Any:
        """Choose the next action of every live branch, and store it with what it was chosen on.

        :return: What the simulators take, shape ``(n_live, ...)``.
        """
        observations, masks = self._to_batch([branch.observed for branch in live])
        places = [branch.place for branch in live]
        if self._antithetic is not None:
            rng = self._antithetic.draw_for(places)
        actions, log_probs = actor.sample_actions(observations, rng, masks)
        is_enumerated = self._plan.mode == "action"
        if forced := [i for i, branch in enumerate(live) if is_enumerated and branch.t == 0]:
            actions[forced] = [live[i].index for i in forced]
            of_all = actor.log_probs(observations[forced], None if masks is None else masks[forced])
            log_probs[forced] = of_all[np.arange(len(forced)), actions[forced]]
        rollout.store_actions(tuple(np.array(places).T), observations, actions, log_probs, masks)
        return actor.clip_actions(actions)

    def _step_branches(
        self,
        vec_step: Sequence[tuple[_Branch, Any]],
        rollout: GroupRollout,
        rng: np.random.Generator,
        on_vec_step: VecStepCallback,
    ) -> bool:
        """Step one branch in each environment at most.

        :param vec_step: Branches and their actions.
        :return: False if ``on_vec_step`` says so.
        """
        orders = {}
        for branch, action in vec_step:
            is_last = branch.t + 1 == self._plan.horizon
            needs_state = self._draw_kept(branch, rng) or (self._advances_in_step and not is_last)
            orders[branch.group.env_index] = Order(action, branch.state, needs_state)
        outcomes = self._bank.step(orders)
        self._stepped = [branch for branch, _ in vec_step]
        n_envs = self._bank.n_envs
        infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
        dones, rewards = np.zeros(n_envs, np.bool_), np.zeros(n_envs, np.float32)
        for branch, _ in vec_step:
            i = branch.group.env_index
            outcome = outcomes[i]
            if self._plan.horizon is None:
                outcome = outcomes[i] = self._cut_endless(branch, outcome)
            self._latest[i] = branch.place
            rollout.store_outcome(branch.place, outcome)
            infos[i], rewards[i] = outcome.info, outcome.reward
            dones[i] = outcome.terminated or outcome.truncated
            self._n_steps_taken[i] += 1
            self._advance(branch, outcome)
        return on_vec_step(infos, dones, rewards, len(vec_step))

    def _cut_endless(self, branch: _Branch, outcome: Outcome) -> Outcome:
        """Cut an episode that nothing else will end."""
        if branch.t + 1 < MAX_EPISODE_STEPS or outcome.terminated:
            return outcome
        if not self._has_cut:
            warnings.warn(
                f"an episode went on for {MAX_EPISODE_STEPS:,} steps without an end and was cut there, as a time limit "
                "does. Pass horizon=n for another limit; a shorter one can be gymnasium.wrappers.TimeLimit(env, n).",
                stacklevel=2,
            )
        self._has_cut = True
        return outcome._replace(truncated=True)

    def _draw_kept(self, branch: _Branch, rng: np.random.Generator) -> bool:
        """Decide whether to keep the step that a branch is about to take: the next rollout goes on from the last kept.

        How long a branch will live is unknown, so one of its steps is drawn by reservoir sampling: step t (from 0)
        replaces the one kept so far with probability 1 / (t + 1). Only the kept state has to be stored.
        """
        group = branch.group
        if group.anchor is None or branch.index != group.kept_branch or rng.random() * (branch.t + 1) >= 1.0:
            return False
        group.kept_t = branch.t
        return True

    def _advance(self, branch: _Branch, outcome: Outcome) -> None:
        """Move a branch to where a step led, and keep that for its group if it was drawn."""
        group, is_over = branch.group, outcome.terminated or outcome.truncated
        if group.anchor is not None and branch.index == group.kept_branch and branch.t == group.kept_t:
            group.kept = None if is_over else (outcome.observed, outcome.state)
        branch.observed = outcome.observed
        branch.state = outcome.state if self._advances_in_step else None
        branch.t += 1
        branch.is_live = not is_over and branch.t != self._plan.horizon

    def _to_batch(self, observed: Sequence[Observed]) -> tuple[Any, npt.NDArray[np.bool_] | None]:
        """Stack what branches see, shape ``(n_branches, ...)``, and the masks of their actions if there are any."""
        observations = np.stack([pack(self._observation_space, one.observation) for one in observed])
        masks = [one.action_masks for one in observed]
        some = next((mask for mask in masks if mask is not None), None)
        if some is None:
            return observations, None
        # An environment may return None where all actions are allowed.
        return observations, np.stack([np.ones_like(some) if mask is None else mask for mask in masks])


def _split_into_vec_steps(live: Sequence[_Branch], actions: Any) -> Iterator[list[tuple[_Branch, Any]]]:
    """Yield branches with their actions so that no environment occurs twice in a vectorised step."""
    by_env: dict[int, list[tuple[_Branch, Any]]] = {}
    for branch, action in zip(live, actions, strict=True):
        by_env.setdefault(branch.group.env_index, []).append((branch, action))
    for vec_step in zip_longest(*by_env.values()):
        yield [turn for turn in vec_step if turn is not None]
