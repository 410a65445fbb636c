"""Compute equal things once: nodes with the same operator, attributes and inputs become one.

Parameters are never merged, even when their contents are equal: two norms that start at ones are
two parameters, and a pass that edits one must not edit the other.  Folded constants are.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.graph_keys import FOLDED
from intaglio.passes.base import Exact, PassResult


class MergeDuplicates(Exact):
    """Merge nodes that compute the same value."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Merge until nothing more merges, since merging inputs makes further nodes equal."""
        changed = _merge_constants(model.graph)
        while common.CommonSubexpressionEliminationPass()(model).modified:
            changed = True
        return PassResult(changed=changed)


def _merge_constants(graph: ir.Graph) -> bool:
    """Let users of equal folded constants share the first of them."""
    first: dict[tuple[object, ...], ir.Value] = {}
    merged = False
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if FOLDED not in value.metadata_props or tensor is None or value.is_graph_output():
            continue
        kept = first.setdefault((tensor.dtype, tuple(tensor.shape), tensor.tobytes()), value)
        if kept is not value:
            value.replace_all_uses_with(kept)
            del graph.initializers[str(value.name)]
            merged = True
    return merged
