"""Caches of flags and of whole numbers as TensorRT has them: its TensorScatter writes floats alone.

Beside keys some models carry which tokens were active, or how many had been before each.  Where
tokens [B, ..., T, ...] are written from w_b on, an entry at place p holds

    token p - w_b where that is one of the T, and what was there before elsewhere,

which is exact for every type.
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, Shape, attribute, describe, dims, replace_uses

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


class TrtCacheWrites(Lower):
    """Write what is no float into caches by choosing for each place."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Replace every TensorScatter of another type that writes in a row."""
        nodes = [node for node in model.graph if _writes(node)]
        for node in nodes:
            _choose(node)
        return PassResult(changed=bool(nodes), notes=[describe(node) for node in nodes])


def _writes(node: ir.Node) -> bool:
    return (
        node.op_type == "TensorScatter"
        and not node.domain
        and attribute(node, "mode", "linear") == "linear"
        and node.outputs[0].dtype not in (None, *FLOATS)
        and all(dims(value) for value in node.inputs[:2])
    )


def _choose(node: ir.Node) -> None:
    past, update, *at = node.inputs
    assert past is not None
    assert update is not None
    emit, kind, shape = Emitter(node), past.dtype, dims(past) or ()
    axis = attribute(node, "axis", -2) % len(shape)
    sizes = emit("Shape", [past], INT64, [len(shape)])
    length, tokens = (_size(emit, value, axis) for value in (past, update))
    index = emit("Range", [emit.constant(0), length, emit.constant(1)], INT64, [shape[axis]])
    place: Shape = [shape[axis] if each == axis else 1 for each in range(len(shape))]
    lined = [-1 if each == axis else 1 for each in range(len(shape))]
    index = emit("Reshape", [index, emit.constant(lined)], INT64, place)
    if at and at[0] is not None:
        place = [shape[0], *place[1:]]
        start = emit("Reshape", [at[0], emit.constant([-1] + [1] * (len(shape) - 1))],
                     INT64, [shape[0]] + [1] * (len(shape) - 1))  # fmt: skip
        index = emit("Sub", [index, start], INT64, place)
    last = emit("Sub", [tokens, emit.constant(1)], INT64, [])
    first = emit("GreaterOrEqual", [index, emit.constant(0)], BOOL, place)
    new = emit("And", [first, emit("LessOrEqual", [index, last], BOOL, place)], BOOL, place)
    held = emit("Max", [emit("Min", [index, last], INT64, place), emit.constant(0)], INT64, place)
    held = emit("Expand", [held, sizes], INT64, shape)
    written = emit("GatherElements", [update, held], kind, shape, axis=axis)
    if kind == BOOL:  # of which ONNX Runtime has no Where
        old = emit("And", [emit("Not", [new], BOOL, place), past], BOOL, shape)
        chosen = emit("Or", [emit("And", [new, written], BOOL, shape), old], BOOL, shape)
    else:
        chosen = emit("Where", [new, written, past], kind, shape)
    replace_uses(node.outputs[0], chosen)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _size(emit: Emitter, value: ir.Value, axis: int) -> ir.Value:
    size = emit("Shape", [value], INT64, [1], start=axis, end=axis + 1)
    return emit("Squeeze", [size, emit.constant([0])], INT64, [])
