"""Each token beside the one k before it -> a causal convolution, which carries the last k tokens.

    pad(x, k zeros in front, k tokens off the end),  pad(x[:, :-k], k zeros in front),
    pad(x, n zeros in front)[:, n - k : n - k + T],  concat(k zeros, x[:, :-k])
      -> Conv(x, [1, 0, .., 0]), one channel at a time, k zeros in front;
         of what is no number with a fraction, pad(x, k zeros in front)[:, :-k]

Holds for x of [batch, ..., time, ...] whose other sizes are fixed.  The shift by one is that of
RWKV (Peng et al. 2023, arXiv:2305.13048, section 3.1).
"""

import math

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
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
            found = _padded(node) or _joined(node) or _cut_again(node)
            if found is None:
                continue
            x, shift = found
            if shift and node.op_type == "Slice" and not floating(x):
                continue  # it says so itself
            replace_uses(node.outputs[0], earlier(x, shift, Emitter(node)) if shift else x)
            model.graph.remove(node, safe=True)
            notes.append(f"{describe(node)} shifts by {shift}")
        return PassResult(changed=bool(notes), notes=notes)


def time_axis(value: ir.Value | None) -> int | None:
    """The axis of time of a sequence of rows of known size, None for all else."""
    shape = dims(value) or ()
    if len(shape) < 2 or shape[0] != BATCH or value is None or TIME not in shape:
        return None
    axis = shape.index(TIME)
    known = all(isinstance(dim, int) for at, dim in enumerate(shape) if at not in (0, axis))
    return axis if known else None


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
    rank = len(dims(x) or ())
    axes = [a % rank for a in integers(input_of(node, 3)) or range(rank)]
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
    if cut is None or not _is_zero(zeros):
        return None
    axis = attribute(node, "axis") % len(dims(cut[0]) or ())
    sizes = dims(zeros) or (0,) * (axis + 1)
    return cut if axis == time_axis(cut[0]) and sizes[axis] == cut[1] else None


def _cut_again(node: ir.Node) -> tuple[ir.Value, int] | None:
    """(x, k) where `node` takes as many entries as x has tokens from x with zeros in front.

    That is those k tokens ago, where it begins k entries before the first token.
    """
    pad = producer(node.inputs[0], "Pad") if node.op_type == "Slice" and not node.domain else None
    x = None if pad is None else pad.inputs[0]
    axis, fill = time_axis(x), None if pad is None else constant(input_of(pad, 2))
    if pad is None or x is None or axis is None or attribute(pad, "mode", "constant") != "constant":
        return None
    rank, pads = len(dims(x) or ()), integers(input_of(pad, 1))
    axes = [a % rank for a in integers(input_of(pad, 3)) or range(rank)]
    places = [a % rank for a in integers(input_of(node, 3)) or []]
    start, step = integers(input_of(node, 1)), integers(input_of(node, 4))
    if pads is None or axis not in axes or places != [axis] or step not in (None, [1]):
        return None
    lead, trail = (pads[half + axes.index(axis)] for half in (0, len(axes)))
    zero = input_of(pad, 2) is None or (fill is not None and not fill.any())
    only = lead >= 0 <= trail and sum(map(abs, pads)) == lead + trail
    whole = (dims(node.outputs[0]) or (0,) * rank)[axis] == TIME
    if not (zero and only and whole) or not start or not 0 <= start[0] <= lead:
        return None
    return x, lead - start[0]


def _cut(value: ir.Value | None) -> tuple[ir.Value, int] | None:
    """(x, k) where `value` is x without its last k tokens."""
    node = producer(value, "Slice")
    x = None if node is None else node.inputs[0]
    axis = time_axis(x)
    if node is None or x is None or axis is None:
        return None
    start, end, axes, step = (integers(input_of(node, i)) for i in range(1, 5))
    along = [a % len(dims(x) or ()) for a in axes or [0]] == [axis]
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


def floating(value: ir.Value) -> bool:
    """Whether entries have fractions, as a convolution takes them."""
    return value.dtype in (ir.DataType.FLOAT, ir.DataType.DOUBLE)


def earlier(x: ir.Value, shift: int, emit: Emitter) -> ir.Value:
    """What x was `shift` tokens ago, zeros before the first."""
    axis = time_axis(x)
    assert axis is not None
    return _convolved(x, axis, shift, emit) if floating(x) else _cut_short(x, axis, shift, emit)


def _cut_short(x: ir.Value, axis: int, shift: int, emit: Emitter) -> ir.Value:
    shape = list(dims(x) or ())
    pads = [shift if at == axis else 0 for at in range(2 * len(shape))]
    longer: list[Dim] = [*shape[:axis], f"{TIME} + {shift}", *shape[axis + 1 :]]
    padded = emit("Pad", [x, emit.constant(pads)], x.dtype, longer)
    places = [emit.constant([number]) for number in (0, -shift, axis)]
    return emit("Slice", [padded, *places], x.dtype, shape)


def _convolved(x: ir.Value, axis: int, shift: int, emit: Emitter) -> ir.Value:
    shape = dims(x) or ()
    assert x.dtype is not None
    others = [at for at in range(1, len(shape)) if at != axis]
    perm = [0, *others, axis]
    turned = [shape[at] for at in perm]
    channels = math.prod(int(shape[at]) for at in others)
    inner = x if perm == sorted(perm) else emit("Transpose", [x], x.dtype, turned, perm=perm)
    wide = [shape[0], channels, TIME]
    if len(shape) != 3:
        inner = emit("Reshape", [inner, emit.constant([0, channels, -1])], x.dtype, wide)
    taps = np.zeros((channels, 1, shift + 1))
    taps[..., 0] = 1
    weight = emit.constant(taps, x.dtype.numpy())
    y = emit("Conv", [inner, weight], x.dtype, wide, group=channels, pads=[shift, 0])
    if len(shape) != 3:
        sizes = [0, *(int(shape[at]) for at in others), -1]
        y = emit("Reshape", [y, emit.constant(sizes)], x.dtype, turned)
    if perm == sorted(perm):
        return y
    return emit("Transpose", [y], x.dtype, shape, perm=[perm.index(at) for at in range(len(perm))])
