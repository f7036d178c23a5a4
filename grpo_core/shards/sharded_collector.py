"""Cut rollouts into shards, let workers play them, and put them together again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecTransposeImage

from grpo_core.actor.actor import PolicyActor
from grpo_core.banks.bank import SimulatorBank
from grpo_core.banks.rewrapping import unwrap_env
from grpo_core.groups.collector import GroupCollector, VecStepCallback
from grpo_core.groups.group import Group, GroupPlan
from grpo_core.groups.rollout import GroupRollout, SteppedPlace
from grpo_core.options.checks import refuse
from grpo_core.options.rewards import Reward
from grpo_core.restoring.outside_changes import find_monitor
from grpo_core.shards.pool import RolloutPool
from grpo_core.shards.shard_messages import (
    MakeCollector,
    ShardFailure,
    ShardOrder,
    ShardSetup,
    ShardSteps,
    pack,
    pack_setup,
    unpack,
    unpack_infos,
)
from grpo_core.update.policies import copy_policy
from grpo_core.update.torch_actor import TorchActor

# Shards of a rollout unless the user says how many. Each costs what a step costs however many branches take it at once,
# so that more would slow down what a few workers play.
_N_SHARDS = 4


class _Shard(NamedTuple):
    """A part of a rollout.

    :param env_index: The environment that it is played in.
    :param n_steps: Simulator steps, as ``GroupPlan.n_steps``.
    :param groups: Which groups of the rollout it plays, beside those that it adds; whole episodes are all added.
    """

    env_index: int
    n_steps: int
    groups: range


class _Played(NamedTuple):
    """A shard that has come back, for callbacks.

    :param places: Time, group and branch of each step in the rollout.
    """

    env_index: int
    infos: list[dict[str, Any]]
    places: list[tuple[int, int, int]]
    dones: list[bool]
    rewards: list[float]


class _Scored(NamedTuple):
    """What reward functions made of a shard.

    :param places: Time, group and branch of each step in the rollout, ``(n_steps, 3)``.
    :param rewards: Shape ``(n_steps,)``.
    :param means: The mean of each function, by name.
    """

    places: npt.NDArray[np.int64]
    rewards: npt.NDArray[np.float64]
    means: Mapping[str, float]


def count_shards(n_shards: int | None, n_workers: int, n_envs: int, plan: GroupPlan) -> int:
    """Return how many shards a rollout is cut into: what was asked for, or what suits several workers.

    :raises ValueError: If a rollout cannot be cut into this many, or some workers would have none.
    """
    most = plan.n_steps if plan.mode == "episode" else plan.n_groups_per_env
    if n_shards is None:
        per_env = -(-_N_SHARDS // n_envs) if plan.mode != "episode" else 1
        n_shards = n_envs * min(most, per_env) if n_workers > 1 else 1
    elif n_shards != 1 and (n_shards % n_envs != 0 or n_shards > n_envs * most):
        refuse(
            "n_rollout_shards",
            n_shards,
            f"a shard is some groups of one environment, so it must be 1 for none, or a multiple of the {n_envs} "
            f"environments up to their {n_envs * most} groups of a rollout.",
        )
    if n_workers > n_shards:
        refuse(
            "n_rollout_workers",
            n_workers,
            f"a rollout is cut into {n_shards} shard{'s' * (n_shards > 1)}, and each is played by one worker; use at "
            f"most {n_shards}, or "
            + (
                f"set n_rollout_shards up to {n_envs * most}."
                if n_shards < n_envs * most
                else "a larger n_steps, which makes more groups to cut it into."
            ),
        )
    return n_shards


def choose_collector(
    bank: SimulatorBank,
    env: VecEnv,
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    plan: GroupPlan,
    n_shards: int,
    make_batched: MakeCollector | None = None,
) -> GroupCollector:
    """Make what plays the groups of a plan.

    :param bank: The simulators of ``env``.
    :param n_shards: Shards of a rollout, as ``count_shards`` returns them; 1 leaves it whole.
    :param make_batched: Makes what steps all branches at once, where that is possible; None never does.
    :raises ValueError: If rollouts are to be cut, but the environments are in processes of their own.
    """
    make_collector: MakeCollector = GroupCollector
    collector = GroupCollector(bank, observation_space, plan)
    if make_batched is not None and (batched := make_batched(bank, observation_space, plan)) is not None:
        make_collector, collector = make_batched, batched
    if n_shards == 1:
        return collector
    return ShardedCollector(
        bank,
        env,
        observation_space=observation_space,
        action_space=action_space,
        plan=plan,
        n_shards=n_shards,
        make_collector=make_collector,
        has_plain_states=collector.has_plain_states,
    )


class ShardedCollector(GroupCollector):
    """Collects rollouts that are cut into shards, and lets workers play these.

    Callbacks see the steps of a shard once it has come back, in the order in which they were taken; shards of
    different environments advance side by side. The environments of ``env`` itself are only looked at: workers have
    copies.

    :param bank: The simulators of ``env``.
    :param env: The vectorised environment.
    :param action_space: Where the policy acts.
    :param plan: How the groups are played.
    :param n_shards: Shards of a rollout, a multiple of the number of environments.
    :param make_collector: Makes what plays the groups of a shard.
    :param has_plain_states: Whether that goes on from rows of numbers.
    :raises ValueError: If the environments are in processes of their own.
    """

    def __init__(
        self,
        bank: SimulatorBank,
        env: VecEnv,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        plan: GroupPlan,
        n_shards: int,
        make_collector: MakeCollector,
        has_plain_states: bool,
    ) -> None:
        super().__init__(bank, observation_space, plan, begins_episodes=False)
        base, self._vec_wrappers = _read_env(env)
        self._envs = base.envs
        self._monitors = [find_monitor(env) for env in base.envs]
        self._action_space, self._make_collector = action_space, make_collector
        self.n_shards, self.has_plain_states = n_shards, has_plain_states
        self._pool: RolloutPool | None = None
        self._rewarded_by: tuple[Any, Any] = (None, None)
        self._scored: list[_Scored] = []
        self._stepped_places: list[SteppedPlace] = []

    @contextmanager
    def open_workers(
        self,
        reward_function: Reward | None,
        reward_weights: Sequence[float] | None,
        pool: RolloutPool,
    ) -> Iterator[None]:
        """Let workers play the rollouts of one training inside the block.

        :param reward_function: Function that replaces the environment's rewards; None leaves them.
        :param reward_weights: Weights of several reward functions.
        :param pool: The workers.
        """
        self.outside_changes.keep()
        if self.outside_changes.has_changes():  # the copies will have them, and the anchor states do not
            self._bank.renew([])
            self.anchors.forget()
        setup = ShardSetup(
            envs=self._envs,
            vec_wrappers=self._vec_wrappers,
            observation_space=self._observation_space,
            action_space=self._action_space,
            plan=self._plan,
            findings=self._bank.findings,
            make_collector=self._make_collector,
            reward_function=reward_function,
            reward_weights=reward_weights,
        )
        self._rewarded_by = reward_function, reward_weights
        with pool.open(pack_setup(setup)):
            self._pool = pool
            try:
                yield
            finally:
                self._pool = None

    def follow_outside_changes(self) -> None:
        pass  # until new workers get copies of the environments

    def list_places(self) -> list[SteppedPlace]:
        return self._stepped_places

    def collect(
        self,
        rollout: GroupRollout,
        actor: PolicyActor,
        rng: np.random.Generator,
        on_vec_step: VecStepCallback,
        should_stop: Callable[[], bool],
    ) -> bool:
        if self._pool is None:
            raise RuntimeError(
                f"rollouts are cut (n_rollout_shards={self.n_shards}), and learn() starts the workers that play them "
                "in copies of the environment; replace it by set_env between two calls of learn, not in a callback."
            )
        rollout.clear()
        self._scored, self._stepped_places = [], []
        shards, seed = self._cut(), int(rng.integers(2**63))
        if self._plan.mode != "episode":
            self.anchors.complete(rng, should_stop=lambda: False)
        starts = self.anchors.starts
        self._groups = [Group(i, i % self._bank.n_envs, start) for i, start in enumerate(starts)]
        orders = [
            ShardOrder(shard.env_index, shard.n_steps, (seed, i), [starts[group] for group in shard.groups])
            for i, shard in enumerate(shards)
        ]
        packed = [pack(order, "a captured state of the environment") for order in orders]
        policy = pack(_move_to_cpu(actor), "the policy")
        with closing(self._pool.play(policy, packed, should_stop)) as replies:
            # Shards of the same part, one per environment, advance side by side.
            for start in range(0, len(shards), self._bank.n_envs):
                part = [
                    self._put(rollout, shard, reply)
                    for shard, reply in zip(shards[start : start + self._bank.n_envs], replies, strict=False)
                ]
                if len(part) < self._bank.n_envs or not self._show(part, on_vec_step):
                    return False
        rollout.trim(len(self._groups), self._plan.horizon)
        return True

    def apply_reward_functions(
        self,
        rollout: GroupRollout,
        actor: PolicyActor,
        reward_function: Reward,
        weights: Sequence[float] | None,
    ) -> dict[str, float]:
        if self._rewarded_by[0] is not reward_function or self._rewarded_by[1] is not weights:
            # A callback has put another one in place.
            return super().apply_reward_functions(rollout, actor, reward_function, weights)
        sums: dict[str, float] = {}
        for shard in self._scored:
            rollout.rewards[tuple(shard.places.T)] = shard.rewards
            for name, mean in shard.means.items():
                sums[name] = sums.get(name, 0.0) + mean * len(shard.places)
        n_steps = sum(len(shard.places) for shard in self._scored)
        return {name: total / n_steps for name, total in sums.items()}

    def _cut(self) -> list[_Shard]:
        """Cut a rollout into shards: the first part of each environment, the second of each, and so on."""
        n_envs, plan = self._bank.n_envs, self._plan
        n_parts = self.n_shards // n_envs
        if plan.mode == "episode":
            n_steps = -(-plan.n_steps // n_parts)
            return [_Shard(env_index, n_steps, range(0)) for _ in range(n_parts) for env_index in range(n_envs)]
        assert plan.horizon is not None
        group_steps, n_groups = plan.group_size * plan.horizon, plan.n_groups_per_env
        bounds = [n_groups * part // n_parts for part in range(n_parts + 1)]
        return [
            _Shard(env_index, group_steps * (end - start), range(env_index + start * n_envs, end * n_envs, n_envs))
            for start, end in pairwise(bounds)
            for env_index in range(n_envs)
        ]

    def _put(self, rollout: GroupRollout, shard: _Shard, reply: bytes) -> _Played:
        """Store a shard that has come back.

        :raises Exception: The error of the environment or of a reward function that failed in it.
        """
        steps: ShardSteps | ShardFailure = unpack(reply)
        if isinstance(steps, ShardFailure):
            steps.reraise()
        n_added = len(steps.groups) - len(shard.groups)
        indices = [*shard.groups, *range(len(self._groups), len(self._groups) + n_added)]
        for index, group in zip(indices, steps.groups, strict=True):
            group.index, group.env_index = index, shard.env_index
            if index == len(self._groups):
                self._groups.append(group)
            group.anchor = group.anchor or self._groups[index].anchor
            self._groups[index] = group
        places = steps.places.astype(np.int64)
        places[:, 1] = np.array(indices)[places[:, 1]]
        rollout.put(tuple(places.T), steps.columns)
        is_over = steps.columns["terminated"] | steps.columns["truncated"]
        rewards = steps.columns["rewards"].tolist()
        at, infos = list(map(tuple, places.tolist())), unpack_infos(steps.infos)
        if steps.rewards is not None:
            self._scored.append(_Scored(places, steps.rewards, steps.reward_means))
        return _Played(shard.env_index, infos, at, is_over.tolist(), rewards)

    def _show(self, part: Sequence[_Played], on_vec_step: VecStepCallback) -> bool:
        """Show callbacks the steps of shards of different environments; return False if one ends the rollout."""
        n_envs = self._bank.n_envs
        for step in range(max(len(shard.places) for shard in part)):
            infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
            dones, rewards = np.zeros(n_envs, np.bool_), np.zeros(n_envs, np.float32)
            self._stepped_places = []
            for shard in part:
                if step < len(shard.places):
                    i = shard.env_index
                    infos[i] = shard.infos[step]
                    dones[i], rewards[i] = shard.dones[step], shard.rewards[step]
                    self._stepped_places.append((i, shard.places[step]))
                    self._count_step(i, infos[i])
            self._latest |= dict(self._stepped_places)
            if not on_vec_step(infos, dones, rewards, len(self._stepped_places)):
                return False
        return True

    def _count_step(self, env_index: int, info: Mapping[str, Any]) -> None:
        """Let the ``Monitor`` of the trainer's environment, which no worker writes to, know of a step."""
        if (monitor := self._monitors[env_index]) is None:
            return
        if (row := info.get("episode")) is not None:
            monitor.episode_returns.append(row["r"])
            monitor.episode_lengths.append(row["l"])
            monitor.episode_times.append(row["t"])
            if monitor.results_writer:
                monitor.results_writer.write_row(row)
        monitor.total_steps += 1


def _move_to_cpu(actor: PolicyActor) -> PolicyActor:
    """Return an actor that acts in any process: of layers of the user's own, without what only training needs."""
    if not isinstance(actor, TorchActor):
        return actor
    return TorchActor(copy_policy(actor.policy).cpu(), actor.normalization)


def _read_env(env: VecEnv) -> tuple[DummyVecEnv, list[Any]]:
    """Return the vectorised environment inside its wrappers, and those of them that change observations."""
    try:
        base, wrappers = unwrap_env(env)
    except TypeError:
        base, wrappers = None, []
    if not isinstance(base, DummyVecEnv):
        raise ValueError(
            "rollouts are cut into shards whose environments are in rollout workers, so those of a SubprocVecEnv would "
            "be idle; use a DummyVecEnv, or n_rollout_workers=1 and n_rollout_shards=1."
        )
    # Normalisation is the trainer's, and what only looks on stays with it.
    return base, [wrapper for wrapper in wrappers if issubclass(wrapper[0], VecFrameStack | VecTransposeImage)]
