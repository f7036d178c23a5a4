"""Rollouts that are cut into shards: the same weights with any number of workers."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from grpo import GRPO
from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import CheckpointError
from grpo_core.groups.group import GroupPlan
from grpo_core.shards.pool import RolloutWorkersError
from grpo_core.shards.process_pool import ProcessPool
from grpo_core.shards.sharded_collector import count_shards
from tests.grpo_core.shards.models import (
    TOTAL,
    BrokenCartPole,
    DyingCartPole,
    HangingCartPole,
    NestedNoise,
    NoisyCartPole,
    OwnNoise,
    learn,
    make_model,
    to_bytes,
    wrap,
)


def reward_upright(state: torch.Tensor, action: torch.Tensor, next_state: torch.Tensor) -> torch.Tensor:
    return 1.0 - next_state[:, 2:3].abs() + 0.01 * torch.randn(len(state), 1)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPool]:
    """Two processes for all tests of this file: to start them is what takes long."""
    with ProcessPool(2) as opened:
        yield opened


CASES: dict[str, Any] = {
    "batched": lambda: make_model(),
    "several environments": lambda: make_model(make_vec_env("CartPole-v1", 2, seed=0), n_shards=2),
    "noise of all kinds": lambda: make_model(wrap(lambda: OwnNoise(NoisyCartPole()))),
    "noise in an object": lambda: make_model(wrap(lambda: NestedNoise(NoisyCartPole()))),
    "actions": lambda: make_model(group_mode="action"),
    "episodes": lambda: make_model(group_mode="episode", horizon=None, n_shards=2),
    "filled": lambda: make_model(VecNormalize(wrap(CartPoleEnv)), horizon=64, n_steps=512, fill_rollouts=True),
    "filled, with common noise": lambda: make_model(
        wrap(NoisyCartPole), horizon=64, n_steps=512, fill_rollouts=True, common_random_numbers=True
    ),
    "archive": lambda: make_model(anchor_selection="archive"),
    "common noise": lambda: make_model(wrap(NoisyCartPole), common_random_numbers=True),
    "normalised": lambda: make_model(VecNormalize(wrap(CartPoleEnv))),
    "stacked frames": lambda: make_model(VecFrameStack(wrap(CartPoleEnv), 2)),
    "a reward function": lambda: make_model(reward_function=[reward_upright, None], reward_weights=[1.0, 0.1]),
    "a policy of one's own": lambda: make_model(policy_kwargs={"activation_fn": torch.nn.SiLU}),
    "box actions": lambda: make_model("Pendulum-v1", n_shards=3),
}


@pytest.mark.parametrize("case", CASES)
def test_the_weights_are_the_same_with_any_number_of_workers(case: str, pool: ProcessPool) -> None:
    alone = learn(CASES[case](), 1, pool)
    assert learn(CASES[case](), 2, pool) == alone
    assert alone != to_bytes(CASES[case]())


def test_they_are_the_same_with_three_and_four_workers_and_in_another_training(pool: ProcessPool) -> None:
    weights = {n: learn(make_model(), n, pool) for n in (1, 2, 3, 4, 2)}
    pool.n_workers = 2
    assert len(set(weights.values())) == 1
    assert learn(make_model(seed=4), 2, pool) != weights[1]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_classes_that_are_sent_along_stay_as_they_are_here(n_workers: int, pool: ProcessPool) -> None:
    class Wind:
        def blow(self) -> float:
            return 0.0

    class WindyCartPole(CartPoleEnv):
        def __init__(self) -> None:
            super().__init__()
            self.wind = Wind()

        def step(self, action: Any) -> Any:
            observation, reward, *others = super().step(action)  # type: ignore[no-untyped-call]
            return observation, reward + self.wind.blow(), *others

    methods = Wind.blow, WindyCartPole.step
    learn(make_model(wrap(WindyCartPole)), n_workers, pool)
    assert (Wind.blow, WindyCartPole.step) == methods


class ReplaceEnvironment(BaseCallback):
    def __init__(self, event: str) -> None:
        super().__init__()
        setattr(self, event, self._replace)

    def _replace(self) -> bool:
        self.model.set_env(gym.make("CartPole-v1"))
        return True

    def _on_step(self) -> bool:
        return True


def test_one_shard_is_todays_rollout_and_more_shards_are_others() -> None:
    whole, plain = make_model(n_shards=1), make_model(n_shards=None)
    assert to_bytes(whole.learn(TOTAL)) == to_bytes(plain.learn(TOTAL))
    assert to_bytes(make_model(n_shards=2).learn(TOTAL)) != to_bytes(whole)


@pytest.mark.parametrize("event", ["_on_training_start", "_on_rollout_start", "_on_step", "_on_rollout_end"])
def test_an_environment_that_a_callback_sets_cannot_be_played_by_workers_with_copies_of_another(event: str) -> None:
    model = make_model(n_shards=2)
    replace = ReplaceEnvironment(event)
    with pytest.raises(RuntimeError, match=r"n_rollout_shards=2\), .* set_env between two calls of learn"):
        model.learn(TOTAL, replace)
    model.learn(TOTAL)


def test_an_environment_that_a_callback_sets_in_the_end_is_for_the_next_learn() -> None:
    model = make_model(n_shards=2).learn(TOTAL, ReplaceEnvironment("_on_training_end"))
    model.learn(TOTAL)


def test_every_step_reaches_the_callbacks_and_the_rollout() -> None:
    class Count(BaseCallback):
        n_vec_steps, n_steps, earned = 0, 0, 0.0

        def _on_step(self) -> bool:
            self.n_vec_steps += 1
            self.n_steps += int(self.locals["step_mask"].sum())
            self.earned += float(self.locals["rewards"].sum())
            return True

    env = VecMonitor(DummyVecEnv([lambda: gym.make("CartPole-v1")] * 2))
    model, counted = make_model(env, n_shards=4), Count()
    model.learn(1, counted)
    mask = model.rollout_buffer.step_mask
    assert mask.shape == (32, 8, 2)
    assert mask[0].all(), "every branch of every group has taken a step"
    assert counted.n_steps == model.num_timesteps == mask.sum() == counted.earned
    # Both environments step in one vectorised step, as long as both have branches left.
    assert counted.n_steps / 2 <= counted.n_vec_steps < counted.n_steps
    # An episode begins where its group does, so what follows an anchor continues it.
    buffer = model.rollout_buffer
    followed = buffer.step_mask[1:] & buffer.step_mask[:-1]
    assert np.array_equal(buffer.observations[1:][followed], buffer.next_observations[:-1][followed])


def test_groups_that_fill_a_shard_keep_their_place_and_their_environment() -> None:
    model = make_model(
        DummyVecEnv([lambda: gym.make("CartPole-v1"), lambda: gym.make("CartPole-v1")]),
        n_steps=512,
        horizon=128,
        fill_rollouts=True,
        anchor_selection="archive",
    )
    model.learn(600)  # two rollouts, the second of which goes on from the first
    rollout, groups = model.rollout_buffer, model._collector.groups
    assert len(groups) == rollout.shape[1] > 4
    assert [group.index for group in groups] == list(range(len(groups)))
    assert [group.n_steps for group in groups] == rollout.step_mask.sum(axis=(0, 2)).tolist()
    for group in groups:
        assert group.anchor is not None or group.index < 4, "the trainer knows where those that it planned begin"
        if group.anchor is not None:
            np.testing.assert_array_equal(rollout.observations[0, group.index, 0], group.anchor.observed.observation)


def test_groups_go_on_from_where_a_branch_of_theirs_got_to() -> None:
    model = make_model()
    rollouts = []

    class Keep(BaseCallback):
        def _on_rollout_end(self) -> None:
            buffer = model.rollout_buffer
            rollouts.append((buffer.observations.copy(), buffer.next_observations.copy(), buffer.step_mask.copy()))

        def _on_step(self) -> bool:
            return True

    model.learn(TOTAL, Keep())
    (_, led_to, mask), (began, _, _) = rollouts[:2]
    n_continued = 0
    for group in range(4):
        visited = led_to[:, group][mask[:, group]]
        n_continued += bool((visited == began[0, group, 0]).all(axis=-1).any())
        assert (began[0, group, 0] == began[0, group, 1]).all()
    assert n_continued > 0


def test_a_shard_whose_worker_dies_is_played_again_with_the_same_steps(tmp_path: Path, pool: ProcessPool) -> None:
    note = tmp_path / "died"
    dying = learn(make_model(wrap(lambda: DyingCartPole(note))), 2, pool)
    assert note.exists()
    assert dying == learn(make_model(wrap(lambda: DyingCartPole(None))), 1, pool)


def test_an_environment_that_ends_every_worker_is_reported_and_none_is_left() -> None:
    before = psutil.Process().children(recursive=True)
    with pytest.raises(RolloutWorkersError, match=r"shard \d of a rollout has ended 3 rollout workers.*SIGKILL"):
        learn(make_model(wrap(lambda: DyingCartPole(None))), 2, ProcessPool(2))
    assert psutil.Process().children(recursive=True) == before


def test_a_shard_whose_worker_hangs_is_played_again_with_the_same_steps(tmp_path: Path, pool: ProcessPool) -> None:
    note = tmp_path / "hangs"
    pool.stall_seconds = 2.0  # a worker that is only slow loses nothing: its shard comes to the same
    hanging = learn(make_model(wrap(lambda: HangingCartPole(note, is_catching=False))), 2, pool)
    pool.stall_seconds = math.inf
    assert note.exists()
    assert hanging == learn(make_model(wrap(lambda: HangingCartPole(note, is_catching=False))), 1, pool)


def test_an_environment_that_hangs_in_every_worker_is_reported(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    model = make_model(wrap(lambda: HangingCartPole(tmp_path / "hangs", is_catching=True)), n_rollout_workers=2)
    model.rollout_stall_seconds = 0.3
    with pytest.raises(RolloutWorkersError, match=r"ended 3 rollout workers.*no step of the environment for 0.3 s"):
        model.learn(1)
    assert psutil.Process().children(recursive=True) == before


def test_stop_ends_workers_that_hang(tmp_path: Path) -> None:
    before = psutil.Process().children(recursive=True)
    note = tmp_path / "hangs"
    model = make_model(wrap(lambda: HangingCartPole(note, is_catching=True)), n_rollout_workers=2)
    model.after_minibatch = lambda: model.stop() if note.exists() else None
    model.learn(10**9)
    assert psutil.Process().children(recursive=True) == before


def test_workers_that_are_frozen_between_rollouts_are_replaced(pool: ProcessPool) -> None:
    before = set(psutil.Process().children())

    class Freeze(BaseCallback):
        frozen: Sequence[psutil.Process] = ()

        def _on_rollout_end(self) -> None:
            if not self.frozen:
                nurseries = set(psutil.Process().children()) - before
                self.frozen = [worker for nursery in nurseries for worker in nursery.children()]
                for worker in self.frozen:
                    worker.suspend()

        def _on_step(self) -> bool:
            return True

    # More than a pipe holds, so that not even the policy can be sent.
    frozen, plain = (make_model(policy_kwargs={"net_arch": [512, 512]}) for _ in range(2))
    freeze = Freeze()
    with ProcessPool(2) as frozen.rollout_pool:
        frozen.rollout_pool.stall_seconds = 2.0
        frozen.learn(TOTAL, freeze)
    assert len(freeze.frozen) > 0
    assert not any(worker.is_running() for worker in freeze.frozen)
    assert to_bytes(frozen) == learn(plain, 1, pool)


def test_an_error_of_the_environment_is_raised_here_and_the_workers_go_on(pool: ProcessPool) -> None:
    with pytest.raises(ArithmeticError, match="circle") as caught:
        learn(make_model(wrap(BrokenCartPole), group_mode="episode", horizon=8), 2, pool)
    assert "in step" in str(caught.value.__cause__), "the traceback of the worker"
    assert learn(make_model(), 2, pool) == learn(make_model(), 1, pool)


def test_stop_ends_a_shard_that_this_process_plays() -> None:
    model = make_model()
    n_asked = 0

    def count() -> None:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 5:
            model.stop()

    model.after_minibatch = count  # called after every step, as where nothing is cut
    learn(model, 1, ProcessPool(1), total=10**9)
    assert n_asked < 10
    assert model.num_timesteps == 0


def test_stop_ends_a_rollout_that_workers_play(pool: ProcessPool) -> None:
    model = make_model()
    model.after_minibatch = model.stop  # called while workers play, too
    learn(model, 2, pool, total=10**9)
    assert model.num_timesteps < 10_000


def test_a_training_goes_on_from_its_checkpoint_bit_for_bit_with_another_number_of_workers(pool: ProcessPool) -> None:
    whole, first = make_model(), make_model()
    learn(whole, 1, pool, total=3 * 256)

    class Take(BaseCallback):
        model: GRPO
        content = b""

        def _on_rollout_start(self) -> None:
            if self.model._n_updates:
                self.content = self.content or checkpoint.to_bytes(self.model)

        def _on_step(self) -> bool:
            return True

    take = Take()
    first.learn(3 * 256, take)
    resumed = make_model()
    assert checkpoint.restore(resumed, checkpoint.from_bytes(take.content)) is None
    pool.n_workers, resumed.rollout_pool = 2, pool
    resumed.learn(3 * 256 - resumed.num_timesteps, reset_num_timesteps=False)
    assert to_bytes(resumed) == to_bytes(whole)
    with pytest.raises(CheckpointError, match="cut into 4 shards, but here it would be 2; set n_rollout_shards=4"):
        checkpoint.restore(make_model(n_shards=2), checkpoint.from_bytes(take.content))


def test_the_monitors_file_gets_the_episodes_that_workers_played(tmp_path: Path) -> None:
    model = make_model(make_vec_env("CartPole-v1", 1, seed=0, monitor_dir=str(tmp_path)))
    model.learn(2 * TOTAL)
    assert model.env is not None
    model.env.close()
    rows = (tmp_path / "0.monitor.csv").read_text().splitlines()[2:]
    lengths = [int(row.split(",")[1]) for row in rows]
    assert 0 < sum(lengths) <= model.num_timesteps


def test_what_cannot_be_cut_or_sent_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"n_rollout_workers=9 is not allowed: a rollout is cut into 4 shards.*most 4"):
        make_model(n_shards=None, n_rollout_workers=9)
    with pytest.raises(ValueError, match=r"use at most 1, or a larger n_steps, which makes more groups"):
        make_model(n_shards=None, n_rollout_workers=2, n_steps=32, group_size=2, horizon=16)
    with pytest.raises(ValueError, match=r"n_rollout_shards=3 is not allowed.*multiple of the 2 environments up to"):
        make_model(make_vec_env("CartPole-v1", 2), n_shards=3)
    env = make_vec_env("CartPole-v1", 1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    with pytest.raises(ValueError, match="those of a SubprocVecEnv would be idle"):
        make_model(env, group_mode="episode", n_shards=2)
    env.close()
    unsendable = wrap(CartPoleEnv)
    vars(unsendable.envs[0].unwrapped)["letters"] = (letter for letter in "a generator")
    with pytest.raises(ValueError, match="the environment or a reward function cannot be sent to rollout workers"):
        make_model(unsendable, group_mode="episode", n_shards=2).learn(1)


def test_a_pool_for_rollouts_that_are_not_cut_is_refused(pool: ProcessPool) -> None:
    model = make_model(n_shards=None, kl_coef=0.1)
    model.learn(1)
    anchors = model._collector.anchors
    kept, ref_policy, correlation = list(anchors.starts), model._ref_policy, model._group_correlation
    assert kept
    model.rollout_pool = pool
    with pytest.raises(ValueError, match=r"would be idle.*with n_rollout_shards"):
        model.learn(1)
    assert anchors.starts == kept, "a refused run leaves all as it was"
    assert model._ref_policy is ref_policy
    assert model._group_correlation is correlation


@pytest.mark.parametrize(
    ("n_shards", "n_workers", "n_envs", "mode", "expected"),
    [
        (None, 1, 3, "branch", 1),
        (None, 2, 1, "branch", 4),
        (None, 3, 3, "branch", 6),
        (None, 2, 2, "episode", 2),
        (6, 1, 3, "branch", 6),
    ],
)
def test_shards_are_counted(n_shards: int | None, n_workers: int, n_envs: int, mode: Any, expected: int) -> None:
    plan = GroupPlan(mode, group_size=2, horizon=32, n_steps=256)
    assert count_shards(n_shards, n_workers, n_envs, plan) == expected
