"""Scatters that reduce, of any kind and along any axis, as TensorRT has them: by comparisons.

TensorRT's ScatterND and ScatterElements know no reduction.  With entries i of `data` along an axis,
and updates u_e that go to the entries t_e, for a reduction R with the neutral element o:

    data_i R u_{e1} R u_{e2} ...  =  data_i R (R over e of (u_e where t_e = i, else o))

which takes as many numbers as there are pairs of an entry and an update.  Coordinates of ScatterND
become places in the data with their axes as one.  Sums into whole rows are products of matrices
(`trt_scatter_add`).  What would take more than `MOST` numbers for sizes that are known stays.
"""

import math
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Dim, Emitter, attribute, describe, dims, replace_uses

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
KINDS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.INT32, INT64)
REDUCTIONS = {
    "add": ("Add", "ReduceSum"),
    "mul": ("Mul", "ReduceProd"),
    "max": ("Max", "ReduceMax"),
    "min": ("Min", "ReduceMin"),
}
MOST = 2**28


class TrtScatterReduce(Lower):
    """Write scatters with a reduction as comparisons of indices with places."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Replace every scatter that reduces."""
        nodes = [node for node in model.graph if _reduces(node)]
        for node in nodes:
            (_write_elements if node.op_type == "ScatterElements" else _write_places)(node)
        return PassResult(changed=bool(nodes), notes=[describe(node) for node in nodes])


def _reduces(node: ir.Node) -> bool:
    if node.op_type not in ("ScatterND", "ScatterElements") or node.domain:
        return False
    if attribute(node, "reduction", "none") not in REDUCTIONS:
        return False
    data, indices, updates = (dims(value) for value in node.inputs)
    if not data or indices is None or updates is None:
        return False
    if (node.inputs[0] and node.inputs[0].dtype) not in KINDS:
        return False
    if node.op_type == "ScatterND":
        known = isinstance(indices[-1] if indices else None, int)
        return known and _fits([*data, *updates[: len(indices) - 1]])
    axis = attribute(node, "axis", 0) % len(data)
    aligned = [*indices[:axis], *indices[axis + 1 :]] == [*data[:axis], *data[axis + 1 :]]
    return aligned and "?" not in indices and _fits([*data, indices[axis]])


def _fits(sizes: Sequence[Dim]) -> bool:
    return math.prod(size for size in sizes if isinstance(size, int)) <= MOST


def _write_elements(node: ir.Node) -> None:
    data, indices, updates = (value for value in node.inputs if value is not None)
    emit, rank = Emitter(node), len(dims(data) or ())
    axis = attribute(node, "axis", 0) % rank
    size = emit("Shape", [data], INT64, [1], start=axis, end=axis + 1)
    _replace(node, _reduced(emit, node, (data, indices, updates), axis, size, rank))


def _write_places(node: ir.Node) -> None:
    data, indices, updates = (value for value in node.inputs if value is not None)
    emit, shape = Emitter(node), list(dims(data) or ())
    depth, kind = int((dims(indices) or (0,))[-1]), data.dtype
    sizes = emit("Shape", [data], INT64, [depth], start=0, end=depth)
    behind = emit("Less", [indices, emit.constant(0)], BOOL, dims(indices))
    from_end = emit("Add", [indices, sizes], INT64, dims(indices))
    indices = emit("Where", [behind, from_end, indices], INT64, dims(indices))
    ones, steps = emit.constant([1]), []
    for axis in range(depth):  # how many places apart neighbours along an axis are
        after = emit("Slice", [sizes, emit.constant([axis + 1]), emit.constant([depth])], INT64,
                     [depth - axis - 1])  # fmt: skip
        joined = emit("Concat", [after, ones], INT64, [depth - axis], axis=0)
        steps.append(emit("ReduceProd", [joined, emit.constant([0])], INT64, [1], keepdims=1))
    step = steps[0] if depth == 1 else emit("Concat", steps, INT64, [depth], axis=0)
    parts = emit("Mul", [indices, step], INT64, dims(indices))
    place = emit("ReduceSum", [parts, emit.constant([-1])], INT64, (dims(indices) or ())[:-1],
                 keepdims=0)  # fmt: skip
    count = emit("ReduceProd", [sizes, emit.constant([0])], INT64, [1], keepdims=1)
    inner = emit("Shape", [data], INT64, [len(shape) - depth], start=depth)
    inner = emit("ReduceProd", [inner, emit.constant([0])], INT64, [1], keepdims=1)
    wide = emit("Concat", [emit.constant([-1]), inner], INT64, [2], axis=0)
    flat = (
        emit("Reshape", [data, wide], kind, None),
        emit("Reshape", [place, emit.constant([-1, 1])], INT64, None),
        emit("Reshape", [updates, wide], kind, None),
    )
    found = _reduced(emit, node, flat, 0, count, 2)
    whole = emit("Shape", [data], INT64, [len(shape)])
    _replace(node, emit("Reshape", [found, whole], kind, shape))


def _reduced(
    emit: Emitter,
    node: ir.Node,
    given: tuple[ir.Value, ir.Value, ir.Value],
    axis: int,
    size: ir.Value,
    rank: int,
) -> ir.Value:
    """`given` are data, indices and updates of one rank; `size` [1] is that of the data's axis."""
    data, indices, updates = given
    kind = data.dtype
    assert kind is not None
    join, reduce = REDUCTIONS[attribute(node, "reduction")]
    behind = emit("Less", [indices, emit.constant(0)], BOOL, dims(indices))
    from_end = emit("Add", [indices, size], INT64, dims(indices))
    indices = emit("Where", [behind, from_end, indices], INT64, dims(indices))
    count = emit("Squeeze", [size, emit.constant([0])], INT64, [])
    each = emit("Range", [emit.constant(0), count, emit.constant(1)], INT64, None)
    each = emit("Reshape", [each, emit.constant([-1, *[1] * (rank - axis)])], INT64, None)
    lone = emit.constant([axis])
    hits = emit("Equal", [emit("Unsqueeze", [indices, lone], INT64, None), each], BOOL, None)
    updates = emit("Unsqueeze", [updates, lone], kind, None)
    neutral = emit.constant(_neutral(join, kind), kind.numpy())
    chosen = emit("Where", [hits, updates, neutral], kind, None)
    total = emit(reduce, [chosen, emit.constant([axis + 1])], kind, dims(data), keepdims=0)
    return emit(join, [data, total], kind, dims(data))


def _neutral(join: str, kind: ir.DataType) -> float | int:
    if join in ("Add", "Mul"):
        return int(join == "Mul")
    dtype = kind.numpy()
    whole = np.issubdtype(dtype, np.integer)
    ends = np.iinfo(dtype) if whole else None
    least, most = (-np.inf, np.inf) if ends is None else (int(ends.min), int(ends.max))
    return least if join == "Max" else most


def _replace(node: ir.Node, value: ir.Value) -> None:
    replace_uses(node.outputs[0], value)
    assert node.graph is not None
    node.graph.remove(node, safe=True)
