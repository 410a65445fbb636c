"""Rotation of halves, written out -> RotaryEmbedding, for values of [batch, heads, time, size].

    a, b = split(x);  concat(a cos - b sin, b cos + a sin)  ->  RotaryEmbedding(x, cos, sin)
    x cos + concat(-b, a) sin                               ->  RotaryEmbedding(x, cos', sin')

Holds for the two halves of the last axis, with cosines and sines of [batch, 1, time, size / 2] in
the first spelling; in the second, of Hugging Face's rotate_half, they are [batch, 1, time, size]
with two equal halves, which is proven by walking back to where they were joined, and cos' is the
first of them (Su et al. 2021, arXiv:2104.09864).
"""

import onnx_ir as ir

from intaglio.passes.analysis.rotations import half, rotation_of
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Dim, Emitter, describe, dims, replace_uses
from intaglio.state import BATCH, TIME


class FuseRotary(Exact):
    """Write each rotation of queries or keys as one node."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fuse every rotation of halves by angles per row and token."""
        notes = []
        tables: dict[tuple[ir.Value, int], ir.Value] = {}
        for node in list(model.graph):
            found = rotation_of(node, _is_table)
            if found is None:
                continue
            emit, old = Emitter(node), node.outputs[0]
            pairs = half(found.x)
            for value in found[1:]:
                if (value, pairs) not in tables:
                    tables[value, pairs] = _table(value, pairs, model.graph)
            angles = [tables[value, pairs] for value in found[1:]]
            new = emit("RotaryEmbedding", [found.x, *angles], old.dtype, dims(old))
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _table(value: ir.Value, pairs: int, graph: ir.Graph) -> ir.Value:
    """[batch, 1, time, pairs or 2 pairs] -> [batch, time, pairs], before its first use."""
    users = set(value.consumers())
    emit = Emitter(next(node for node in graph if node in users))
    batch, _, time, size = dims(value) or ()
    shape: list[Dim] = [batch, time, size]
    table = emit("Squeeze", [value, emit.constant([1])], value.dtype, shape)
    if size == pairs:
        return table
    places = [emit.constant([x]) for x in (0, pairs, 2, 1)]
    return emit("Slice", [table, *places], value.dtype, [batch, time, pairs])


def _is_table(value: ir.Value, size: int) -> bool:
    return dims(value) == (BATCH, 1, TIME, size)
