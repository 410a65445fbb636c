"""x * rsqrt(mean(x^2) + eps) * weight -> RMSNormalization(x, weight), over the last axis.

Holds where the mean is taken over the last axis alone and the weight is one number per entry of it,
a parameter or what is computed from one, like Gemma's 1 + w
(Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).  RMSNormalization is in the standard since opset
23; engines have one kernel for what PyTorch writes as seven nodes.
"""

import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Emitter, describe, dims, factors, replace_uses
from intaglio.passes.norms import inverse_norm


class FuseRmsNorm(Exact):
    """Write each root-mean-square norm as one node."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fuse every norm whose weight is a vector along the last axis."""
        notes = []
        for node in list(model.graph):
            found = _match(node)
            if found is None:
                continue
            x, weight, epsilon = found
            old = node.outputs[0]
            inputs, attributes = [x, weight], {"axis": -1, "epsilon": epsilon}
            [new] = Emitter(node).node(
                "RMSNormalization", inputs, [(old.dtype, dims(old))], attributes
            )
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _match(node: ir.Node) -> tuple[ir.Value, ir.Value, float] | None:
    """(x, weight, epsilon) where `node` is the product of a normalised x and its weight."""
    for normal, weight in factors(node.outputs[0]):
        shape, last = dims(weight), dims(normal)
        if shape is None or not last or shape != last[-1:]:
            continue
        for x, scale in factors(normal):
            epsilon = inverse_norm(scale, x, "ReduceMean")
            if epsilon is not None and x.dtype == weight.dtype:
                return x, weight, epsilon
    return None
