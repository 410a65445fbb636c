"""What a term can be over all pairs of a region at once: exact bounds, or none.

A region holds the pairs (i, j) whose distance i - j lies between two numbers: the later tokens
(j > i), the last w, or those before them.  In one coordinate from the start, `base`, and the
distance it is a polygon, over which an affine form takes its bounds at corners; so comparisons of
positions are decided over all pairs of a region, not over samples (Cousot and Cousot 1977,
https://doi.org/10.1145/512950.512973, with affine forms).  Everything else is bounded by
intervals; rounding keeps the order of numbers, so that bounds in the dtype of the graph hold.
Where nothing is known the bounds are infinite, never too narrow.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.state import TIME

from ._rearranging import factors
from .pairs import Kind, Term, walk

Array = npt.NDArray[Any]

LONGEST = 1 << 24
"""Tokens of the longest context that is spoken of: up to it float32 counts exactly."""
LARGEST = 3.0e38
"""Data and what is computed from it is taken to lie within plus and minus this: it is finite."""
PIECES = 64
"""Bands of distances into which a region is cut, at most."""
SCORE = 2500.0
"""Products of queries and keys are taken to lie within plus and minus this."""


@dataclass(frozen=True)
class Region:
    """All pairs below `tokens` with `nearest` <= i - j <= `farthest`, both of one sign.

    Where tokens lie ahead (j > i) `base` is i, otherwise j.
    """

    nearest: int
    farthest: int
    tokens: int = LONGEST

    @property
    def ahead(self) -> bool:
        """Whether the keys are later than the queries."""
        return self.farthest < 0

    @property
    def empty(self) -> bool:
        """Whether no pair is in it."""
        return min(abs(self.nearest), abs(self.farthest)) >= self.tokens

    def corners(self) -> list[tuple[int, int]]:
        """Corners of the polygon: i, j."""
        near, far = sorted((abs(self.nearest), abs(self.farthest)))
        far = min(far, self.tokens - 1)
        found = [(base, d) for d in (near, far) for base in (0, self.tokens - 1 - d)]
        return [(b, b + d) if self.ahead else (b + d, b) for b, d in found]

    def halves(self) -> list["Region"]:
        """The bands of nearer and of farther pairs, the near one much narrower."""
        near, far = sorted((abs(self.nearest), abs(self.farthest)))
        far = min(far, self.tokens - 1)
        middle = max(near, min((near + far) // 2, 2 * near + 7))
        bands = [(near, middle), (middle + 1, far)]
        return [
            Region(-b, -a, self.tokens) if self.ahead else Region(a, b, self.tokens)
            for a, b in bands
        ]

    def holds(self, i: Array, j: Array) -> Array:
        """Which pairs are in it."""
        found: Array = (i - j >= self.nearest) & (i - j <= self.farthest)
        return found


def ahead(tokens: int = LONGEST) -> Region:
    """All pairs in which the key is later than the query."""
    return Region(-tokens, -1, tokens)


def behind(nearest: int = 0, farthest: int = LONGEST, tokens: int = LONGEST) -> Region:
    """Pairs in which the key is `nearest` to `farthest` tokens before the query."""
    return Region(nearest, farthest, tokens)


@dataclass(frozen=True)
class Bounds:
    """`low` <= value <= `high`, arrays whose axes of time and batch have one entry.

    `slope` holds the factors of i and j where the value is i * slope[0] + j * slope[1] + slope[2]
    in whole numbers.
    """

    low: Array
    high: Array
    slope: tuple[Array, Array, Array] | None = None

    @property
    def known(self) -> bool:
        """Whether it is the same for all pairs of the region."""
        return bool((self.low == self.high).all())


def unknown(shape: tuple[int, ...], dtype: ir.DataType | None, limit: float = np.inf) -> Bounds:
    """Bounds of anything that `dtype` holds."""
    if dtype == ir.DataType.BOOL:
        return Bounds(np.zeros(shape, bool), np.ones(shape, bool))
    return Bounds(np.full(shape, -limit), np.full(shape, limit))


def flat_shape(term: Term) -> tuple[int, ...]:
    """The shape of a term's bounds: one entry along batch and time."""
    timed = (term.axes.query, term.axes.key)
    return tuple(
        1 if axis in timed else dim if isinstance(dim, int) else factors([dim])[0]
        for axis, dim in enumerate(term.shape)
    )


def evaluate(term: Term, region: Region) -> Bounds:
    """Bounds of `term` over `region`, which is not empty."""
    return evaluate_all(term, region)[term]


def evaluate_all(term: Term, region: Region) -> dict[Term, Bounds]:
    """Bounds of `term` and of all that it is computed from."""
    from .bound_rules import RULES

    found: dict[Term, Bounds] = {}
    for entry in walk(term):
        given = [None if one is None else found[one] for one in entry.inputs]
        found[entry] = _of(entry, given, region, RULES)
    return found


def constants(term: Term, tokens: int) -> dict[Term, Array]:
    """Nodes behind `term` that give the same for all pairs below `tokens`, and what they give."""
    regions = [behind(0, tokens, tokens), ahead(tokens)]
    found = [evaluate_all(term, region) for region in regions if not region.empty]
    return {
        one: bounds.low
        for one, bounds in found[0].items()
        if one.kind is Kind.NODE
        and all(each[one].known and np.array_equal(each[one].low, bounds.low) for each in found)
    }


def holds(term: Term, region: Region, test: Callable[[Bounds], bool | None]) -> bool:
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


def _of(term: Term, given: list[Bounds | None], region: Region, rules: Any) -> Bounds:
    shape, dtype = flat_shape(term), term.value.dtype
    if term.kind is Kind.CONSTANT:
        return _constant(term, shape)
    if term.kind is Kind.DATA:
        return unknown(shape, dtype, _finite(dtype))
    if term.kind is Kind.POSITION:
        return position(term, region)
    rule = rules.get(term.node.op_type)
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
    if found.low.dtype != np.bool_ and (np.isnan(found.low) | np.isnan(found.high)).any():
        return unknown(shape, dtype)
    return found


def exact(dtype: ir.DataType | None) -> float:
    """Up to where `dtype` holds every whole number."""
    if dtype is not None and dtype.is_floating_point():
        return float(2 ** (np.finfo(dtype.numpy()).nmant + 1)) if dtype != 16 else 256.0
    return float(2**52)


def over_corners(slope: tuple[Array, Array, Array], region: Region) -> tuple[Array, Array]:
    """The least and the largest value of an affine form over `region`."""
    values = [i * slope[0] + j * slope[1] + slope[2] for i, j in region.corners()]
    return np.minimum.reduce(values), np.maximum.reduce(values)


def _constant(term: Term, shape: tuple[int, ...]) -> Bounds:
    array = contents(term.value)
    if array is None:
        return unknown(shape, term.value.dtype)
    if array.dtype == np.bool_:
        return Bounds(array, array)
    wide = array.astype(np.float64)
    whole = bool(np.isfinite(wide).all()) and bool((wide == np.round(wide)).all())
    zero = np.zeros_like(wide)
    return Bounds(wide, wide, (zero, zero, wide) if whole else None)


def contents(value: ir.Value) -> Array | None:
    """The array that `value` always holds, computed where nodes compute it from constants."""
    from intaglio.passes import evaluate as running
    from intaglio.passes.graph import constant

    array = constant(value)
    if array is not None or value.producer() is None:
        return array
    key = "intaglio.contents"
    if key not in value.meta:
        graph = value.producer().graph  # type: ignore[union-attr]
        try:
            assert isinstance(graph, ir.Graph)
            model = ir.Model(graph, ir_version=10)
            (value.meta[key],) = running.run(running.part(model, [value]), {}).values()
        except Exception:  # noqa: BLE001  ONNX Runtime raises its own kinds
            value.meta[key] = None
    found: Array | None = value.meta[key]
    return found


def position(term: Term, region: Region) -> Bounds:
    """Start + step * i, or j."""
    start, step = (contents(v) for v in (term.node.inputs[0], term.node.inputs[2]))  # type: ignore[arg-type]
    if start is None or step is None or TIME not in term.shape:
        return unknown((1,), term.value.dtype)
    one = np.ones(1)
    factors = (one, 0 * one) if term.axes.query is not None else (0 * one, one)
    slope = (factors[0] * float(step), factors[1] * float(step), one * float(start))
    low, high = over_corners(slope, region)
    whole = float(start).is_integer() and float(step).is_integer()
    return Bounds(low, high, slope if whole else None)
