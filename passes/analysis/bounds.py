"""What a term can be over all pairs of a region at once: exact bounds, or none.

A region holds the pairs (i, j) whose distance i - j lies between two numbers: the later tokens
(j > i), the last w, or those before them.  In one coordinate from the start, `base`, and the
distance it is a polygon, over which an affine form takes its bounds at corners; so comparisons of
positions are decided over all pairs of a region, not over samples (Cousot and Cousot 1977,
https://doi.org/10.1145/512950.512973, with affine forms).  Everything else is bounded by
intervals; rounding keeps the order of numbers, so that bounds in the dtype of the graph hold.
Where nothing is known the bounds are infinite, never too narrow.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.graph import constant

from ._rearranging import factors
from .pairs import PairTerm

Array = npt.NDArray[Any]

LONGEST = 1 << 24
"""Tokens of the longest context that is spoken of: up to it float32 counts exactly."""
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


def flat_shape(term: PairTerm) -> tuple[int, ...]:
    """The shape of a term's bounds: one entry along batch and time."""
    timed = (term.axes.query, term.axes.key)
    return tuple(
        1 if axis in timed else dim if isinstance(dim, int) else factors([dim])[0]
        for axis, dim in enumerate(term.shape)
    )


def exact(dtype: ir.DataType | None) -> float:
    """Up to where `dtype` holds every whole number."""
    if dtype is not None and dtype.is_floating_point():
        return float(2 ** (np.finfo(dtype.numpy()).nmant + 1)) if dtype != 16 else 256.0
    return float(2**52)


def leaves(low: Array, high: Array, dtype: ir.DataType | None) -> bool:
    """Whether a whole number between these may be one that `dtype` does not hold, and wraps."""
    if dtype is None or not np.issubdtype(kind := dtype.numpy(), np.integer):
        return False
    ends = np.iinfo(kind)
    wide = dtype in (ir.DataType.INT64, ir.DataType.UINT64)  # unknown ones are taken to fit
    low, high = (x[np.isfinite(x)] if wide else x for x in (low, high))
    return bool((low < ends.min).any() or (high > ends.max).any())


def over_corners(slope: tuple[Array, Array, Array], region: Region) -> tuple[Array, Array]:
    """The least and the largest value of an affine form over `region`."""
    values = [i * slope[0] + j * slope[1] + slope[2] for i, j in region.corners()]
    return np.minimum.reduce(values), np.maximum.reduce(values)


def contents(value: ir.Value) -> Array | None:
    """The array that `value` always holds, computed where nodes compute it from constants."""
    array = constant(value)
    if array is not None or value.producer() is None:
        return array
    key = "intaglio.contents"
    if key not in value.meta:
        graph = value.producer().graph  # type: ignore[union-attr]
        try:
            assert isinstance(graph, ir.Graph)
            model = ir.Model(graph, ir_version=10)
            (value.meta[key],) = evaluate.run(evaluate.part(model, [value]), {}).values()
        except Exception:  # noqa: BLE001  ONNX Runtime raises its own kinds
            value.meta[key] = None
    found: Array | None = value.meta[key]
    return found
