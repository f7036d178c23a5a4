"""Measure how soon a server answers, its memory before and after the first job, and the first answer of a model.

``python -m benchmarks.serving.startup --n-starts 5``
"""

import argparse
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.lib.server import Server, get_percentile, serve
from grpo import GRPO

N_COLD_MODELS = 100
OBSERVATION = [0.1, 0.0, 0.05, 0.0]
_HEALTH_PAUSE_SECONDS = 0.002


class Start(NamedTuple):
    """Times and resident memory of one start."""

    health_s: float
    idle_mib: float
    serving_mib: float
    first_train_s: float
    second_train_ms: float
    training_mib: float
    health_p50_ms: float
    health_p99_ms: float
    health_worst_ms: float


class Cold(NamedTuple):
    """Times of inferences, in ms: of models on disk, and of the same models in memory."""

    cold_ms: list[float]
    warm_ms: list[float]


# Title and aim of each row.
ROWS = {
    "health_s": ("start of the process to the first /health, s", "<= 1.5"),
    "idle_mib": ("resident then, MiB", "< 150"),
    "serving_mib": ("resident after an inference, MiB", "< 150"),
    "first_train_s": ("first POST /train, which imports torch, s", ""),
    "second_train_ms": ("second POST /train, ms", ""),
    "training_mib": ("resident then, MiB", ""),
    "health_p50_ms": ("/health during the first POST /train, median, ms", ""),
    "health_p99_ms": ("the same, 99th percentile, ms", "<= 250"),
    "health_worst_ms": ("the same, worst, ms", "<= 1000"),
}


def measure_start(models_dir: Path) -> Start:
    """Start a server, ask its model ``m0`` for an action, and train."""
    with serve(models_dir) as server:
        client = server.connect()
        idle_mib = server.measure_memory()
        client.call("POST", "/inference", {"model_name": "m0", "observation": OBSERVATION})
        serving_mib = server.measure_memory()
        health_ms, first_train_ms = _train_under_watch(server)
        # The server has closed the idle connection if that took 5 s.
        second_train_ms = server.connect().time_call("POST", "/train", {"total_timesteps": 64})
        return Start(
            health_s=server.start_seconds,
            idle_mib=idle_mib,
            serving_mib=serving_mib,
            first_train_s=first_train_ms / 1e3,
            second_train_ms=second_train_ms,
            training_mib=server.measure_memory(),
            health_p50_ms=statistics.median(health_ms),
            health_p99_ms=get_percentile(health_ms, 99),
            health_worst_ms=max(health_ms),
        )


def _train_under_watch(server: Server) -> tuple[list[float], float]:
    """Send the first job while another client asks for ``/health``, and return the times of both, in ms."""
    answered = threading.Event()
    health_ms: list[float] = []

    def watch() -> None:
        client = server.connect()
        while not answered.is_set():
            health_ms.append(client.time_call("GET", "/health"))
            time.sleep(_HEALTH_PAUSE_SECONDS)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        train_ms = server.connect().time_call("POST", "/train", {"total_timesteps": 64})
    finally:
        answered.set()
        watcher.join()
    return health_ms, train_ms


def measure_cold_models(models_dir: Path) -> Cold:
    """Ask each model of a folder for an action, twice."""
    with serve(models_dir, GRPO_MAX_CACHED_MODELS=str(N_COLD_MODELS)) as server:
        client = server.connect()
        requests = [{"model_name": f"m{i}", "observation": OBSERVATION} for i in range(N_COLD_MODELS)]
        cold_ms, warm_ms = ([client.time_call("POST", "/inference", request) for request in requests] for _ in range(2))
        return Cold(cold_ms, warm_ms)


def format_tables(starts: list[Start], cold: Cold) -> str:
    """Format the tables as Markdown."""
    lines = ["| start | median | worst | aim |", "|---|---|---|---|"]
    for name, (title, aim) in ROWS.items():
        values = [getattr(start, name) for start in starts]
        lines.append(f"| {title} | {statistics.median(values):.2f} | {max(values):.2f} | {aim} |")
    lines += ["", "| inference of a 64x64 model | median, ms | 99th percentile, ms | aim, ms |", "|---|---|---|---|"]
    for title, times, aim in (
        ("from disk", cold.cold_ms, "<= 10"),
        ("the very first of the server", cold.cold_ms[:1], "<= 10"),
        ("from memory", cold.warm_ms, ""),
    ):
        lines.append(f"| {title} | {statistics.median(times):.2f} | {get_percentile(times, 99):.2f} | {aim} |")
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-starts", type=int, default=5)
    arguments = parser.parse_args()
    model = GRPO("MlpPolicy", "CartPole-v1", n_steps=64, group_size=2, horizon=32, seed=0, device="cpu")
    content = model.learn(64).to_bytes()
    with tempfile.TemporaryDirectory() as name:
        models_dir = Path(name)
        for i in range(N_COLD_MODELS):
            (models_dir / f"m{i}.zip").write_bytes(content)
        cold = measure_cold_models(models_dir)
        starts = [measure_start(models_dir) for _ in range(arguments.n_starts)]
    print(format_tables(starts, cold))


if __name__ == "__main__":
    main()
