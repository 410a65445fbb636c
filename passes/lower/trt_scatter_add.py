"""Sums over edges as TensorRT has them: products with a matrix that says which row each adds to.

TensorRT's ScatterND and ScatterElements know no reduction.  With rows i of `data` [N, ...], and
updates u_e that go to the rows t_e of `indices`:

    data_i + sum over e with t_e = i of u_e  =  data_i + sum_e [t_e = i] u_e

The matrix [t_e = i] has N x E entries, so this is for graphs of thousands of nodes and edges, not
of hundreds of thousands.  Updates have to be finite, as those of a network are: 0 x inf is no 0.
"""

import math

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, replace_uses

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


class TrtScatterAdd(Lower):
    """Write sums into rows that indices name as products of matrices."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Replace the nodes that add floats to whole rows."""
        nodes = [node for node in model.graph if _adds_rows(node)]
        for node in nodes:
            _write(node)
        return PassResult(changed=bool(nodes), notes=[describe(node) for node in nodes])


def _adds_rows(node: ir.Node) -> bool:
    """Whether each index names a row of the data, along its first axis, and adds to all of it."""
    if node.op_type not in ("ScatterND", "ScatterElements") or node.domain:
        return False
    if attribute(node, "reduction", "none") != "add":
        return False
    data, indices, updates = (dims(value) for value in node.inputs)
    if data is None or indices is None or updates is None:
        return False
    if (node.inputs[0] and node.inputs[0].dtype) not in FLOATS:
        return False
    if node.op_type == "ScatterElements":
        return len(data) == 1
    inner = all(isinstance(dim, int) for dim in data[1:])
    return len(indices) == 2 and indices[1] == 1 and inner


def _write(node: ir.Node) -> None:
    data, indices, updates = (value for value in node.inputs if value is not None)
    emit, kind = Emitter(node), data.dtype
    shape, edges = dims(data) or (), (dims(updates) or ("?",))[0]
    inner = math.prod(int(dim) for dim in shape[1:])
    nodes = shape[0]
    rows = emit("Shape", [data], INT64, [1], start=0, end=1)
    named = emit("Reshape", [indices, emit.constant([-1])], INT64, [edges])
    behind = emit("Less", [named, emit.constant(0)], BOOL, [edges])
    from_end = emit("Add", [named, rows], INT64, [edges])
    named = emit("Where", [behind, from_end, named], INT64, [edges])
    count = emit("Squeeze", [rows, emit.constant([0])], INT64, [])
    each = emit("Range", [emit.constant(0), count, emit.constant(1)], INT64, [nodes])
    each = emit("Unsqueeze", [each, emit.constant([1])], INT64, [nodes, 1])
    hits = emit("Equal", [each, named], BOOL, [nodes, edges])
    matrix = emit("Cast", [hits], kind, [nodes, edges], to=kind)
    if len(shape) != 2:
        flat = emit("Shape", [updates], INT64, [1], start=0, end=1)
        flat = emit("Concat", [flat, emit.constant([inner])], INT64, [2], axis=0)
        updates = emit("Reshape", [updates, flat], kind, [edges, inner])
    total = emit("MatMul", [matrix, updates], kind, [nodes, inner])
    if len(shape) != 2:
        total = emit("Reshape", [total, emit("Shape", [data], INT64, [len(shape)])], kind, shape)
    result = emit("Add", [data, total], kind, shape)
    replace_uses(node.outputs[0], result)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
