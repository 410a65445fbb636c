"""Rotation of halves, written out -> RotaryEmbedding, for values of [batch, heads, time, size].

    a, b = split(x);  concat(a cos - b sin, b cos + a sin)  ->  RotaryEmbedding(x, cos, sin)

Holds for the split in two halves of the last axis, with cosines and sines of [batch, 1, time,
size / 2]: what statefulize leaves of positions (Su et al. 2021, arXiv:2104.09864).
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, factors, replace_uses
from intaglio.state import BATCH, TIME


class FuseRotary(Exact):
    """Write each rotation of queries or keys as one node."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Fuse every rotation of halves by angles per row and token."""
        notes = []
        tables: dict[ir.Value, ir.Value] = {}
        for node in list(model.graph):
            found = _match(node)
            if found is None:
                continue
            x, angles = found[0], found[1:]
            emit, old = Emitter(node), node.outputs[0]
            for value in angles:
                if value not in tables:
                    tables[value] = _without_heads(value, model.graph)
            new = emit(
                "RotaryEmbedding", [x, *(tables[value] for value in angles)], old.dtype, dims(old)
            )
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _without_heads(value: ir.Value, graph: ir.Graph) -> ir.Value:
    """[batch, 1, time, size / 2] -> [batch, time, size / 2], before its first use."""
    users = set(value.consumers())
    emit = Emitter(next(node for node in graph if node in users))
    batch, _, time, size = dims(value) or ()
    return emit("Squeeze", [value, emit.constant([1])], value.dtype, [batch, time, size])


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value] | None:
    """(x, cos, sin) where `node` joins the two rotated halves of x."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    shape = dims(node.outputs[0]) or ()
    if len(shape) != 4 or attribute(node, "axis") not in (-1, 3):
        return None
    first, second = (None if v is None else v.producer() for v in node.inputs)
    if first is None or second is None or (first.op_type, second.op_type) != ("Sub", "Add"):
        return None
    for a, cos in factors(first.inputs[0]):
        for b, sin in factors(first.inputs[1]):
            x = _halves(a, b)
            if x is None or not (_is_table(cos, shape) and _is_table(sin, shape)):
                continue
            sums = {frozenset(p) for v in second.inputs for p in factors(v)}
            if {frozenset((b, cos)), frozenset((a, sin))} <= sums and dims(x) == shape:
                return x, cos, sin
    return None


def _halves(a: ir.Value, b: ir.Value) -> ir.Value | None:
    """What `a` and `b` are the first and second half of, along the last axis."""
    node = a.producer()
    if node is None or node is not b.producer() or node.op_type != "Split":
        return None
    rank = len(dims(a) or ())
    equal = len(node.outputs) == 2 and dims(a) == dims(b)
    ordered = equal and node.outputs[0] is a and node.outputs[1] is b
    return node.inputs[0] if ordered and attribute(node, "axis", 0) in (-1, rank - 1) else None


def _is_table(value: ir.Value, shape: tuple[int | str, ...]) -> bool:
    size = shape[-1]
    return isinstance(size, int) and dims(value) == (BATCH, 1, TIME, size // 2)
