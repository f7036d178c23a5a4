"""The model file of a command, and an environment to play it in."""

import argparse
import re
from pathlib import Path
from typing import Any

import gymnasium as gym

from grpo_cli.options import UsageError, import_env_modules
from grpo_core.actor.actor import PolicyActor
from grpo_core.evaluation import check_spaces
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent, ModelFileError

# The checker warns about environments that train well.
ENV_KWARGS = {"disable_env_checker": True}
# Gymnasium would import the module of "module:Name", and a file from elsewhere must not decide what is imported.
_PLAIN_ENV_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")


def find_model_file(path: Path) -> Path:
    """Add ``.zip`` to a path without a suffix, unless there is such a file."""
    return path if path.is_file() or path.suffix else path.with_name(f"{path.name}.zip")


def read_model(path: Path) -> ModelContent:
    """Read a model file.

    :raises UsageError: If it is missing or damaged.
    """
    try:
        return model_file.from_bytes(find_model_file(path).read_bytes())
    except (OSError, ModelFileError) as error:
        raise UsageError(f"--model {path} cannot be read: {error}") from error


def open_model(options: argparse.Namespace) -> tuple[ModelContent, str]:
    """Read the model of ``--model``, and find the environment to play it in.

    :return: The content of the file, and the id of the environment.
    :raises UsageError: If the file cannot be read, or neither it nor ``--env`` names an environment.
    """
    import_env_modules(options.env_module)
    content = read_model(options.model)
    if options.env is not None:
        return content, options.env
    env_name = content.meta.get("env_name")
    if not isinstance(env_name, str) or not _PLAIN_ENV_NAME.fullmatch(env_name):
        raise UsageError(f"{options.model} does not name a registered environment; say which with --env.")
    return content, env_name


def make_playable_env(env_name: str, actor: PolicyActor, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make an environment that a policy can play in.

    :raises UsageError: If it cannot be made, does not have the policy's spaces or lacks the render mode.
    """
    # Not every constructor takes the argument.
    watched: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    try:
        env = gym.make(env_name, **ENV_KWARGS, **watched)
        check_spaces(actor, env)
    except (gym.error.Error, ValueError, TypeError) as error:
        raise UsageError(f"--env {env_name} cannot be played: {error}") from error
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", []):
        env.close()
        raise UsageError(f"--env {env_name} cannot be watched: it has no render mode {render_mode!r}.")
    return env
