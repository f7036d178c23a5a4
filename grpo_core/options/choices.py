"""What the named arguments of GRPO may be: plain types, so that who only checks requests imports no torch.

What the values mean is said where they are used: see ``grpo_core.groups.advantage``, ``losses`` and ``collection``.
"""

from typing import Literal

GroupMode = Literal["branch", "episode", "action"]

Baseline = Literal["none", "batch", "timestep", "group", "leave_one_out", "residual", "value"]
Supervision = Literal["process", "outcome"]
AdvantageScaling = Literal["group", "batch", "none"]

LossType = Literal["clip", "cispo"]
ImportanceLevel = Literal["step", "branch"]
LossNormalization = Literal["step", "branch", "horizon"]
