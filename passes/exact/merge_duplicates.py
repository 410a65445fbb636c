"""Compute equal things once: nodes with the same operator, attributes and inputs become one.

Initializers are never merged, even when their contents are equal: two norms that start at ones are
two parameters, and a pass that edits one must not edit the other.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.base import Context, Exact, PassResult


class MergeDuplicates(Exact):
    """Merge nodes that compute the same value."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Merge until nothing more merges, since merging inputs makes further nodes equal."""
        changed = False
        while common.CommonSubexpressionEliminationPass()(model).modified:
            changed = True
        return PassResult(changed=changed)
