"""The options that the server's start has in both places: ``run_api.py`` and ``grpo serve``."""

import argparse
from typing import Any


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """Add the options; one that is left out is None."""
    parser.add_argument("--host", help="address to listen on (GRPO_HOST, default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (GRPO_PORT, default 8000)")
    parser.add_argument(
        "--role",
        choices=["all", "serve"],
        help="serve: a read-only replica, for models that another server trains (GRPO_ROLE, default all)",
    )
    parser.add_argument(
        "--replicas", type=int, metavar="N", help="start N replicas on one port (GRPO_REPLICAS, default 1)"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        metavar="PORT",
        help="port of each replica's own, besides the shared one; N replicas take N from here (GRPO_METRICS_PORT)",
    )
    parser.add_argument("--models-dir", help="folder of the model files (GRPO_MODELS_DIR, default models)")
    parser.add_argument(
        "--env-module",
        action="append",
        dest="env_modules",
        metavar="MODULE",
        help="your own module that registers environments or reward functions; may be repeated (GRPO_ENV_MODULES)",
    )


def get_server_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that were given."""
    names = ("host", "port", "role", "replicas", "metrics_port", "models_dir", "env_modules")
    return {name: value for name in names if (value := getattr(options, name)) is not None}
