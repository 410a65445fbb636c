"""Rotations of channels in pairs by angles of positions, as they are written out.

    a, b = split(x);  concat(a cos - b sin, b cos + a sin)
    x cos + concat(-b, a) sin

In the second spelling, of Hugging Face, cosines and sines have two equal halves, which
is proven by walking back to where they were joined (Su et al. 2021, arXiv:2104.09864).
"""

from collections.abc import Callable
from typing import NamedTuple

import onnx_ir as ir

from intaglio.passes.graph import attribute, constant, dims, factors, input_of, integers, producer

POINTWISE = ("Cast", "Cos", "Identity", "Neg", "Sin")
SCALED = ("Add", "Div", "Mul", "Sub")

Fits = Callable[[ir.Value, int], bool]
"""Whether a value is a table of angles, whose last axis has the size that is given."""


class Rotation(NamedTuple):
    """The rotation of `x` [..., size] by tables whose last axis is half of that or all of it."""

    x: ir.Value
    cos: ir.Value
    sin: ir.Value


def rotation_of(node: ir.Node, fits: Fits) -> Rotation | None:
    """What `node`, of rank four, rotates by tables that `fits` takes; None where it does not."""
    return _joined(node, fits) or _rotated_half(node, fits)


def half(x: ir.Value) -> int:
    """The number of pairs of channels."""
    return int((dims(x) or (0,))[-1]) // 2


def _joined(node: ir.Node, fits: Fits) -> Rotation | None:
    """What `node` rotates, where it joins the two rotated halves."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) != 2:
        return None
    shape = dims(node.outputs[0]) or ()
    if len(shape) != 4 or attribute(node, "axis") not in (-1, 3):
        return None
    first, second = producer(node.inputs[0], "Sub"), producer(node.inputs[1], "Add")
    if first is None or second is None:
        return None
    for a, cos in factors(first.inputs[0]):
        for b, sin in factors(first.inputs[1]):
            x = _halves(a, b)
            if x is None or dims(x) != shape or not all(fits(v, half(x)) for v in (cos, sin)):
                continue
            sums = {frozenset(p) for v in second.inputs for p in factors(v)}
            if {frozenset((b, cos)), frozenset((a, sin))} <= sums:
                return Rotation(x, cos, sin)
    return None


def _rotated_half(node: ir.Node, fits: Fits) -> Rotation | None:
    """What `node` rotates, where it adds x cos and the turned halves times sin."""
    if node.op_type != "Add" or node.domain or len(dims(node.outputs[0]) or ()) != 4:
        return None
    left, right = node.inputs
    for plain, other in ((left, right), (right, left)):
        for turned, sin in factors(other):
            x = _turned(turned)
            for same, cos in factors(plain):
                tables = (cos, sin)
                if x is None or same is not x or not all(fits(v, 2 * half(x)) for v in tables):
                    continue
                if all(_repeats_half(value) for value in tables):
                    return Rotation(x, cos, sin)
    return None


def _turned(value: ir.Value) -> ir.Value | None:
    """The x where `value` is concat(-b, a) of its halves a and b."""
    node = producer(value, "Concat")
    if node is None or len(node.inputs) != 2 or attribute(node, "axis") not in (-1, 3):
        return None
    negative, a = producer(node.inputs[0], "Neg"), node.inputs[1]
    b = negative.inputs[0] if negative else None
    return None if a is None or b is None else _halves(a, b)


def _halves(a: ir.Value, b: ir.Value) -> ir.Value | None:
    """What `a` and `b` are the first and second half of, along the last axis."""
    node = producer(a, "Split")
    rank = len(dims(a) or ())
    if node is not None:
        ordered = len(node.outputs) == 2 and node.outputs[0] is a and node.outputs[1] is b
        last = attribute(node, "axis", 0) in (-1, rank - 1)
        return node.inputs[0] if ordered and last and dims(a) == dims(b) else None
    first, second = producer(a, "Slice"), producer(b, "Slice")
    if first is None or second is None or first.inputs[0] is not second.inputs[0]:
        return None
    x = first.inputs[0]
    size = (dims(x) or ("",))[-1]
    if x is None or not isinstance(size, int) or size % 2:
        return None
    ranges = [_range(node, rank, size) for node in (first, second)]
    return x if ranges == [(0, size // 2), (size // 2, size)] else None


def _range(node: ir.Node, rank: int, size: int) -> tuple[int, int] | None:
    """Start and end of a slice of the last axis alone."""
    start, end, axes, steps = (integers(input_of(node, index)) for index in (1, 2, 3, 4))
    if start is None or end is None or axes not in ([-1], [rank - 1]) or steps not in (None, [1]):
        return None
    return start[0] % size, min(end[0], size)


def _repeats_half(value: ir.Value | None) -> bool:
    """Whether the last axis of `value` holds the same numbers twice."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    last = (dims(value) or ("",))[-1]
    first = input_of(node, 0)
    if node.op_type == "Concat" and attribute(node, "axis") in (-1, len(dims(value) or ()) - 1):
        return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1]
    if node.op_type in POINTWISE:
        return _repeats_half(first)
    if node.op_type in ("Reshape", "Squeeze", "Unsqueeze") and (dims(first) or ("",))[-1] == last:
        return _repeats_half(first)
    if node.op_type in SCALED:
        arrays = [constant(v) for v in node.inputs]
        scalars = [array is not None and array.size == 1 for array in arrays]
        return any(scalars) and _repeats_half(node.inputs[scalars.index(False)])
    return False
