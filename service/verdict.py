"""Whether a job is learning, said so that a newcomer understands it."""

from service.schemas import JobStatus, Verdict


def judge(status: JobStatus, current_timesteps: int) -> Verdict:
    """Judge a job.

    :param status: Where it is.
    :param current_timesteps: Simulator steps taken.
    """
    if status is JobStatus.QUEUED:
        return Verdict(state="waiting", text="The job waits for its turn.")
    if status is JobStatus.FAILED:
        return Verdict(state="failed", text="The job failed; error_message says why.")
    if current_timesteps == 0:
        return Verdict(state="starting", text="The job has begun, and there is nothing to judge yet.")
    return Verdict(state="steady", text="The job is training; its curve says more.")
