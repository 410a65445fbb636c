"""CausalConvWithState, then y * sigmoid(y) -> CausalConvWithState with activation silu.

The short convolutions of Mamba and of delta rules all end so.  Holds where nobody else takes what
the convolution gives.
"""

import onnx_ir as ir

from intaglio.ops import CAUSAL_CONV_WITH_STATE
from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import attribute, describe, replace_uses

from ._silu import silu_of


class OrtConvActivation(Lower):
    """Let causal convolutions apply the activation behind them."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Fuse every SiLU of a convolution without activation."""
        notes = []
        for node in list(model.graph):
            y = silu_of(node.outputs[0]) if node.op_type == "Mul" else None
            convolution = y.producer() if y is not None else None
            if y is None or convolution is None or not _is_plain(convolution, y):
                continue
            [gate] = [user for user, _ in y.uses() if user is not node]
            if len(gate.outputs[0].uses()) > 1:
                continue
            convolution.attributes["activation"] = ir.AttrString("activation", "silu")
            replace_uses(node.outputs[0], y)
            model.graph.remove([node, gate], safe=True)
            notes.append(describe(convolution))
        return PassResult(changed=bool(notes), notes=notes)


def _is_plain(node: ir.Node, y: ir.Value) -> bool:
    """Whether `node` is a convolution without activation whose output y is used for SiLU alone."""
    op = CAUSAL_CONV_WITH_STATE
    known = node.op_type == op.onnx_type and node.domain in (op.domain, op.ort_domain)
    plain = attribute(node, "activation", "none") == "none"
    users = {user.op_type for user, _ in y.uses()}
    alone = len(y.uses()) == 2 and users == {"Mul", "Sigmoid"} and not y.is_graph_output()
    return known and plain and y is node.outputs[0] and alone
