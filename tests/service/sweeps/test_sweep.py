"""What a sweep's jobs take, and what its budget allows."""

from datetime import UTC, datetime
from typing import Literal

import pytest

from service.jobs.job import Job, JobServices
from service.jobs.totals import JobTotals
from service.schemas.jobs import JobStatus
from service.schemas.sweeps import SweepStatus, TrialStatus
from service.sweeps.halving import Rung
from service.sweeps.sweep import Sweep, SweepRecord, make_trials
from tests.support import make_final_evaluation, make_plan


def make_sweep(budget_timesteps: int) -> Sweep:
    """Make a sweep of a setting with two seeds, of 128 steps each."""
    record = SweepRecord(
        sweep_id="s",
        name="s",
        request={},
        method="grid",
        env_name="CartPole-v1",
        client=None,
        seeds=[0, 1],
        max_active=2,
        budget_timesteps=budget_timesteps,
        settings=[{"gamma": 0.9}],
        rungs=[Rung(n_settings=1)],
        trials=make_trials([1], [0, 1], 0, [128]),
        created_at=datetime.now(UTC),
    )
    return Sweep(record)


def make_job() -> Job:
    job = Job(make_plan(total_timesteps=128, n_steps=64, group_size=8, horizon=8, max_restarts=1))
    job.start()
    return job


def test_steps_that_are_taken_again_count() -> None:
    sweep, job = make_sweep(300), make_job()
    first, second = sweep.record.trials
    sweep.note_job(first, job)
    sweep.observe(first, job)
    assert sweep.choose_next() is second  # 128 and 128
    job.progress.advance(64)
    assert job.restart("its worker died.")  # without a checkpoint, so that 64 steps are taken again
    sweep.observe(first, job)
    assert sweep.choose_next() is None  # 64 + 128 and 128
    job.progress.advance(128)
    assert job.settle_outcome() is JobStatus.COMPLETED
    job.finish(JobStatus.COMPLETED)
    sweep.observe(first, Job.restore(job.make_record(0, 1)))
    assert sweep.summarize().timesteps == 192
    sweep.advance()
    assert (sweep.status, sweep.record.ended_by) == (SweepStatus.COMPLETED, "budget")


def test_what_a_job_has_earned_is_noted_though_it_ended_before_it_was_looked_at() -> None:
    sweep, job = make_sweep(300), make_job()
    first = sweep.record.trials[0]
    job.record_saved_model("m", "0" * 64)
    job.finish(JobStatus.COMPLETED)
    sweep.note_job(first, job)
    assert first in sweep.list_active()  # so that it is looked at
    assert sweep.observe(first, job)
    assert (first.status, first.model_name) == (TrialStatus.COMPLETED, "m")


def test_a_job_that_goes_on_has_earned_nothing_until_it_ends() -> None:
    sweep, job = make_sweep(300), make_job()
    first = sweep.record.trials[0]
    sweep.note_job(first, job)
    job.progress.publish_final_evaluation({**make_final_evaluation(300.0).model_dump(), "success_rate": 0.5})
    job.record_saved_model("m", "0" * 64)
    job.stop()
    sweep.stop()
    job.finish(JobStatus.STOPPED)
    sweep.observe(first, job)
    figures = (first.mean_reward, first.n_episodes, first.success_rate)
    assert (first.status, *figures) == (TrialStatus.INTERRUPTED, 300.0, 2, 0.5)
    sweep.resume()
    job = job.resume(None, JobServices(JobTotals()), None)
    sweep.note_job(first, job)
    assert (first.mean_reward, first.mean_reward_ci95, first.n_episodes, first.model_name) == (None, None, None, "m")
    assert first.success_rate is None
    job.start()
    job.finish(JobStatus.COMPLETED)  # without an evaluation
    sweep.observe(first, job)
    assert (first.status, first.mean_reward) == (TrialStatus.COMPLETED, None)


@pytest.mark.parametrize(("stopped_by", "status"), [("shutdown", TrialStatus.WAITING), ("stop", TrialStatus.STOPPED)])
def test_a_job_that_the_servers_end_stops_is_gone_on_with(
    stopped_by: Literal["stop", "shutdown"], status: TrialStatus
) -> None:
    sweep, job = make_sweep(300), Job(make_plan())
    first = sweep.record.trials[0]
    job.stop(stopped_by)  # before the sweep has noted it
    sweep.note_job(first, job)
    sweep.observe(first, job)
    assert (sweep.status, first.status) == (SweepStatus.RUNNING, status)


def test_steps_of_a_job_that_could_not_go_on_count() -> None:
    sweep, job = make_sweep(300), make_job()
    first, second = sweep.record.trials
    sweep.note_job(first, job)
    job.progress.advance(100)
    sweep.observe(first, job)
    sweep.note_job(first, make_job())
    sweep.observe(first, make_job())
    assert sweep.summarize().timesteps == 100
    assert sweep.choose_next() is None  # 100 + 128 and 128
    assert Sweep(SweepRecord.model_validate_json(sweep.record.model_dump_json())).summarize().timesteps == 100
    sweep.record.budget_timesteps = 356
    assert sweep.choose_next() is second


def test_a_round_waits_for_a_job_of_an_earlier_one_that_goes_on_and_is_not_chosen_anew() -> None:
    sweep = make_sweep(10_000)
    sweep.record.rungs = [Rung(n_settings=2), Rung(n_settings=1, total_timesteps=256)]
    sweep.record.settings, sweep.record.seeds = [{"gamma": 0.9}, {"gamma": 0.8}], [0]
    sweep.record.trials = make_trials([1, 2], [0], 0, [128, 128])
    jobs = [make_job(), make_job(), make_job()]
    for trial, job, reward in zip(sweep.record.trials, jobs, (None, 100.0), strict=False):
        sweep.note_job(trial, job)
        if reward is None:
            job.stop()
            job.finish(JobStatus.STOPPED)
        else:
            job.progress.publish_final_evaluation(make_final_evaluation(reward).model_dump())
            job.finish(JobStatus.COMPLETED)
        sweep.observe(trial, job)
    assert sweep.advance()
    first, second, last = sweep.record.trials
    assert (first.status, second.status, last.setting) == (TrialStatus.STOPPED, TrialStatus.COMPLETED, 2)
    jobs[0] = jobs[0].resume(None, JobServices(JobTotals()), None)
    sweep.note_job(first, jobs[0])
    sweep.note_job(last, jobs[2])
    jobs[2].progress.publish_final_evaluation(make_final_evaluation(200.0).model_dump())
    jobs[2].finish(JobStatus.COMPLETED)
    sweep.observe(last, jobs[2])
    assert not sweep.advance()
    jobs[0].start()
    jobs[0].progress.publish_final_evaluation(make_final_evaluation(300.0).model_dump())
    jobs[0].finish(JobStatus.COMPLETED)
    sweep.observe(first, jobs[0])
    assert sweep.advance()
    assert (sweep.record.ended_by, sweep.rank()[0].number, len(sweep.record.trials)) == ("all", 2, 3)
    assert {row.number: row.mean_reward for row in sweep.rank()} == {1: 300.0, 2: 200.0}


def test_what_has_ended_needs_nothing_any_more_unless_it_may_be_promoted() -> None:
    sweep = make_sweep(10_000)
    sweep.record.settings, sweep.record.seeds = [{"gamma": 0.9}, {"gamma": 0.8}], [0]
    sweep.record.trials = make_trials([1, 2], [0], 0, [128, 128])
    first, second = sweep.record.trials
    first.status, second.status = TrialStatus.COMPLETED, TrialStatus.INTERRUPTED
    assert sweep.list_left() == {2: [second]}
    sweep.record.rungs.append(Rung(n_settings=1, total_timesteps=256))
    assert sweep.list_left() == {1: [first], 2: [second]}


def test_a_round_without_any_evaluation_ends_the_sweep() -> None:
    sweep = make_sweep(10_000)
    sweep.record.rungs = [Rung(n_settings=2), Rung(n_settings=1, total_timesteps=256)]
    sweep.record.settings, sweep.record.seeds = [{"gamma": 0.9}, {"gamma": 0.8}], [0]
    sweep.record.trials = make_trials([1, 2], [0], 0, [128, 128])
    for trial in sweep.record.trials:
        job = make_job()
        sweep.note_job(trial, job)
        job.stop()
        job.finish(JobStatus.STOPPED)
        sweep.observe(trial, job)
    assert sweep.advance()
    assert (sweep.status, sweep.record.ended_by) == (SweepStatus.COMPLETED, "no_evaluation")
    assert len(sweep.record.trials) == 2


def make_settings(n_settings: int) -> Sweep:
    """Make a sweep of several settings with two seeds."""
    sweep = make_sweep(100_000)
    sweep.record.settings = [{"gamma": 0.9 + 0.01 * number} for number in range(n_settings)]
    sweep.record.rungs = [Rung(n_settings=n_settings)]
    sweep.record.trials = make_trials(range(1, n_settings + 1), [0, 1], 0, [128] * n_settings)
    return sweep


def complete(sweep: Sweep, number: int, reward: float) -> None:
    """Have a trial end with a reward and a model."""
    trial, job = sweep.record.trials[number - 1], make_job()
    sweep.note_job(trial, job)
    job.progress.publish_final_evaluation(make_final_evaluation(reward).model_dump())
    job.record_saved_model(sweep.name_model(trial), "0" * 64)
    job.finish(JobStatus.COMPLETED)
    sweep.observe(trial, job)


def tidy(sweep: Sweep) -> list[int]:
    """Delete the models that are not to be kept; return the numbers of those that are."""
    for trial in sweep.list_surplus_models():
        trial.model_name = None
    return [trial.number for trial in sweep.record.trials if trial.model_name is not None]


@pytest.mark.parametrize("is_stopped", [False, True])
def test_a_sweep_that_has_yet_to_go_on_keeps_what_may_win(is_stopped: bool) -> None:
    sweep = make_settings(2)
    for number, reward in ((1, 100.0), (2, 110.0), (3, 500.0)):
        complete(sweep, number, reward)
    if is_stopped:
        sweep.stop()
    sweep.interrupt()
    assert tidy(sweep) == [2, 3]
    sweep.resume()
    complete(sweep, 4, 480.0)
    sweep.advance()
    best = sweep.describe().best
    assert (sweep.status, tidy(sweep)) == (SweepStatus.COMPLETED, [3])
    assert best is not None
    assert (best.setting, best.model_name) == (2, "s-03")


def test_the_best_model_that_is_left_of_the_best_setting_is_kept() -> None:
    sweep = make_settings(2)
    for number, reward in ((1, 100.0), (2, 110.0), (3, 500.0), (4, 480.0)):
        complete(sweep, number, reward)
    sweep.record.trials[2].model_name = None  # somebody has deleted it
    assert tidy(sweep) == [4]
    best = sweep.describe().best
    assert best is not None
    assert (best.setting, best.model_name) == (2, "s-04")
    sweep.record.trials[3].model_name, sweep.record.trials[1].model_name = None, "s-02"
    assert tidy(sweep) == [2]


def test_a_job_that_ends_as_it_is_looked_at_is_taken_for_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep, job = make_sweep(300), make_job()
    first = sweep.record.trials[0]
    sweep.note_job(first, job)
    statuses = [JobStatus.RUNNING]
    monkeypatch.setattr(Job, "status", property(lambda job: statuses.pop() if statuses else JobStatus.COMPLETED))
    sweep.observe(first, job)
    assert first.status is TrialStatus.RUNNING, "its figures are noted at the next look"
