"""Storage of one rollout of whole groups, and how it is cut into minibatches."""

import warnings
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim, get_obs_shape

from grpo_core.banks.single_env import Outcome
from grpo_core.groups.advantage import BranchSteps, Floats
from grpo_core.groups.group import GroupPlan
from grpo_core.spaces import FLOAT32_MAX, Observations, observation_dtype, pack, unpack

Array = npt.NDArray[Any]
# Which steps of a batch a minibatch takes, shape ``(batch_size,)``.
Indices = npt.NDArray[np.int64]
# The arrays that steps are stored in. They grow and are trimmed, unlike what the algorithm computes from them.
_STORED = (
    "observations",
    "next_observations",
    "actions",
    "log_probs",
    "rewards",
    "step_mask",
    "terminated",
    "truncated",
    "action_masks",
)
# Attributes of PPO's rollout buffer, and what to read here instead.
_LIVE = "the steps that there are lie where step_mask is True."
_INSTEAD_OF = MappingProxyType(
    {
        "pos": _LIVE,
        "full": _LIVE,
        "get": f"index its arrays, such as observations[step_mask]: {_LIVE}",
        "episode_starts": "an episode ends where terminated or truncated is True.",
    }
)
# Steps per branch of whole episodes that there is room for at first.
_FIRST_EPISODE_STEPS = 64
# Where in a rollout a step is: time, group and branch.
Place = tuple[int, int, int]
# An environment's index, and the place of its step.
SteppedPlace = tuple[int, Place]
# Where several steps are: times, groups and branches, integers ``(n_steps,)`` each.
Places = tuple[npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]], npt.NDArray[np.integer[Any]]]


class StepBatch(NamedTuple):
    """Steps of any branches; every array or tensor is ``(batch_size, ...)``, Dict observations are a dict of such.

    :param observations: As the policy saw them, ``(batch_size, *observation_shape)``.
    :param actions: As drawn, before clipping, ``(batch_size, *action_shape)``; the axes of a Box are flattened.
    :param old_log_prob: Their log probability under the policy that drew them, ``(batch_size,)``.
    :param advantages: Shape ``(batch_size,)``.
    :param value_targets: Targets of the value network, ``(batch_size,)``.
    :param branch_index: Which branch of the rollout a step belongs to, integers ``(batch_size,)``.
    :param weights: How much a step counts in the policy's loss, ``(batch_size,)``.
    :param unfiltered_weights: The same as if no group were left out of it, ``(batch_size,)``.
    :param action_masks: Which actions were legal, ``(batch_size, n_bits)``; None where all always are.
    :param ref_log_prob: Log probability under the reference policy, ``(batch_size,)``; None without one.
    """

    observations: Any
    actions: Any
    old_log_prob: Any
    advantages: Any
    value_targets: Any
    branch_index: Any
    weights: Any
    unfiltered_weights: Any
    action_masks: Any = None
    ref_log_prob: Any = None

    @property
    def n_steps(self) -> int:
        """Number of steps."""
        return len(self.actions)

    def to_tensors(self, device: torch.device) -> "StepBatch":
        """Turn the arrays into tensors on a device."""
        return StepBatch(*[to_tensors(field, device) for field in self])

    def select(self, chosen: torch.Tensor) -> "StepBatch":
        """Return some of the steps of a batch of tensors.

        :param chosen: Which ones, integers ``(n,)``.
        """
        return StepBatch(*[select(field, chosen) for field in self])


def to_tensors(field: Any, device: torch.device) -> Any:
    """Turn an array, or every array of a dict, into a tensor; None stays None."""
    if isinstance(field, dict):
        return {key: torch.as_tensor(array, device=device) for key, array in field.items()}
    return None if field is None else torch.as_tensor(field, device=device)


def select(field: Any, chosen: torch.Tensor) -> Any:
    """Return some rows of a tensor, or of every tensor of a dict; None stays None.

    :param chosen: Which ones, integers ``(n,)``.
    """
    if field is None:
        return None
    return {key: x[chosen] for key, x in field.items()} if isinstance(field, dict) else field[chosen]


class GroupRollout:
    """Storage of one rollout, shapes ``(horizon, n_groups, group_size, ...)``.

    After ``clear``, steps are stored one by one, and the arrays grow when they must; ``trim`` cuts them to what was
    stored. The algorithm sets ``values``, ``advantages`` and ``value_targets`` before ``flatten``.

    :param horizon: Steps per branch to make room for at first.
    :param n_groups: Groups to make room for at first.
    :param group_size: Branches per group.
    """

    observations: Array
    next_observations: Array
    actions: Array
    log_probs: Array
    rewards: Array
    step_mask: Array
    terminated: Array
    truncated: Array
    action_masks: Array | None
    values: Floats
    advantages: Floats
    value_targets: Floats
    # As in PPO's buffer, for callbacks; set when a rollout begins.
    buffer_size: int
    n_envs: int
    gamma: float
    gae_lambda: float
    device: torch.device

    def __init__(
        self,
        horizon: int,
        n_groups: int,
        group_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
    ) -> None:
        self.observation_space = observation_space
        self.action_space = action_space
        self._first_shape = (horizon, n_groups, group_size)
        self.clear()

    @classmethod
    def for_plan(
        cls, plan: GroupPlan, n_envs: int, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> Self:
        """Make room for the groups of a plan in ``n_envs`` environments, as if no branch ended early.

        Whole episodes are as long as they are: for them the storage starts small and grows.
        """
        horizon = plan.horizon or min(_FIRST_EPISODE_STEPS, plan.n_steps)
        n_groups = n_envs * max(1, plan.n_steps // (plan.group_size * horizon))
        return cls(horizon, n_groups, plan.group_size, observation_space, action_space)

    if not TYPE_CHECKING:  # hidden from mypy, which then still reports misspelt attributes

        def __getattr__(self, name: str) -> Any:
            """Say what to read instead of what only PPO's rollout buffer has."""
            if name in _INSTEAD_OF:
                raise AttributeError(
                    f"the rollout has no {name!r}, for it holds groups of branches; {_INSTEAD_OF[name]}"
                )
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def size(self) -> int:
        """Count the steps that were taken."""
        return int(self.step_mask.sum())

    @property
    def obs_shape(self) -> Any:
        """Shape of an observation; of a Dict, one for each key."""
        return get_obs_shape(self.observation_space)

    @property
    def action_dim(self) -> int:
        """Numbers that an action is made of."""
        return get_action_dim(self.action_space)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Horizon, number of groups and group size."""
        horizon, n_groups, group_size = self.step_mask.shape
        return horizon, n_groups, group_size

    def clear(self) -> None:
        """Forget all steps."""
        shape, space = self._first_shape, self.action_space
        dtype, observation_shape = observation_dtype(self.observation_space), self.observation_space.shape or ()
        self.observations, self.next_observations = (np.zeros((*shape, *observation_shape), dtype) for _ in range(2))
        # Box actions are kept as sampled, before clipping: their log probability belongs to that value.
        action_dtype = np.float32 if isinstance(space, spaces.Box) else np.int64
        self.actions = np.zeros((*shape, *(space.shape or ())), action_dtype)
        self.log_probs, self.rewards = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.step_mask, self.terminated, self.truncated = (np.zeros(shape, np.bool_) for _ in range(3))
        self.action_masks = None

    def store_actions(self, at: Places, observations: Array, actions: Array, log_probs: Array, masks: Any) -> None:
        """Store what branches saw and chose, and make room for it.

        :param at: One place per branch.
        :param observations: Shape ``(n_branches, *observation_shape)``.
        :param actions: Shape ``(n_branches, *action_shape)``.
        :param log_probs: Shape ``(n_branches,)``.
        :param masks: Legal actions, shape ``(n_branches, n_bits)``; None where all are.
        """
        self._make_room(int(at[0].max()), int(at[1].max()))
        self._store_masks(at, masks)
        self.observations[at], self.actions[at] = observations, actions
        self.log_probs[at], self.step_mask[at] = log_probs, True

    def store_outcome(self, at: Place, outcome: Outcome) -> None:
        """Store where one step led.

        :param at: The place of that step.
        """
        observation = pack(self.observation_space, outcome.observed.observation)
        self.store_outcomes(at, observation, outcome.reward, outcome.terminated, outcome.truncated)

    def store_outcomes(
        self, at: Place | Places, next_observations: Array, rewards: Any, terminated: Any, truncated: Any
    ) -> None:
        """Store where steps led.

        :param at: One place per step.
        :param next_observations: Shape ``(n_branches, *observation_shape)``; of a single step, ``observation_shape``.
        :param rewards: Shape ``(n_branches,)``, or one number; likewise the flags.
        :param terminated: Whether the episode ended.
        :param truncated: Whether a time limit cut it; an episode that terminates at that very step was not cut.
        """
        self.next_observations[at], self.rewards[at] = next_observations, rewards
        self.terminated[at], self.truncated[at] = terminated, truncated > terminated

    def share_starts(self) -> bool:
        """Tell whether all branches of each group begin with the same observation; all must be finite."""
        first = self.observations[0]
        return not (first != first[:, :1]).reshape(*self.shape[1:], -1).any(axis=-1)[self.step_mask[0]].any()

    def gather(self, at: Places) -> dict[str, Array]:
        """Return what is stored of some steps, ``(n_steps, ...)`` each, as ``put`` takes it.

        :param at: Their places.
        """
        return {name: array[at] for name, array in self._arrays() if name != "step_mask"}

    def put(self, at: Places, columns: Mapping[str, Array]) -> None:
        """Store steps that another rollout gathered, and make room for them.

        :param at: Their places here.
        :param columns: What ``gather`` returned.
        """
        self._make_room(int(at[0].max()), int(at[1].max()))
        self._store_masks(at, columns.get("action_masks"))
        for name, column in columns.items():
            if name != "action_masks":
                getattr(self, name)[at] = column
        self.step_mask[at] = True

    def _store_masks(self, at: Places, masks: Any) -> None:
        """Store the legal actions of some steps; None where all are."""
        if masks is not None and self.action_masks is None:
            self.action_masks = np.ones((*self.shape, masks.shape[1]), np.bool_)
        if self.action_masks is not None:
            self.action_masks[at] = True if masks is None else masks

    def _make_room(self, t: int, group: int) -> None:
        horizon, n_groups, _ = self.shape
        if t < horizon and group < n_groups:
            return
        # Doubled, so that a long episode is not copied at each of its steps.
        larger = (
            max(2 * horizon, t + 1) if t >= horizon else horizon,
            max(2 * n_groups, group + 1) if group >= n_groups else n_groups,
        )
        live = self.step_mask
        for name, array in self._arrays():
            # Nothing else is copied: memory pages that are never written to are never allocated.
            grown = np.zeros((*larger, *array.shape[2:]), array.dtype)
            grown[:horizon, :n_groups][live] = array[live]
            setattr(self, name, grown)

    def trim(self, n_groups: int, horizon: int | None) -> None:
        """Cut the storage to ``n_groups`` groups, and to ``horizon`` steps or, if that is None, the longest branch."""
        if horizon is None:
            horizon = int(self.step_mask.any(axis=(1, 2)).sum())
        for name, array in self._arrays():
            setattr(self, name, array[:horizon, :n_groups])

    def _arrays(self) -> list[tuple[str, Array]]:
        return [(name, array) for name in _STORED if (array := getattr(self, name)) is not None]

    def zero_broken_ends(self) -> None:
        """Put 0 for what float32 does not hold in the last observations of episodes that terminated.

        A simulation that ends because it blew up returns such numbers, and nothing is expected of where it led.
        """
        ends = self.next_observations[self.terminated]
        parts = unpack(ends)
        for array in parts.values() if isinstance(parts, dict) else [parts]:
            if array.dtype.kind == "f":
                array[~(np.abs(array) <= FLOAT32_MAX)] = 0.0
        self.next_observations[self.terminated] = ends

    def check_finite(self) -> None:
        """Check that all rewards and observations of live steps are finite.

        :raises ValueError: If a reward or an observation is NaN or infinite; the message says where.
        """
        self._check_steps(self.rewards[self.step_mask], "a reward", "the reward function or the environment")
        for stored, method in ((self.next_observations, "step"), (self.observations, "reset")):
            observations = unpack(stored[self.step_mask])
            for array in observations.values() if isinstance(observations, dict) else [observations]:
                self._check_steps(array, "an observation", f"the environment's {method}()")

    def check_seen(self, observations: Observations, next_observations: Observations) -> None:
        """Check that the policy, which calculates in float32, can take what it sees at live steps.

        :param observations: As it sees them, finite, shape ``(n_live_steps, *observation_shape)``.
        :param next_observations: Where the steps led, likewise.
        :raises ValueError: If one is too large; the message says where.
        """
        for seen, method in ((next_observations, "step"), (observations, "reset")):
            for array in seen.values() if isinstance(seen, dict) else [seen]:
                if array.dtype == np.float64 and len(too_large := np.argwhere(np.abs(array) > FLOAT32_MAX)):
                    raise ValueError(
                        "an observation is beyond float32, in which the policy calculates: "
                        f"{self._show(array, too_large)}; check the environment's {method}(), or scale its "
                        "observations down: gymnasium.wrappers.TransformObservation, or VecNormalize, which clips them."
                    )

    def _check_steps(self, numbers: Array, name: str, source: str) -> None:
        """Refuse numbers of the live steps, ``(n_live_steps, ...)``, unless all are finite.

        :param name: Names one of them in the message.
        :param source: Names where they came from.
        """
        if np.isfinite(numbers).all():
            return
        shown = self._show(numbers, np.argwhere(~np.isfinite(numbers)))
        raise ValueError(f"{name} is NaN or infinite: {shown}; check {source}.")

    def _show(self, numbers: Array, places: Indices) -> str:
        """Say what stands at the first of some places among the numbers of the live steps, and which step that is."""
        row, *inner = places[0].tolist()
        t, group, branch = np.argwhere(self.step_mask)[row].tolist()
        return f"{numbers[row, *inner]} at step {t} of branch {branch} in group {group}, counted from 0"

    @property
    def steps(self) -> BranchSteps:
        """Return what advantages are computed from, as views of shape ``(horizon, n_groups, group_size)``."""
        return BranchSteps(self.rewards, self.step_mask, self.terminated, self.truncated)

    @property
    def first_action_weights(self) -> Floats:
        """Return how likely the policy was to take each enumerated first action, against drawing them evenly.

        :return: Shape ``(n_groups, group_size)``, 1 on average over a group.
        """
        n_legal = self.step_mask[0].sum(axis=-1, keepdims=True, dtype=np.float32)
        return np.asarray(np.exp(self.log_probs[0]) * n_legal)

    @property
    def returns(self) -> Floats:
        """Return the lambda-returns, as SB3's rollout buffer calls them; shape ``(horizon, n_groups, group_size)``."""
        return self.value_targets

    def lay_out(self, numbers: Floats) -> Floats:
        """Put one number per live step, as ``flatten`` orders them, back in its place.

        :param numbers: Shape ``(n_live_steps,)``.
        :return: float32, shape ``(horizon, n_groups, group_size)``, 0 outside the step mask.
        """
        laid_out = np.zeros(self.shape, np.float32)
        laid_out[self.step_mask] = numbers
        return laid_out

    def flatten(self, observations: Observations, weights: Floats, unfiltered_weights: Floats) -> StepBatch:
        """Gather the live steps of all branches, shapes ``(n_live_steps, ...)``.

        :param observations: What the policy saw at the live steps, shape ``(n_live_steps, *observation_shape)``.
        :param weights: How much steps count in the loss, shape ``(horizon, n_groups, group_size)``.
        :param unfiltered_weights: The same as if no group were left out of it.
        """
        mask, (_, n_groups, group_size) = self.step_mask, self.shape
        branch_index = np.broadcast_to(np.arange(n_groups * group_size).reshape(n_groups, group_size), self.shape)
        actions = self.actions[mask]
        if isinstance(self.action_space, spaces.Box):
            actions = actions.reshape(len(actions), -1)
        elif isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.astype(np.float32)  # what Bernoulli distributions take
        return StepBatch(
            observations=observations,
            actions=actions,
            old_log_prob=self.log_probs[mask],
            advantages=self.advantages[mask],
            value_targets=self.value_targets[mask],
            branch_index=branch_index[mask],
            weights=weights[mask],
            unfiltered_weights=unfiltered_weights[mask],
            action_masks=None if self.action_masks is None else self.action_masks[mask],
        )


def warn_of_other_starts(rollout: GroupRollout) -> None:
    """Warn if whole episodes that are compared with each other began differently, although of one seed."""
    if not rollout.share_starts():
        warnings.warn(
            "the episodes of a group begin with different observations, although their resets got the same seed, so "
            "that an episode is also credited with its start. Let reset(seed=seed) draw from self.np_random alone, "
            'after super().reset(seed=seed), or take baseline="value", which compares no episodes.',
            stacklevel=4,
        )


def draw_minibatches(
    batch: StepBatch, batch_size: int, rng: np.random.Generator, whole_branches: bool = False
) -> Iterator[Indices]:
    """Yield the index of every step once, in random order, ``(batch_size,)`` at a time; the last may be fewer.

    :param whole_branches: Never split a branch. A minibatch then holds fewer steps than ``batch_size`` plus the length
        of the longest branch.
    """
    if whole_branches:
        yield from _draw_branches(batch.branch_index, batch_size, rng)
        return
    order = rng.permutation(batch.n_steps)
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def _draw_branches(branch_index: npt.NDArray[np.int64], batch_size: int, rng: np.random.Generator) -> Iterator[Indices]:
    order = rng.permutation(int(branch_index.max()) + 1)
    lengths = np.bincount(branch_index, minlength=len(order))[order]
    minibatch_of_branch = (lengths.cumsum() - lengths) // batch_size
    minibatch_index = np.empty_like(order)
    minibatch_index[order] = minibatch_of_branch
    # A branch longer than a minibatch leaves numbers out, and one without steps fills none.
    for i in np.unique(minibatch_of_branch[lengths > 0]):
        yield np.flatnonzero(minibatch_index[branch_index] == i)
