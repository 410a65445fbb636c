"""Bounds of what operators compute entry by entry, see `bounds`: arithmetic, comparisons, logic."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import attribute, constant, input_of

from .bounds import Array, Bounds, Region, exact, leaves, over_corners
from .own_pairs import same_at_own
from .pairs import PairTerm
from .time_facts import normal

Given = Sequence[Bounds | None]
Rule = Callable[[PairTerm, Given, Region], Bounds | None]


def both(given: Given) -> tuple[Bounds, Bounds]:
    """The bounds of both inputs."""
    left, right = given
    assert left is not None
    assert right is not None
    return left, right


def first(given: Given) -> Bounds:
    """The bounds of the first input."""
    assert given[0] is not None
    return given[0]


def _rounded(array: Array, term: PairTerm) -> Array:
    """In the dtype of the graph: rounding to it keeps the order of numbers."""
    dtype = term.value.dtype
    if dtype is None or not dtype.is_floating_point() or array.dtype == np.bool_:
        return array
    return array.astype(dtype.numpy()).astype(np.float64)


def _is_bool(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BOOL


def _affine(
    given: Given, function: Callable[[Array, Array], Array]
) -> tuple[Array, Array, Array] | None:
    left, right = both(given)
    if left.slope is None or right.slope is None:
        return None
    a, b, c = (function(x, y) for x, y in zip(left.slope, right.slope, strict=True))
    return a, b, c


def _corner(term: PairTerm, given: Given, function: Callable[[Array, Array], Array]) -> Bounds:
    """Bounds of what is monotone in either argument: at the ends of both."""
    left, right = both(given)
    ends = [function(x, y) for x in (left.low, left.high) for y in (right.low, right.high)]
    ends = [_rounded(end, term) for end in ends]
    return Bounds(np.minimum.reduce(ends), np.maximum.reduce(ends))


def _add(term: PairTerm, given: Given, _region: Region) -> Bounds:
    left, right = both(given)
    low = _rounded(left.low + right.low, term)
    high = _rounded(left.high + right.high, term)
    return Bounds(low, high, _affine(given, np.add))


def _sub(term: PairTerm, given: Given, region: Region) -> Bounds:
    left, right = both(given)
    if _alike(term, left, region):
        return _zero(left, right)
    low = _rounded(left.low - right.high, term)
    high = _rounded(left.high - right.low, term)
    return Bounds(low, high, _affine(given, np.subtract))


def _mul(term: PairTerm, given: Given, _region: Region) -> Bounds:
    found = _corner(term, given, _times)
    left, right = both(given)
    for one, other in ((left, right), (right, left)):
        if one.slope is not None and other.slope is not None and other.known:
            a, b, c = (part * other.low for part in one.slope)
            return Bounds(found.low, found.high, (a, b, c))
    return found


def _times(x: Array, y: Array) -> Array:
    """Products in which zero wins over a bound that is infinite for want of a better one."""
    product: Array = np.where((x == 0) | (y == 0), 0.0, x * y)
    return product


def _pow(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    """A power of what is not negative lies between those of the ends."""
    left, _ = both(given)
    return _corner(term, given, np.power) if (left.low >= 0).all() else None


def _div(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    left, right = both(given)
    if not (left.low.any() or left.high.any()):
        shape = np.broadcast_shapes(left.low.shape, right.low.shape)
        return Bounds(np.zeros(shape), np.zeros(shape))
    if ((right.low <= 0) & (right.high >= 0)).any():
        return None
    if term.value.dtype is not None and term.value.dtype.is_floating_point():
        return _corner(term, given, np.divide)
    return _corner(term, given, lambda x, y: np.trunc(x / y))


def _mod(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    """The rest of a division by a number that is known, with the sign of the divisor."""
    left, right = both(given)
    whole = left.slope is not None and right.slope is not None
    if not whole or not right.known or (right.low <= 0).any() or attribute(term.node, "fmod", 0):
        return None
    if left.known:
        rest = np.mod(left.low, right.low)
        return Bounds(rest, rest, (0 * rest, 0 * rest, rest))
    if (left.low >= 0).all() and (left.high < right.low).all():
        return left
    shape = np.broadcast_shapes(left.low.shape, right.low.shape)
    return Bounds(np.zeros(shape), np.broadcast_to(right.low - 1, shape))


def _min(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    return _extreme(term, given, np.minimum)


def _max(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    return _extreme(term, given, np.maximum)


def _extreme(_term: PairTerm, given: Given, function: Any) -> Bounds | None:
    low = function.reduce(np.broadcast_arrays(*[one.low for one in given if one is not None]))
    high = function.reduce(np.broadcast_arrays(*[one.high for one in given if one is not None]))
    return Bounds(low, high)


def _neg(_term: PairTerm, given: Given, _region: Region) -> Bounds:
    one = first(given)
    slope = None if one.slope is None else (-one.slope[0], -one.slope[1], -one.slope[2])
    return Bounds(-one.high, -one.low, slope)


def _abs(_term: PairTerm, given: Given, _region: Region) -> Bounds:
    one = first(given)
    inside = (one.low < 0) & (one.high > 0)
    ends = np.abs(one.low), np.abs(one.high)
    slope = one.slope
    if slope is not None and not (one.low >= 0).all():
        slope = (-slope[0], -slope[1], -slope[2]) if (one.high <= 0).all() else None
    return Bounds(np.where(inside, 0.0, np.minimum(*ends)), np.maximum(*ends), slope)


def _clip(_term: PairTerm, given: Given, _region: Region) -> Bounds:
    one, least, most = first(given), *(*given[1:], None, None)[:2]
    low, high = one.low, one.high
    if least is not None:
        low, high = np.maximum(low, least.low), np.maximum(high, least.high)
    if most is not None:
        low, high = np.minimum(low, most.low), np.minimum(high, most.high)
    return Bounds(low, high)


def _rising(function: Callable[[Array], Array]) -> Rule:
    def rule(term: PairTerm, given: Given, _region: Region) -> Bounds:
        one = first(given)
        return Bounds(_rounded(function(one.low), term), _rounded(function(one.high), term))

    return rule


def _guarded(function: Callable[[Array], Array], least: float) -> Rule:
    """A function that rises, and is not defined below `least`."""

    def rule(term: PairTerm, given: Given, region: Region) -> Bounds | None:
        one = first(given)
        return None if (one.low < least).any() else _rising(function)(term, given, region)

    return rule


def _between(least: float, most: float) -> Rule:
    """A function whose results lie between two numbers, whatever it is given."""

    def rule(_term: PairTerm, given: Given, _region: Region) -> Bounds:
        shape = first(given).low.shape
        return Bounds(np.full(shape, least), np.full(shape, most))

    return rule


def _cast(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    one, was, dtype = first(given), term.node.inputs[0], term.value.dtype
    if dtype is None or was is None:
        return None
    if dtype == ir.DataType.BOOL:
        if _is_bool(was):
            return one
        zero = (one.low == 0) & (one.high == 0)
        other = (one.low > 0) | (one.high < 0)
        return Bounds(other, ~zero)
    low, high = one.low.astype(np.float64), one.high.astype(np.float64)
    if dtype.is_floating_point():
        slope = one.slope
        if slope is not None and max(abs(low).max(), abs(high).max()) > exact(dtype):
            slope = None
        return Bounds(_rounded(low, term), _rounded(high, term), slope)
    if not _is_bool(was) and was.dtype is not None and was.dtype.is_floating_point():
        low, high = np.trunc(low), np.trunc(high)
    return None if leaves(low, high, dtype) else Bounds(low, high, one.slope)


def _compare(decided: Callable[[Array, Array], tuple[Array, Array]]) -> Rule:
    """A comparison, by the bounds of the difference: they are exact where it is affine."""

    def rule(term: PairTerm, given: Given, region: Region) -> Bounds:
        left, right = both(given)
        slope = _affine(given, np.subtract)
        if _alike(term, left, region):
            low = high = _zero(left, right).low
        elif slope is not None:
            low, high = over_corners(slope, region)
        elif np.bool_ in (left.low.dtype, right.low.dtype):
            low = left.low.astype(float) - right.high.astype(float)
            high = left.high.astype(float) - right.low.astype(float)
        else:
            low, high = _less(left.low, right.high), _less(left.high, right.low)
        surely, maybe = decided(low, high)
        return Bounds(surely, maybe)

    return rule


_same = _compare(lambda low, high: ((low == 0) & (high == 0), (low <= 0) & (high >= 0)))


def _equal(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """Equality; of a value with itself it says that it is a number, as finite bounds do."""
    left, right = both(given)
    if term.inputs[0] is term.inputs[1]:
        number = np.isfinite(left.low) & np.isfinite(left.high)
        return Bounds(number, np.ones_like(number))
    return _same(term, [left, right], region)


def _alike(term: PairTerm, left: Bounds, region: Region) -> bool:
    """Whether both inputs are one number of each token, and pairs are of tokens with themselves.

    What is not finite is not equal to itself, or differs from itself by no number.
    """
    dtype = term.node.inputs[0].dtype if term.node.inputs[0] is not None else None
    if region.nearest != 0 or region.farthest != 0 or dtype is None:
        return False
    finite = np.isfinite(left.low.astype(float)) & np.isfinite(left.high.astype(float))
    return bool(not dtype.is_floating_point() or finite.all()) and same_at_own(*term.node.inputs)


def _zero(left: Bounds, right: Bounds) -> Bounds:
    zero = np.zeros(np.broadcast_shapes(left.low.shape, right.low.shape))
    return Bounds(zero, zero, (zero, zero, zero))


def _less(x: Array, y: Array) -> Array:
    """The sign of x - y, which differences of infinite numbers do not have."""
    sign: Array = np.where(x == y, 0.0, np.where(x < y, -1.0, 1.0))
    return sign


def _logical(function: Any) -> Rule:
    def rule(_term: PairTerm, given: Given, _region: Region) -> Bounds:
        left, right = both(given)
        return Bounds(function(left.low, right.low), function(left.high, right.high))

    return rule


def _xor(_term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    left, right = both(given)
    if not (left.known and right.known):
        return None
    return Bounds(left.low ^ right.low, left.low ^ right.low)


def _not(_term: PairTerm, given: Given, _region: Region) -> Bounds:
    one = first(given)
    return Bounds(~one.high, ~one.low)


def _where(_term: PairTerm, given: Given, _region: Region) -> Bounds:
    condition, yes, no = given
    assert condition is not None
    assert yes is not None
    assert no is not None
    always, never = condition.low, ~condition.high
    if always.all():
        return _like(yes, condition)
    if never.all():
        return _like(no, condition)
    low = np.where(always, yes.low, np.where(never, no.low, np.minimum(yes.low, no.low)))
    high = np.where(always, yes.high, np.where(never, no.high, np.maximum(yes.high, no.high)))
    return Bounds(low, high)


def _reduced(function: Callable[..., Array]) -> Rule:
    """The sum, the largest or the least along axes of known size, none of them of tokens."""

    def rule(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
        source, one = term.inputs[0], first(given)
        axes = constant(input_of(term.node, 1))
        if source is None or axes is None or one.low.dtype == np.bool_:
            return None
        along = tuple(normal(int(axis), len(source.shape)) for axis in axes.flatten())
        timed = (source.axes.query, source.axes.key)
        if not along or one.low.ndim != len(source.shape):  # one number for all entries
            return None
        if any(a in timed or source.shape[a] != one.low.shape[a] for a in along):
            return None
        keep = bool(attribute(term.node, "keepdims", 1))
        low, high = (function(end, axis=along, keepdims=keep) for end in (one.low, one.high))
        if function is np.sum:  # in whatever order it is summed
            terms = math.prod(one.low.shape[axis] for axis in along)
            most = np.sum(np.maximum(abs(one.low), abs(one.high)), axis=along, keepdims=keep)
            slack = terms * most / exact(term.value.dtype)
            low, high = low - slack, high + slack
        return Bounds(_rounded(low, term), _rounded(high, term))

    return rule


def _like(found: Bounds, other: Bounds) -> Bounds:
    shape = np.broadcast_shapes(found.low.shape, other.low.shape)
    return Bounds(
        np.broadcast_to(found.low, shape), np.broadcast_to(found.high, shape), found.slope
    )


NUMBERS: dict[str, Rule] = {
    "Cos": _between(-1.0, 1.0),
    "Erf": _between(-1.0, 1.0),
    "Sigmoid": _between(0.0, 1.0),
    "Sin": _between(-1.0, 1.0),
    "Abs": _abs,
    "Add": _add,
    "And": _logical(np.logical_and),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _rising(np.ceil),
    "Clip": _clip,
    "Div": _div,
    "Equal": _equal,
    "Exp": _rising(np.exp),
    "Floor": _rising(np.floor),
    "Greater": _compare(lambda low, high: (low > 0, high > 0)),
    "GreaterOrEqual": _compare(lambda low, high: (low >= 0, high >= 0)),
    "Less": _compare(lambda low, high: (high < 0, low < 0)),
    "LessOrEqual": _compare(lambda low, high: (high <= 0, low <= 0)),
    "Log": _guarded(np.log, 0.0),
    "Max": _max,
    "Min": _min,
    "Mod": _mod,
    "Mul": _mul,
    "Pow": _pow,
    "Neg": _neg,
    "Not": _not,
    "Or": _logical(np.logical_or),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceSum": _reduced(np.sum),
    "Round": _rising(np.round),
    "Sign": _rising(np.sign),
    "Sqrt": _guarded(np.sqrt, 0.0),
    "Sub": _sub,
    "Tanh": _rising(np.tanh),
    "Where": _where,
    "Xor": _xor,
}
