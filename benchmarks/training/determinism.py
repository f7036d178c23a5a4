"""Train the same job alone and beside three others, over HTTP, and compare their weights bit for bit.

``python -m benchmarks.training.determinism --n-trials 20``
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fastapi.testclient import TestClient

from api import create_app
from benchmarks.lib.http_jobs import wait_for
from grpo_core.saving import model_file
from service.settings import Settings

N_NEIGHBOURS = 3
SEED = 7


def train(client: TestClient, folder: Path, requests: list[dict[str, Any]]) -> dict[str, bytes]:
    """Train jobs at the same time, and return the weights of the first by name."""
    jobs = [client.post("/train", json=request).json() for request in requests]
    for job in jobs:
        wait_for(client, job["job_id"])
    content = model_file.from_bytes((folder / f"{requests[0]['model_name']}.zip").read_bytes())
    return {name: array.tobytes() for name, array in content.weights.items()}


def count_identical(n_trials: int, total_timesteps: int) -> int:
    """Count the trials in which the job beside others ends with the weights of the job alone."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = Settings(models_dir=folder, max_running_jobs=1 + N_NEIGHBOURS, max_queued_jobs=8)
        with TestClient(create_app(settings), base_url="http://localhost") as client:
            request = {"seed": SEED, "total_timesteps": total_timesteps}
            alone = train(client, folder, [request | {"model_name": "alone"}])
            n_identical = 0
            for trial in range(n_trials):
                neighbours = [
                    {"seed": 100 * trial + i, "total_timesteps": total_timesteps, "model_name": f"beside-{trial}-{i}"}
                    for i in range(N_NEIGHBOURS)
                ]
                observed = train(client, folder, [request | {"model_name": f"observed-{trial}"}, *neighbours])
                n_identical += observed == alone
            return n_identical


def main() -> None:
    """Print the number of identical trials."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-trials", type=int, default=20)
    parser.add_argument("--total-timesteps", type=int, default=2_000)
    arguments = parser.parse_args()
    n_identical = count_identical(arguments.n_trials, arguments.total_timesteps)
    print(f"{n_identical} of {arguments.n_trials} trainings beside {N_NEIGHBOURS} others ended with the same weights.")


if __name__ == "__main__":
    main()
