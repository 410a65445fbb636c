"""Remove what no output needs: unused nodes, identities, unused initializers and opset imports."""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.passes.base import Context, Exact, PassResult


class RemoveDead(Exact):
    """Remove nodes and initializers that no output depends on."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Remove them; a graph output keeps its name when the Identity before it goes."""
        passes = (
            common.IdentityEliminationPass(),
            common.RemoveUnusedNodesPass(),
            common.RemoveUnusedOpsetsPass(),
        )
        modified = [step(model).modified for step in passes]
        return PassResult(changed=any(modified))
