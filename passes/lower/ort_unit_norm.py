"""x * rsqrt(sum(x^2) + eps) -> RMSNormalization(x, 1 / sqrt(d)) with eps / d, over the last axis.

    x / sqrt(sum x^2 + eps)  =  x / sqrt(mean x^2 + eps / d) / sqrt(d),  d entries

Delta rules scale queries and keys to length one so (Yang et al. 2024, arXiv:2406.06484); ONNX
Runtime has a kernel for the right side and six for the left.
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import (
    FOLDED,
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    factors,
    integers,
    producer,
    replace_uses,
)
from intaglio.passes.low_bit import add_initializer


class OrtUnitNorm(Lower):
    """Scale vectors to length one by the kernel of the root-mean-square norm."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
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
        inverse = producer(scale, "Reciprocal")
        root = producer(inverse.inputs[0], "Sqrt") if inverse else None
        total = producer(root.inputs[0], "Add") if root else None
        size = (dims(x) or ("",))[-1]
        if total is None or not isinstance(size, int) or x.dtype != ir.DataType.FLOAT:
            continue
        for squares, epsilon in zip(total.inputs, reversed(total.inputs), strict=True):
            array = constant(epsilon)
            if array is not None and array.size == 1 and _sums_squares(squares, x):
                return x, float(array.item()), size
    return None


def _sums_squares(value: ir.Value | None, x: ir.Value) -> bool:
    """Whether `value` is the sum of the squares of x along its last axis."""
    node = producer(value, "ReduceSum")
    if node is None or not attribute(node, "keepdims", 1) or len(node.inputs) != 2:
        return False
    if integers(node.inputs[1]) not in ([-1], [len(dims(x) or ()) - 1]):
        return False
    square = producer(node.inputs[0], "Pow", "Mul")
    if square is None or square.inputs[0] is not x:
        return False
    if square.op_type == "Mul":
        return square.inputs[1] is x
    power = constant(square.inputs[1])
    return power is not None and power.size == 1 and float(power.item()) == 2.0
