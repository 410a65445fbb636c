"""Bounds of a term over a region: from those of its inputs, by the rules of its nodes.

A few nodes look beyond the region that they are asked about: a sum at all tokens before, weights
at the score of the token itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import attribute
from intaglio.state import entries_of

from ._number_bounds import Given, Rule, first
from .bound_rules import RULES
from .bounds import (
    LONGEST,
    Array,
    Bounds,
    Region,
    ahead,
    behind,
    contents,
    exact,
    flat_shape,
    leaves,
    over_corners,
    unknown,
)
from .pair_rules import gathers_along, shift
from .pairs import PairTerm, TermKind, walk
from .time_facts import normal

LARGEST = 3.0e38
"""Data and what is computed from it is taken to lie within plus and minus this: it is finite."""
PIECES = 64
"""Bands of distances into which a region is cut, at most."""
MARGIN = 1000.0
"""A score that is lower than another by this weighs nothing beside it, in every dtype."""


def evaluate(term: PairTerm, region: Region) -> Bounds:
    """Bounds of `term` over `region`, which is not empty."""
    return evaluate_all(term, region)[term]


def evaluate_all(
    term: PairTerm, region: Region, known: Mapping[PairTerm, Bounds] | None = None
) -> dict[PairTerm, Bounds]:
    """Bounds of `term` and of all that it is computed from, where those `known` hold."""
    found: dict[PairTerm, Bounds] = dict(known or {})
    for entry in walk(term, found):
        if entry in found:
            continue
        given = [None if one is None else found[one] for one in entry.inputs]
        found[entry] = _of(entry, given, region)
    return found


def constants(term: PairTerm, tokens: int) -> dict[PairTerm, Array]:
    """Nodes behind `term` that give the same for all pairs below `tokens`, and what they give."""
    regions = [behind(0, tokens, tokens), ahead(tokens)]
    found = [evaluate_all(term, region) for region in regions if not region.empty]
    return {
        one: bounds.low
        for one, bounds in found[0].items()
        if one.kind is TermKind.NODE
        and all(each[one].known and np.array_equal(each[one].low, bounds.low) for each in found)
    }


def holds(term: PairTerm, region: Region, test: Callable[[Bounds], bool | None]) -> bool:
    """Whether `test` holds of `term` all over `region`; it answers None where bounds are too wide.

    What is decided piece by piece is tried on narrower bands of distances; what is not decided in
    `PIECES` of them does not hold.
    """
    pending, tried = [region], 0
    while pending:
        band = pending.pop()
        if band.empty:
            continue
        found, tried = test(evaluate(term, band)), tried + 1
        if found is None and tried < PIECES and band.nearest < band.farthest:
            pending += band.halves()
        elif not found:
            return False
    return True


def _of(term: PairTerm, given: list[Bounds | None], region: Region) -> Bounds:
    shape, dtype = flat_shape(term), term.value.dtype
    if term.kind is TermKind.CONSTANT:
        return _constant(term, shape)
    if term.kind is TermKind.DATA:
        return unknown(shape, dtype, _finite(dtype))
    if term.kind is TermKind.POSITION:
        return _position(term, region)
    rule = WIDER.get(_form(term)) or RULES.get(term.node.op_type)
    with np.errstate(all="ignore"):
        result = None if rule is None else rule(term, given, region)
        if result is None:
            return unknown(shape, dtype)
        if any(one is not None and not one.known for one in given):
            result = _without_overflow(result, given)
        return _settled(result, region, shape, dtype)


def _without_overflow(found: Bounds, given: list[Bounds | None]) -> Bounds:
    """Numbers that are not known are taken not to overflow: bounds of finite ones are finite."""
    ends = [end for one in given if one is not None for end in (one.low, one.high)]
    if found.low.dtype == np.bool_ or not all(np.isfinite(end).all() for end in ends):
        return found
    low, high = np.clip(found.low, -LARGEST, LARGEST), np.clip(found.high, -LARGEST, LARGEST)
    return replace(found, low=low, high=high)


def _finite(dtype: ir.DataType | None) -> float:
    floating = dtype is not None and dtype.is_floating_point()
    return LARGEST if floating else np.inf


def _settled(found: Bounds, region: Region, shape: tuple[int, ...], dtype: Any) -> Bounds:
    """An affine form has the bounds of its corners; what became NaN is unknown."""
    if found.slope is not None:
        low, high = over_corners(found.slope, region)
        found = replace(found, low=low, high=high)
        if max(np.abs(low).max(initial=0), np.abs(high).max(initial=0)) > exact(dtype):
            found = replace(found, slope=None)
    if found.low.dtype == np.bool_:
        return found
    odd = (np.isnan(found.low) | np.isnan(found.high)).any()
    return unknown(shape, dtype) if odd or leaves(found.low, found.high, dtype) else found


def _constant(term: PairTerm, shape: tuple[int, ...]) -> Bounds:
    array = contents(term.value)
    if array is None:
        return unknown(shape, term.value.dtype)
    if array.dtype == np.bool_:
        return Bounds(array, array)
    wide = array.astype(np.float64)
    whole = bool(np.isfinite(wide).all()) and bool((wide == np.round(wide)).all())
    zero = np.zeros_like(wide)
    return Bounds(wide, wide, (zero, zero, wide) if whole else None)


def _position(term: PairTerm, region: Region) -> Bounds:
    """Start + step * i, or j."""
    start, step = (contents(v) for v in (term.node.inputs[0], term.node.inputs[2]))  # type: ignore[arg-type]
    if start is None or step is None or not any(map(entries_of, term.shape)):
        return unknown((1,), term.value.dtype)
    one = np.ones(1)
    factors = (one, 0 * one) if term.axes.query is not None else (0 * one, one)
    slope = (factors[0] * float(step), factors[1] * float(step), one * float(start))
    low, high = over_corners(slope, region)
    whole = float(start).is_integer() and float(step).is_integer()
    return Bounds(low, high, slope if whole else None)


def forbids_later(term: PairTerm, tokens: int, margin: float) -> bool:
    """Whether a mask, or masked scores, give no weight to any later token.

    Numbers as -10,000 do so only beside one that is higher by `margin`: the token's own.
    """
    region, term = ahead(tokens), _without_shift(term)
    if region.empty:
        return True
    own = evaluate(term, behind(0, 0, tokens)).low

    def nothing(later: Bounds) -> bool | None:
        if later.high.dtype == bool:
            return False if later.low.any() else (not later.high.any()) or None
        enough = (later.high == -np.inf) | (later.high <= own - margin)
        return bool(enough.all()) or None

    return holds(term, region, nothing)


def _without_shift(term: PairTerm) -> PairTerm:
    """`term` before a number of each query was added to all of its scores: weights stay."""
    while term.kind is TermKind.NODE and not term.node.domain:
        first, *others = term.inputs
        if first is None or first.axes.key is None:
            return term
        op, by = term.node.op_type, others[0] if others else None
        joins = op == "Concat" and normal(attribute(term.node, "axis"), len(term.shape))
        after = op == "Concat" and joins == term.axes.key
        shifts = op in ("Add", "Sub") and by is not None and by.axes.key is None and _is_finite(by)
        if not after and not shifts:
            return term
        term = first
    return term


def _is_finite(term: PairTerm) -> bool:
    """Whether the numbers of each query are finite: data is, and what is largest in a row."""
    return term.kind is TermKind.DATA or evaluate(term, behind(0)).high.max() < float("inf")


def _form(term: PairTerm) -> str:
    """Which rule of `WIDER` a node is for."""
    if term.node.op_type != "Slice":
        return str(term.node.op_type)
    if shift(term.node, term.axes) is not None:
        return "shift"
    source = term.inputs[0]
    return "first" if not term.axes and source is not None and source.axes else "Slice"


def _first_token(term: PairTerm, _given: Given, _region: Region) -> Bounds:
    source = term.inputs[0]
    assert source is not None
    start = evaluate(source, behind(0, 0, 1))
    zero = np.zeros(start.low.shape)
    whole = start.known and start.slope is not None
    return Bounds(start.low, start.high, (zero, zero, start.low) if whole else None)


def _everywhere(term: PairTerm, region: Region) -> Bounds:
    """Bounds of the first input over all tokens, those outside of the region too."""
    source = term.inputs[0]
    assert source is not None
    return evaluate(source, behind(0, region.tokens, region.tokens))


def _shifted(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """A sequence one token later, after an entry that may continue it to the front."""
    if len(given) == 1:
        return first(given)
    rest = _everywhere(term, region)
    before, slope = given[1], rest.slope
    assert before is not None
    if slope is not None and before.slope is not None:
        a, b, c = slope
        pace = a if term.axes.query is not None else b
        least = c - pace
        same = not (before.slope[0].any() or before.slope[1].any())
        if same and (before.slope[2] == least).all():
            return Bounds(rest.low - np.abs(pace), rest.high + np.abs(pace), (a, b, least))
    return Bounds(np.minimum(rest.low, before.low), np.maximum(rest.high, before.high))


def _cum_sum(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """The sum of what is always the same number: that times the tokens so far.

    Over the keys, from the last one back, there is nothing at later ones where nothing is summed.
    """
    if term.axes.query is not None and term.axes.key is not None:
        summed = given[0]
        none = summed is not None and not (summed.low.any() or summed.high.any())
        return summed if none and region.ahead and attribute(term.node, "reverse", 0) else None
    one = _everywhere(term, region)
    if not one.known or one.low.dtype == np.bool_ or not (one.low == np.round(one.low)).all():
        return None
    zero = np.zeros_like(one.low)
    each = (one.low, zero) if term.axes.query is not None else (zero, one.low)
    top = one.low * LONGEST
    return Bounds(np.minimum(top, 0), np.maximum(top, 0), (*each, one.low))


def _softmax(term: PairTerm, _given: Given, region: Region) -> Bounds:
    """Weights: none for later tokens whose scores are far below that of the token itself."""
    shape, source = flat_shape(term), term.inputs[0]
    assert source is not None
    along = normal(attribute(term.node, "axis", -1), len(term.shape))
    gone = along == term.axes.key and region.ahead
    gone = gone and forbids_later(source, region.tokens, MARGIN)
    return Bounds(np.zeros(shape), np.zeros(shape) if gone else np.ones(shape))


def _picked(term: PairTerm, given: Given, region: Region) -> Bounds | None:
    """Entries at computed places along the keys: of any pair, not of the region's alone."""
    source, shape = term.inputs[0], flat_shape(term)
    if source is None or source.axes.key is None or gathers_along(term.node) != source.axes.key:
        return RULES[term.node.op_type](term, given, region)
    regions = [behind(0, region.tokens, region.tokens), ahead(region.tokens)]
    found = [evaluate(source, each) for each in regions if not each.empty]
    low, high = min(one.low.min() for one in found), max(one.high.max() for one in found)
    return Bounds(np.full(shape, low), np.full(shape, high))


WIDER: dict[str, Rule] = {
    "Gather": _picked,
    "GatherElements": _picked,
    "GatherND": _picked,
    "CumSum": _cum_sum,
    "Softmax": _softmax,
    "first": _first_token,
    "shift": _shifted,
}
