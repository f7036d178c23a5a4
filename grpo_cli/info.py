"""``grpo info``: describe a model file."""

import argparse
import hashlib
import json
import math
from typing import Any

from grpo_cli.model import find_model_file, read_model
from grpo_cli.options import add_model_option, add_parser, get_model_path, write
from grpo_core.options.rewards import ENVIRONMENT_REWARD


def add_command(commands: Any) -> None:
    """Add the command to a parser."""
    add_model_option(add_parser(commands, "info", _run, "describe a model file"))


def _run(options: argparse.Namespace) -> int:
    path = get_model_path(options)
    content = read_model(path)
    file = find_model_file(path)
    meta = dict(content.meta)
    hyperparameters = meta.get("hyperparameters", {})
    # JSON escapes the control characters that a file from elsewhere may hold.
    facts = {
        "file": f"{file}, {file.stat().st_size:,} bytes",
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "environment": json.dumps(meta.get("env_name")),
        "observations": str(content.observation_space),
        "actions": str(content.action_space),
        "network": json.dumps(meta["network"]),
        "parameters": f"{sum(math.prod(array.shape) for array in content.weights.values()):,}",
        "reward function": json.dumps(meta.get("reward_function") or ENVIRONMENT_REWARD),
        "normalization": json.dumps(meta.get("normalization")),
        "steps, updates": f"{json.dumps(meta.get('num_timesteps'))}, {json.dumps(meta.get('n_updates'))}",
        "versions": json.dumps(meta.get("versions")),
    }
    for name, fact in facts.items():
        write(f"{name:16} {fact}")
    write("hyperparameters")
    for name, value in sorted(hyperparameters.items()) if isinstance(hyperparameters, dict) else []:
        write(f"  {json.dumps(name)[1:-1]:24} {json.dumps(value)}")
    return 0
