"""Play the shards of rollouts, in a worker or in the trainer's own process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import DummyVecEnv

from grpo_core.actor.actor import PolicyActor
from grpo_core.banks.bank import SimulatorBank
from grpo_core.banks.choose_bank import make_bank
from grpo_core.banks.rewrapping import wrap_env
from grpo_core.groups.collector import GroupCollector
from grpo_core.groups.group import Group, GroupPlan
from grpo_core.groups.rollout import GroupRollout
from grpo_core.restoring.generators import find_noise
from grpo_core.shards.shard_messages import (
    ShardFailure,
    ShardOrder,
    ShardSetup,
    ShardSteps,
    pack,
    pack_infos,
    unpack,
    unpack_setup,
)
from grpo_core.update.seeding import borrow_torch_generator

# An actor on a GPU borrows that one's generator itself.
_CPU = torch.device("cpu")


class ShardPlayer:
    """Plays shards in environments of its own. What it yields does not depend on what it has played before.

    :param setup: A packed ``ShardSetup``.
    :param has_company: Whether others draw from the random generators of this process, which must then go on after each
        shard as if there had been none.
    """

    def __init__(self, setup: bytes, has_company: bool = False) -> None:
        self._has_company = has_company
        self._setup: ShardSetup | ShardFailure
        try:
            self._setup = unpack(setup) if has_company else unpack_setup(setup)
        except Exception as error:  # environments may need packages, files or a display that are not here
            self._setup = ShardFailure.of(error)
        self._banks: dict[int, SimulatorBank] = {}
        self._collectors: dict[tuple[int, int], GroupCollector] = {}
        self._actor: PolicyActor

    def set_policy(self, policy: bytes) -> None:
        """Take the policy that acts from now on, a packed actor."""
        self._actor = unpack(policy)

    def play(self, order: bytes, should_stop: Callable[[], bool] = lambda: False) -> bytes:
        """Play a shard.

        :param order: A packed ``ShardOrder``.
        :param should_stop: Asked after every step; True ends the shard early, and then the answer is worth nothing.
        :return: Packed ``ShardSteps``, or a ``ShardFailure``.
        """
        if isinstance(self._setup, ShardFailure):
            return pack(self._setup, "an error")
        try:
            return pack(self._play(self._setup, unpack(order), should_stop), "a captured state of the environment")
        except Exception as error:  # code of the environment and of reward functions
            return pack(ShardFailure.of(error), "an error")

    def close(self) -> None:
        """Close the environments."""
        if isinstance(self._setup, ShardSetup):
            for env in self._setup.envs:
                env.close()

    def _play(self, setup: ShardSetup, order: ShardOrder, should_stop: Callable[[], bool]) -> ShardSteps:
        rng = np.random.default_rng(order.seed)
        bank = self._get_bank(setup, order.env_index)
        with _reseed(setup.envs[order.env_index], rng, self._has_company):
            # Whatever the environment has been through, it begins with this.
            bank.reset({0: int(rng.integers(2**31))})
            plan = replace(setup.plan, n_steps=order.n_steps, anchor_selection="continue")
            collector = self._get_collector(setup, order.env_index, plan, bank)
            collector.anchors.starts = list(order.anchors)
            recorder = _Recorder(collector, should_stop)
            rollout = GroupRollout.for_plan(plan, bank.n_envs, setup.observation_space, setup.action_space)
            # Environments may draw from torch's generator, though they should not.
            with borrow_torch_generator(rng, _CPU):
                collector.collect(rollout, self._actor, rng, recorder.on_vec_step, should_stop)
            at = tuple(recorder.get_places().T)
            columns = rollout.gather(at)  # before reward functions replace the environment's rewards
            rewards, means = None, dict[str, float]()
            if setup.reward_function is not None:
                with borrow_torch_generator(rng, _CPU):
                    means = collector.apply_reward_functions(
                        rollout, self._actor, setup.reward_function, setup.reward_weights
                    )
                rewards = rollout.rewards[at]
        groups = [_cut_short(group, order) for group in collector.groups]
        return ShardSteps(recorder.get_places(), columns, pack_infos(recorder.infos), groups, rewards, means)

    def _get_bank(self, setup: ShardSetup, env_index: int) -> SimulatorBank:
        if env_index not in self._banks:
            env = wrap_env(DummyVecEnv([lambda: setup.envs[env_index]]), list(setup.vec_wrappers))
            self._banks[env_index] = make_bank(
                env,
                needs_restore=setup.plan.mode != "episode",
                common_random_numbers=setup.plan.common_random_numbers,
                # Measured again, it might be played differently here than elsewhere.
                findings=setup.findings,
            )
        return self._banks[env_index]

    def _get_collector(self, setup: ShardSetup, env_index: int, plan: GroupPlan, bank: SimulatorBank) -> GroupCollector:
        key = env_index, plan.n_steps
        if key not in self._collectors:
            collector = setup.make_collector(bank, setup.observation_space, plan)
            if collector is None:
                raise RuntimeError(
                    "a rollout worker's processor rounds differently from the trainer's, so its steps would differ; "
                    "use machines of one kind, or set GRPO.use_fast_path = False before building the model."
                )
            collector.n_threads = 1
            self._collectors[key] = collector
        return self._collectors[key]


class _Recorder:
    """Notes down where steps were taken, and their infos."""

    def __init__(self, collector: GroupCollector, should_stop: Callable[[], bool]) -> None:
        self._collector = collector
        self._should_stop = should_stop
        self._places: list[tuple[int, int, int]] = []
        self.infos: list[dict[str, Any]] = []

    def on_vec_step(self, infos: list[dict[str, Any]], *_: Any) -> bool:
        self.infos.append(infos[0])
        # One environment, and so one step.
        self._places.append(self._collector.list_places()[0][1])
        return not self._should_stop()

    def get_places(self) -> npt.NDArray[np.int32]:
        return np.array(self._places, np.int32)


@contextmanager
def _reseed(env: Any, rng: np.random.Generator, puts_back: bool) -> Iterator[None]:
    """Seed all generators that the steps of an environment may draw from.

    :param puts_back: Whether they go on as before afterwards.
    """
    noise = find_noise(env)
    states = noise.capture() if puts_back else None
    noise.reseed(rng)
    try:
        yield
    finally:
        if states is not None:
            noise.restore(states)


def _cut_short(group: Group, order: ShardOrder) -> Group:
    """Leave out the anchor that the trainer has."""
    if group.index < len(order.anchors) and order.anchors[group.index] is not None:
        group.anchor = None
    return group
