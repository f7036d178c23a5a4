"""Checkpoints of a job are taken where its training can go on."""

import json
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest

from grpo_core.checkpoints import checkpoint
from grpo_core.checkpoints.checkpoint import CheckpointError
from grpo_core.checkpoints.facts import FACTS_MEMBER, Caveat
from grpo_core.saving import model_file
from service.jobs.job import Job, JobServices
from service.jobs.records.checkpoints import CheckpointFolder
from service.jobs.totals import JobTotals
from service.training.order import FINISHED, TrainingOrder
from service.training.train import train_policy
from tests.service.training.jobs import Clock
from tests.support import Recorder, make_plan

pytestmark = pytest.mark.usefixtures("ample_time")

REQUEST = {"total_timesteps": 640, "n_steps": 64, "seed": 0, "n_eval_episodes": 2, "checkpoint_every": 128}
JOB_ID = "00000000-0000-0000-0000-000000000000"


class StopsInUpdate(Recorder):
    """Stops a training in the middle of an update: several reports of the same steps tell of one."""

    def advance(self, current_timesteps: int) -> None:
        super().advance(current_timesteps)
        if len(self.steps) > 3 and current_timesteps > 256 and len(set(self.steps[-3:])) == 1:
            self._stop()


class FailsAt(Recorder):
    """Ends a training with an error after a number of steps."""

    def advance(self, current_timesteps: int) -> None:
        super().advance(current_timesteps)
        if current_timesteps > 300:
            raise RuntimeError("the pipe is broken")


def run(recorder: Recorder, checkpoint: bytes | None = None, **request: Any) -> bytes:
    config = make_plan(**REQUEST | {"env_name": "FrozenLake-v1"} | request).config.model_copy(
        update={"model_name": "a"}
    )
    return train_policy(TrainingOrder(config, None, checkpoint=checkpoint), recorder)


def is_finished(content: bytes) -> bool:
    """Say whether training is over in a checkpoint, and only evaluations are left."""
    return FINISHED in checkpoint.from_bytes(content).attachments


def test_one_is_published_at_the_first_rollout_after_each_number_of_steps() -> None:
    recorder = Recorder()
    run(recorder)
    described = [described for described, _ in recorder.checkpoints]
    timesteps = [one["timesteps"] for one in described]
    assert [step // 128 for step in timesteps[:-1]] == [1, 2, 3, 4]
    assert [is_finished(content) for _, content in recorder.checkpoints] == [False, False, False, False, True]
    assert all(one["exact"] is True and one["note"] is None for one in described)


def test_the_rows_after_a_checkpoint_are_those_that_would_have_been() -> None:
    whole, resumed = Recorder(), Recorder()
    run(whole)
    run(resumed, whole.checkpoints[1][1])
    rows, after = (
        [{key: value for key, value in row.items() if not key.startswith("time/")} for row in recorder.metrics]
        for recorder in (whole, resumed)
    )
    assert "train/loss" in after[0]
    assert after == rows[-len(after) :]


def test_a_stop_within_an_update_leaves_the_checkpoint_before_it() -> None:
    stopped = StopsInUpdate()
    run(stopped)
    described, content = stopped.checkpoints[-1]
    assert not is_finished(content)
    assert described["timesteps"] < stopped.steps[-1] < 640
    assert run(Recorder(), content) == run(Recorder())


def test_an_error_publishes_what_was_taken_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "checkpoint_callback")

    class Ticks(FailsAt):
        def publish_metrics(self, metrics: Any) -> None:
            clock.seconds += 2.0  # each rollout takes that long

    recorder = Ticks()
    with pytest.raises(RuntimeError, match="the pipe is broken"):
        run(recorder, checkpoint_every=None)
    (described, content) = recorder.checkpoints[0]
    assert 0 < described["timesteps"] <= 300
    assert run(Recorder(), content, checkpoint_every=None) == run(Recorder(), checkpoint_every=None)


def test_by_the_clock_one_a_minute_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "checkpoint_callback")

    class Ticks(Recorder):
        def publish_metrics(self, metrics: Any) -> None:
            clock.seconds += 13.0

        def publish_checkpoint(self, described: Any, content: bytes) -> None:
            published.append(clock.seconds)

    published: list[float] = []
    run(Ticks(), checkpoint_every=None)
    *gaps, _ = np.diff([0.0, *published])  # the last one says that training is over
    assert len(gaps) >= 2
    assert all(60.0 <= gap < 100.0 for gap in gaps)


@pytest.mark.parametrize("take_seconds", [0.0, 0.7, 5.0])
@pytest.mark.parametrize("rollout_seconds", [4.0, 13.0])
def test_from_the_first_minute_on_a_killed_server_costs_at_most_a_minute_and_a_rollout(
    monkeypatch: pytest.MonkeyPatch, take_seconds: float, rollout_seconds: float
) -> None:
    clock, take = Clock(monkeypatch, "checkpoint_callback", "evaluation.work_time"), checkpoint.take
    taken_at: dict[int, float] = {}
    kept_at = 0.0
    ages: list[float] = []

    def take_slowly(model: Any, *rest: Any) -> Any:
        taken_at[model.num_timesteps] = clock.seconds
        clock.seconds += take_seconds
        return take(model, *rest)

    class Ticks(Recorder):
        def publish_metrics(self, metrics: Any) -> None:
            if "rollout/zero_std_group_fraction" in metrics:
                clock.seconds += rollout_seconds
                ages.append(clock.seconds - kept_at)

        def publish_checkpoint(self, described: Any, content: bytes) -> None:
            nonlocal kept_at
            kept_at = taken_at[described["timesteps"]]

    monkeypatch.setattr(checkpoint, "take", take_slowly)
    n_rollouts = 50 if rollout_seconds < 5.0 else 20
    run(Ticks(), checkpoint_every=None, total_timesteps=64 * n_rollouts, n_eval_episodes=0)
    assert len(ages) > 15
    assert 60.0 <= max(ages) <= 60.0 + 2 * rollout_seconds + 2 * take_seconds


def test_taking_them_costs_its_share_of_the_processor_whatever_else_the_machine_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, take = Clock(monkeypatch, "checkpoint_callback"), checkpoint.take
    taken_at: list[float] = []

    def take_on_a_busy_machine(*arguments: Any) -> Any:
        taken_at.append(clock.seconds)
        clock.seconds += 1.5  # and next to no work
        return take(*arguments)

    class Ticks(Recorder):
        def publish_metrics(self, metrics: Any) -> None:
            clock.seconds += 5.0

    monkeypatch.setattr(checkpoint, "take", take_on_a_busy_machine)
    run(Ticks(), checkpoint_every=None, n_eval_episodes=0)
    assert len(taken_at) > 5


def test_a_checkpoint_says_when_it_was_taken_not_when_it_was_kept(tmp_path: Path) -> None:
    before = datetime.now(UTC)
    recorder = Recorder(stop_after=400)
    run(recorder)
    described, content = recorder.checkpoints[-1]
    folder = CheckpointFolder(tmp_path, is_active=lambda job_id: True)
    folder.write(JOB_ID, content)
    config = make_plan(**REQUEST, env_name="FrozenLake-v1").config.model_copy(update={"model_name": "a"})
    known = folder.describe(JOB_ID, config)
    assert known is not None
    assert before < known.created_at == datetime.fromisoformat(described["created_at"])
    job = Job(make_plan(), JobServices(JobTotals(), checkpoints=folder))
    job.start()
    job.progress.publish_checkpoint(described, content)
    assert job.state.checkpoint == known


def test_a_finished_one_holds_the_model_and_only_evaluations_follow() -> None:
    recorder, again = Recorder(), Recorder()
    content = run(recorder)
    taken = checkpoint.from_bytes(recorder.checkpoints[-1][1])
    finished = model_file.from_bytes(taken.attachments["finished"])
    assert finished.meta["num_timesteps"] == taken.timesteps >= 640
    assert run(again, recorder.checkpoints[-1][1]) == content
    assert set(again.steps) == {taken.timesteps}
    assert len(again.final_evaluations) == 1


def test_the_best_policy_and_the_rules_go_on() -> None:
    request: dict[str, Any] = {"eval_freq": 100, "keep_best": True, "patience": 100, "total_timesteps": 1000}
    whole = Recorder()
    content = run(whole, **request)
    resumed = Recorder()
    assert run(resumed, whole.checkpoints[2][1], **request) == content
    assert [*whole.evaluations][-len(resumed.evaluations) :] == resumed.evaluations


def test_the_time_before_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, "stop_rules")

    class Ticks(Recorder):
        def publish_metrics(self, metrics: Any) -> None:
            clock.seconds += 1.0

    whole = Ticks()
    run(whole, max_seconds=6.5)
    assert whole.ended_by == ["max_seconds"]
    resumed = Ticks()
    run(resumed, whole.checkpoints[0][1], max_seconds=6.5)
    assert resumed.ended_by == ["max_seconds"]
    assert resumed.steps[-1] == whole.steps[-1]
    finished = Ticks()
    run(finished, whole.checkpoints[-1][1], max_seconds=6.5)
    assert finished.ended_by == ["max_seconds"]  # a resume has forgotten it


def test_a_checkpoint_of_another_job_is_refused() -> None:
    recorder = Recorder()
    run(recorder)
    with pytest.raises(CheckpointError, match="of a job with another configuration"):
        run(Recorder(), recorder.checkpoints[0][1], net_arch=[8])


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from() -> None:
    recorder = Recorder()
    content = run(recorder)
    earlier = BytesIO()
    with ZipFile(BytesIO(recorder.checkpoints[0][1])) as archive, ZipFile(earlier, "w") as written:
        for name in archive.namelist():
            member = archive.read(name)
            if name == FACTS_MEMBER:
                facts = json.loads(member)
                del facts["own"]["config"]["fill_rollouts"]
                member = json.dumps(facts).encode()
            written.writestr(name, member)
    assert run(Recorder(), earlier.getvalue()) == content


def test_what_a_checkpoint_could_not_keep_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before, after, restore = Recorder(), Recorder(), checkpoint.restore

    def lose_moments(model: Any, taken: checkpoint.Checkpoint) -> Caveat:
        restore(model, taken)
        return Caveat("the optimizer's moments are not kept", is_certain=True)

    run(before)
    described, content = before.checkpoints[0]
    monkeypatch.setattr(checkpoint, "restore", lose_moments)
    run(after, content)
    (warning,) = (each for each in after.warnings if "went on" in each)
    assert warning == (
        f"training went on from step {described['timesteps']:,}, but not exactly as before: the optimizer's moments "
        "are not kept."
    )


def test_code_of_the_environment_that_fails_costs_the_checkpoints_and_not_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("not today")

    monkeypatch.setattr(checkpoint, "take", fail)
    recorder = Recorder()
    assert run(recorder)
    assert recorder.checkpoints == []
    assert [warning for warning in recorder.warnings if "no checkpoint can be taken" in warning] == [
        "no checkpoint can be taken, so an interruption loses the job: RuntimeError: not today"
    ]
