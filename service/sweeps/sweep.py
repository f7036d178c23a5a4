"""One sweep: its settings and jobs, which of them is next, and when it is over."""

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from service.jobs.job import Job
from service.schemas.jobs import JobStatus
from service.schemas.sweeps import (
    SettingRow,
    SweepDescription,
    SweepMethod,
    SweepRequest,
    SweepStatus,
    SweepSummary,
    Trial,
    TrialStatus,
)
from service.schemas.training import TrainConfig, TrainRequest
from service.sweeps.halving import Rung, choose_promoted
from service.sweeps.ranking import choose_best, find_best_trial, rank_settings
from service.sweeps.space import make_train_request

EndedBy = Literal["all", "budget", "no_evaluation", "stop", "restart"]


class TrialSteps(BaseModel):
    """Simulator steps of a trial that its job does not show, but that count against the sweep's budget.

    :param planned: What its job takes in whole rollouts; None before it was planned.
    :param repeated: Those that its job has taken again, since a worker or the server had died.
    :param earlier: Those of its earlier jobs, which could not go on.
    """

    planned: int | None = None
    repeated: int = 0
    earlier: int = 0


class SweepRecord(BaseModel):
    """All of a sweep, as it is written down.

    :param request: What was sent, without what was left out.
    :param client: Whose it is; None if clients are not limited.
    :param trials: All jobs, past and planned ones.
    :param init_sha256: SHA-256 of the files that jobs begin from, by the names they had when it was accepted.
    :param steps: What trials have taken or will take, by number, for the budget.
    """

    sweep_id: str
    name: str
    request: dict[str, Any]
    method: SweepMethod
    env_name: str
    client: str | None
    seeds: list[int]
    max_active: int
    budget_timesteps: int | None
    settings: list[dict[str, Any]]
    rungs: list[Rung]
    trials: list[Trial]
    created_at: datetime
    status: SweepStatus = SweepStatus.RUNNING
    ended_by: EndedBy | None = None
    end_time: datetime | None = None
    steps: dict[int, TrialSteps] = {}
    init_sha256: dict[str, str] = {}


class Sweep:
    """A sweep. Its conductor guards it.

    :param record: What is known of it.
    """

    def __init__(self, record: SweepRecord) -> None:
        self.record = record
        #: What the next job waits for.
        self.held_by: str | None = None
        # The ranking, and what it was made of.
        self._ranking: tuple[list[tuple[TrialStatus, float | None]], list[SettingRow]] | None = None

    @property
    def sweep_id(self) -> str:
        """Its id."""
        return self.record.sweep_id

    @property
    def status(self) -> SweepStatus:
        """Its status."""
        return self.record.status

    @property
    def may_promote(self) -> bool:
        """Whether a rung is left that settings may be promoted to."""
        return self._get_rung() < len(self.record.rungs) - 1

    def list_active(self) -> list[Trial]:
        """List the trials that are jobs which have not ended."""
        return [trial for trial in self.record.trials if trial.status.is_active]

    def choose_next(self) -> Trial | None:
        """Return the trial to start next; None if none may start now."""
        if self.status is not SweepStatus.RUNNING or len(self.list_active()) >= self.record.max_active:
            return None
        waiting = (trial for trial in self.record.trials if trial.status is TrialStatus.WAITING)
        return next((trial for trial in waiting if self._fits_budget(trial)), None)

    def get_steps(self, trial: Trial) -> TrialSteps:
        """Return what is known of a trial's steps beside those that its job shows."""
        return self.record.steps.get(trial.number, TrialSteps())

    def plan_steps(self, trial: Trial, config: TrainConfig) -> bool:
        """Note what a trial's job will take; return whether the budget allows it."""
        planned = {"planned": config.planned_timesteps}
        self.record.steps[trial.number] = self.get_steps(trial).model_copy(update=planned)
        return self._fits_budget(trial)

    def make_request(self, trial: Trial, replace: bool) -> TrainRequest:
        """Return the request for a trial's job.

        :param replace: Whether the job may replace a model.
        :raises ValidationError: If the sweep was written by a version with other fields.
        """
        fields = {
            **self.record.settings[trial.setting - 1],
            "seed": trial.seed,
            "total_timesteps": trial.total_timesteps,
            "model_name": self.name_model(trial),
            "replace": replace,
        }
        return make_train_request(SweepRequest.model_validate(self.record.request).base, fields)

    def name_model(self, trial: Trial) -> str:
        """Return the name that a trial saves its model under."""
        return name_model(self.record.name, trial.number, self._count_jobs())

    def note_job(self, trial: Trial, job: Job) -> None:
        """Note that a trial has become a job, or goes on; how that has ended, if it has, ``observe`` notes."""
        if trial.job_id not in (None, job.job_id):  # its earlier job could not go on
            before = self.get_steps(trial)
            self.record.steps[trial.number] = TrialSteps(planned=before.planned, earlier=count_taken(trial, before))
            trial.current_timesteps = 0
        status = TrialStatus.QUEUED if job.status is JobStatus.QUEUED else TrialStatus.RUNNING
        trial.job_id, trial.status, trial.error_message = job.job_id, status, None
        trial.mean_reward = trial.mean_reward_ci95 = None  # an interrupted policy's
        trial.n_episodes = trial.success_rate = None

    def note_refusal(self, trial: Trial, detail: str) -> None:
        """Note that a trial cannot become a job."""
        trial.status, trial.error_message = TrialStatus.FAILED, detail

    def observe(self, trial: Trial, job: Job | None) -> bool:
        """Note how a trial's job is; return whether its status has changed.

        :param job: None if it is forgotten.
        """
        before = trial.status
        if job is not None:
            self.record.steps[trial.number] = self.get_steps(trial).model_copy(
                update={"planned": job.config.planned_timesteps, "repeated": job.state.repeated_timesteps}
            )
        if job is None:
            self.note_refusal(trial, "the server has forgotten its job")
        elif (status := job.status).is_final:  # read once, as it may end now
            self._note_end(trial, job)
        else:
            trial.status, trial.current_timesteps = TrialStatus(status), job.summarize().current_timesteps
        return trial.status is not before

    def _note_end(self, trial: Trial, job: Job) -> None:
        end = job.describe()
        trial.current_timesteps, trial.error_message = end.current_timesteps, end.error_message
        trial.model_name, trial.sha256 = end.model_name, end.sha256
        if end.final_evaluation is not None:
            trial.mean_reward = end.final_evaluation.mean_reward
            trial.mean_reward_ci95 = end.final_evaluation.mean_reward_ci95
            trial.n_episodes = end.final_evaluation.n_episodes
            trial.success_rate = end.final_evaluation.success_rate
        trial.status = TrialStatus(end.status)
        if end.status is JobStatus.STOPPED and self.status is not SweepStatus.RUNNING:
            trial.status = TrialStatus.INTERRUPTED
        elif end.status is JobStatus.STOPPED and end.ended_by == "shutdown":  # not by hand: it goes on
            trial.status = TrialStatus.WAITING

    def advance(self) -> bool:
        """Go on to the next rung, or end, if no job is left to wait for; return whether anything has changed."""
        if not self.status.is_active or self.list_active():
            return False
        if self.status is SweepStatus.STOPPING:
            self._end(SweepStatus.STOPPED, "stop")
            return True
        waiting = [trial for trial in self.record.trials if trial.status is TrialStatus.WAITING]
        if any(map(self._fits_budget, waiting)):
            return False
        for trial in waiting:
            trial.status = TrialStatus.SKIPPED
        if waiting:
            self._end(SweepStatus.COMPLETED, "budget")
        elif self.may_promote:
            self._promote()
        else:
            self._end(SweepStatus.COMPLETED, "all")
        return True

    def stop(self) -> None:
        """Start no more jobs."""
        self.record.status, self.record.ended_by, self.record.end_time = SweepStatus.STOPPING, None, None
        self.held_by = None

    def interrupt(self) -> None:
        """Note that the server which ran it has ended."""
        was_stopping = self.status is SweepStatus.STOPPING
        status = SweepStatus.STOPPED if was_stopping else SweepStatus.INTERRUPTED
        self._end(status, "stop" if was_stopping else "restart")
        for trial in self.list_active():
            trial.status = TrialStatus.INTERRUPTED

    def resume(self) -> None:
        """Go on with what was not done."""
        for trial in self.record.trials:
            if trial.status is TrialStatus.INTERRUPTED:
                trial.status = TrialStatus.WAITING
        self.record.status, self.record.ended_by, self.record.end_time = SweepStatus.RUNNING, None, None

    def list_left(self) -> dict[int, list[Trial]]:
        """List the trials that a resume goes on with, or whose settings may be promoted then, by their settings."""
        rung, may_promote = self._get_rung(), self.may_promote
        left: dict[int, list[Trial]] = {}
        for trial in self.record.trials:
            if not trial.status.is_final or (may_promote and trial.rung == rung):
                left.setdefault(trial.setting, []).append(trial)
        return left

    def rank(self) -> list[SettingRow]:
        """Return a row per setting, the best first."""
        figures = [(trial.status, trial.mean_reward) for trial in self.record.trials]
        if self._ranking is None or self._ranking[0] != figures:
            self._ranking = figures, rank_settings(self.record.settings, self.record.trials)
        return self._ranking[1]

    def list_surplus_models(self) -> list[Trial]:
        """List the trials whose models are not to be kept.

        Until it is complete, a setting keeps its models until all its seeds are evaluated, since it may turn out best.
        """
        rows = self.rank()
        best = next(filter(None, map(find_best_trial, rows)), None)
        if best is None or self.record.request.get("keep", "best") != "best":
            return []
        return [
            trial
            for row in rows
            for trial in row.trials
            if trial.model_name is not None
            and trial is not best
            and not trial.status.is_active
            and (self.status is SweepStatus.COMPLETED or _is_whole(row, trial))
        ]

    def summarize(self, rows: Sequence[SettingRow] | None = None) -> SweepSummary:
        """Return its line in the list of sweeps."""
        record, rows = self.record, self.rank() if rows is None else rows
        return SweepSummary(
            sweep_id=record.sweep_id,
            name=record.name,
            status=record.status,
            method=record.method,
            env_name=record.env_name,
            created_at=record.created_at,
            end_time=record.end_time,
            n_settings=len(record.settings),
            counts=dict(Counter(trial.status for trial in record.trials)),
            timesteps=sum(count_taken(trial, self.get_steps(trial)) for trial in record.trials),
            best_mean_reward=rows[0].mean_reward if rows else None,
        )

    def describe(self) -> SweepDescription:
        """Return a full description of it."""
        # Copies, since the trials go on changing.
        rows = [row.model_copy(deep=True) for row in self.rank()]
        return SweepDescription(
            **self.summarize(rows).model_dump(),
            request=self.record.request,
            ended_by=self.record.ended_by,
            held_by=self.held_by,
            settings=rows,
            best=choose_best(rows),
        )

    def _fits_budget(self, trial: Trial) -> bool:
        if self.record.budget_timesteps is None:
            return True
        counted = (
            (count_expected if other is trial or other.status.is_active else count_taken)(other, self.get_steps(other))
            for other in self.record.trials
        )
        return sum(counted) <= self.record.budget_timesteps

    def _get_rung(self) -> int:
        return max((trial.rung for trial in self.record.trials), default=0)

    def _promote(self) -> None:
        number = self._get_rung() + 1
        rung = self.record.rungs[number]
        settings = choose_promoted(self.rank(), number - 1, rung.n_settings)
        if not settings:
            self._end(SweepStatus.COMPLETED, "no_evaluation")
            return
        assert rung.total_timesteps is not None, "halving sets it"
        timesteps = [rung.total_timesteps] * len(settings)
        self.record.trials += make_trials(settings, self.record.seeds, number, timesteps, self.record.trials)

    def _count_jobs(self) -> int:
        return len(self.record.seeds) * sum(rung.n_settings for rung in self.record.rungs)

    def _end(self, status: SweepStatus, ended_by: EndedBy) -> None:
        self.record.status, self.record.ended_by, self.held_by = status, ended_by, None
        self.record.end_time = datetime.now(UTC)


def make_trials(
    settings: Sequence[int], seeds: Sequence[int], rung: int, timesteps: Sequence[int], before: Sequence[Trial] = ()
) -> list[Trial]:
    """Make the trials of a rung, those of a setting one after the other.

    :param settings: Numbers of the settings.
    :param timesteps: Steps of each setting's jobs.
    :param before: The trials of the sweep so far.
    """
    pairs = [(number, n, seed) for number, n in zip(settings, timesteps, strict=True) for seed in seeds]
    return [
        Trial(number=len(before) + place, setting=number, rung=rung, seed=seed, total_timesteps=n)
        for place, (number, n, seed) in enumerate(pairs, 1)
    ]


def name_model(sweep_name: str, number: int, n_jobs: int) -> str:
    """Return the name of a job's model.

    :param number: The job's number in the sweep.
    :param n_jobs: How many the sweep has.
    """
    return f"{sweep_name}-{number:0{max(2, len(str(n_jobs)))}}"


def count_taken(trial: Trial, steps: TrialSteps) -> int:
    """Return the simulator steps that a trial has taken so far."""
    return trial.current_timesteps + steps.repeated + steps.earlier


def count_expected(trial: Trial, steps: TrialSteps) -> int:
    """Return the simulator steps that a trial will have taken when it is done, if nothing interrupts it."""
    return max(steps.planned or trial.total_timesteps, trial.current_timesteps) + steps.repeated + steps.earlier


def _is_whole(row: SettingRow, trial: Trial) -> bool:
    """Return whether nothing more can come of a setting on a trial's rung."""
    return all(
        other.status in (TrialStatus.COMPLETED, TrialStatus.FAILED, TrialStatus.STOPPED)
        for other in row.trials
        if other.rung == trial.rung
    )
