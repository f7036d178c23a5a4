"""Turn the state of an optimizer into the content of a model file, and back."""

from typing import Any

import torch

from grpo_core.saving.model_file import Arrays, ModelContent
from grpo_core.saving.model_state import to_array
from grpo_core.saving.moments import SHAPED, read_parameter_names
from grpo_core.update.structure import unwrap_compiled


def describe_optimizer(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> tuple[dict[str, Any], Arrays]:
    """Return the content of ``meta["optimizer"]``, and the moments of ``get_optimizer_state``.

    Positions in an optimizer change with the layers that are frozen or replaced, so that they are named.
    """
    return {"parameters": [name for name, _ in _list_parameters(optimizer, policy)]}, get_optimizer_state(optimizer)


def get_optimizer_state(optimizer: torch.optim.Optimizer) -> Arrays:
    """Return an optimizer's moments, by ``<parameter index>/<state name>``; on the CPU they share its memory."""
    return {
        f"{index}/{name}": to_array(torch.as_tensor(value))  # a few keep a plain number
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }


def put_optimizer_state(optimizer: torch.optim.Optimizer, policy: torch.nn.Module, content: ModelContent) -> str | None:
    """Give the optimizer of a policy the moments of a file.

    :return: What of the file it did not take, in words; None if it took all.
    :raises ModelFileError: If the metadata describes no optimizer.
    """
    parameters = _list_parameters(optimizer, policy)
    positions = {name: position for position, (name, _) in enumerate(parameters)}
    names = read_parameter_names(content.meta)
    saved = list(positions) if names is None else names
    state: dict[int, dict[str, torch.Tensor]] = {}
    moments = _read_moments(content.optimizer)
    for index, found in moments.items():
        position = positions.get(saved[index]) if index < len(saved) else None
        if position is not None and (fitting := _fit(found, parameters[position][1])) is not None:
            state[position] = fitting
    is_complete = len(state) == len(moments)
    if not is_complete and names is None:
        state = {}  # a file of an earlier version, whose positions were others: what fits may be wrong, too
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return None if is_complete else "moments in the file are of other weights than the optimizer trains here"


def _read_moments(arrays: Arrays) -> dict[int, dict[str, torch.Tensor]]:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for member, array in arrays.items():
        index, key = member.split("/")
        moments.setdefault(int(index), {})[key] = torch.from_numpy(array)
    return moments


def _fit(moments: dict[str, torch.Tensor], parameter: torch.nn.Parameter) -> dict[str, torch.Tensor] | None:
    """Return moments as a parameter has them; None if they are of another one."""
    if parameter.is_complex():
        pairs = {key for key, tensor in moments.items() if tensor.shape == (*parameter.shape, 2)}
        moments |= {key: torch.view_as_complex(moments[key]) for key in pairs}
    is_fitting = all(moments[key].shape == parameter.shape for key in SHAPED & moments.keys())
    return moments if is_fitting else None


def _list_parameters(optimizer: torch.optim.Optimizer, policy: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """List what an optimizer trains by the names of ``get_weights``; a number stands for what is not the policy's."""
    names = {id(p): name.replace("_orig_mod.", "") for name, p in unwrap_compiled(policy).named_parameters()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [(names.get(id(p), str(i)), p) for i, p in enumerate(parameters)]
