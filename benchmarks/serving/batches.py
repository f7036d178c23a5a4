"""Measure the observations per second of ``POST /inference/batch`` on one core, without the network.

``python -m benchmarks.serving.batches`` prints a Markdown table for bodies of 10,000 CartPole observations and a
64x64 policy.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium as gym
import numpy as np

from grpo import GRPO
from service.inference.batch import answer_array, answer_json
from service.models.files.folder import ModelFolder
from service.models.store import ModelStore

_N_OBSERVATIONS = 10_000
_N_REPETITIONS = 20


def measure(answer: Callable[[], bytes]) -> float:
    """Return the observations per second of processor time in the median repetition."""
    seconds = []
    for _ in range(_N_REPETITIONS):
        begin = time.thread_time()
        answer()
        seconds.append(time.thread_time() - begin)
    return _N_OBSERVATIONS / float(np.median(seconds))


def main() -> None:
    """Print the table: a row per form of body and answer."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    observations = np.random.default_rng(0).uniform(-1.0, 1.0, (_N_OBSERVATIONS, 4)).astype(np.float32)
    body = json.dumps({"model_name": "m", "observations": observations.astype(float).round(4).tolist()}).encode()
    file = io.BytesIO()
    np.save(file, observations)
    array = file.getvalue()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, group_size=2, horizon=32, seed=0)
        model.save(folder / "m.zip")
        store = ModelStore(
            ModelFolder(folder),
            max_cached_models=1,
            max_cached_bytes=2**20,
            available_bytes=lambda: 2**40,
            total_bytes=2**40,
        )
        load = store.get
        rates = {
            "JSON to JSON": measure(lambda: answer_json(body, load)),
            "array to JSON": measure(lambda: answer_array(array, "m", load, True, False)),
            "array to array": measure(lambda: answer_array(array, "m", load, True, True)),
            "array to array, drawn": measure(lambda: answer_array(array, "m", load, False, True)),
        }
    print("| body and answer | observations/s |\n|---|---|")
    for label, rate in rates.items():
        print(f"| {label} | {rate:,.0f} |")


if __name__ == "__main__":
    main()
