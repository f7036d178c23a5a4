"""Settings as people write them, and who chose them."""

import json
from typing import Any

from grpo_core.options.hyperparameters import HYPERPARAMETERS
from service.dashboard.widgets.number_format import format_count

ORIGINS = {"request": "yours", "preset": "preset", "default": "default"}
ORIGIN_TONES = {"request": "own", "preset": "preset"}

_TITLES = {
    **{name: row.title for name, row in HYPERPARAMETERS.items()},
    "env_name": "Environment",
    "reward_function_type": "Reward function",
    "total_timesteps": "Simulator steps",
    "net_arch": "Hidden layers",
    "lr_schedule": "Learning rate schedule",
    "eval_freq": "Evaluate every",
    "n_eval_episodes": "Episodes per evaluation",
    "n_envs": "Environments",
    "max_seconds": "Time limit",
    "init_model": "Start from",
    "replace": "Replace a model",
    "checkpoint_every": "Checkpoint every",
    "max_restarts": "Restarts",
    "tensorboard_log": "TensorBoard log",
    "log_std_init": "First log std",
}

# What the server does where these are left open.
_IF_OPEN = {
    "eval_freq": "up to 20 evaluations",
    "checkpoint_every": "one a minute",
    "target_kl": "no limit",
    "max_seconds": "no limit",
    "ref_sync_steps": "no renewal",
}


def name_setting(name: str) -> str:
    """Return the label of a setting, as the form has it."""
    return _TITLES.get(name, name.replace("_", " ").capitalize())


def write_named_setting(name: str, value: Any) -> str:
    """Write a setting as the form takes it, or what an open one means."""
    return _IF_OPEN.get(name, "none") if value is None else write_setting(value)


def write_setting(value: Any) -> str:
    """Write a setting as the form takes it."""
    if value is None or value in ([], {}):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return format_count(value)
    if isinstance(value, list):
        return ", ".join(part if isinstance(part, str) else json.dumps(part) for part in value)
    if isinstance(value, dict):
        return ", ".join(f"{name}: {write_setting(part)}" for name, part in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)
