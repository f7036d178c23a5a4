"""The policy in LitServe, for ``compare_servers``: ``python -m benchmarks.serving.apps.litserve_app FOLDER PORT``."""

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from typing import Any

import litserve
import numpy as np

from grpo import GRPO


class Policy(litserve.LitAPI):  # type: ignore[misc]
    """Answers one observation with the actor that our service uses."""

    def setup(self, device: Any) -> None:
        """Load the policy, in the process that answers."""
        self.actor = GRPO.load(Path(sys.argv[1]) / "cartpole.zip").make_actor()
        self.rng = np.random.default_rng(0)

    def decode_request(self, request: dict[str, Any]) -> Any:
        """Return the observation of a request, ``(1, 4)``."""
        return np.array([request["observation"]], np.float32)

    def predict(self, x: Any) -> Any:
        """Choose an action."""
        return self.actor.act(x, True, self.rng)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """Return the answer's JSON."""
        action, probs, value = output
        return {"action": int(action[0]), "action_probs": probs[0].tolist(), "value": float(value[0])}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("port", metavar="PORT", type=int)
    options = parser.parse_args()
    server = litserve.LitServer(Policy(api_path="/inference"), accelerator="cpu")
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)
