"""Gates that are multiplied into queries and divided out of keys, taken out of both again.

    (q_i e^{G_i}) . (k_j e^{-G_j})  =  sum over d of q_i[d] k_j[d] e^{G_i[d] - G_j[d]}

with G the sum of the gates' logarithms over tokens so far: how gated linear attention is written
for all tokens at once (Yang et al. 2024, arXiv:2312.06635, equation 4).  e^{-G} grows with every
token until it overflows; carried as a recurrence, with the gates as its decays, nothing does.
"""

from collections import Counter
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from intaglio.passes.graph import (
    Emitter,
    Shape,
    attributes_of,
    constant,
    dims,
    integers,
    producer,
)

from ._decayed_weights import OtherFormError, Placed, aligned, moved_from, sums_so_far

FACTORS = ("Mul", "Div", "Exp", "Reciprocal")
THROUGH = (*FACTORS, "Neg")  # that act on each entry
Factor = tuple[Placed, bool]  # and whether it divides


@dataclass(frozen=True)
class UngatedScores:
    """Queries and keys as products of factors in the frame [.., time, size], and their gates.

    `gates` are the logarithms, each with a number that multiplies it.
    """

    query: list[Factor]
    key: list[Factor]
    gates: list[tuple[Placed, float]]


@dataclass
class _Side:
    split: "_SplitHeads"
    factors: list[Factor] = field(default_factory=list)
    sums: Counter[Placed] = field(default_factory=Counter)


class _SplitHeads:
    """Products, exponentials and sums whose last axis is cut into heads: of what is cut before."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit
        self._known: dict[tuple[ir.Value, Shape], ir.Value] = {}

    def __call__(self, value: ir.Value) -> ir.Value:
        """`value`, or the same with the cut in front of the operator."""
        node = producer(value, "Reshape")
        inner = None if node is None else producer(node.inputs[0], *THROUGH, "CumSum")
        if node is None or inner is None:
            return value
        before, after = dims(node.inputs[0]) or (), dims(value) or ()
        whole = inner.inputs
        if inner.op_type == "CumSum":
            along = integers(inner.inputs[1])
            if not sums_so_far(inner) or along is None or not 0 <= along[0] < len(before) - 1:
                return value
            whole = inner.inputs[:1]
        numbers = [constant(x) is not None and dims(x) == () for x in whole]
        fits = all(n or dims(x) == before for x, n in zip(whole, numbers, strict=True))
        if len(after) != len(before) + 1 or after[: len(before) - 1] != before[:-1] or not fits:
            return value
        cut = [
            x if n or x is None else self._cut(x, node.inputs[1], after)
            for x, n in zip(whole, numbers, strict=True)
        ]
        inputs = [*cut, *inner.inputs[len(whole) :]]
        return self._emit(inner.op_type, inputs, value.dtype, after, **attributes_of(inner))

    def _cut(self, value: ir.Value, target: ir.Value | None, shape: Shape) -> ir.Value:
        key = value, tuple(shape)
        if key not in self._known:
            self._known[key] = self._emit("Reshape", [value, target], value.dtype, shape)
        return self._known[key]


def gates_taken_out(query: ir.Value, key: ir.Value, emit: Emitter) -> UngatedScores | None:
    """What `query` [.., time, size] and `key` [.., size, time] are without gates; None without any.

    What they sum over tokens is the same in both, with the sign turned.
    """
    rank = len(dims(query) or ())
    frame = tuple(range(rank))
    sides, split = [], _SplitHeads(emit)
    for value, places in ((query, frame), (key, (*frame[:-2], rank - 1, rank - 2))):
        found = _Side(split)
        try:
            _read(Placed(value, places), found, divided=False)
        except OtherFormError:
            return None
        sides.append(found)
    one, other = sides
    gates = {placed: number for placed, number in one.sums.items() if number}
    if not gates or any(one.sums[each] + other.sums[each] for each in {*one.sums, *other.sums}):
        return None
    if not one.factors or not other.factors:
        return None
    return UngatedScores(one.factors, other.factors, [(g, float(n)) for g, n in gates.items()])


def _read(found: Placed, side: _Side, *, divided: bool) -> None:
    """One factor of a side, in the places of the frame where its axes stand."""
    found = replace(found, value=side.split(found.value))
    moved, node = moved_from(found), found.value.producer()
    if moved is not None:
        _read(moved, side, divided=divided)
    elif node is None or node.domain or node.op_type not in FACTORS:
        side.factors.append((found, divided))
    elif node.op_type == "Exp":
        sign = -1.0 if divided else 1.0
        summed = _summed(replace(found, value=_only(node)), sign, side.split)
        if summed is None:
            side.factors.append((found, divided))
        else:
            side.sums[summed[0]] += summed[1]  # type: ignore[assignment]  # counts of any number
    elif node.op_type == "Reciprocal":
        _read(replace(found, value=_only(node)), side, divided=not divided)
    else:
        for place, operand in enumerate(node.inputs):
            assert operand is not None
            flip = node.op_type == "Div" and place == 1
            _read(aligned(found, operand), side, divided=divided is not flip)


def _summed(found: Placed, number: float, split: _SplitHeads) -> tuple[Placed, float] | None:
    """What an exponent sums over the tokens so far, and times which number; None for others."""
    found = replace(found, value=split(found.value))
    moved, node = moved_from(found), found.value.producer()
    if moved is not None:
        return _summed(moved, number, split)
    if node is None or node.domain:
        return None
    if node.op_type == "Neg":
        return _summed(replace(found, value=_only(node)), -number, split)
    if node.op_type in ("Mul", "Div"):
        for place, operand in enumerate(node.inputs):
            by, rest = constant(operand), node.inputs[1 - place]
            if by is None or by.size != 1 or rest is None or not by.item():
                continue
            if node.op_type == "Div" and place == 0:
                return None
            factor = float(by.item())
            number = number / factor if node.op_type == "Div" else number * factor
            return _summed(aligned(found, rest), number, split)
        return None
    if not sums_so_far(node):
        return None
    axis, shape = integers(node.inputs[1]), dims(node.inputs[0]) or ()
    assert axis is not None
    if found.places[-2] != axis[0] % len(shape):  # of the tokens that the frame has
        return None
    return replace(found, value=_only(node)), number


def _only(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value
