"""Log(Sigmoid(x)) -> Neg(Softplus(Neg(x))).

Equal for every real x.  In floating point the left side is -inf below x = -88 (fp32) and 0 instead
of -2e-9 at x = 20; gates of recurrences (GLA, HGRN) go through it, and a chunked kernel turns the
-inf into NaN.
"""

import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Emitter, describe, dims, replace_uses


class StabilizeLogSigmoid(Exact):
    """Compute log-sigmoid without leaving the range of floating point."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each Log whose input is a Sigmoid."""
        notes = []
        for node in list(model.graph):
            if node.op_type != "Log" or node.domain or node.inputs[0] is None:
                continue
            inner = node.inputs[0].producer()
            if inner is None or inner.op_type != "Sigmoid" or inner.domain:
                continue
            emit, old = Emitter(node), node.outputs[0]
            shape = dims(old) or dims(inner.outputs[0])
            negative = emit("Neg", [inner.inputs[0]], old.dtype, shape)
            soft = emit("Softplus", [negative], old.dtype, shape)
            replace_uses(old, emit("Neg", [soft], old.dtype, shape))
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)
