"""Tile(x, repeats) -> Expand(x, repeats) where only axes of one entry are repeated.

An Expand says that entries are the same along an axis, which passes that follow positions or
choose what to carry need to know; a Tile of the same values copies them.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import Emitter, describe, dims, integers, replace_uses


class ExpandTile(Exact):
    """Write a Tile that repeats single entries as an Expand."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite each Tile all of whose other axes stay as they are."""
        notes = []
        for node in list(model.graph):
            if node.op_type != "Tile" or node.domain or not _repeats_ones(node):
                continue
            old = node.outputs[0]
            new = Emitter(node)("Expand", list(node.inputs), old.dtype, dims(old))
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _repeats_ones(node: ir.Node) -> bool:
    """Whether each axis has one entry, or as many after as before: n x = x for every x > 0."""
    before, after = dims(node.inputs[0]), dims(node.outputs[0])
    if before is None or after is None:
        return False
    repeats = integers(node.inputs[1]) or [0] * len(before)
    return all(
        dim == 1 or times == 1 or (dim != "?" and dim == tiled)
        for dim, times, tiled in zip(before, repeats, after, strict=True)
    )
