"""The gates of the gated delta rule -> com.microsoft::LinearAttentionGate.

    decay = scale * softplus(a + bias),  beta = sigmoid(b)

with one scale and one bias a head (Yang et al. 2024, arXiv:2412.06464; Mamba-2's decay).  PyTorch
writes softplus as a choice, linear above a threshold, where both agree to the last bit of fp32 from
20 on.
"""

import onnx_ir as ir

from intaglio.ops import LINEAR_ATTENTION
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    constant,
    describe,
    dims,
    factors,
    input_of,
    producer,
    replace_uses,
)

DOMAIN = "com.microsoft"
THRESHOLD = 17.0  # from here on softplus(x) = x in fp32, since exp(-x) < 2^-24 x
DECAY, BETA = 4, 5  # inputs of LinearAttention


class OrtDecayGate(Lower):
    """Compute decay and step size of a delta rule as one node."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Fuse the gates of every LinearAttention that has both."""
        notes = []
        for node in list(model.graph):
            found = _match(node)
            if found is None:
                continue
            outputs = [node.inputs[DECAY], node.inputs[BETA]]
            emit = Emitter(node)
            new = emit.node(
                "LinearAttentionGate",
                found,
                [(value.dtype, dims(value)) for value in outputs if value is not None],
                domain=DOMAIN,
            )
            for old, value in zip(outputs, new, strict=True):
                assert old is not None
                replace_uses(old, value)
            notes.append(describe(node))
        if notes:
            model.graph.opset_imports[DOMAIN] = 1
        return PassResult(changed=bool(notes), notes=notes)


def _match(node: ir.Node) -> list[ir.Value] | None:
    """(a, bias, scale, b) of the gates of `node`."""
    if node.op_type != LINEAR_ATTENTION.onnx_type or len(node.inputs) <= BETA:
        return None
    decay, beta = node.inputs[DECAY], node.inputs[BETA]
    sigmoid = producer(beta, "Sigmoid")
    b = input_of(sigmoid, 0) if sigmoid else None
    if decay is None or b is None or any(len(value.uses()) > 1 for value in (decay, beta) if value):
        return None
    heads = (dims(decay) or ())[-1:]
    for softplus, scale in factors(decay):
        total = producer(_softened(softplus), "Add")
        for a, bias in _orders(total):
            vectors = dims(scale) == dims(bias) == heads
            floats = {v.dtype for v in (a, bias, scale, b)} == {ir.DataType.FLOAT}
            if vectors and floats and dims(a) == dims(b) == dims(decay) == dims(beta):
                return [a, bias, scale, b]
    return None


def _orders(node: ir.Node | None) -> list[tuple[ir.Value, ir.Value]]:
    a, b = node.inputs if node else (None, None)
    return [] if a is None or b is None else [(a, b), (b, a)]


def _softened(value: ir.Value | None) -> ir.Value | None:
    """The x where `value` is softplus(x), with or without a threshold."""
    node = producer(value, "Softplus")
    if node is not None:
        return node.inputs[0]
    choice = producer(value, "Where")
    above = producer(choice.inputs[0], "Greater") if choice else None
    soft = producer(choice.inputs[2], "Softplus") if choice else None
    if choice is None or above is None or soft is None:
        return None
    limit, x = constant(above.inputs[1]), soft.inputs[0]
    high = limit is not None and limit.size == 1 and float(limit.item()) >= THRESHOLD
    return x if high and above.inputs[0] is x and choice.inputs[1] is x else None
