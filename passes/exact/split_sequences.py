"""SequenceAt(SplitToSequence(x), i) -> a part of x, where i is a number.

Tracers write so what takes apart an axis whose size is free: halves of a batch, chunks of an axis.
A part is a Slice from a multiple of the size of parts, or from the sum of the sizes before it.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
)

INT64 = ir.DataType.INT64


class SplitSequences(Exact):
    """Take parts of a tensor without a sequence of them."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Replace each element that is taken by its number."""
        notes = []
        for node in model.graph:
            split = producer(node.inputs[0], "SplitToSequence") if _takes(node) else None
            part = None if split is None else _part(node, split)
            if part is None:
                continue
            notes.append(describe(node))
            replace_uses(node.outputs[0], part)
            model.graph.remove(node, safe=True)
        for node in list(model.graph):
            if node.op_type == "SplitToSequence" and not node.domain and not node.outputs[0].uses():
                model.graph.remove(node, safe=True)
        return PassResult(changed=bool(notes), notes=notes)


def _takes(node: ir.Node) -> bool:
    return node.op_type == "SequenceAt" and not node.domain


def _part(node: ir.Node, split: ir.Node) -> ir.Value | None:
    """Element `node` of what `split` makes; None where its number, or its size, is not told."""
    index = integers(node.inputs[1])
    source, sizes = split.inputs[0], input_of(split, 1)
    if index is None or index[0] < 0 or source is None:
        return None
    axis, place = attribute(split, "axis", 0), index[0]
    emit = Emitter(node)
    old = node.outputs[0]
    if sizes is None:
        rank = None if source.shape is None else len(source.shape)
        picked = emit("Gather", [source, emit.constant(place)], source.dtype, None, axis=axis)
        if not attribute(split, "keepdims", 1):
            return picked
        return (
            None
            if rank is None
            else emit("Unsqueeze", [picked, emit.constant([axis])], source.dtype, dims(old))
        )
    known = constant(sizes)
    shape = dims(sizes)
    if known is None and shape is None:
        return None
    scalar = (known.ndim if known is not None else len(shape or ())) == 0
    begin, end = _scalar(emit, sizes, place) if scalar else _listed(emit, sizes, place)
    bounds = [begin, end, emit.constant([axis])]
    return emit("Slice", [source, *bounds], source.dtype, dims(old))


def _scalar(emit: Emitter, size: ir.Value, place: int) -> tuple[ir.Value, ir.Value]:
    """Where a part begins and ends, all but the last being of one size."""
    wide = emit("Cast", [size], INT64, [], to=INT64.value)
    one = emit("Unsqueeze", [wide, emit.constant([0])], INT64, [1])
    begin, end = (emit("Mul", [one, emit.constant([n])], INT64, [1]) for n in (place, place + 1))
    return begin, end


def _listed(emit: Emitter, sizes: ir.Value, place: int) -> tuple[ir.Value, ir.Value]:
    """Where a part begins and ends, after those that are listed before it."""
    wide = emit("Cast", [sizes], INT64, dims(sizes), to=INT64.value)

    def before(count: int) -> ir.Value:
        ends = [emit.constant([0]), emit.constant([count]), emit.constant([0])]
        part = emit("Slice", [wide, *ends], INT64, [count])
        return emit("ReduceSum", [part, emit.constant([0])], INT64, [1], keepdims=1)

    return (before(place) if place else emit.constant([0])), before(place + 1)
