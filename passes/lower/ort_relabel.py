"""Label the graph with the opset for which ONNX Runtime has the fastest kernels.

ONNX Runtime 1.32 has CPU kernels for Attention 23 and 24; labelled 25 or later its function body is
inlined, two to three times slower, without a word.  The label goes down to 24 once the recurrent
operators have left the standard domain, and only if every node means the same there; a graph with
one that does not keeps its label.
"""

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.relabel import relabel


class OrtRelabel(Lower):
    """Label the graph with the opset that ONNX Runtime runs fastest."""

    opset: int = 24

    def rewrite(self, model: ir.Model) -> PassResult:
        """Relabel, unless a node is newer than `opset` or changed since."""
        was = model.graph.opset_imports[""]
        if was <= self.opset:
            return PassResult(changed=False)
        try:
            relabel(model, self.opset)
        except PassError as error:
            return PassResult(changed=False, notes=[str(error)])
        return PassResult(changed=True, details={"from": was, "to": self.opset})
