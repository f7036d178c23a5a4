"""One rollout of whole groups: collecting it, storing it, cutting it into minibatches."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecNormalize

from grpo_core.actor import Actor
from grpo_core.advantage import BranchSteps
from grpo_core.branching import Simulator, SimulatorState
from grpo_core.rewards import RewardFunction, get_reward_name

Array = npt.NDArray[Any]

# Called after every sweep over the environments with their infos, done flags and rewards, one per environment, and
# the number of simulator steps taken; returns False to end the rollout.
SweepCallback = Callable[[list[dict[str, Any]], npt.NDArray[np.bool_], npt.NDArray[np.float32], int], bool]


class AnchorState(NamedTuple):
    """Where a group starts.

    :param simulator_state: What ``Simulator.capture`` returned there.
    :param observation: The environment's observation there, not normalised.
    :param discounted_return: Discounted rewards of the episode so far, for reward normalisation only.
    """

    simulator_state: SimulatorState
    observation: Any
    discounted_return: float = 0.0


class StepBatch(NamedTuple):
    """Steps of any branches; every tensor is ``(batch_size, ...)``."""

    observations: torch.Tensor
    actions: torch.Tensor
    old_log_prob: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor


class _Kept(NamedTuple):
    """The step of a group that the next rollout continues from."""

    t: int
    branch: int
    state: SimulatorState | None


class GroupRollout:
    """Storage of one rollout, shapes ``(horizon, n_anchors, group_size, ...)``.

    Anchors are ordered ``anchor * n_envs + environment``. After ``collect`` the fields ``states``, ``next_states``,
    ``actions``, ``log_probs``, ``rewards``, ``step_mask``, ``terminated`` and ``truncated`` hold what happened;
    ``advantages`` and ``returns`` are set by the algorithm before ``flatten`` is called.

    :param horizon: Most steps a branch can take.
    :param n_anchors: Groups per rollout, over all environments.
    :param group_size: Branches per group.
    """

    advantages: torch.Tensor
    returns: torch.Tensor

    def __init__(
        self,
        horizon: int,
        n_anchors: int,
        group_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
    ) -> None:
        self.shape = (horizon, n_anchors, group_size)
        self.action_space = action_space
        self.states = np.zeros((*self.shape, *(observation_space.shape or ())), observation_space.dtype)
        self.next_states = np.zeros_like(self.states)
        # Box actions are kept as sampled, before clipping: their log probability belongs to that value.
        self.actions = np.zeros(
            (*self.shape, *(action_space.shape or ())),
            np.float32 if isinstance(action_space, spaces.Box) else np.int64,
        )
        self.log_probs = np.zeros(self.shape, np.float32)
        self.rewards = np.zeros(self.shape, np.float32)
        self.step_mask = np.zeros(self.shape, np.bool_)
        self.terminated = np.zeros(self.shape, np.bool_)
        self.truncated = np.zeros(self.shape, np.bool_)

    def collect(
        self,
        simulators: Sequence[Simulator],
        anchors: Sequence[AnchorState],
        actor: Actor,
        normalizer: "Normalizer",
        rng: np.random.Generator,
        on_sweep: SweepCallback,
    ) -> bool:
        """Let every branch of every group follow the policy from its anchor state.

        Branches advance in step, so that one forward pass serves all of them; each simulator is put back into a
        branch's state before it steps that branch. Dead branches are not stepped.

        :return: False if ``on_sweep`` ended the rollout early; the storage is then incomplete.
        """
        horizon, n_anchors, group_size = self.shape
        for stored in (self.rewards, self.step_mask, self.terminated, self.truncated):
            stored.fill(0)
        branch_states = [[anchor.simulator_state] * group_size for anchor in anchors]
        observations = np.stack([[anchor.observation] * group_size for anchor in anchors])
        self._draw_kept_steps(rng)
        live = np.ones((n_anchors, group_size), np.bool_)
        for t in range(horizon):
            self.states[t], self.step_mask[t] = observations, live
            actions, log_probs = actor.sample_actions(normalizer.normalize(observations[live]), rng)
            self.actions[t][live], self.log_probs[t][live] = actions, log_probs
            if not self._step_branches(t, simulators, branch_states, actor, on_sweep):
                return False
            observations = self.next_states[t]
            live = live & ~(self.terminated[t] | self.truncated[t])
            if not live.any():
                break
        return True

    def _step_branches(
        self,
        t: int,
        simulators: Sequence[Simulator],
        branch_states: list[list[SimulatorState]],
        actor: Actor,
        on_sweep: SweepCallback,
    ) -> bool:
        """Step every live branch once, one branch per environment and sweep, and capture where it went."""
        horizon, n_anchors, group_size = self.shape
        n_envs = len(simulators)
        env_actions = actor.clip_actions(self.actions[t])
        for first_anchor in range(0, n_anchors, n_envs):
            for branch in range(group_size):
                infos: list[dict[str, Any]] = [{} for _ in simulators]
                dones, rewards = np.zeros(n_envs, np.bool_), np.zeros(n_envs, np.float32)
                for i, simulator in enumerate(simulators):
                    anchor = first_anchor + i
                    at = (t, anchor, branch)
                    if not self.step_mask[at]:
                        continue
                    simulator.restore(branch_states[anchor][branch])
                    next_state, reward, terminated, truncated, infos[i] = simulator.step(env_actions[anchor, branch])
                    self.next_states[at], self.rewards[at] = next_state, reward
                    self.terminated[at], self.truncated[at] = terminated, truncated and not terminated
                    dones[i], rewards[i] = terminated or truncated, reward
                    keep = branch == self._kept_branch[anchor] and self._replaces_kept[t, anchor]
                    if not dones[i] and (keep or t + 1 < horizon):
                        branch_states[anchor][branch] = simulator.capture()
                    if keep:
                        self._kept[anchor] = _Kept(t, branch, None if dones[i] else branch_states[anchor][branch])
                n_live = int(self.step_mask[t, first_anchor : first_anchor + n_envs, branch].sum())
                if n_live > 0 and not on_sweep(infos, dones, rewards, n_live):
                    return False
        return True

    def _draw_kept_steps(self, rng: np.random.Generator) -> None:
        """Decide which step of each group to continue from: one branch and one of its steps, both uniform.

        How long a branch lives is not known beforehand, so its steps are drawn by reservoir sampling: step t
        (from 0) replaces the one kept so far with probability 1 / (t + 1). Only kept states are held.
        """
        horizon, n_anchors, group_size = self.shape
        self._kept_branch = rng.integers(group_size, size=n_anchors)
        self._replaces_kept = rng.random((horizon, n_anchors)) * np.arange(1, horizon + 1)[:, None] < 1.0
        self._kept = [_Kept(0, 0, None)] * n_anchors

    def next_anchors(self, simulators: Sequence[Simulator], discounted_returns: Array) -> list[AnchorState]:
        """Return the anchor states the next rollout starts from: the kept steps, or a reset where one was the last.

        :param discounted_returns: Shape ``(horizon, n_anchors, group_size)``, see ``Normalizer``.
        """
        anchors = []
        for anchor, kept in enumerate(self._kept):
            if kept.state is None:
                anchors.append(reset_to_anchor(simulators[anchor % len(simulators)]))
            else:
                at = (kept.t, anchor, kept.branch)
                anchors.append(AnchorState(kept.state, self.next_states[at].copy(), float(discounted_returns[at])))
        return anchors

    def apply_reward_function(self, reward_function: RewardFunction) -> None:
        """Replace the environment's rewards by those of a reward function, in one call over all live steps.

        :raises ValueError: If it does not return one finite number per step.
        """
        mask = self.step_mask
        n_steps = int(mask.sum())
        actions = self.actions[mask]
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        name = get_reward_name(reward_function)
        returned = reward_function(
            torch.from_numpy(self.states[mask].reshape(n_steps, -1)),
            torch.from_numpy(actions.reshape(n_steps, -1)),
            torch.from_numpy(self.next_states[mask].reshape(n_steps, -1)),
        )
        if returned is None:
            raise ValueError(
                f"reward function '{name}' returned None; it must return one reward per step, shape ({n_steps}, 1)."
            )
        rewards = torch.as_tensor(returned)
        if rewards.numel() != n_steps:
            raise ValueError(
                f"reward function '{name}' returned shape {tuple(rewards.shape)} for {n_steps} steps; "
                f"it must return one reward per step, shape ({n_steps}, 1)."
            )
        self.rewards[mask] = rewards.detach().cpu().reshape(n_steps).numpy()

    def check_finite(self) -> None:
        """Refuse to learn from numbers that are none.

        :raises ValueError: If a reward or an observation is NaN or infinite.
        """
        if not np.isfinite(self.rewards[self.step_mask]).all():
            raise ValueError("a reward is NaN or infinite; check the reward function or the environment.")
        if not np.isfinite(self.next_states[self.step_mask]).all():
            raise ValueError("an observation is NaN or infinite; check the environment's step().")

    @property
    def steps(self) -> BranchSteps:
        """The steps as tensors."""
        return BranchSteps(
            *map(torch.from_numpy, (self.rewards, self.step_mask, self.terminated, self.truncated)),
        )

    def flatten(self, observations: torch.Tensor, device: torch.device) -> StepBatch:
        """Gather the live steps of all branches, shapes ``(n_steps, ...)``.

        :param observations: What the policy saw at the live steps, shape ``(n_steps, *observation_shape)``.
        """
        mask = torch.from_numpy(self.step_mask)
        actions = torch.from_numpy(self.actions)[mask]
        return StepBatch(
            observations,
            (actions.flatten(1) if isinstance(self.action_space, spaces.Box) else actions).to(device),
            torch.from_numpy(self.log_probs)[mask].to(device),
            self.advantages[mask].to(device),
            self.returns[mask].to(device),
        )


def draw_minibatches(batch: StepBatch, batch_size: int, rng: np.random.Generator) -> Iterator[StepBatch]:
    """Yield every step once, in random order, ``batch_size`` at a time; the last minibatch may hold fewer."""
    order = torch.from_numpy(rng.permutation(len(batch.observations)))
    for start in range(0, len(order), batch_size):
        yield StepBatch(*(tensor[order[start : start + batch_size]] for tensor in batch))


def reset_to_anchor(simulator: Simulator) -> AnchorState:
    """Start a new episode and return its first state."""
    observation, _ = simulator.reset()
    return AnchorState(simulator.capture(), observation)


class Normalizer:
    """The running statistics of a ``VecNormalize``, applied to branches.

    Statistics are frozen while a rollout is collected and updated after it, so that all members of a group see
    the same numbers and the first minibatch has a probability ratio of 1. Without a ``VecNormalize`` everything
    passes through.

    :param vec_normalize: The wrapper whose statistics are used and, if it is training, updated.
    """

    def __init__(self, vec_normalize: VecNormalize | None) -> None:
        self._vec_normalize = vec_normalize

    def normalize(self, observations: Array) -> Array:
        """Normalise observations of shape ``(batch_size, *observation_shape)``."""
        if self._vec_normalize is None:
            return observations
        normalized = self._vec_normalize.normalize_obs(observations)
        assert isinstance(normalized, np.ndarray)  # Dict observations never reach this class
        return normalized

    def normalize_rewards(self, rollout: GroupRollout, anchors: Sequence[AnchorState]) -> Array:
        """Scale the rollout's rewards in place, then take its observations and returns into the statistics.

        :return: Discounted returns of the episodes so far, before scaling, ``(horizon, n_anchors, group_size)``.
        """
        discounted_returns = np.zeros(rollout.shape)
        if self._vec_normalize is None:
            return discounted_returns
        running = np.array([[anchor.discounted_return] for anchor in anchors])
        for t, rewards in enumerate(rollout.rewards):
            running = running * self._vec_normalize.gamma + rewards
            discounted_returns[t] = running
        rollout.rewards[:] = self._vec_normalize.normalize_reward(rollout.rewards) * rollout.step_mask
        if self._vec_normalize.training:
            self._vec_normalize.ret_rms.update(discounted_returns[rollout.step_mask])
            if self._vec_normalize.norm_obs:
                self._vec_normalize.obs_rms.update(rollout.states[rollout.step_mask])
        return discounted_returns
