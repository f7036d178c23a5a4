"""The model file of a command, and an environment to play it in."""

import argparse
import re
from pathlib import Path
from typing import Any

import gymnasium as gym

from grpo_cli.options import (
    explain,
    get_model_path,
    import_env_modules,
    parse_env_kwargs,
    parse_wrapper_options,
    resolve_env,
)
from grpo_core.actor.actor import PolicyActor
from grpo_core.environments.env_kwargs import check_env_kwargs
from grpo_core.environments.making import EnvSetup, make_env
from grpo_core.environments.wrappers import parse_wrappers
from grpo_core.evaluation import check_spaces
from grpo_core.export.policy_file import EXPORT_FORMATS
from grpo_core.saving import model_file
from grpo_core.saving.model_file import ModelContent, ModelFileError
from grpo_terminal import UsageError

EXPORT_SUFFIXES = frozenset(export_format.suffix for export_format in EXPORT_FORMATS.values())
# Gymnasium would import the module of "module:Name", and a file from elsewhere must not decide what is imported.
_PLAIN_ENV_NAME = re.compile(r"[A-Za-z0-9_./-]{1,128}")


def find_model_file(path: Path) -> Path:
    """Add ``.zip`` to a path without a suffix, unless there is such a file."""
    return path if path.is_file() or path.suffix or not path.name else path.with_name(f"{path.name}.zip")


def read_model(path: Path) -> ModelContent:
    """Read a model file.

    :raises UsageError: If it is missing or damaged, or is an export.
    """
    if path.suffix in EXPORT_SUFFIXES:
        raise UsageError(
            f"--model {path} is an export, for programs without this library; name the model file that it was made "
            f"from, such as {path.with_suffix('.zip')}."
        )
    try:
        return model_file.from_bytes(find_model_file(path).read_bytes(), limits=model_file.LIBRARY_LIMITS)
    except (OSError, ModelFileError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise UsageError(f"--model {path} cannot be read: {reason}") from error


def open_model(options: argparse.Namespace) -> tuple[ModelContent, EnvSetup]:
    """Read the model that a command names, and find the environment to play it in.

    :return: The content of the file, and the environment with its arguments and wrappers.
    :raises UsageError: If the file cannot be read, or neither it nor ``--env`` names an environment.
    """
    import_env_modules(options.env_module)
    path = get_model_path(options)
    content = read_model(path)
    named = content.meta.get("env_name")
    own_name = named if isinstance(named, str) else ""
    if options.env is None and not _PLAIN_ENV_NAME.fullmatch(own_name):
        raise UsageError(f"{path} does not name a registered environment; say which with --env.")
    env_name = own_name if options.env in (None, own_name) else resolve_env(options.env)
    env_kwargs, wrappers = parse_env_kwargs(options.env_kwargs), parse_wrapper_options(options.wrapper)
    try:
        if env_name == own_name:  # another environment may not take its arguments
            env_kwargs = {**_read_env_kwargs(content, is_needed=not env_kwargs), **env_kwargs}
        if not wrappers:
            wrappers = parse_wrappers(content.meta.get("wrappers") or [])
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} does not say how to make its environment: {error}; give --env-kwargs.") from error
    return content, EnvSetup(env_name, env_kwargs, wrappers)


def _read_env_kwargs(content: ModelContent, is_needed: bool) -> dict[str, Any]:
    """Return the arguments of a file's environment.

    :param is_needed: Whether to complain of those that cannot be used; else there are none.
    :raises ValueError: If they cannot be used, as a file from elsewhere must not decide what is read.
    """
    env_kwargs = content.meta.get("env_kwargs") or {}
    try:
        check_env_kwargs(env_kwargs)
    except (ValueError, TypeError, AttributeError):
        if is_needed:
            raise
        return {}
    return dict(env_kwargs)


def make_playable_env(setup: EnvSetup, actor: PolicyActor, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """Make an environment that a policy can play in.

    :raises UsageError: If it cannot be made, does not have the policy's spaces or lacks the render mode.
    """
    env_name = setup.env_name
    try:
        env = make_env(setup, render_mode, option="add --env-module")
    except Exception as error:  # code of the environment
        how = "" if render_mode is None else f" in render mode {render_mode!r}"
        raise UsageError(f"--env {env_name} cannot be played{how}: {explain(error, setup)}") from error
    try:
        check_spaces(actor, env)
    except ValueError as error:
        env.close()
        raise UsageError(f"--env {env_name} cannot be played: {error}") from error
    if render_mode is not None and render_mode not in env.metadata.get("render_modes", []):
        env.close()
        raise UsageError(f"--env {env_name} cannot be watched: it has no render mode {render_mode!r}.")
    return env
