"""The messages of a worker process to the server: JSON lists of a kind and a value.

A worker runs code of environments and reward functions, so the server unpickles nothing that a worker sends.
"""

from enum import StrEnum


class Message(StrEnum):
    """The kinds of messages."""

    #: Pairs of the simulator steps taken so far and the metrics logged then.
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
