"""The values of GRPO's named options, as types that need no torch, so that the server can check requests.

``grpo_core.groups.advantage`` and ``grpo_core.update.losses`` explain the values.
"""

from typing import Literal

GroupMode = Literal["branch", "episode", "action"]
AnchorSelection = Literal["continue", "archive"]

Baseline = Literal["none", "batch", "timestep", "group", "leave_one_out", "residual", "adaptive", "value"]
Supervision = Literal["process", "outcome"]
AdvantageScaling = Literal["group", "batch", "none"]
# These use a step's GAE and need a value network; the others use its return.
NEEDS_VALUES: frozenset[Baseline] = frozenset({"residual", "adaptive", "value"})
# The part that all members of a group share cancels in these, so a group's spread may divide them.
COMPARES_IN_GROUPS: frozenset[Baseline] = frozenset({"group", "leave_one_out", "residual"})

LossType = Literal["clip", "cispo"]
ImportanceLevel = Literal["step", "branch"]
LossNormalization = Literal["step", "branch", "horizon"]
