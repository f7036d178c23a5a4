"""A sweep on a Ray cluster: as elsewhere, with as many jobs at a time as the server allows."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings
from service.workers.cluster.ray_executor import RayExecutor
from tests.support import get_status, make_client, wait_until

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install -r requirements-ray.txt"),
]
# Long enough for two jobs to be seen side by side.
BASE = {"env_name": "CartPole-v1", "total_timesteps": 4096, "n_eval_episodes": 2}


def test_its_jobs_train_on_the_cluster_side_by_side(ray_cluster: None, tmp_path: Path) -> None:
    settings = Settings(models_dir=tmp_path, executor="ray", max_running_jobs=2)
    with make_client(settings) as client:
        assert isinstance(client.app.state.service.executor, RayExecutor)  # type: ignore[attr-defined]
        request = {"base": BASE, "space": {"learning_rate": [0.001, 0.003]}, "seeds": [0, 1], "name": "first"}
        response = client.post("/sweeps", json=request)
        assert response.status_code == 200, response.text
        seen: list[int] = []

        def has_ended() -> bool:
            jobs = client.get("/training/jobs").json()["jobs"]
            seen.append(sum(job["status"] == "running" for job in jobs))
            return bool(client.get("/sweeps/latest").json()["status"] != "running")

        wait_until(has_ended)
        sweep: dict[str, Any] = client.get("/sweeps/latest").json()
        assert (sweep["status"], sweep["counts"]) == ("completed", {"completed": 4})
        assert max(seen) == 2
        trials = [trial for row in sweep["settings"] for trial in row["trials"]]
        for trial in trials:
            job = get_status(client, trial["job_id"])
            assert trial["mean_reward"] == job["final_evaluation"]["mean_reward"]
        best = sweep["best"]["model_name"]
        wait_until(lambda: [model["name"] for model in client.get("/models").json()["models"]] == [best])
