"""The policy in Ray Serve, for ``compare_servers``: ``python -m benchmarks.serving.apps.ray_app FOLDER PORT``."""

import os
import sys

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
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        serve.run(Policy.bind(sys.argv[1]), route_prefix="/inference")  # type: ignore[attr-defined]
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()
