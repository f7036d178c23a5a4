"""The messages of a worker process to the server: JSON lists of a kind and a value.

A worker runs code of environments and reward functions, so the server unpickles nothing that a worker sends.
"""

import json
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from service.errors import ConflictError, InvalidRequestError, ServiceError, TooLargeError, printable
from service.schemas.jobs import EndedBy, EpisodeFigures, FinalEvaluation
from service.workers.task import Progress, TaskFailedError, WorkerLostError

# Errors that a worker may refuse with, by the status code it sends; others become InvalidRequestError.
_REFUSALS: dict[int, type[ServiceError]] = {error.status_code: error for error in (ConflictError, TooLargeError)}

#: Exit status of a worker whose connection the environment has closed, and of one that cannot write messages any more.
CLOSED_STATUS, BROKEN_STATUS = 113, 114


class Message(StrEnum):
    """The kinds of messages."""

    #: Pairs of the simulator steps taken so far, None if that is not known yet, and the metrics logged then.
    PROGRESS = "progress"
    #: The fields of an evaluation.
    EVALUATION = "evaluation"
    #: The fields of the evaluation of the policy that is saved.
    FINAL_EVALUATION = "final_evaluation"
    #: The description of a checkpoint; its content follows.
    CHECKPOINT = "checkpoint"
    #: A warning for the client.
    WARNING = "warning"
    #: The rule that ends the training early.
    ENDED_BY = "ended_by"
    #: The task has ended; the bytes it returned follow.
    RESULT = "result"
    #: The task failed: a description of the error.
    FAILURE = "failure"
    #: The task refused the request: the status code and the detail for the client.
    REFUSAL = "refusal"
    #: The process that ran the task has died: how, as far as known.
    LOST = "lost"


#: Messages that bytes follow.
WITH_CONTENT = (Message.RESULT, Message.CHECKPOINT)
_ENDS = (Message.RESULT, Message.FAILURE, Message.REFUSAL, Message.LOST)

_Timesteps = Annotated[int, Field(ge=0, lt=2**63)]
# What a message's value must be.
_VALUES: dict[Message, TypeAdapter[Any]] = {
    Message.PROGRESS: TypeAdapter(list[tuple[_Timesteps | None, dict[str, float]]]),
    Message.EVALUATION: TypeAdapter(EpisodeFigures),
    Message.FINAL_EVALUATION: TypeAdapter(FinalEvaluation),
    Message.CHECKPOINT: TypeAdapter(dict[str, Any]),
    Message.WARNING: TypeAdapter(str),
    Message.ENDED_BY: TypeAdapter(EndedBy),
    Message.RESULT: TypeAdapter(None),
    Message.FAILURE: TypeAdapter(str),
    Message.REFUSAL: TypeAdapter(tuple[int, str]),
    Message.LOST: TypeAdapter(str),
}


class BrokenMessageError(ValueError):
    """A message that can be read and whose value breaks a rule."""


Outcome = bytes | ServiceError | TaskFailedError


def read_message(sent: bytes) -> tuple[Message, Any]:
    """Read a message's kind and value.

    :raises ValueError: If it cannot be read; so do TypeError and RecursionError.
    :raises BrokenMessageError: If its value breaks a rule.
    """
    kind, value = json.loads(sent)
    kind = Message(kind)
    try:
        _VALUES[kind].validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(f" {part}" for part in first["loc"])
        found = printable(repr(first["input"]))
        raise BrokenMessageError(f"'{kind}'{printable(where)}: {first['msg']}, not {found}") from error
    return kind, value


def deliver(progress: Progress, kind: str, value: Any, content: bytes) -> None:
    """Report to a task's progress what a worker has sent, unless it is the end.

    :param content: The bytes that followed; empty if none do.
    """
    if kind == Message.PROGRESS:
        for timesteps, metrics in value:
            if timesteps is not None:
                progress.advance(timesteps)
            progress.publish_metrics(metrics)
    elif kind == Message.EVALUATION:
        progress.publish_evaluation(value)
    elif kind == Message.FINAL_EVALUATION:
        progress.publish_final_evaluation(value)
    elif kind == Message.CHECKPOINT:
        progress.publish_checkpoint(value, content)
    elif kind == Message.WARNING:
        progress.publish_warning(value)
    elif kind == Message.ENDED_BY:
        progress.publish_ended_by(value)


def read_outcome(kind: str, value: Any, content: bytes) -> Outcome | None:
    """Return how a task has ended if a message says so: its bytes, or the error to raise; None if it says nothing."""
    if kind not in _ENDS:
        return None
    if kind == Message.RESULT:
        return content
    if kind == Message.REFUSAL:
        status_code, detail = value
        return _REFUSALS.get(status_code, InvalidRequestError)(detail)
    return WorkerLostError(value) if kind == Message.LOST else TaskFailedError(value)
