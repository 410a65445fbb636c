"""x * rsqrt(mean(x^2) + eps) * weight -> RMSNormalization(x, weight), over the last axis.

Holds where the mean is taken over the last axis alone and the weight is one number per entry of it,
a parameter or what is computed from one, like Gemma's 1 + w
(Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4).  RMSNormalization is in the standard since opset
23; engines have one kernel for what PyTorch writes as seven nodes.
"""

import onnx_ir as ir

from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
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


class FuseRmsNorm(Exact):
    """Write each root-mean-square norm as one node."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
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
            epsilon = _epsilon(scale, x)
            if epsilon is not None and x.dtype == weight.dtype:
                return x, weight, epsilon
    return None


def _epsilon(scale: ir.Value, x: ir.Value) -> float | None:
    """Epsilon where `scale` is 1 / sqrt(mean(x^2) + epsilon), else None."""
    inverse = producer(scale, "Reciprocal")
    root = producer(inverse.inputs[0], "Sqrt") if inverse else None
    total = producer(root.inputs[0], "Add") if root else None
    for mean, epsilon in zip(total.inputs, reversed(total.inputs), strict=True) if total else ():
        array = constant(epsilon)
        if array is not None and array.size == 1 and _is_mean_square(mean, x):
            return float(array.item())
    return None


def _is_mean_square(value: ir.Value | None, x: ir.Value) -> bool:
    mean = producer(value, "ReduceMean")
    axes = integers(mean.inputs[1]) if mean and len(mean.inputs) > 1 else None
    if mean is None or not attribute(mean, "keepdims", 1) or axes is None:
        return False
    if axes not in ([-1], [len(dims(x) or ()) - 1]):
        return False
    square = producer(mean.inputs[0], "Pow", "Mul")
    if square is None or square.inputs[0] is not x:
        return False
    if square.op_type == "Mul":
        return square.inputs[1] is x
    power = constant(square.inputs[1])
    return power is not None and power.size == 1 and float(power.item()) == 2.0
