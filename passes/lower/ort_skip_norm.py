"""Add, RMSNormalization -> com.microsoft::SkipSimplifiedLayerNormalization, which gives both.

    s = a + b;  y = RMSNormalization(s, weight)  ->  y, s = SkipSimplifiedLayerNormalization(a, b)

Every residual stream has the pair twice a layer.  Holds where nothing is broadcast, the last axis
is normalised, and the weight stands in the graph.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, producer, replace_uses

DOMAIN = "com.microsoft"


class OrtSkipNorm(Lower):
    """Add to the residual stream and normalise it as one node."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Fuse each sum with the first norm of it."""
        notes = []
        for node in list(model.graph):
            total = _sum(node)
            if total is None:
                continue
            emit, out = Emitter(total), node.outputs[0]
            shape, dtype = dims(out), out.dtype
            y, _, _, s = emit.node(
                "SkipSimplifiedLayerNormalization",
                [*total.inputs, node.inputs[1]],
                [(dtype, shape), (dtype, None), (dtype, None), (dtype, shape)],
                {"epsilon": float(attribute(node, "epsilon", 1e-5))},
                domain=DOMAIN,
            )
            for old, new in ((out, y), (total.outputs[0], s)):
                replace_uses(old, new)
            model.graph.remove([node, total], safe=True)
            notes.append(describe(node))
        if notes:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(changed=bool(notes), notes=notes)


def _sum(node: ir.Node) -> ir.Node | None:
    """The sum that `node` normalises, if both can be one node."""
    if node.op_type != "RMSNormalization" or node.domain:
        return None
    total, weight = producer(node.inputs[0], "Add"), node.inputs[1]
    shape = dims(node.outputs[0])
    if total is None or shape is None or len(shape) != 3 or "?" in shape:
        return None
    whole = all(dims(value) == shape for value in total.inputs)
    last = attribute(node, "axis", -1) in (-1, 2) and dims(weight) == shape[-1:]
    plain = weight is not None and weight.const_value is not None
    return total if whole and last and plain and _is_float(node) else None


def _is_float(node: ir.Node) -> bool:
    """Whether the values, the weight and what is computed between are all fp32."""
    kinds = {value.dtype for value in (*node.inputs, *node.outputs) if value is not None}
    return kinds == {ir.DataType.FLOAT} and attribute(node, "stash_type", 1) == 1
