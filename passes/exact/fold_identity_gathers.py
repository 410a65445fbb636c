"""GatherND(x, [b, i] for all b and i) -> Unsqueeze(x), where every entry is taken once, in order.

Libraries compute masks by functions of single indices, mapped over all of them; what a mask looks
up for row b and token i then comes as a gather at places that count through the axes.  Holds where
index k is a Range from 0 over the whole of axis k, along an axis of its own, in order.
"""

import onnx_ir as ir

from intaglio.passes.analysis.known_shapes import complete_shapes
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    integers,
    producer,
    replace_uses,
)


class FoldIdentityGathers(Exact):
    """Take a value itself where a gather counts through all of its entries."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Replace every gather whose places are those of the entries."""
        complete_shapes(model.graph)
        notes = []
        for node in list(model.graph):
            if node.op_type != "GatherND" or node.domain or attribute(node, "batch_dims", 0):
                continue
            axes = _axes(node)
            if axes is None:
                continue
            emit, data, old = Emitter(node), node.inputs[0], node.outputs[0]
            new = emit("Unsqueeze", [data, emit.constant(axes)], old.dtype, dims(old))
            notes.append(describe(node))
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
        return PassResult(changed=bool(notes), notes=notes)


def _axes(node: ir.Node) -> list[int] | None:
    """The axes of one entry that the result has beside those of the data; None if it is another."""
    shape, result = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    joined = producer(node.inputs[1], "Concat")
    lead = len(dims(node.inputs[1]) or ()) - 1
    if joined is None or attribute(joined, "axis") not in (-1, lead) or "?" in (*shape, *result):
        return None
    places = [_counted(value) for value in joined.inputs]
    if None in places or places != sorted(places, key=lambda place: place[0] if place else 0):
        return None
    kept = [place[0] for place in places if place is not None]
    sizes = [place[1] for place in places if place is not None]
    if len(set(kept)) < len(kept) or sizes != list(shape[: len(kept)]):
        return None
    added = [axis for axis in range(lead) if axis not in kept]
    return added if all(result[axis] == 1 for axis in added) else None


def _counted(value: ir.Value | None) -> tuple[int, int | str] | None:
    """The axis along which `value` counts 0, 1, 2, ..., and how far; others repeat it."""
    moves: list[ir.Node] = []
    while (node := producer(value, "Expand", "Identity", "Unsqueeze")) is not None:
        moves.append(node)
        value = node.inputs[0]
    origin = producer(value, "Range")
    if origin is None:
        return None
    start, step = constant(origin.inputs[0]), constant(origin.inputs[2])
    length = (dims(origin.outputs[0]) or ("?",))[0]
    if start is None or step is None or start != 0 or step != 1 or length == "?":
        return None
    axis, rank = 0, 1
    for node in reversed(moves):
        shape = dims(node.outputs[0])
        if not shape or "?" in shape:
            return None
        if node.op_type == "Unsqueeze":
            added = integers(node.inputs[1])
            if added is None:
                return None
            new = {a % len(shape) for a in added}
            axis = [a for a in range(len(shape)) if a not in new][axis]
        else:
            axis += len(shape) - rank
        rank = len(shape)
        if shape[axis] != length:
            return None
    return axis, length
