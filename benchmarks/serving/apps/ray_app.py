"""The policy in Ray Serve, for ``compare_servers``: ``python -m benchmarks.serving.apps.ray_app FOLDER PORT``."""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=64)
class Policy:
    """Answers one observation with the actor that our service uses."""

    def __init__(self, folder: str) -> None:
        from grpo import GRPO  # in the process that answers

        self._actor = GRPO.load(Path(folder) / "cartpole.zip").make_actor()
        self._rng = np.random.default_rng(0)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """Choose an action."""
        body = await request.json()
        action, probs, value = self._actor.act(np.array([body["observation"]], np.float32), True, self._rng)
        return {"action": int(action[0]), "action_probs": probs[0].tolist(), "value": float(value[0])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("port", metavar="PORT", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        serve.run(Policy.bind(options.folder), route_prefix="/inference")  # type: ignore[attr-defined]
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()
