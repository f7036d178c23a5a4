"""The events of a job, as they happen."""

from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass
from typing import Any

import httpx2

from grpo_client.answers.jobs import FINAL_STATUSES, TrainingStatus
from grpo_client.errors import GRPOError

TERMINAL_EVENTS = frozenset(f"job.{status}" for status in FINAL_STATUSES)


@dataclass(frozen=True)
class JobEvent:
    """An event of a job.

    :param event_id: Rises from event to event.
    :param name: Such as ``job.metrics``; the last one is ``job.completed``, ``job.failed`` or ``job.stopped``.
    :param payload: A JSON object.
    """

    event_id: int
    name: str
    payload: Mapping[str, Any]

    @property
    def is_terminal(self) -> bool:
        """Whether it is the last one."""
        return self.name in TERMINAL_EVENTS

    @property
    def final_status(self) -> TrainingStatus:
        """The job's status, which the last event carries.

        :raises GRPOError: If it is another event.
        """
        if not self.is_terminal:
            raise GRPOError(f"{self.name} is not the last event of a job and carries no status; wait for the last one.")
        return TrainingStatus.parse(self.payload)


Events = Generator[JobEvent, None, None]
AsyncEvents = AsyncGenerator[JobEvent, None]


def read_event(received: httpx2.ServerSentEvent) -> JobEvent:
    """Read an event of a stream.

    :raises GRPOError: If its id is not a number or its payload not JSON.
    """
    try:
        payload = received.json()
        event_id = int(received.id)
    except (ValueError, RecursionError) as error:
        raise GRPOError(f"the event {received.event!r} with the id {received.id!r} cannot be read.") from error
    return JobEvent(event_id, received.event, payload if isinstance(payload, dict) else {})


def make_last_event(status: TrainingStatus, event_id: int) -> JobEvent:
    """Make the last event of a job that was not read, of what it would carry.

    :param status: The job's final status.
    """
    return JobEvent(event_id, f"job.{status.status}", status.to_json())
