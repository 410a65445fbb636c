"""Bounds of what operators move, look up, sum and weigh, see `bounds`."""

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, integers

from ._number_bounds import Given, Rule, both, first
from .bounds import (
    LONGEST,
    SCORE,
    Array,
    Bounds,
    Region,
    contents,
    flat_shape,
    over_corners,
)
from .pairs import PairTerm, TermKind
from .time_facts import normal


def _moved(function: Callable[[PairTerm, Array], Array]) -> Rule:
    """An operator that moves entries moves their bounds."""

    def rule(term: PairTerm, given: Given, _region: Region) -> Bounds:
        one = first(given)
        slope = one.slope
        if slope is not None:
            shape = one.low.shape
            a, b, c = (function(term, np.broadcast_to(part, shape)) for part in slope)
            slope = (a, b, c)
        return Bounds(function(term, one.low), function(term, one.high), slope)

    return rule


def _to_shape(term: PairTerm, array: Array) -> Array:
    return _in_full(term, array).reshape(flat_shape(term))


def _in_full(term: PairTerm, array: Array) -> Array:
    """Bounds of what `term` reshapes, along the axes as well that they are alike along."""
    source = next((one for one in term.inputs if one is not None), None)
    whole = () if source is None else flat_shape(source)
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, whole))


def _reshaped(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    try:
        return _moved(_to_shape)(term, given, region)
    except ValueError:  # a table is longer than one entry along time, or time is taken apart
        return None


def _expanded(term: PairTerm, array: Array) -> Array:
    return np.broadcast_to(array, np.broadcast_shapes(array.shape, flat_shape(term)))


def _transposed(term: PairTerm, array: Array) -> Array:
    order = attribute(term.node, "perm")
    rank = array.ndim if order is None else len(order)  # what is alike along first axes lacks them
    return array.reshape((1,) * (rank - array.ndim) + array.shape).transpose(order)


def _filled(term: PairTerm, _given: Given, _region: Region) -> Bounds:
    tensor = attribute(term.node, "value")
    number = 0.0 if tensor is None else tensor.numpy().reshape(-1)[0]
    if term.value.dtype == ir.DataType.BOOL:
        full = np.full(flat_shape(term), bool(number))
        return Bounds(full, full)
    full, zero = np.full(flat_shape(term), float(number)), np.zeros(flat_shape(term))
    return Bounds(full, full, (zero, zero, full) if float(number).is_integer() else None)


def _slice(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """Rows of a table at positions; other axes are cut as they are."""
    array = _table(term)
    if array is not None:
        return _of_table(array, term, region)
    one, shape = first(given), dims(term.node.inputs[0]) or ()
    rows = [
        axis for axis in (term.axes.query, term.axes.key)
        if axis is not None and isinstance(shape[axis], int)
    ]  # fmt: skip
    cuts = _cuts(term, one.low.ndim, rows)
    if cuts is None:
        return None
    if not rows:
        return Bounds(one.low[cuts], one.high[cuts])
    low, high = one.low[cuts], one.high[cuts]
    return Bounds(low.min(tuple(rows), keepdims=True), high.max(tuple(rows), keepdims=True))


def _table(term: PairTerm) -> Array | None:
    """A constant of which `term` is rows and columns 0 .. T-1, whether cut at once or in turn."""
    source = term.inputs[0] if term.inputs else None
    if source is None or not _takes_rows(term):
        return None
    array = contents(source.value) if source.kind is TermKind.CONSTANT else _table(source)
    if term.node.op_type == "Gather":
        return array
    axes = [axis for axis in (term.axes.query, term.axes.key) if axis is not None]
    cuts = None if array is None else _cuts(term, array.ndim, axes)
    return None if array is None or cuts is None or not axes else array[cuts]


def _takes_rows(term: PairTerm) -> bool:
    """Whether rows 0 .. T-1 are taken, by a Slice or by their positions."""
    if term.kind is not TermKind.NODE or term.node.op_type == "Slice":
        return term.kind is TermKind.NODE
    index = term.inputs[1] if term.node.op_type == "Gather" else None
    if index is None or index.kind is not TermKind.POSITION:
        return False
    start, step = (contents(value) for value in index.node.inputs[::2] if value is not None)
    return start is not None and step is not None and not start.any() and bool((step == 1).all())


def _cuts(term: PairTerm, rank: int, rows: Sequence[int]) -> tuple[slice, ...] | None:
    places = [integers(value) for value in term.node.inputs[1:]]
    axes = places[2] if len(places) > 2 else list(range(len(places[0] or ())))
    steps = places[3] if len(places) > 3 else None
    found = [slice(None)] * rank
    for at, axis in enumerate(axes or ()):
        place = normal(axis, rank)
        if place in rows or place in (term.axes.query, term.axes.key):
            continue
        if places[0] is None or places[1] is None or (len(places) > 3 and steps is None):
            return None
        end = places[1][at]
        step = 1 if steps is None else steps[at]
        found[place] = slice(places[0][at], None if abs(end) > LONGEST else end, step)
    return tuple(found)


def _of_table(array: Array, term: PairTerm, region: Region) -> Bounds:
    """Bounds of the rows, columns or entries of a table that are in the region."""
    query, key = term.axes.query, term.axes.key
    where = [axis for axis in (query, key) if axis is not None]
    table = np.moveaxis(array, where, range(len(where)))
    if len(where) == 2:
        i, j = np.ogrid[: table.shape[0], : table.shape[1]]
        entries = table[region.holds(i, j) & (np.maximum(i, j) < region.tokens)]
    else:
        ends = [corner[0 if query is not None else 1] for corner in region.corners()]
        entries = table[min(ends) : max(ends) + 1]
    if not len(entries):  # the region lies behind the end of the table
        entries = table.reshape(-1, *table.shape[len(where) :])
    low, high = entries.min(0), entries.max(0)
    low, high = (np.expand_dims(end, tuple(sorted(where))) for end in (low, high))
    if array.dtype == np.bool_:
        return Bounds(low, high)
    return Bounds(low.astype(np.float64), high.astype(np.float64))


def _gather(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """Entries that an index within bounds can reach."""
    data, index = both(given)
    if (table := _table(term)) is not None:
        return _of_table(table, term, region)
    axis = normal(attribute(term.node, "axis", 0), data.low.ndim)
    if index.known:
        places = index.low.astype(np.int64)
        rows = data.low.shape[axis]
        if (places >= rows).any() or (places < -rows).any():
            return None
        low, high = (np.take(end, places, axis) for end in (data.low, data.high))
        return Bounds(low, high)
    rows = data.low.shape[axis]
    reached = _reached(float(index.low.min()), float(index.high.max()), rows)
    picked = [np.moveaxis(end, axis, 0)[reached] for end in (data.low, data.high)]
    low, high = picked[0].min(0), picked[1].max(0)
    for at in range(index.low.ndim):
        low, high = np.expand_dims(low, axis + at), np.expand_dims(high, axis + at)
    shape = flat_shape(term)
    return Bounds(np.broadcast_to(low, shape), np.broadcast_to(high, shape))


def _gather_nd(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """Entries that indices within bounds can reach, an index for each of the first axes."""
    data, index = both(given)
    depth, shape = index.low.shape[-1], flat_shape(term)
    if depth == 2 and (table := _by_pair(term, index)) is not None:
        return _of_table(table, term, region)
    if index.known:
        places = tuple(np.moveaxis(index.low.astype(np.int64), -1, 0))
        rows = np.array(data.low.shape[:depth])
        if (index.low >= rows).any() or (index.low < -rows).any():
            return None
        return Bounds(data.low[places], data.high[places])
    low, high = data.low, data.high
    for axis in range(depth):
        ends = float(index.low[..., axis].min()), float(index.high[..., axis].max())
        reached = _reached(*ends, data.low.shape[axis])
        low = np.moveaxis(np.moveaxis(low, axis, 0)[reached], 0, axis)
        high = np.moveaxis(np.moveaxis(high, axis, 0)[reached], 0, axis)
    front = tuple(range(depth))
    return Bounds(np.broadcast_to(low.min(front), shape), np.broadcast_to(high.max(front), shape))


def _by_pair(term: PairTerm, index: Bounds) -> Array | None:
    """The constant table of two axes of which entry (i, j) is taken, its queries first."""
    data = term.inputs[0]
    wanted = [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]
    slope = [] if index.slope is None else [part.reshape(-1).tolist() for part in index.slope]
    array = None if data is None or data.kind is not TermKind.CONSTANT else contents(data.value)
    if array is None or (term.axes.query, term.axes.key) != (0, 1) or len(term.shape) != array.ndim:
        return None
    if slope == wanted:
        return array
    return array.swapaxes(0, 1) if slope == [wanted[1], wanted[0], wanted[2]] else None


def _reached(least: float, most: float, rows: int) -> slice:
    """The rows between two indices; a negative one counts from the end, so that all may be."""
    if least < 0 or not np.isfinite(most):
        return slice(None)
    return slice(int(min(least, rows - 1)), int(min(most, rows - 1)) + 1)


def _concat(term: PairTerm, given: Given, _region: Region) -> Bounds | None:
    axis = normal(attribute(term.node, "axis"), len(term.shape))
    if axis == term.axes.key:  # what stands after the keys is of no pair
        return Bounds(first(given).low, first(given).high)
    shape, known = list(flat_shape(term)), [one for one in given if one is not None]

    def joined(parts: Sequence[Array]) -> Array:
        grown = [
            np.broadcast_to(x, [*shape[:axis], one.low.shape[axis], *shape[axis + 1 :]])
            for x, one in zip(parts, known, strict=True)
        ]
        return np.concatenate(grown, axis)

    slopes = [one.slope for one in known if one.slope is not None]
    slope = None
    if len(slopes) == len(known):
        a, b, c = (joined([each[part] for each in slopes]) for part in range(3))
        slope = (a, b, c)
    return Bounds(joined([one.low for one in known]), joined([one.high for one in known]), slope)


def _trilu(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """The lower triangle keeps what lies `k` above the diagonal and below, the upper the rest."""
    one = first(given)
    node = term.node
    k = 0
    if len(term.inputs) > 1 and term.inputs[1] is not None:
        array = contents(term.inputs[1].value)
        if array is None:
            return None
        k = int(array)
    turned = (term.axes.query or 0) > (term.axes.key or 0)
    sign = 1.0 if turned else -1.0
    factors = (np.array(sign), np.array(-sign), np.array(0.0))
    low, high = over_corners(factors, region)  # column - row
    upper = bool(attribute(node, "upper", 1))
    kept = low >= k if upper else high <= k
    gone = high < k if upper else low > k
    zero = np.zeros_like(one.low)
    if kept:
        return one
    if gone:
        return Bounds(zero, zero)
    return Bounds(np.minimum(one.low, zero), np.maximum(one.high, zero))


def _matmul(term: PairTerm, given: Given, _region: Region) -> Bounds:
    """A product of data: a score; nothing is asked of it but to be finite.

    That of weights which are all zero, over another axis than those of tokens, is zero.
    """
    shape = flat_shape(term)
    if all(one is not None and _has_roles(term, one) for one in term.inputs):
        sides = [one for one in given if one is not None]
        zero = any(not one.low.any() and not one.high.any() for one in sides)
        if zero and all(np.isfinite([one.low.min(), one.high.max()]).all() for one in sides):
            return Bounds(np.zeros(shape), np.zeros(shape))
    return Bounds(np.full(shape, -SCORE), np.full(shape, SCORE))


def _has_roles(term: PairTerm, one: PairTerm) -> bool:
    """Whether `term` has the axes of tokens that `one` has: no sum goes over them."""
    return all(
        own is None or other is not None
        for own, other in ((one.axes.query, term.axes.query), (one.axes.key, term.axes.key))
    )


def _is_nan(term: PairTerm, given: Given, _region: Region) -> Bounds:
    x = given[0]
    shape = flat_shape(term)
    number = x is not None and np.isfinite(x.low).all() and np.isfinite(x.high).all()
    return Bounds(np.zeros(shape, bool), np.full(shape, not number))


MOVES: dict[str, Rule] = {
    "Concat": _concat,
    "ConstantOfShape": _filled,
    "Expand": _moved(_expanded),
    "Gather": _gather,
    "GatherElements": lambda _, given, __: first(given),
    "GatherND": _gather_nd,
    "Identity": _moved(lambda _, array: array),
    "IsNaN": _is_nan,
    "MatMul": _matmul,
    "Reshape": _reshaped,
    "Slice": _slice,
    "Squeeze": _reshaped,
    "Tile": _moved(lambda term, array: np.tile(array, integers(term.node.inputs[1]) or 1)),
    "Transpose": _moved(_transposed),
    "Trilu": _trilu,
    "Unsqueeze": _reshaped,
}
