"""Recurrent operators take the domain in which ONNX Runtime has kernels for them.

ONNX Runtime 1.32 inlines the standard LinearAttention into a Scan, several times slower than
`com.microsoft::LinearAttention`, whose inputs, outputs and attributes are the same; likewise
CausalConvWithState.  `Op.ort_domain` says where each operator's kernel is.
"""

import onnx_ir as ir

from intaglio.ops import OPS
from intaglio.passes.base import Lower, PassResult

VERSION = 1  # of every com.microsoft operator


class OrtDomains(Lower):
    """Use ONNX Runtime's own kernels of the recurrent operators."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Switch the domain of each operator that has a kernel in another one."""
        kernels = {(op.domain, op.onnx_type): op.ort_domain for op in OPS if op.ort_domain}
        switched = 0
        for node in model.graph.all_nodes():
            domain = kernels.get((node.domain, node.op_type))
            if domain is not None:
                node.domain, node.version = domain, None
                model.graph.opset_imports[domain] = VERSION
                switched += 1
        return PassResult(changed=switched > 0, details={"nodes": switched})
