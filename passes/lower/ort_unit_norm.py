"""x * rsqrt(sum(x^2) + eps) -> RMSNormalization(x, 1 / sqrt(d)) with eps / d, over the last axis.

    x / sqrt(sum x^2 + eps)  =  x / sqrt(mean x^2 + eps / d) / sqrt(d),  d entries

Delta rules scale queries and keys to length one so (Yang et al. 2024, arXiv:2406.06484); ONNX
Runtime has a kernel for the right side and six for the left.
"""

import numpy as np
import onnx_ir as ir

from intaglio.graph_keys import FOLDED
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, add_initializer, describe, dims, factors, replace_uses
from intaglio.passes.norms import inverse_norm


class OrtUnitNorm(Lower):
    """Scale vectors to length one by the kernel of the root-mean-square norm."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fuse every scaling of the last axis to length one."""
        notes = []
        for node in list(model.graph):
            found = _match(node)
            if found is None:
                continue
            x, epsilon, size = found
            weight = np.full(size, size**-0.5, np.float32)
            scale = add_initializer(model.graph, f"unit_norm.{size}", weight)
            scale.metadata_props[FOLDED] = "true"
            old = node.outputs[0]
            attributes = {"axis": -1, "epsilon": epsilon / size}
            outputs = [(old.dtype, dims(old))]
            [new] = Emitter(node).node("RMSNormalization", [x, scale], outputs, attributes)
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _match(node: ir.Node) -> tuple[ir.Value, float, int] | None:
    """(x, epsilon, d) where `node` scales vectors x of d entries to length one."""
    for x, scale in factors(node.outputs[0]):
        size = (dims(x) or ("",))[-1]
        epsilon = inverse_norm(scale, x, "ReduceSum")
        if epsilon is not None and isinstance(size, int) and x.dtype == ir.DataType.FLOAT:
            return x, epsilon, size
    return None
