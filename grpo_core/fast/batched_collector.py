"""Play groups by stepping all their branches at once: the same rollouts bit for bit, but faster."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from grpo_core.actor.actor import PolicyActor
from grpo_core.banks.bank import SimulatorBank
from grpo_core.banks.single_env import Observed
from grpo_core.fast.dynamics import FloatArray
from grpo_core.fast.physics import BatchedSimulator, BatchStep, find_batched_simulator
from grpo_core.fast.step_threads import StepThreads, count_threads
from grpo_core.groups.collector import GroupCollector, VecStepCallback
from grpo_core.groups.group import AnchorState, Group, GroupPlan
from grpo_core.groups.rollout import GroupRollout, Place, SteppedPlace

# Which branches, ``(n_branches, 2)``: group, branch.
BranchIndex = npt.NDArray[np.int64]


class _LiveBranches(NamedTuple):
    """The branches that are still under way, sorted by environment.

    :param branches: Group and branch of each.
    :param n_branches: Number of branches of each environment.
    :param vec_steps: Pairs of environment and branch, one of each environment at most, for each vectorised step.
    :param candidates: The branches that the next rollout may continue from, in the order of their turns.
    """

    branches: BranchIndex
    n_branches: list[int]
    vec_steps: list[list[tuple[int, int]]]
    candidates: list[int]


_NO_BRANCHES = _LiveBranches(np.zeros((0, 2), np.int64), [], [], [])


class BatchedCollector(GroupCollector):
    """Collects what ``GroupCollector`` does, and steps all branches of an environment in one call.

    A simulator's state is a row of numbers here, and the environments themselves are only reset.

    :param bank: The simulators.
    :param observation_space: What the policy observes.
    :param plan: How the groups are played; whole episodes are not.
    :param simulators: One batched simulator for each environment of the bank.
    :param threads: Threads that they share.
    """

    has_plain_states = True

    def __init__(
        self,
        bank: SimulatorBank,
        observation_space: spaces.Space[Any],
        plan: GroupPlan,
        simulators: Sequence[BatchedSimulator],
        threads: StepThreads,
    ) -> None:
        super().__init__(bank, observation_space, plan)
        self._simulators, self._threads = simulators, threads
        # Step, all branches, and the pairs of environment and branch of the latest vectorised step.
        self._vec_step: tuple[int, _LiveBranches, Sequence[tuple[int, int]]] = (0, _NO_BRANCHES, ())

    def is_outdated(self, *, tries_capture: bool = False) -> bool:
        if any(simulator.is_outdated() for simulator in self._simulators):
            return True
        return super().is_outdated(tries_capture=tries_capture)

    def list_places(self) -> list[SteppedPlace]:
        t, live, vec_step = self._vec_step
        return [(env_index, (t, *live.branches[i].tolist())) for env_index, i in vec_step]

    def find_latest(self, env_index: int) -> Place:
        t, live, _ = self._vec_step
        # In this vectorised step or an earlier one at the same t, the environment's branches have all had their turns.
        return self._find_last(t, live, env_index) if live.n_branches[env_index] else self._latest[env_index]

    def _find_last(self, t: int, live: _LiveBranches, env_index: int) -> Place:
        """Return the place of the step of an environment's last branch."""
        return t, *live.branches[sum(live.n_branches[: env_index + 1]) - 1].tolist()

    def _reset(self, seeds: Mapping[int, int | None]) -> dict[int, AnchorState]:
        starts = self._bank.reset(seeds)
        return {i: AnchorState(observed, self._simulators[i].capture()) for i, (observed, _) in starts.items()}

    def _play(
        self,
        groups: Sequence[Group],
        rollout: GroupRollout,
        actor: PolicyActor,
        rng: np.random.Generator,
        on_vec_step: VecStepCallback,
    ) -> bool:
        # GroupCollector's loop where all branches advance in step: their states are rows of numbers, there are no masks
        # and no endless episodes, and what is done there for each branch is done once for all.
        assert self._plan.horizon is not None
        self._threads.n_threads = self.n_threads or count_threads()
        branches = self._start_all(self._make_queues(groups), actor, rng)
        live = self._list_live(np.array([(branch.group.index, branch.index) for branch in branches]))
        states = np.array([branch.state for branch in branches])
        observations, _ = self._to_batch([branch.observed for branch in branches])
        for t in range(self._plan.horizon):
            actions, log_probs = self._draw_actions(t, live, observations, actor, rng)
            # Step t of a branch is kept as the collector of single steps keeps it, and the draws come in its order.
            draws = rng.random(len(live.candidates)).tolist()
            kept = [i for i, draw in zip(live.candidates, draws, strict=True) if draw * (t + 1) < 1.0]
            outcomes = self._step_all(states, actor.clip_actions(actions), live.n_branches)
            at = (np.full(len(actions), t), *live.branches.T)
            rollout.store_actions(at, observations, actions, log_probs, None)
            rollout.store_outcomes(at, outcomes.observations, outcomes.rewards, outcomes.terminated, outcomes.truncated)
            is_over = outcomes.terminated | outcomes.truncated
            self._keep(t, [(i, self._groups[live.branches[i, 0]]) for i in kept], outcomes, is_over)
            if not self._report(t, live, outcomes, is_over.tolist(), on_vec_step):
                return False
            states, observations = outcomes.states, outcomes.observations
            if is_over.any():
                goes_on = ~is_over
                if not goes_on.any():
                    break
                # Some environments may have no branch left.
                self._latest |= {i: self._find_last(t, live, i) for i, n in enumerate(live.n_branches) if n}
                live = self._list_live(live.branches[goes_on])
                states, observations = states[goes_on], observations[goes_on]
        return True

    def _draw_actions(
        self, t: int, live: _LiveBranches, observations: npt.NDArray[Any], actor: PolicyActor, rng: np.random.Generator
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32]]:
        """Draw the actions of step t, and return them with their log-probabilities, ``(n_branches, ...)``."""
        source = rng
        if self._antithetic is not None:
            source = self._antithetic.draw_for((t, group, branch) for group, branch in live.branches.tolist())
        actions, log_probs = actor.sample_actions(observations, source)
        if t == 0 and self._plan.mode == "action":
            actions = live.branches[:, 1]
            log_probs = actor.log_probs(observations)[np.arange(len(actions)), actions]
        return actions, log_probs

    def _keep(
        self, t: int, kept: Sequence[tuple[int, Group]], outcomes: BatchStep, is_over: npt.NDArray[np.bool_]
    ) -> None:
        """Keep step t of some branches for the next rollout.

        :param kept: Which row of the outcomes each group keeps.
        """
        for i, group in kept:
            group.kept_t, group.kept = t, None
            if not is_over[i]:  # copied: a view would hold the rows of all branches for as long as it is archived
                group.kept = Observed(outcomes.observations[i].copy(), None), outcomes.states[i].copy()

    def _list_live(self, branches: BranchIndex) -> _LiveBranches:
        """Order the branches by environment and turn.

        :param branches: Group and branch of each, sorted by environment.
        """
        n_branches = np.bincount(branches[:, 0] % self._bank.n_envs, minlength=self._bank.n_envs).tolist()
        starts = [end - n for n, end in zip(n_branches, accumulate(n_branches), strict=True)]
        vec_steps = [
            [(env_index, start + turn) for env_index, start in enumerate(starts) if turn < n_branches[env_index]]
            for turn in range(max(n_branches))
        ]
        is_kept = [self._groups[group].kept_branch == branch for group, branch in branches.tolist()]
        candidates = [i for vec_step in vec_steps for _, i in vec_step if is_kept[i]]
        return _LiveBranches(branches, n_branches, vec_steps, candidates)

    def _step_all(self, states: FloatArray, actions: npt.NDArray[Any], n_branches: Sequence[int]) -> BatchStep:
        """Step all branches, environment by environment.

        :param states: Shape ``(n_branches, state_size)``, sorted by environment.
        :param actions: Shape ``(n_branches, *action_shape)``.
        :param n_branches: Number of branches of each environment.
        """
        if len(self._simulators) == 1:
            return self._simulators[0].step(states, actions)
        ends = list(accumulate(n_branches))
        # All begin before the first is finished, so that threads find enough to do.
        begun = [
            simulator.begin_step(states[end - n : end], actions[end - n : end])
            for simulator, n, end in zip(self._simulators, n_branches, ends, strict=True)
            if n > 0
        ]
        *arrays, infos = zip(*[finish() for finish in begun], strict=True)
        return BatchStep._make([*map(np.concatenate, arrays), [info for part in infos for info in part]])

    def _report(
        self,
        t: int,
        live: _LiveBranches,
        outcomes: BatchStep,
        is_over: Sequence[bool],
        on_vec_step: VecStepCallback,
    ) -> bool:
        n_envs, all_rewards = self._bank.n_envs, outcomes.rewards.tolist()
        for vec_step in live.vec_steps:
            self._vec_step = t, live, vec_step
            infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
            dones, rewards = np.zeros(n_envs, np.bool_), np.zeros(n_envs, np.float32)
            for env_index, i in vec_step:
                infos[env_index], dones[env_index], rewards[env_index] = outcomes.infos[i], is_over[i], all_rewards[i]
            if not on_vec_step(infos, dones, rewards, len(vec_step)):
                return False
        return True


def make_batched_collector(
    bank: SimulatorBank, observation_space: spaces.Space[Any], plan: GroupPlan
) -> BatchedCollector | None:
    """Make a collector that steps all branches at once; None where its rollouts might differ.

    It plays groups that branch, in environments that ``find_batched_simulator`` knows and whose observations no wrapper
    of the vectorised environment changes. Its states hold no random generators, which common random numbers would need.

    :param bank: The simulators.
    :param observation_space: What the policy observes.
    :param plan: How the groups are played.
    """
    if plan.mode == "episode" or plan.common_random_numbers or not bank.plain_envs:
        return None
    threads = StepThreads()
    found = (find_batched_simulator(env, threads) for env in bank.plain_envs)
    simulators = [simulator for simulator in found if simulator is not None]
    if len(simulators) < len(bank.plain_envs):
        return None
    return BatchedCollector(bank, observation_space, plan, simulators, threads)
