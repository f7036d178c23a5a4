"""What a ``GRPO`` keeps in its model file, and how it is found again."""

import io
from pathlib import Path
from typing import Any

import stable_baselines3 as sb3
import torch

from grpo_core import model_file
from grpo_core.hyperparameters import hyperparameters_to_json, network_to_json
from grpo_core.model_file import Arrays, ModelContent, ModelFileError
from grpo_core.rewards import REWARD_FUNCTIONS, get_reward_name

ModelPath = str | Path | io.BufferedIOBase

# What loading reads of a file's metadata, besides what every reader of model files does.
_FACTS = {
    "hyperparameters",
    "reward_function",
    "stats_window_size",
    "n_envs",
    "num_timesteps",
    "n_updates",
    "rng_state",
}


def write_model(path: ModelPath, content: bytes) -> None:
    """Write a model file, atomically where it is named; a name without a suffix gets ``.zip``."""
    if not isinstance(path, str | Path):
        path.write(content)
        return
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    model_file.write_atomic(target, content)


def read_model(path: ModelPath) -> ModelContent:
    """Read a model file with its optimizer.

    :param path: File name, with or without ``.zip``, or an open binary file.
    :raises ModelFileError: If the file is damaged, lacks something, or was not saved by GRPO.
    """
    if isinstance(path, str | Path):
        source = Path(path)
        if not source.exists() and not source.suffix:
            source = source.with_name(f"{source.name}.zip")
        content = model_file.from_bytes(source.read_bytes(), with_optimizer=True)
    else:
        content = model_file.from_bytes(path.read(), with_optimizer=True)
    if lost := _FACTS - set(content.meta):
        raise ModelFileError(f"the file's metadata lacks {sorted(lost)}.")
    return content


def describe_model(model: Any, version: str) -> dict[str, Any]:
    """Collect the metadata of a ``GRPO``.

    :param version: The library's own.
    """
    return {
        "algorithm": "GRPO",
        "versions": {"grpo": version, "stable_baselines3": sb3.__version__, "torch": torch.__version__},
        "spaces": {
            "observation": model_file.space_to_json(model.observation_space),
            "action": model_file.space_to_json(model.action_space),
        },
        "network": network_to_json(model.policy_kwargs),
        "hyperparameters": hyperparameters_to_json(model),
        "reward_function": _describe_reward_function(model),
        "stats_window_size": model._stats_window_size,
        "n_envs": model.n_envs,
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "rng_state": model.rng.bit_generator.state,
    }


def _describe_reward_function(model: Any) -> str | None:
    if model.reward_function is None:
        lost: str | None = model._lost_reward_function
        return lost
    name = get_reward_name(model.reward_function)
    if REWARD_FUNCTIONS.get(name, model.reward_function) is not model.reward_function:
        return f"another {name}"  # or loading would take the shipped one for it
    return name


def get_weights(policy: torch.nn.Module) -> Arrays:
    """Return the parameters of a policy, by torch's names; on the CPU they share its memory."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in policy.state_dict().items()}


def get_optimizer_state(optimizer: torch.optim.Optimizer) -> Arrays:
    """Return an optimizer's moments, by ``<parameter index>/<state name>``; on the CPU they share its memory."""
    return {
        f"{index}/{name}": tensor.detach().cpu().numpy()
        for index, state in optimizer.state_dict()["state"].items()
        for name, tensor in state.items()
    }


def to_parameters(content: ModelContent, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    """Turn a file's arrays into what SB3's ``set_parameters`` takes.

    :param optimizer: One like that which was saved; it is left as it is.
    """
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in content.optimizer.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = torch.from_numpy(array)
    weights = {name: torch.from_numpy(array) for name, array in content.weights.items()}
    return {"policy": weights, "policy.optimizer": {**optimizer.state_dict(), "state": state}}
