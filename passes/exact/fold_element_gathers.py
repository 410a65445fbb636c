"""GatherElements(x, i) -> Gather(x', i') where each other axis varies in one of them alone.

    y[b, t, d] = x[b, i[b, t, d], d]

picks for every entry by itself.  Where i is the same for all d and x for all b, it picks whole rows
of the table x[0]: y[b, t, :] = x'[i'[b, t], :].  Libraries look up positions so, in a table that is
repeated for each row of the batch, or at places repeated for each channel.  An axis is the same
throughout where it has one entry, or an Expand repeats one.
"""

import onnx_ir as ir

from intaglio.passes.analysis.known_shapes import complete_shapes
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, producer, replace_uses

Shape = tuple[int | str, ...]


class FoldElementGathers(Exact):
    """Pick rows of a table where a gather of single entries picks no others."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Replace every GatherElements that picks whole rows."""
        complete_shapes(model.graph)
        notes = []
        for node in list(model.graph):
            if node.op_type == "GatherElements" and not node.domain and _rewritten(node):
                notes.append(describe(node))
                model.graph.remove(node, safe=True)
        return PassResult(changed=bool(notes), notes=notes)


def _rewritten(node: ir.Node) -> bool:
    data, places, old = node.inputs[0], node.inputs[1], node.outputs[0]
    table, picks = dims(data), dims(places)
    if data is None or places is None or not table or not picks or "?" in (*table, *picks):
        return False
    axis = attribute(node, "axis", 0) % len(table)
    rows, entries = [axis], [axis]  # axes of the picks, and of the table
    for other in range(len(table)):
        if other != axis and _single(places, other) and table[other] == picks[other]:
            entries.append(other)
        elif other != axis and _single(data, other):
            rows.append(other)
        elif other != axis:
            return False
    rows, entries = sorted(rows), sorted(entries)
    emit = Emitter(node)
    x, i = _kept(data, entries, emit), _kept(places, rows, emit)
    if x is None or i is None:
        return False
    at = entries.index(axis)
    order = [*entries[:at], *rows, *entries[at + 1 :]]  # of the axes in what the Gather gives
    shape = [picks[each] for each in order]
    new = emit("Gather", [x, i], old.dtype, shape, axis=at)
    if order != sorted(order):
        perm = [order.index(each) for each in range(len(order))]
        new = emit("Transpose", [new], old.dtype, list(picks), perm=perm)
    replace_uses(old, new)
    return True


def _single(value: ir.Value, axis: int) -> bool:
    """Whether entries of `value` are the same along `axis`."""
    return _before(value)[axis] == 1


def _before(value: ir.Value) -> Shape:
    """The shape of `value` before an Expand repeated it, with as many axes."""
    shape = dims(value) or ()
    node = producer(value, "Expand")
    own = None if node is None else dims(node.inputs[0])
    return shape if own is None else (*[1] * (len(shape) - len(own)), *own)


def _kept(value: ir.Value, axes: list[int], emit: Emitter) -> ir.Value | None:
    """`value` with these axes alone; None if an Expand repeats one of them and another."""
    shape = before = list(dims(value) or ())
    node = producer(value, "Expand")
    if node is not None:
        before = list(_before(value))
        if any(before[axis] != shape[axis] for axis in axes):
            return None
        value, own = node.inputs[0] or value, dims(node.inputs[0]) or ()
        axes, before = [axis - (len(shape) - len(own)) for axis in axes], list(own)
    gone = [axis for axis in range(len(before)) if axis not in axes]
    if not gone:
        return value
    kept = [before[axis] for axis in axes]
    return emit("Squeeze", [value, emit.constant(gone)], value.dtype, kept)
