"""Products of inputs that are rounded to 8 bits, without the error of the rounding.

    x = hi + lo,   hi = round(x / s) s,   s = max|x| / 127 of each block

`hi` lies on the grid to which the kernel rounds, and `lo` is at most s / 2, so what the kernel
still rounds off is 254 times less.  Both halves are rows of one product: its weight is read once.
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import Emitter, Shape, dims

STEPS = 127  # of the kernel's grid, on either side of zero
TINY = 1e-30  # in place of the largest entry of a block of zeros


def split(x: ir.Value, block: int, emit: Emitter) -> ir.Value:
    """Both parts of `x` [batch, ..., K] as [2 batch, ..., K'], K' being K filled up to `block`.

    Those of a vector [K] become [2, K'].
    """
    *outer, K = dims(x) or ()
    missing = -int(K) % block
    if missing:
        zeros = [0] * (len(outer) + 1)
        pads = emit.constant([*zeros, *zeros[:-1], missing])
        x = emit("Pad", [x, pads], x.dtype, [*outer, int(K) + missing])
    count = (int(K) + missing) // block
    first, *rest = outer or [1]
    each, one = [first, *rest, count, block], [first, *rest, count, 1]
    same = [0] * len(outer) or [1]

    def number(value: float) -> ir.Value:
        return emit.constant(value, np.float32)

    blocks = emit("Reshape", [x, emit.constant([*same, count, block])], x.dtype, each)
    size = emit("Abs", [blocks], x.dtype, each)
    largest = emit("ReduceMax", [size, emit.constant([-1])], x.dtype, one)
    positive = emit("Max", [largest, number(TINY)], x.dtype, one)
    step = emit("Mul", [positive, number(1 / STEPS)], x.dtype, one)
    steps = emit("Div", [blocks, step], x.dtype, each)
    high = emit("Mul", [emit("Round", [steps], x.dtype, each), step], x.dtype, each)
    low = emit("Sub", [blocks, high], x.dtype, each)
    rows = 2 * first if isinstance(first, int) else f"2*{first}"
    both = emit("Concat", [high, low], x.dtype, [rows, *each[1:]], axis=0)
    flat = emit.constant([0, *[0] * len(rest), count * block])
    return emit("Reshape", [both, flat], x.dtype, [rows, *rest, count * block])


def join(y: ir.Value, shape: Shape, emit: Emitter) -> ir.Value:
    """The sum, of `shape` [batch, ..., N], of what both parts gave, `y` [2 batch, ..., N]."""
    part = shape if len(shape) > 1 else [1, *shape]
    halves = emit.node("Split", [y], [(y.dtype, part)] * 2, {"axis": 0, "num_outputs": 2})
    total = emit("Add", list(halves), y.dtype, part)
    return total if part is shape else emit("Squeeze", [total, emit.constant([0])], y.dtype, shape)
