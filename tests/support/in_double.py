"""A graph in float64, by the reference that ONNX gives of its operators."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Array = npt.NDArray[Any]


class LayerNormalization(OpRun):
    """ONNX's own reference computes it in float32."""

    def _run(
        self, x: Array, scale: Array, bias: Array, axis: int, epsilon: float, **_: Any
    ) -> tuple[Array]:
        axes = tuple(range(axis % x.ndim, x.ndim))
        centred = x - x.mean(axes, keepdims=True)
        spread = np.sqrt((centred**2).mean(axes, keepdims=True) + np.float32(epsilon))
        return (centred / spread * scale + bias,)


class GroupNormalization(OpRun):
    """The same of groups of channels."""

    def _run(
        self, x: Array, scale: Array, bias: Array, epsilon: float, num_groups: int, **_: Any
    ) -> tuple[Array]:
        parts = x.reshape(len(x), num_groups, -1)
        centred = parts - parts.mean(-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(epsilon))
        wide = (-1, *[1] * (x.ndim - 2))
        return ((centred / spread).reshape(x.shape) * scale.reshape(wide) + bias.reshape(wide),)


def in_double(model: ir.Model) -> Callable[[dict[str, Array]], dict[str, Array]]:
    """The graph in float64, by the reference that ONNX gives of its operators."""
    proto = ir.to_proto(model.clone())
    for value in (*proto.graph.input, *proto.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    del proto.graph.value_info[:]
    for holder in (
        proto.graph.initializer,
        *([a.t] for n in proto.graph.node for a in n.attribute),
    ):
        for tensor in holder:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                wide = onnx.numpy_helper.to_array(tensor).astype(np.float64)
                tensor.CopyFrom(onnx.numpy_helper.from_array(wide, tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == 1:
                attribute.i = onnx.TensorProto.DOUBLE
    engine = ReferenceEvaluator(proto, new_ops=[LayerNormalization, GroupNormalization])
    names = [value.name for value in proto.graph.output]
    return lambda feeds: dict(zip(names, engine.run(None, feeds), strict=True))
