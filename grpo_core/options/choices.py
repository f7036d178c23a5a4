"""What the named arguments of GRPO may be: plain types, so that who only checks requests imports no torch.

``grpo_core.groups.advantage`` and ``grpo_core.update.losses`` say what the values mean.
"""

from typing import Literal

GroupMode = Literal["branch", "episode", "action"]

Baseline = Literal["none", "batch", "timestep", "group", "leave_one_out", "residual", "value"]
Supervision = Literal["process", "outcome"]
AdvantageScaling = Literal["group", "batch", "none"]
# These judge a step by its GAE and have nothing to say without a value network; the others judge it by its return.
NEEDS_VALUES: frozenset[Baseline] = frozenset({"residual", "value"})
# These compare the members of a group with each other: a group whose members earned the same teaches them nothing.
COMPARES_IN_GROUPS: frozenset[Baseline] = frozenset({"group", "leave_one_out", "residual"})

LossType = Literal["clip", "cispo"]
ImportanceLevel = Literal["step", "branch"]
LossNormalization = Literal["step", "branch", "horizon"]
