"""1 / sqrt(reduce(x^2) + eps) over the last axis: what norms of every kind multiply x by."""

import onnx_ir as ir

from .graph import attribute, constant, dims, integers, producer


def inverse_norm(scale: ir.Value, x: ir.Value, reduce: str) -> float | None:
    """Epsilon where `scale` is 1 / sqrt(reduce(x^2) + epsilon), else None.

    `reduce` is ReduceMean, for the root-mean-square norm, or ReduceSum, for the length.
    """
    inverse = producer(scale, "Reciprocal")
    root = producer(inverse.inputs[0], "Sqrt") if inverse else None
    total = producer(root.inputs[0], "Add") if root else None
    for squares, epsilon in zip(total.inputs, reversed(total.inputs), strict=True) if total else ():
        array = constant(epsilon)
        if array is not None and array.size == 1 and _reduces_squares(squares, x, reduce):
            return float(array.item())
    return None


def _reduces_squares(value: ir.Value | None, x: ir.Value, reduce: str) -> bool:
    """Whether `value` is the mean or the sum of the squares of x along its last axis, kept as 1."""
    node = producer(value, reduce)
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
