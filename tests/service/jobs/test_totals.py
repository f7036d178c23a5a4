"""The totals start at zero and count from any thread."""

from concurrent.futures import ThreadPoolExecutor

from service.jobs.totals import JobTotals
from service.schemas.jobs import JobStatus


def test_it_begins_with_nothing_and_counts_from_any_thread() -> None:
    totals = JobTotals()
    nothing = {JobStatus.COMPLETED: 0, JobStatus.FAILED: 0, JobStatus.STOPPED: 0}
    assert (totals.n_timesteps, totals.n_ended) == (0, nothing)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(totals.add_timesteps, range(1000)))
        list(pool.map(totals.add_end, [JobStatus.FAILED] * 500))
    assert totals.n_timesteps == 999 * 1000 / 2
    assert totals.n_ended == {**nothing, JobStatus.FAILED: 500}
