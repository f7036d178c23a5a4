"""The statuses of a job, and the events that lead from one to the next.

What happens after a server was killed is no event of a job: ``JobJournal.interrupt_active`` notes that its jobs have
failed, and ``Job.revive`` follows those that went on without it.
"""

from enum import Enum

from service.schemas.jobs import JobStatus


class JobEvent(Enum):
    """What changes a job's status, or keeps it where a status would otherwise end; its value says when that happens."""

    START = "a thread is free for it"
    COMPLETE = "its policy is saved, or the rules that end it early were met"
    FAIL = "its environment or its worker failed for good, or it hung"
    STOP = (
        "a client stopped it, or the server was shut down; one that was resumed and has not begun is as it was before"
    )
    RESTART = "its worker died, and another goes on from the checkpoint, at most max_restarts times"
    RESUME = "a client lets it go on from the checkpoint, or from the start without one"


#: The status that follows on an event; an event that is not listed with a status cannot come there, or is refused.
TRANSITIONS = {
    (JobStatus.QUEUED, JobEvent.START): JobStatus.RUNNING,
    (JobStatus.QUEUED, JobEvent.STOP): JobStatus.STOPPED,
    (JobStatus.RUNNING, JobEvent.COMPLETE): JobStatus.COMPLETED,
    (JobStatus.RUNNING, JobEvent.FAIL): JobStatus.FAILED,
    (JobStatus.RUNNING, JobEvent.STOP): JobStatus.STOPPED,
    (JobStatus.RUNNING, JobEvent.RESTART): JobStatus.RUNNING,
    (JobStatus.FAILED, JobEvent.RESUME): JobStatus.QUEUED,
    (JobStatus.STOPPED, JobEvent.RESUME): JobStatus.QUEUED,
}


def find_next(status: JobStatus, event: JobEvent) -> JobStatus | None:
    """Return the status that follows on an event; None if that cannot come now."""
    return TRANSITIONS.get((status, event))
