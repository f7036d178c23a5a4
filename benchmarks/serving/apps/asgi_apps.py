"""The applications that ``benchmarks.serving.compare_servers`` compares, each on a port of one process.

``python -m benchmarks.serving.apps.asgi_apps FOLDER`` saves a CartPole policy there, serves it, and prints the ports as
JSON.
"""

import argparse
import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import uvicorn
import uvloop
from fastapi import FastAPI
from pydantic import BaseModel
from starlette.types import ASGIApp, Receive, Scope, Send

from api import create_app
from grpo import GRPO
from service.http.serving.connections import Connection
from service.settings import Settings

MODEL_NAME = "cartpole"
_SERVER_OPTIONS: dict[str, Any] = {"access_log": False, "server_header": False}
# As in run_api.
_OUR_OPTIONS: dict[str, Any] = {"http": Connection}


class Observation(BaseModel):
    """The body of the naive routes."""

    model_name: str
    observation: list[float]
    deterministic: bool = True


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Send the body back: the cost of any ASGI application."""
    if scope["type"] != "http":
        raise NotImplementedError
    body = (await receive())["body"]
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_noop() -> FastAPI:
    """Build an application that reads a body and does nothing with it: the cost of FastAPI."""
    app = FastAPI()

    @app.post("/inference")
    async def answer() -> dict[str, str]:
        return {"status": "ok"}

    return app


def make_naive(model: GRPO, is_async: bool) -> FastAPI:
    """Build the naive application: Stable-Baselines3's ``predict`` behind a route."""
    app = FastAPI()

    def predict(request: Observation) -> dict[str, Any]:
        action, _ = model.predict(np.array(request.observation, np.float32), deterministic=request.deterministic)
        return {"action": int(action)}

    async def predict_in_loop(request: Observation) -> dict[str, Any]:
        return predict(request)

    app.post("/inference")(predict_in_loop if is_async else predict)
    return app


async def serve(apps: dict[str, ASGIApp]) -> None:
    """Serve every application until the process ends."""
    ports, running = {}, []
    for name, app in apps.items():
        listener = socket.create_server(("127.0.0.1", 0))
        ports[name] = listener.getsockname()[1]
        options = _SERVER_OPTIONS | (_OUR_OPTIONS if name == "ours" else {})
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **options))
        server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]  # one process, many servers
        running.append(server.serve([listener]))
    sys.stdout.write(json.dumps(ports) + "\n")
    sys.stdout.flush()
    await asyncio.gather(*running)


def main() -> None:
    """Build the applications, and serve them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path)
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    model = GRPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=64, group_size=2, horizon=32, seed=0)
    model.save(folder / f"{MODEL_NAME}.zip")
    apps: dict[str, ASGIApp] = {
        "echo": echo,
        "noop": make_noop(),
        "ours": create_app(Settings(models_dir=folder)),
        "naive_def": make_naive(model, is_async=False),
        "naive_async": make_naive(model, is_async=True),
    }
    uvloop.run(serve(apps))


if __name__ == "__main__":
    main()
