"""Turn a ``GRPO`` into the content of a model file, and back."""

import copy
import io
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import stable_baselines3 as sb3
import torch
from gymnasium import spaces
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from grpo_core.options.checks import refuse
from grpo_core.options.hyperparameters import SAVED_HYPERPARAMETERS
from grpo_core.options.hyperparameters_json import (
    custom_objects_to_arguments,
    hyperparameters_from_json,
    hyperparameters_to_json,
)
from grpo_core.options.network_json import network_to_json, rebuild_policy
from grpo_core.options.policies import POLICIES
from grpo_core.options.rewards import (
    ENVIRONMENT_REWARD,
    REWARD_FUNCTIONS,
    RewardFunction,
    find_reward_functions,
    get_reward_name,
)
from grpo_core.saving import atomic_write, model_file
from grpo_core.saving.model_file import LIBRARY_LIMITS, Arrays, ModelContent, ModelFileError
from grpo_core.saving.space_json import space_to_json
from grpo_core.suggestions import suggest
from grpo_core.update.structure import unwrap_compiled

ModelPath = str | Path | io.BufferedIOBase

# Facts in a file's metadata that loading needs, beyond those that every reader checks.
_FACTS = {
    "hyperparameters",
    "reward_function",
    "stats_window_size",
    "n_envs",
    "num_timesteps",
    "n_updates",
    "rng_state",
}


# Arguments that say what the policy is; ``policy_class`` is the attribute of ``policy`` in SB3.
_POLICY_ARGUMENTS = ("policy", "policy_class", "policy_kwargs")


def write_model(path: ModelPath, content: bytes) -> None:
    """Write a model file, atomically where it is named; a name without a suffix gets ``.zip``."""
    if not isinstance(path, str | Path):
        path.write(content)
        return
    target = Path(path)
    target = target if target.suffix else target.with_name(f"{target.name}.zip")
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write.write_atomic(target, content)


def read_model(path: ModelPath) -> ModelContent:
    """Read a model file with its optimizer.

    :param path: File name, with or without ``.zip``, or an open binary file; it is read from its beginning.
    :raises ValueError: If the path is neither.
    :raises ModelFileError: If the file is damaged, lacks something, or was not saved by GRPO.
    """
    if not (isinstance(path, str | Path) and Path(path).name) and not hasattr(path, "read"):
        refuse("path", path, "it must be the name of a model file, or an open binary file.")
    if isinstance(path, str | Path):
        read = _find_file(Path(path)).read_bytes()
    else:
        if path.seekable():
            path.seek(0)  # a stream that was just saved to stands at its end
        read = path.read()
    content = model_file.from_bytes(read, with_optimizer=True, with_own_parts=True, limits=LIBRARY_LIMITS)
    if lost := _FACTS - set(content.meta):
        raise ModelFileError(f"the file's metadata lacks {sorted(lost)}.")
    return content


def _find_file(path: Path) -> Path:
    """Return the file, or the one with ``.zip`` behind its name.

    If neither exists, the ``.zip`` path, for the error message.
    """
    with_suffix = path.with_name(f"{path.name}.zip")
    if path.is_file() or (path.suffix and not with_suffix.is_file()):
        return path
    return with_suffix


def make_arguments(content: ModelContent, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``GRPO``: those that a model file holds, and those that a caller of ``load`` changes.

    A reward function that the file only names may be missing.

    :param changes: As ``make_changes`` returns them.
    :raises ValueError: If the policy has parts that neither holds, or a changed policy is not the saved one.
    """
    meta, changes = content.meta, dict(changes)
    policy_class = changes.pop("policy_class", None)
    policy_class, policy_kwargs = rebuild_policy(
        meta["network"], _get_class(changes.pop("policy", policy_class)), changes.pop("policy_kwargs", None)
    )
    return {
        "policy": policy_class,
        "policy_kwargs": policy_kwargs,
        "stats_window_size": meta["stats_window_size"],
        "reward_function": find_reward_functions(meta["reward_function"]),
        **hyperparameters_from_json(meta["hyperparameters"]),
        **changes,
    }


def _get_class(policy: Any) -> Any:
    return POLICIES.get(policy, policy) if isinstance(policy, str) else policy


def make_changes(custom_objects: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of ``GRPO`` that a caller of ``load`` changes.

    :param custom_objects: As SB3 takes them; unknown names are ignored.
    :param arguments: By name; they win over ``custom_objects``.
    :raises ValueError: If one of ``arguments`` is no hyperparameter.
    """
    known = {*SAVED_HYPERPARAMETERS, "stats_window_size", "reward_function", *_POLICY_ARGUMENTS}
    if unknown := set(arguments) - known:
        hint = suggest(min(unknown), sorted(known), n_most=1)
        raise ValueError(
            f"{sorted(unknown)} cannot be changed on load; only hyperparameters, stats_window_size and "
            "reward_function can; policy and policy_kwargs must be those of the saved model"
            f"{f'; {hint}' if hint else '.'}"
        )
    of_policy = {name: value for name, value in custom_objects.items() if name in _POLICY_ARGUMENTS}
    return {**custom_objects_to_arguments(custom_objects), **of_policy, **arguments}


def choose_spaces(
    content: ModelContent, custom_objects: Mapping[str, Any]
) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Return the observation and action spaces of a model that is loaded: those of its file, or given ones.

    :param custom_objects: May hold ``observation_space`` and ``action_space``, as SB3 takes them.
    :raises ValueError: If a given one differs by more than the bounds of a Box.
    """
    saved = {"observation_space": content.observation_space, "action_space": content.action_space}
    given = {name: custom_objects.get(name, space) for name, space in saved.items()}
    for name, space in saved.items():
        if not _differs_in_bounds_alone(given[name], space):
            raise ValueError(
                f"custom_objects['{name}'] is {given[name]}, and the model was saved with {space}; only the bounds of "
                "a Box may differ."
            )
    return given["observation_space"], given["action_space"]


def _differs_in_bounds_alone(given: Any, saved: spaces.Space[Any]) -> bool:
    if isinstance(saved, spaces.Box):
        return isinstance(given, spaces.Box) and (given.shape, given.dtype) == (saved.shape, saved.dtype)
    if isinstance(saved, spaces.Dict):
        has_all = isinstance(given, spaces.Dict) and list(given) == list(saved)
        return has_all and all(_differs_in_bounds_alone(given[key], saved[key]) for key in saved)
    return bool(given == saved)


def describe_model(model: Any, version: str) -> dict[str, Any]:
    """Collect the metadata of a ``GRPO``.

    :param version: The library's own.
    """
    return {
        "algorithm": "GRPO",
        "versions": {"grpo": version, "stable_baselines3": sb3.__version__, "torch": torch.__version__},
        "spaces": {
            "observation": space_to_json(model.observation_space),
            "action": space_to_json(model.action_space),
        },
        "network": describe_network(model),
        "hyperparameters": hyperparameters_to_json(model),
        "reward_function": describe_reward_functions(model),
        "stats_window_size": model._stats_window_size,
        "n_envs": model.n_envs,
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "rng_state": model.rng.bit_generator.state,
        **({"group_correlation": model._group_correlation.to_json()} if model.baseline == "adaptive" else {}),
    }


def describe_network(model: Any) -> dict[str, Any]:
    """Describe the network of a ``GRPO`` as it is now.

    :return: What ``network_to_json`` returns. Layers that were changed after the policy was built are a part of the
        user's own, too.
    """
    network = network_to_json(model.policy_kwargs, model.policy_class)
    if not model._has_built_layers():
        network["own_parts"] = {**network.get("own_parts", {}), "layers": "changed"}
    return network


def describe_reward_functions(model: Any) -> str | list[str] | None:
    """Name the reward functions of a ``GRPO``; None if it has none."""
    if model.reward_function is None:
        lost: str | list[str] | None = model._lost_reward_function
        return lost
    if callable(model.reward_function):
        return _describe_reward_function(model.reward_function)
    return [_describe_reward_function(reward_function) for reward_function in model.reward_function]


def _describe_reward_function(reward_function: RewardFunction | None) -> str:
    name = get_reward_name(reward_function)
    shipped = {**REWARD_FUNCTIONS, ENVIRONMENT_REWARD: None}
    if reward_function is not None and shipped.get(name, reward_function) is not reward_function:
        return f"another {name}"  # or loading would take the shipped one for it
    return name


def get_weights(policy: torch.nn.Module) -> Arrays:
    """Return the parameters of a policy, by torch's names; on the CPU they share its memory.

    A features extractor that the policy and the value network share is there once, as ``features_extractor``. Buffers
    that belong to a layer's state, such as the averages of batch normalisation, are there too.
    """
    return {name: to_array(tensor) for name, tensor in _list_tensors(policy).items()}


def to_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return a tensor as real numbers or flags of NumPy's; on the CPU they share its memory wherever they can.

    A complex number becomes two at the end of the shape; one of a kind that NumPy lacks, such as ``bfloat16``, a wider
    one, from which it comes back as it was.
    """
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    elif tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    array: npt.NDArray[Any] = tensor.numpy()
    return array


def _list_tensors(policy: torch.nn.Module) -> dict[str, torch.Tensor]:
    """List parameters and persistent buffers by name; names say nothing of ``torch.compile``."""
    policy = unwrap_compiled(policy)
    buffers = {name: buffer for name, buffer in policy.named_buffers() if name in policy.state_dict()}
    tensors = {**dict(policy.named_parameters()), **buffers}
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in tensors.items()}


def warn_if_too_large(policy: torch.nn.Module) -> None:
    """Warn before training of a policy that no file will hold after it."""
    n_trained = sum(p.nbytes for p in policy.parameters() if p.requires_grad)
    n_bytes = sum(tensor.nbytes for tensor in _list_tensors(policy).values()) + 2 * n_trained
    if n_bytes > LIBRARY_LIMITS.array_bytes:
        warnings.warn(
            f"the policy takes {n_bytes / 2**20:,.0f} MiB with two moments per trained weight, as Adam keeps them. A "
            f"model file holds {LIBRARY_LIMITS.array_bytes / 2**20:,.0f} MiB, so save() may fail after the first "
            "update: take smaller layers, freeze some, or use an optimizer without moments, such as torch.optim.SGD.",
            stacklevel=5,
        )


def put_weights(policy: torch.nn.Module, weights: Arrays) -> None:
    """Copy weights, by the names of ``get_weights``, into a policy.

    :raises ValueError: If they are of other layers; the policy is then as it was.
    """
    tensors = _list_tensors(policy)
    own = {name: (*tensor.shape, 2) if tensor.is_complex() else tuple(tensor.shape) for name, tensor in tensors.items()}
    saved = {name: array.shape for name, array in weights.items()}
    if own != saved:
        differing = sorted(name for name in own.keys() | saved.keys() if own.get(name) != saved.get(name))
        name = differing[0]
        raise ValueError(
            f"the weights of the file are not those of this policy: {len(differing)} differ, such as {name}, which is "
            f"{saved.get(name, 'missing')} in the file and {own.get(name, 'missing')} in the policy; build it as the "
            "saved one was."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            array = torch.from_numpy(weights[name])
            tensor.copy_(torch.view_as_complex(array) if tensor.is_complex() else array)


def get_normalization(vec_normalize: VecNormalize) -> tuple[dict[str, Any], Arrays]:
    """Return the settings of a ``VecNormalize`` for a file's metadata, and copies of its statistics.

    :return: The content of ``meta["normalization"]``, and the argument ``normalization`` of ``model_file.to_bytes``.
    """
    numbers = {name: float(getattr(vec_normalize, name)) for name in ("clip_obs", "clip_reward", "gamma", "epsilon")}
    # JSON has no infinity, by which people turn clipping off.
    settings: dict[str, Any] = {name: "inf" if math.isinf(number) else number for name, number in numbers.items()}
    settings |= {name: bool(getattr(vec_normalize, name)) for name in ("norm_obs", "norm_reward", "training")}
    settings["norm_obs_keys"] = vec_normalize.norm_obs_keys
    arrays = {
        f"{source}/{name}": np.array(getattr(statistics, name), np.float64)
        for source, statistics in _list_statistics(vec_normalize).items()
        for name in ("mean", "var", "count")
    }
    return settings, arrays


def describe_normalization(
    vec_normalize: VecNormalize | None, loaded: ModelContent | None
) -> tuple[dict[str, Any], Arrays]:
    """Return the metadata and the arrays of normalisation for a model file, empty without any.

    :param vec_normalize: The one in use.
    :param loaded: The file that the model came from, if it has had no environment since; its statistics still hold.
    """
    if vec_normalize is not None:
        settings, statistics = get_normalization(vec_normalize)
        return {"normalization": settings}, statistics
    if loaded is None or "normalization" not in loaded.meta:
        return {}, {}
    return {"normalization": loaded.meta["normalization"]}, loaded.normalization


def wrap_like(content: ModelContent, env: VecEnv) -> VecEnv:
    """Wrap an environment in a ``VecNormalize`` like that of a model file, if the file has one.

    :param env: If it has a ``VecNormalize`` already, that one keeps its settings, and gets the file's statistics where
        they are of more steps than its own. One that normalises nothing needs none.
    """
    settings = content.meta.get("normalization")
    if settings is None:
        return env
    own = unwrap_vec_normalize(env)
    if own is not None and not own.norm_obs and not own.norm_reward:
        return env
    if own is not None:
        _put_statistics(own, content, only_of_more_steps=True)
        return env
    names = ("norm_obs", "norm_reward", "norm_obs_keys")
    wrapped = VecNormalize(env, **{name: settings[name] for name in names})
    restore_normalization(wrapped, content)
    return wrapped


def wrap_again(vec_normalize: VecNormalize, env: VecEnv) -> VecNormalize:
    """Wrap an environment that has no ``VecNormalize`` in one like another.

    :param vec_normalize: The one whose settings and statistics are copied, as they are now: a rollout under way counts
        its steps there alone.
    """
    names = ("training", "norm_obs", "norm_reward", "norm_obs_keys", "clip_obs", "clip_reward", "gamma", "epsilon")
    wrapped = VecNormalize(env, **{name: getattr(vec_normalize, name) for name in names})
    wrapped.ret_rms = copy.deepcopy(vec_normalize.ret_rms)
    if vec_normalize.norm_obs:
        wrapped.obs_rms = copy.deepcopy(vec_normalize.obs_rms)
    return wrapped


def restore_normalization(vec_normalize: VecNormalize, content: ModelContent) -> None:
    """Put the settings and statistics of a file into a ``VecNormalize``; it goes on as the one that was saved.

    :param vec_normalize: One around an environment like that of the model, with the same ``norm_obs`` and keys.
    :raises ValueError: If the file has no statistics, or they are of other observations.
    """
    settings = content.meta.get("normalization")
    if settings is None:
        raise ValueError("the model was saved without VecNormalize; use the environment without it.")
    _put_statistics(vec_normalize, content)
    for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
        setattr(vec_normalize, name, float(settings[name]))  # "inf" too
    vec_normalize.norm_reward = settings["norm_reward"]
    vec_normalize.training = settings.get("training", vec_normalize.training)  # earlier versions do not say


def _put_statistics(vec_normalize: VecNormalize, content: ModelContent, only_of_more_steps: bool = False) -> None:
    """Put the statistics of a file into a ``VecNormalize``.

    :param only_of_more_steps: Whether to leave those alone that are of as many steps as the file's, or of more.
    """
    settings = content.meta["normalization"]
    statistics = _list_statistics(vec_normalize)
    shapes = {f"{source}/mean": np.shape(statistic.mean) for source, statistic in statistics.items()}
    saved = {name: array.shape for name, array in content.normalization.items() if name.endswith("/mean")}
    if shapes != saved:
        raise ValueError(
            f"VecNormalize has statistics {shapes}, but the model was saved with {saved}; build it with norm_obs="
            f"{settings['norm_obs']} and norm_obs_keys={settings['norm_obs_keys']} around the same environment."
        )
    for source, statistic in statistics.items():
        count = float(content.normalization[f"{source}/count"])
        if only_of_more_steps and count <= statistic.count:
            continue
        statistic.mean = content.normalization[f"{source}/mean"].copy()
        statistic.var = content.normalization[f"{source}/var"].copy()
        statistic.count = count


def _list_statistics(vec_normalize: VecNormalize) -> dict[str, RunningMeanStd]:
    """List the running statistics by the names that a model file gives them."""
    statistics = {"return": vec_normalize.ret_rms}
    if not vec_normalize.norm_obs:
        return statistics
    if isinstance(vec_normalize.obs_rms, dict):
        return statistics | {f"obs/{key}": rms for key, rms in vec_normalize.obs_rms.items()}
    return {**statistics, "obs": vec_normalize.obs_rms}
