"""A policy as an ONNX file, written from its arrays: neither torch nor an exporter is needed."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from grpo_core import __version__
from grpo_core.actor.actor import LEAKY_SLOPE, Actor
from grpo_core.export.forward import Constant, Port, choose_actions, list_inputs, make_output

# Of 2022 and 2021: every runtime that is in use reads them, and nothing here needs later ones.
_OPSET, _IR_VERSION = 17, 8
_OPERATORS = {"Tanh": "Tanh", "ReLU": "Relu", "ELU": "Elu", "LeakyReLU": "LeakyRelu", "Sigmoid": "Sigmoid"}


def to_onnx(actor: Actor, masks: Port | None, facts: Mapping[str, Any]) -> bytes:
    """Write an ONNX model whose ``action`` is the most likely one within its bounds.

    :param masks: The input for action masks; None for a policy that takes none.
    :param facts: Kept in ``metadata_props``, each in JSON unless it is text.
    """
    graph = _Graph()
    inputs, output = list_inputs(actor), make_output(actor)
    named = {key: port.name for key, port in inputs.items()}
    last = choose_actions(actor, graph, named, None if masks is None else masks.name)
    graph.nodes.append(helper.make_node("Identity", [last], [output.name]))
    ports = [*inputs.values(), *([] if masks is None else [masks])]
    made = helper.make_graph(
        graph.nodes, "policy", list(map(_describe, ports)), [_describe(output)], graph.initializers
    )
    model = helper.make_model(
        made,
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="sb3-grpo",
        producer_version=__version__,
    )
    helper.set_model_props(
        model, {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}
    )
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


class _Graph:
    """Writes every operation down as nodes; tensors are their names, which slashes keep apart from any input's."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def cast(self, x: str, dtype: npt.DTypeLike) -> str:
        return self._add("Cast", x, to=_find_type(dtype))

    def subtract(self, x: str, constant: Constant) -> str:
        return self._add("Sub", x, self._keep(constant))

    def divide(self, x: str, constant: Constant) -> str:
        return self._add("Div", x, self._keep(constant))

    def clip(self, x: str, low: Constant, high: Constant) -> str:
        return self._add("Min", self._add("Max", x, self._keep(low)), self._keep(high))

    def flatten(self, x: str) -> str:
        return self._add("Flatten", x, axis=1)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self._add("Reshape", x, self._keep(np.array([-1, *shape], np.int64)))

    def pick(self, x: str, columns: Constant) -> str:
        return self._add("Gather", x, self._keep(columns.astype(np.int64)), axis=1)

    def concatenate(self, parts: Sequence[str]) -> str:
        return self._add("Concat", *parts, axis=1)

    def equal(self, x: str, constant: Constant) -> str:
        return self._add("Equal", x, self._keep(constant))

    def linear(self, x: str, weight: Constant, bias: Constant) -> str:
        return self._add("Gemm", x, self._keep(weight), self._keep(bias), transB=1)

    def convolve(self, x: str, weight: Constant, bias: Constant, stride: int) -> str:
        return self._add("Conv", x, self._keep(weight), self._keep(bias), strides=[stride, stride])

    def activate(self, x: str, name: str) -> str:
        return self._add(_OPERATORS[name], x, **({"alpha": float(LEAKY_SLOPE)} if name == "LeakyReLU" else {}))

    def select(self, flags: str, x: str, otherwise: float) -> str:
        return self._add("Where", flags, x, self._keep(np.array(otherwise, np.float32)))

    def is_above(self, x: str, threshold: float) -> str:
        return self._add("Greater", x, self._keep(np.array(threshold, np.float32)))

    def argmax(self, x: str, keeps_axis: bool) -> str:
        return self._add("ArgMax", x, axis=1, keepdims=int(keeps_axis))

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"/{len(self.nodes)}/{operator}"
        self.nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def _keep(self, constant: Constant) -> str:
        name = f"/constant/{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(constant).reshape(constant.shape), name))
        return name


def _describe(port: Port) -> Any:
    return helper.make_tensor_value_info(port.name, _find_type(port.dtype), ["batch_size", *port.shape])


def _find_type(dtype: npt.DTypeLike) -> TensorProto.DataType:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
