"""Turn the state of an optimizer into the content of a model file, and back."""

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from grpo_core.saving.model_file import Arrays, ModelContent
from grpo_core.saving.model_state import to_array
from grpo_core.saving.moments import SHAPED, read_parameter_names
from grpo_core.update.structure import unwrap_compiled

# Of a state that is an array by this name; the arrays of what is described have numbers, which no such name is.
_PLAIN_NAME = re.compile(r"[^\W_]\w*")
# What a group has anew wherever it is built, or before every update.
_OF_GROUPS = frozenset({"params", "param_names", "lr"})

Parameters = list[tuple[str, torch.nn.Parameter]]


def describe_optimizer(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> tuple[dict[str, Any], Arrays]:
    """Return the content of ``meta["optimizer"]``, and arrays by ``<parameter index>/<state name>``.

    On the CPU the arrays share the optimizer's memory. Parameters are named, since their positions change with the
    layers that are frozen or replaced. What an optimizer keeps beside arrays is described under ``state``, ``groups``
    and ``rest``. Where a part of it is of a kind that no file holds, ``lost`` says so, and nothing of it is kept.
    """
    parameters, arrays = _list_parameters(optimizer, policy), Arrays()
    facts: dict[str, Any] = {"parameters": [name for name, _ in parameters]}
    try:
        states = optimizer.state_dict()
        state = [[i, _describe_state(i, found, parameters, arrays)] for i, found in states["state"].items()]
        groups = [_describe_group(group, optimizer.defaults, arrays) for group in states["param_groups"]]
        rest = {key: value for key, value in states.items() if key not in ("state", "param_groups")}
        described = {
            "state": [[i, others] for i, others in state if others],
            "groups": groups if any(groups) else [],
            "rest": _describe_items(rest, arrays),
        }
    except Exception as error:  # an optimizer of the user's own may keep anything, and describe it in any way
        return {**facts, "lost": f"the state of {type(optimizer).__name__} is not kept: {error}"}, {}
    return facts | {key: value for key, value in described.items() if value}, arrays


def _describe_state(index: int, state: Mapping[Any, Any], parameters: Parameters, arrays: Arrays) -> list[list[Any]]:
    """Put the plain arrays of a parameter's state with the others, and describe the rest of it."""
    rest: dict[Any, Any] = {}
    for key, value in state.items():
        is_named = isinstance(key, str) and _PLAIN_NAME.fullmatch(key) is not None
        # To any other type than the parameter's, ``load_state_dict`` would convert it.
        if (
            is_named
            and isinstance(value, torch.Tensor)
            and (key == "step" or value.dtype == parameters[index][1].dtype)
        ):
            arrays[f"{index}/{key}"] = to_array(value)
        else:
            rest[key] = value
    return _describe_items(rest, arrays)


def _describe_group(group: Mapping[str, Any], defaults: Mapping[str, Any], arrays: Arrays) -> list[list[Any]]:
    """Describe what a group has other than it was given."""
    changed = {key: value for key, value in group.items() if key not in _OF_GROUPS}
    for key in changed.keys() & defaults.keys():
        if changed[key] is defaults[key] or _describe(changed[key], {}, key) == _describe(defaults[key], {}, key):
            del changed[key]
    return _describe_items(changed, arrays)


def _describe_items(items: Mapping[Any, Any], arrays: Arrays) -> list[list[Any]]:
    return [[_describe(key, arrays, "a key"), _describe(value, arrays, key)] for key, value in items.items()]


def _describe(value: Any, arrays: Arrays, place: Any) -> Any:
    """Describe a number, a text, a tensor, or a list, tuple or dict of such in JSON.

    :param arrays: Gets the tensors.
    :param place: Where it is kept, for the error.
    :raises TypeError: If it is anything else.
    """
    if isinstance(value, np.generic):  # as a schedule made by NumPy sets in a group
        value = value.item()
    kind = type(value)
    if value is None or kind in (str, bool, int):
        return value
    if kind is float:
        return value if math.isfinite(value) else {"float": str(value)}
    if kind in (list, tuple):
        return {kind.__name__: [_describe(item, arrays, place) for item in value]}
    if kind is dict:
        return {"dict": _describe_items(value, arrays)}
    if isinstance(value, torch.Tensor):
        member = f"0/_{len(arrays)}"
        arrays[member] = to_array(value)
        return {"tensor": [member, str(value.dtype).removeprefix("torch.")]}
    raise TypeError(f"no file holds a {kind.__name__}, as in {place}")


def _rebuild(described: Any, arrays: Arrays, device: torch.device) -> Any:
    """Return what ``_describe`` was given, its tensors on a device."""
    if not isinstance(described, dict):
        return described
    ((kind, content),) = described.items()
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {_rebuild(key, arrays, device): _rebuild(value, arrays, device) for key, value in content}
    if kind == "tensor":
        member, dtype = content
        tensor, kind_of = torch.from_numpy(arrays[member]), getattr(torch, dtype)
        if not isinstance(kind_of, torch.dtype):
            raise ValueError(f"torch.{dtype} is no type of numbers")
        return (torch.view_as_complex(tensor) if kind_of.is_complex else tensor).to(device, kind_of)
    return (tuple if kind == "tuple" else list)(_rebuild(item, arrays, device) for item in content)


def put_optimizer_state(optimizer: torch.optim.Optimizer, policy: torch.nn.Module, content: ModelContent) -> str | None:
    """Give the optimizer of a policy the state in a file.

    :return: What of it is lost, in words; None if nothing is.
    :raises ModelFileError: If the metadata describes no optimizer.
    """
    names = read_parameter_names(content.meta)
    facts = {} if names is None else content.meta["optimizer"]
    try:
        if "lost" not in facts:
            return _put_state(optimizer, _list_parameters(optimizer, policy), names, facts, content.optimizer)
        lost = str(facts["lost"])
    except Exception as error:  # an optimizer of the user's own may take its state back in any way
        lost = f"the state in the file does not fit {type(optimizer).__name__} ({error})"
    optimizer.state.clear()  # a part of it may be worse than none
    return lost


def _put_state(
    optimizer: torch.optim.Optimizer,
    parameters: Parameters,
    names: list[str] | None,
    facts: Mapping[str, Any],
    arrays: Arrays,
) -> str | None:
    positions = {name: position for position, (name, _) in enumerate(parameters)}
    saved = list(positions) if names is None else names
    described = dict(facts.get("state", []))
    plain = _read_plain(arrays)
    state, others = dict[int, dict[str, torch.Tensor]](), list[tuple[torch.nn.Parameter, Any]]()
    for index in (indices := plain.keys() | described.keys()):
        position = positions.get(saved[index]) if index < len(saved) else None
        if position is None or (fitting := _fit(plain.get(index, {}), p := parameters[position][1])) is None:
            continue
        state[position] = fitting
        others.append((p, _rebuild({"dict": described.get(index, [])}, arrays, p.device)))
    is_complete = len(state) == len(indices)
    if not is_complete and names is None:
        state = {}  # a file of an earlier version, whose positions were others: what fits may be wrong, too
    states = optimizer.state_dict()
    for group, changed in zip(states["param_groups"], facts.get("groups", []), strict=False):
        group.update(_rebuild({"dict": changed}, arrays, parameters[0][1].device))
    rest = _rebuild({"dict": facts.get("rest", [])}, arrays, parameters[0][1].device)
    optimizer.load_state_dict({**states, **rest, "param_groups": states["param_groups"], "state": state})
    for p, kept in others:
        if kept:
            optimizer.state[p].update(kept)
    return None if is_complete else "moments in the file are of other weights than the optimizer trains here"


def _read_plain(arrays: Arrays) -> dict[int, dict[str, torch.Tensor]]:
    """Return the states that are arrays by the positions of their parameters."""
    plain: dict[int, dict[str, torch.Tensor]] = {}
    for member, array in arrays.items():
        index, key = member.split("/")
        if not key.startswith("_"):
            plain.setdefault(int(index), {})[key] = torch.from_numpy(array)
    return plain


def _fit(moments: dict[str, torch.Tensor], parameter: torch.nn.Parameter) -> dict[str, torch.Tensor] | None:
    """Return moments as a parameter has them; None if they are of another one."""
    if parameter.is_complex():
        moments = {key: tensor if key == "step" else torch.view_as_complex(tensor) for key, tensor in moments.items()}
    is_fitting = all(moments[key].shape == parameter.shape for key in SHAPED & moments.keys())
    return moments if is_fitting else None


def _list_parameters(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> Parameters:
    """List what an optimizer trains by the names of ``get_weights``; a number stands for what is not the policy's."""
    names = {id(p): name.replace("_orig_mod.", "") for name, p in unwrap_compiled(policy).named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(names.get(id(p), str(i)), p) for i, p in enumerate(parameters)]
