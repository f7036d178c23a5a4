"""A model as it is served, and what reading its file found."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from grpo_core.actor.actor import Actor
from grpo_core.actor.single import SingleActor, can_act_singly
from service.models.files.folder import FileSignature
from service.schemas.models import ModelStatus

_MAX_VALUE_SCALE = 1e12


@dataclass(frozen=True, eq=False)
class ServedModel:
    """A policy ready to answer; never the object that is being trained.

    :param signature: Signature of its file.
    :param rng: Draws stochastic actions; NumPy's generators lock themselves, so threads may share it.
    :param value_scale: Turns the value network's output into a return in units of the rewards; None if its values were
        never found meaningful, and are not to be shown.
    :param single: Decides for one observation at a time; None where only the actor can.
    """

    name: str
    actor: Actor
    meta: dict[str, Any]
    signature: FileSignature
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    value_scale: float | None = field(init=False)
    single: SingleActor | None = field(init=False)

    def __post_init__(self) -> None:
        single = SingleActor(self.actor) if can_act_singly(self.actor) else None
        object.__setattr__(self, "single", single)
        object.__setattr__(self, "value_scale", _find_value_scale(self.meta.get("value_check")))

    @property
    def n_bytes(self) -> int:
        """Memory its weights take."""
        return 4 * self.actor.n_parameters


class InspectedFile(NamedTuple):
    """A model file that was read in full.

    :param sha256: None if the file exceeds the size limit.
    :param model: None if the file cannot be used.
    """

    status: ModelStatus
    signature: FileSignature
    sha256: str | None
    model: ServedModel | None


def _find_value_scale(check: Any) -> float | None:
    """Return the scale that a file's check of values gives, if it found them meaningful."""
    if not isinstance(check, dict) or check.get("is_meaningful") is not True:
        return None
    scale = check.get("reward_scale")
    # A file may claim anything; larger numbers could make a value infinite.
    return scale if isinstance(scale, float) and 0.0 < scale < _MAX_VALUE_SCALE else None
