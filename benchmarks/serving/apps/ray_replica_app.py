"""A read-only replica in Ray Serve: ``python -m benchmarks.serving.apps.ray_replica_app FOLDER PORT``."""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import signal
import tempfile

import ray
from fastapi import FastAPI
from ray import serve


def make_builder(folder: str) -> object:
    """Return what builds the application over a folder; workers have other command lines than this process."""

    def build() -> FastAPI:
        from api import create_app
        from service.settings import Settings

        return create_app(Settings(role="serve", models_dir=folder))

    return build


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])})
        # A replica without Ray writes no line per request either.
        silent = {"enable_access_log": False}
        replica = serve.deployment(
            serve.ingress(make_builder(sys.argv[1]))(), max_ongoing_requests=64, logging_config=silent
        )
        serve.run(replica.bind(), route_prefix="/")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()
