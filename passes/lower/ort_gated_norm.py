"""RMSNormalization(x) * silu(gate) -> com.microsoft::GatedRMSNorm(x, weight, gate).

The output norm of Gated DeltaNet and its kin (Yang et al. 2024, arXiv:2412.06464), per head.  The
heads may have been put side by side between the norm and the gate; then the gate is cut into heads
instead.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    describe,
    dims,
    factors,
    producer,
    replace_uses,
)

from ._silu import silu_of

DOMAIN = "com.microsoft"


class OrtGatedNorm(Lower):
    """Normalise and gate as one node."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Fuse every norm that is gated by SiLU and used for nothing else."""
        notes = []
        for node in list(model.graph):
            found = _match(node)
            if found is None:
                continue
            norm, gate = found
            emit, old, x = Emitter(node), node.outputs[0], norm.inputs[0]
            shape = dims(x) or ()
            if dims(gate) != shape:
                cut = emit.constant([0, 0, *shape[2:]])
                gate = emit("Reshape", [gate, cut], gate.dtype, shape)
            [y] = emit.node(
                "GatedRMSNorm",
                [x, norm.inputs[1], gate],
                [(old.dtype, shape)],
                {"activation": "silu", "epsilon": float(attribute(norm, "epsilon", 1e-5))},
                domain=DOMAIN,
            )
            if dims(old) != shape:
                joined = emit.constant([0, 0, *(dims(old) or ())[2:]])
                y = emit("Reshape", [y, joined], old.dtype, dims(old))
            replace_uses(old, y)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        if notes:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(changed=bool(notes), notes=notes)


def _match(node: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """(norm, gate) where `node` is the product of that norm and the SiLU of that gate."""
    for value, activated in factors(node.outputs[0]):
        gate = silu_of(activated)
        apart = producer(value, "Reshape")
        norm = producer(apart.inputs[0] if apart else value, "RMSNormalization")
        if gate is None or norm is None or len(value.uses()) > 1 or dims(gate) != dims(value):
            continue
        shape = dims(norm.outputs[0]) or ()
        last = attribute(norm, "axis", -1) in (-1, len(shape) - 1)
        same = apart is None or _joins_heads(shape, dims(value) or ())
        kinds = {v.dtype for v in (gate, *norm.inputs) if v is not None}
        if last and same and kinds == {ir.DataType.FLOAT} and len(norm.outputs[0].uses()) == 1:
            return norm, gate
    return None


def _joins_heads(apart: tuple[int | str, ...], joined: tuple[int | str, ...]) -> bool:
    """Whether `apart` is [batch, time, heads, size], and `joined` [batch, time, heads * size]."""
    if len(apart) != 4 or len(joined) != 3 or apart[:2] != joined[:2]:
        return False
    heads, size = apart[2:]
    return isinstance(heads, int) and isinstance(size, int) and heads * size == joined[2]
