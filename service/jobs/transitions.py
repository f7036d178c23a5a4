"""The statuses of a job, and what leads from one to the next: all ways on, and all ways back from an interruption."""

from enum import Enum

from service.schemas.jobs import JobStatus


class JobEvent(Enum):
    """What changes a job's status, or keeps it where a status would otherwise end; its value says when that happens."""

    START = "a thread is free for it"
    COMPLETE = "its policy is saved, or the rules that end it early were met"
    FAIL = "its environment or its worker failed for good, or it hung"
    STOP = "somebody stopped it, or the server was shut down"
    RESTART = "its worker died, and another goes on from the checkpoint, at most max_restarts times"
    INTERRUPT = "its server was killed, and it with it; the next server finds that"
    REVIVE = "its server was killed, and it went on by itself; the next server follows it"
    RESUME = "a client lets it go on from the checkpoint, or from the start without one"


#: The status that follows on an event; an event that is not listed with a status cannot come there, or is refused.
TRANSITIONS = {
    (JobStatus.QUEUED, JobEvent.START): JobStatus.RUNNING,
    (JobStatus.QUEUED, JobEvent.STOP): JobStatus.STOPPED,
    (JobStatus.QUEUED, JobEvent.INTERRUPT): JobStatus.FAILED,
    (JobStatus.RUNNING, JobEvent.COMPLETE): JobStatus.COMPLETED,
    (JobStatus.RUNNING, JobEvent.FAIL): JobStatus.FAILED,
    (JobStatus.RUNNING, JobEvent.STOP): JobStatus.STOPPED,
    (JobStatus.RUNNING, JobEvent.RESTART): JobStatus.RUNNING,
    (JobStatus.RUNNING, JobEvent.INTERRUPT): JobStatus.FAILED,
    (JobStatus.RUNNING, JobEvent.REVIVE): JobStatus.RUNNING,
    (JobStatus.FAILED, JobEvent.RESUME): JobStatus.QUEUED,
    (JobStatus.STOPPED, JobEvent.RESUME): JobStatus.QUEUED,
}


def find_next(status: JobStatus, event: JobEvent) -> JobStatus | None:
    """Return the status that follows on an event; None if that cannot come now."""
    return TRANSITIONS.get((status, event))
