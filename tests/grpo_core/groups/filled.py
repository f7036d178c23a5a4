"""Rollouts of made-up steps."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from grpo_core.banks.single_env import Observed, Outcome
from grpo_core.groups.rollout import GroupRollout
from grpo_core.spaces import pack

PLACE = spaces.Box(-10.0, 10.0, (2,))
CAR = spaces.Dict({"speed": spaces.Box(-5.0, 5.0, (2,)), "gear": spaces.Discrete(4), "lamps": spaces.MultiBinary(3)})
CHOICE = spaces.Discrete(3)


def fill(
    lengths: Sequence[Sequence[int]],
    observation_space: spaces.Space[Any] = PLACE,
    action_space: spaces.Space[Any] = CHOICE,
    first_shape: tuple[int, int] = (1, 1),
    n_mask_bits: int = 0,
) -> GroupRollout:
    """Store random steps of branches of these lengths, ``(n_groups, group_size)`` one time step after the other."""
    rollout = GroupRollout(*first_shape, len(lengths[0]), observation_space, action_space)
    observation_space.seed(0)
    action_space.seed(0)
    rng = np.random.default_rng(0)
    for t in range(max(map(max, lengths))):
        live = [(a, b) for a, row in enumerate(lengths) for b, length in enumerate(row) if t < length]
        at = tuple(np.array([(t, a, b) for a, b in live]).T)
        observations = np.stack([pack(observation_space, observation_space.sample()) for _ in live])
        actions = np.stack([np.asarray(action_space.sample()) for _ in live])
        masks = rng.random((len(live), n_mask_bits)) < 0.5 if n_mask_bits else None
        rollout.store_actions(at, observations, actions, rng.normal(size=len(live)), masks)
        for a, b in live:
            observed = Observed(observation_space.sample(), None)
            is_last = t + 1 == lengths[a][b]
            rollout.store_outcome(
                (t, a, b), Outcome(observed, float(rng.normal()), is_last and b == 0, is_last and b < 2, {}, None)
            )
    return rollout
