"""A policy as a TorchScript file, which torch runs without Python and without this library."""

import io
import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from grpo_core.actor.actor import LEAKY_SLOPE, Actor
from grpo_core.export.forward import Constant, Port, choose_actions, list_inputs

#: The member with the facts, in JSON, among ``_extra_files``.
FACTS_FILE = "grpo.json"
# Paths of the machine that wrote the file, and what differs from one writing to the next; torch reads one without them.
_LEFT_OUT = (".debug_pkl", "/.data/serialization_id")
_ACTIVATIONS: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "ELU": functional.elu,
    "LeakyReLU": lambda x: functional.leaky_relu(x, float(LEAKY_SLOPE)),
    "Sigmoid": torch.sigmoid,
}


def to_torchscript(actor: Actor, masks: Port | None, facts: Mapping[str, Any]) -> bytes:
    """Write a TorchScript module that maps an observation to the most likely action within its bounds.

    It is called with a tensor ``(batch_size, *observation_shape)``, or a dict of such for a Dict, and the masks if it
    takes any.

    :param masks: The input for action masks; None for a policy that takes none.
    :param facts: Kept as ``grpo.json`` in the file, which ``torch.jit.load`` returns as one of its ``_extra_files``.
    """
    module = _Policy(actor)
    rows = {key: torch.from_numpy(np.zeros((2, *port.shape), port.dtype)) for key, port in list_inputs(actor).items()}
    arguments = [rows.get(None, rows), *([] if masks is None else [torch.ones((2, *masks.shape), dtype=torch.bool)])]
    written = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings():
        # Torch would have programs use torch.export instead, whose files no earlier version and no C++ program reads.
        warnings.simplefilter("ignore", DeprecationWarning)
        module(*arguments)  # makes the buffers, which are then part of the module
        traced = torch.jit.trace(module.eval(), tuple(arguments))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.jit.save(traced, written, _extra_files={FACTS_FILE: json.dumps(dict(facts))})
    return _strip(written)


class _Policy(torch.nn.Module):
    """Does every operation at once; the constants are its buffers, so that it can move to another device."""

    def __init__(self, actor: Actor) -> None:
        super().__init__()
        self._actor = actor
        self._names: dict[tuple[str, tuple[int, ...], bytes], str] = {}

    def forward(self, observation: Any, action_masks: torch.Tensor | None = None) -> Any:
        observations = observation if isinstance(observation, dict) else {None: observation}
        # In the space's order, whatever that of the dict.
        ordered = {key: observations[key] for key in list_inputs(self._actor)}
        return choose_actions(self._actor, self, ordered, action_masks)

    def cast(self, x: torch.Tensor, dtype: npt.DTypeLike) -> torch.Tensor:
        return x.to(getattr(torch, np.dtype(dtype).name))

    def subtract(self, x: torch.Tensor, constant: Constant) -> torch.Tensor:
        return x - self._keep(constant)

    def divide(self, x: torch.Tensor, constant: Constant) -> torch.Tensor:
        return x / self._keep(constant)

    def clip(self, x: torch.Tensor, low: Constant, high: Constant) -> torch.Tensor:
        return torch.clamp(x, self._keep(low), self._keep(high))

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    def reshape(self, x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        return x.reshape(-1, *shape)

    def pick(self, x: torch.Tensor, columns: Constant) -> torch.Tensor:
        return x.index_select(1, self._keep(columns.astype(np.int64)))

    def concatenate(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat(list(parts), dim=1)

    def equal(self, x: torch.Tensor, constant: Constant) -> torch.Tensor:
        return x == self._keep(constant)

    def linear(self, x: torch.Tensor, weight: Constant, bias: Constant) -> torch.Tensor:
        return functional.linear(x, self._keep(weight), self._keep(bias))

    def convolve(self, x: torch.Tensor, weight: Constant, bias: Constant, stride: int) -> torch.Tensor:
        return functional.conv2d(x, self._keep(weight), self._keep(bias), stride)

    def activate(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return _ACTIVATIONS[name](x)

    def select(self, flags: torch.Tensor, x: torch.Tensor, otherwise: float) -> torch.Tensor:
        return torch.where(flags, x, self._keep(np.array(otherwise, np.float32)))

    def is_above(self, x: torch.Tensor, threshold: float) -> torch.Tensor:
        return x > threshold

    def argmax(self, x: torch.Tensor, keeps_axis: bool) -> torch.Tensor:
        return x.argmax(dim=1, keepdim=keeps_axis)

    def _keep(self, constant: Constant) -> torch.Tensor:
        """Return the buffer that holds a constant, made when it is first needed."""
        array = np.array(constant, order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._names:
            self._names[key] = f"constant_{len(self._names)}"
            self.register_buffer(self._names[key], torch.from_numpy(array))
        buffer: torch.Tensor = getattr(self, self._names[key])
        return buffer


def _strip(written: io.BytesIO) -> bytes:
    """Leave out what depends on the machine, so that the same policy gives the same bytes."""
    stripped = io.BytesIO()
    with zipfile.ZipFile(written) as source, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as target:
        for name in source.namelist():
            if not name.endswith(_LEFT_OUT):
                target.writestr(zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0)), source.read(name))
    return stripped.getvalue()
