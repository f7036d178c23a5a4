"""A read-only replica in Ray Serve: ``python -m benchmarks.serving.apps.ray_replica_app FOLDER PORT``."""

import argparse
import os

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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("port", metavar="PORT", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(http_options={"host": "127.0.0.1", "port": options.port})
        # A replica without Ray writes no line per request either.
        silent = {"enable_access_log": False}
        replica = serve.deployment(
            serve.ingress(make_builder(options.folder))(), max_ongoing_requests=64, logging_config=silent
        )
        serve.run(replica.bind(), route_prefix="/")
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()
