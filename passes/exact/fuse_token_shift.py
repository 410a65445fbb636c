"""Each token beside the one k before it -> a causal convolution, which carries the last k tokens.

    pad(x, k zeros in front, k tokens off the end),  pad(x[:, :-k], k zeros in front),
    concat(k zeros, x[:, :-k])
      -> Conv(x, [1, 0, .., 0]), one channel at a time, k zeros in front

Holds for x of [batch, time, channels] or [batch, channels, time].  The shift by one is that of
RWKV (Peng et al. 2023, arXiv:2305.13048, section 3.1).
"""

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
)
from intaglio.state import BATCH, TIME


class FuseTokenShift(Exact):
    """Write sequences that are shifted in time as convolutions, which have a state."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every shift to later times of a sequence of vectors."""
        notes = []
        for node in list(model.graph):
            found = _padded(node) or _joined(node)
            if found is None:
                continue
            x, shift = found
            old = node.outputs[0]
            replace_uses(old, convolved(x, shift, Emitter(node)))
            model.graph.remove(node, safe=True)
            notes.append(f"{describe(node)} shifts by {shift}")
        return PassResult(changed=bool(notes), notes=notes)


def time_axis(value: ir.Value | None) -> int | None:
    """The axis of time of a sequence of vectors of known size, None for all else."""
    shape = dims(value) or ()
    if len(shape) != 3 or shape[0] != BATCH or value is None or value.dtype is None:
        return None
    axis = shape.index(TIME) if TIME in shape else 0
    floating = value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)
    return axis if floating and axis and isinstance(shape[3 - axis], int) else None


def _padded(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(x, k) where `node` pads x by k zeros in front, and k tokens are cut off its end."""
    if node.op_type != "Pad" or node.domain:
        return None
    cut = _cut(node.inputs[0])
    x = node.inputs[0] if cut is None else cut[0]
    axis = time_axis(x)
    pads, fill = integers(input_of(node, 1)), input_of(node, 2)
    if axis is None or pads is None or attribute(node, "mode", "constant") != "constant":
        return None
    axes = [a % 3 for a in integers(input_of(node, 3)) or range(3)]
    by_axis = dict(zip(axes, zip(pads[: len(axes)], pads[len(axes) :], strict=True), strict=True))
    lead, trail = by_axis.pop(axis, (0, 0))
    value = constant(fill)
    zero = fill is None or (value is not None and not value.any())
    gone = -trail if cut is None else cut[1] - trail
    if x is None or not zero or lead <= 0 or gone != lead or any(map(any, by_axis.values())):
        return None
    return x, lead


def _joined(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(x, k) where `node` joins k zeros and x without its last k tokens."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    zeros, cut = node.inputs[0], _cut(node.inputs[1])
    if cut is None or attribute(node, "axis") % 3 != time_axis(cut[0]) or not _is_zero(zeros):
        return None
    return cut if (dims(zeros) or (0, 0, 0))[attribute(node, "axis") % 3] == cut[1] else None


def _cut(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, k) where `value` is x without its last k tokens."""
    node = producer(value, "Slice")
    x = None if node is None else node.inputs[0]
    axis = time_axis(x)
    if node is None or x is None or axis is None:
        return None
    start, end, axes, step = (integers(input_of(node, i)) for i in range(1, 5))
    along = [a % 3 for a in axes or [0]] == [axis]
    if not along or start != [0] or step not in (None, [1]) or not end or end[0] >= 0:
        return None
    return x, -end[0]


def _is_zero(value: ir.Value | None) -> bool:
    """Whether `value` holds zeros alone, whatever its size."""
    array = constant(value)
    if array is not None:
        return not array.any()
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        return fill is None or not fill.numpy().any()
    return node.op_type in ("Expand", "Cast", "Reshape") and _is_zero(node.inputs[0])


def convolved(x: ir.Value, shift: int, emit: Emitter) -> ir.Value:
    """What x was `shift` tokens ago, zeros before the first."""
    shape, axis = dims(x) or (), time_axis(x)
    channels = shape[3 - (axis or 1)]
    assert isinstance(channels, int)
    assert x.dtype is not None
    turned = [shape[0], channels, TIME]
    inner = emit("Transpose", [x], x.dtype, turned, perm=[0, 2, 1]) if axis == 1 else x
    taps = np.zeros((channels, 1, shift + 1))
    taps[..., 0] = 1
    weight = emit.constant(taps, x.dtype.numpy())
    y = emit("Conv", [inner, weight], x.dtype, turned, group=channels, pads=[shift, 0])
    return emit("Transpose", [y], x.dtype, shape, perm=[0, 2, 1]) if axis == 1 else y
