"""Running graphs, or parts of them, in ONNX Runtime: how passes learn and are checked."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import onnxruntime
from onnx_ir.passes import common

Arrays = Mapping[str, npt.NDArray[Any]]


def session(model: ir.Model, *, optimize: bool = False) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session of `model`, as written (`optimize=False`) or optimised."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model: ir.Model, feeds: Arrays, *, optimize: bool = False) -> dict[str, npt.NDArray[Any]]:
    """Outputs of `model` by name."""
    engine = session(model, optimize=optimize)
    names = [output.name for output in engine.get_outputs()]
    return dict(zip(names, engine.run(names, dict(feeds)), strict=True))


def part(model: ir.Model, values: Sequence[ir.Value]) -> ir.Model:
    """A copy of the nodes that `values` are computed from, with `values` as its only outputs."""
    names = [value.name for value in values]
    clone = model.clone()
    found = {v.name: v for node in clone.graph for v in node.outputs}
    found.update({v.name: v for v in clone.graph.inputs})
    clone.graph.outputs.clear()
    for name, value in zip(names, values, strict=True):
        output = found[name]
        output.type = output.type or value.type
        clone.graph.outputs.append(output)
    common.RemoveUnusedNodesPass()(clone)
    used = {v.name for node in clone.graph for v in node.inputs if v is not None}
    for unused in [v for v in clone.graph.inputs if v.name not in used]:
        clone.graph.inputs.remove(unused)
    return clone
