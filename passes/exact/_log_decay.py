"""The natural logarithm of a decay, computed without leaving the range of floating point.

Gates are mostly exponentials and sigmoids, whose logarithms are there already or have a stable
form: ``log sigmoid(x) = -softplus(-x)``, ``log(1 - sigmoid(x)) = -softplus(x)``.  Any other decay
that lies between 0 and 1 for all data has its logarithm taken; below the smallest normal number of
fp32 it is that number, of which nothing is left in a sum.
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.intervals import interval
from intaglio.passes.graph import Emitter, attributes_of, constant, dims, producer

from ._all_tokens import one

GONE = -1e4  # e^GONE is 0 in every dtype
SMALLEST = 1.2e-38
ROUNDING = 1e-6  # 1 - 1 + x in fp32
MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Identity", "Slice")


def log_decay(emit: Emitter, value: ir.Value, *, shown: bool = False) -> ir.Value | None:
    """The logarithm of `value`, None where it is not `shown` to lie between 0 and 1."""
    return _log(emit, value) if shown or decays(value) else None


def decays(value: ir.Value | None) -> bool:
    """Whether every entry of `value` lies between 0 and 1."""
    low, high = interval(value)
    return low >= 0.0 and high <= 1.0 + ROUNDING


def _log(emit: Emitter, value: ir.Value) -> ir.Value:
    """The logarithm of what lies between 0 and 1."""

    def make(op: str, *inputs: ir.Value) -> ir.Value:
        return emit(op, inputs, value.dtype, dims(value))

    assert value.dtype is not None
    dtype = value.dtype.numpy()
    array = constant(value)
    if array is not None:
        with np.errstate(divide="ignore"):
            return emit.constant(np.maximum(np.log(array.astype(np.float64)), GONE), dtype)
    node = value.producer()
    if node is None or node.domain or node.inputs[0] is None:
        return make("Log", make("Max", value, emit.constant(SMALLEST, dtype)))
    x = node.inputs[0]
    if node.op_type == "Exp":
        return x
    if node.op_type == "Sigmoid":
        return make("Neg", make("Softplus", make("Neg", x)))
    inner = producer(node.inputs[1], "Sigmoid") if node.op_type == "Sub" else None
    if inner is not None and inner.inputs[0] is not None and one(x) == 1.0:
        return make("Neg", make("Softplus", inner.inputs[0]))
    if node.op_type in MOVES:
        log = _log(emit, x)
        return emit.node(
            node.op_type,
            [log, *node.inputs[1:]],
            [(value.dtype, dims(value))],
            attributes_of(node),
        )[0]
    if node.op_type == "Sqrt" and _positive(x):
        return make("Mul", _log(emit, x), emit.constant(0.5, dtype))
    if node.op_type == "Pow" and _positive(x) and (one(node.inputs[1]) or -1.0) > 0.0:
        power = emit.constant(one(node.inputs[1]), dtype)
        return make("Mul", _log(emit, x), power)
    if node.op_type == "Mul" and all(_positive(each) for each in node.inputs):
        logs = [_log(emit, each) for each in node.inputs if each is not None]
        return make("Add", *logs)
    if node.op_type == "Where" and all(_positive(each) for each in node.inputs[1:]):
        logs = [_log(emit, each) for each in node.inputs[1:] if each is not None]
        return make("Where", x, *logs)
    return make("Log", make("Max", value, emit.constant(SMALLEST, dtype)))


def _positive(value: ir.Value | None) -> bool:
    return interval(value)[0] >= 0.0
