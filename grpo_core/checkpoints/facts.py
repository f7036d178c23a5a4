"""What a checkpoint says without being opened as a model, which the service reads without torch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from grpo_core.saving import model_file

FORMAT = "grpo-checkpoint/2"
# Members of the file.
FACTS_MEMBER, MODEL_MEMBER, ATTACHED = model_file.CHECKPOINT_MEMBER, "model.zip", "attachments/"
# More than the model, its reference, its best one and the largest state that is described: of a script's training, and
# of a server's job.
MAX_FILE_BYTES = 4 * model_file.LIBRARY_LIMITS.file_bytes
MAX_JOB_BYTES = 4 * model_file.SERVICE_LIMITS.file_bytes


class Caveat(NamedTuple):
    """Why a training may go on in another way than it would have.

    :param reason: What could not be kept.
    :param is_certain: Whether it will; otherwise that depends on the environment.
    """

    reason: str
    is_certain: bool


def read_caveat(described: Sequence[Any] | None) -> Caveat | None:
    """Read the fact ``caveat``; None without one.

    :raises TypeError: If it is neither None nor a reason and whether it is certain.
    """
    return None if described is None else Caveat(*described)


def is_exact(caveat: Caveat | None) -> bool | None:
    """Tell whether a training goes on as it would have; None if that depends on the environment."""
    if caveat is None:
        return True
    return False if caveat.is_certain else None
