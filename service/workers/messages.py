"""What a worker process tells the server: JSON lists of a kind and a value.

A worker runs code of environments and reward functions, so the server unpickles nothing that a worker sends.
"""

from enum import StrEnum


class Message(StrEnum):
    """The kinds of messages."""

    #: Simulator steps taken, each with the metrics that came after them.
    PROGRESS = "progress"
    #: The fields of an evaluation.
    EVALUATION = "evaluation"
    #: The rule that ends the work early.
    CONCLUSION = "conclusion"
    #: The task has ended; what it made follows as bytes.
    RESULT = "result"
    #: The task raised an error of somebody else's code.
    FAILURE = "failure"
    #: The task refused, in words made for the client: the status code and the detail.
    REFUSAL = "refusal"
