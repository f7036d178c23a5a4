"""Following a training over HTTP."""

import csv
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from grpo_core.saving import model_file
from service.settings import Settings
from tests.conftest import RegisterEnv
from tests.environments import Gate, LineEnv
from tests.support import get_status, train, train_to_end, wait_until

SHORT: dict[str, Any] = {"total_timesteps": 128, "seed": 0}


class TestTheHistory:
    def test_every_rollout_has_a_row(self, client: TestClient) -> None:
        status = train_to_end(client, **SHORT)
        history = client.get(f"/training/{status['job_id']}/metrics").json()
        assert history.keys() == {"job_id", "keys", "rows", "evaluations", "final_evaluation"}
        assert history["job_id"] == status["job_id"]
        # Whether time allows any on the way depends on the machine.
        assert [None, *history["evaluations"]][-1] == status["evaluation"]
        # A row per rollout, and one for the last update.
        rollouts = [row for row in history["rows"] if "rollout/reward_mean" in row["metrics"]]
        assert len(history["rows"]) == len(rollouts) + 1 == status["metrics"]["train/n_updates"] / 10 + 1
        timesteps = [row["timesteps"] for row in history["rows"]]
        assert 0 < timesteps[0] <= 32
        assert all(0 < later - earlier <= 32 for earlier, later in itertools.pairwise(timesteps[:-1]))
        assert timesteps[-2:] == [status["current_timesteps"]] * 2
        elapsed = [row["elapsed_seconds"] for row in history["rows"]]
        assert elapsed == sorted(elapsed)
        assert 0.0 < elapsed[0] < elapsed[-1] <= status["elapsed_seconds"]
        assert history["keys"] == sorted(status["metrics"])
        assert history["rows"][-1]["metrics"].items() <= status["metrics"].items()

    def test_the_table_says_the_same(self, client: TestClient) -> None:
        job_id = train_to_end(client, **SHORT)["job_id"]
        history = client.get(f"/training/{job_id}/metrics").json()
        response = client.get(f"/training/{job_id}/metrics?format=csv")
        assert response.headers["content-type"].startswith("text/csv")
        assert response.headers["content-disposition"] == f'attachment; filename="{job_id}.csv"'
        lines = list(csv.DictReader(io.StringIO(response.text)))
        assert list(lines[0]) == ["timesteps", "elapsed_seconds", *history["keys"]]
        for line, row in zip(lines, history["rows"], strict=True):
            told = {key: float(line[key]) for key in history["keys"] if line[key] != ""}
            assert told == row["metrics"]
            assert (int(line["timesteps"]), float(line["elapsed_seconds"])) == (
                row["timesteps"],
                row["elapsed_seconds"],
            )

    def test_another_format_is_refused(self, client: TestClient) -> None:
        train_to_end(client, **SHORT)
        response = client.get("/training/latest/metrics?format=xml")
        assert response.status_code == 422
        assert "'json' or 'csv'" in response.json()["detail"]


def test_the_job_submitted_last_is_found_without_its_id(client: TestClient) -> None:
    missing = client.get("/training/latest/status")
    assert missing.status_code == 404
    assert "POST /train" in missing.json()["detail"]
    train_to_end(client, **SHORT)
    last = train_to_end(client, **SHORT)
    assert get_status(client, "latest") == last
    assert client.get("/training/latest/metrics").json()["job_id"] == last["job_id"]
    conflict = client.post("/training/latest/stop")
    assert conflict.status_code == 409
    assert last["job_id"] in conflict.json()["detail"]


class TestEvaluating:
    def test_evaluations_are_seen_everywhere(self, client: TestClient) -> None:
        request = {"total_timesteps": 640, "seed": 0, "eval_freq": 200, "n_eval_episodes": 3, "model_name": "m"}
        status = train_to_end(client, **request)
        assert (status["status"], status["ended_by"]) == ("completed", "total_timesteps")
        evaluations = client.get("/training/latest/metrics").json()["evaluations"]
        assert len(evaluations) == 4
        assert status["evaluation"] == evaluations[-1]
        assert status["best_evaluation"] == max(evaluations, key=lambda row: float(row["mean_reward"]))
        events = client.get("/training/latest/events").text
        assert events.count("event: job.evaluation\n") == 4
        card = client.get("/models/m").json()
        figures = {name: status["final_evaluation"][name] for name in card["evaluation"]}
        assert card["evaluation"] == figures
        assert card["final_evaluation"] == {**status["final_evaluation"], "seconds": None}
        assert (
            card["num_timesteps"] == status["final_evaluation"]["timesteps"] == status["best_evaluation"]["timesteps"]
        )

    def test_a_job_that_is_good_enough_completes_early(self, client: TestClient) -> None:
        status = train_to_end(client, total_timesteps=100_000, stop_reward=5.0, eval_freq=200, seed=0)
        assert (status["status"], status["ended_by"], status["progress"]) == ("completed", "stop_reward", 1.0)
        assert status["current_timesteps"] < 300
        assert status["model_name"] is not None

    def test_rules_that_cannot_be_are_refused(self, client: TestClient) -> None:
        for rule in (
            {"eval_freq": 0},
            {"n_eval_episodes": 1001},
            {"patience": 0},
            {"max_seconds": 0.0},
            {"max_seconds": 86_401.0},
            {"stop_reward": float("1e10")},
            {"keep_best": "yes"},
        ):
            assert client.post("/train", json=rule).status_code == 422, rule
        refused = client.post("/train", json={"total_timesteps": 100, "eval_freq": 200})
        assert refused.status_code == 400
        assert "send at most 100" in refused.json()["detail"]

    def test_without_episodes_there_are_none_and_what_needs_them_is_refused(self, client: TestClient) -> None:
        status = train_to_end(client, **SHORT, n_eval_episodes=0)
        assert (status["evaluation"], status["final_evaluation"], status["warnings"]) == (None, None, [])
        for rule in ({"eval_freq": 64}, {"patience": 2}, {"stop_reward": 0.0}, {"keep_best": True}):
            refused = client.post("/train", json={**SHORT, "n_eval_episodes": 0, **rule})
            assert refused.status_code == 400
            assert f"but {next(iter(rule))} needs them" in refused.json()["detail"]


def read_scalars(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(run_dir))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


# Counters, which SB3 leaves out.
NOT_IN_TENSORBOARD = {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}


class TestTensorBoard:
    @pytest.mark.parametrize(
        "overrides", [{"executor": "thread"}, {"executor": "process"}], ids=lambda overrides: str(overrides["executor"])
    )
    def test_a_job_that_is_asked_to_writes_what_sb3_writes(self, app: FastAPI, settings: Settings) -> None:
        with TestClient(app, base_url="http://localhost") as client:
            status = train_to_end(
                client, **SHORT, model_name="m", tensorboard_log=True, eval_freq=64, n_eval_episodes=2
            )
            metrics = client.get("/training/latest/metrics").json()
        assert status["status"] == "completed", status["error_message"]
        assert status["tensorboard_run"] == f"m-{status['job_id'][:8]}"
        scalars = read_scalars(settings.tensorboard_dir / status["tensorboard_run"])
        assert scalars.keys() == set(metrics["keys"]) - NOT_IN_TENSORBOARD
        for tag in ("rollout/ep_rew_mean", "eval/mean_reward", "train/approx_kl"):
            told = [(row["timesteps"], row["metrics"][tag]) for row in metrics["rows"] if tag in row["metrics"]]
            assert [step for step, _ in scalars[tag]] == [step for step, _ in told]
            assert [value for _, value in scalars[tag]] == pytest.approx([value for _, value in told])

    def test_by_default_nothing_is_written(self, client: TestClient, settings: Settings) -> None:
        status = train_to_end(client, **SHORT)
        assert status["tensorboard_run"] is None
        assert not settings.tensorboard_dir.exists()

    def test_the_policy_is_the_same(self, client: TestClient) -> None:
        weights = []
        for tensorboard_log in (True, False):
            train_to_end(client, **SHORT, model_name="m", tensorboard_log=tensorboard_log)
            weights.append(model_file.from_bytes(client.get("/models/m/file").content).weights)
        assert all(np.array_equal(array, weights[1][name]) for name, array in weights[0].items())


class TestTheCurve:
    @pytest.mark.parametrize(
        ("query", "paper"),
        [("", 255), ("?theme=light", 255), ("?metric=train/approx_kl&theme=dark", 20)],
    )
    def test_it_is_a_picture_on_the_paper_asked_for(self, client: TestClient, query: str, paper: int) -> None:
        train_to_end(client, **SHORT)
        response = client.get(f"/training/latest/curve{query}")
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
        picture = np.asarray(Image.open(io.BytesIO(response.content)).convert("RGB"))
        assert picture.shape == (450, 800, 3)
        assert picture[0, 0, 0] == paper
        assert len(np.unique(picture)) > 20, "nothing is drawn"

    def test_a_metric_that_was_not_measured_is_refused_with_those_that_were(self, client: TestClient) -> None:
        train_to_end(client, **SHORT)
        response = client.get("/training/latest/curve?metric=loss")
        assert response.status_code == 400
        assert "metric 'loss'" in response.json()["detail"]
        assert "rollout/ep_rew_mean, " in response.json()["detail"]
        assert client.get("/training/latest/curve?theme=pink").status_code == 422
        assert client.get("/training/none/curve").status_code == 404

    def test_before_the_first_rollout_it_is_refused(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
    ) -> None:
        train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
        response = client.get("/training/latest/curve")
        assert response.status_code == 400
        assert "none yet" in response.json()["detail"]

    def test_of_a_job_that_ended_before_its_first_rollout_nothing_is_promised(
        self, client: TestClient, register_env: RegisterEnv, gate: Gate
    ) -> None:
        train(client, env_name=register_env(lambda: LineEnv(gate.pass_through)), **SHORT)
        client.post("/training/latest/stop")
        gate.admit()
        wait_until(lambda: client.get("/training/latest/status").json()["status"] == "stopped")
        detail = client.get("/training/latest/curve?metric=nope").json()["detail"]
        assert detail.endswith("its metrics: none, since it ended before its first rollout.")
