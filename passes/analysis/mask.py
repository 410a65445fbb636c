"""What an attention mask allows, proven over every pair of positions.

A mask or bias is a term over pairs of tokens (`pairs`), and what it is over all pairs of a region
is known by bounds (`bounds`): that it forbids every later token, allows every earlier one, or the
last w and no other.  What is no causal mask and no window is computed for the positions at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from intaglio.passes.graph import attribute, dims
from intaglio.state import entries_of

from .bounding import MARGIN, evaluate, forbids_later, holds
from .bounds import LONGEST, SCORE, Bounds, ahead, behind, contents
from .pairs import PairTerm, TermKind, walk
from .time_facts import normal


@dataclass(frozen=True)
class Causal:
    """Token i sees the tokens j <= i, and only the last `window` of them where that is set.

    `limit` is the most tokens that a table of the mask holds, None without one.
    """

    window: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Computed:
    """Forbids later tokens; of earlier ones it says something of its own for each pair."""

    limit: int | None = None


def judge(term: PairTerm) -> Causal | Computed | None:
    """What a mask or bias of attention is; None where it may allow a later token.

    A boolean mask allows where it is true; a float mask is added to the scores.
    """
    limit = context_limit(term)
    tokens = limit or LONGEST
    if not forbids_later(term, tokens, 2 * SCORE + MARGIN):
        return None
    window = _window(term, tokens)
    if window in (None, 1):  # behind a window of one there is nothing to keep
        return Computed(limit)
    return Causal(window if window < tokens else None, limit)


def is_nothing_later(term: PairTerm, tokens: int) -> bool:
    """Whether weights of later tokens are zero."""
    region = ahead(tokens)
    if region.empty:
        return True
    later = evaluate(term, region)
    return not (later.low.any() or later.high.any())


def _window(term: PairTerm, tokens: int) -> int | None:
    """How many tokens each one sees, if these are the last ones and nothing is added; else None."""
    if not _allows(term, 0, 0, tokens):
        return None
    allowed, end = 0, tokens - 1  # behind(0, allowed) is open, behind(0, end + 1) is not
    while allowed < end:
        middle = (allowed + end + 1) // 2
        if _allows(term, 0, middle, tokens):
            allowed = middle
        else:
            end = middle - 1
    window = allowed + 1
    region = behind(window, tokens, tokens)
    if region.empty:
        return window
    rest = evaluate(term, region).high
    gone = not rest.any() if rest.dtype == bool else (rest <= -(2 * SCORE + MARGIN)).all()
    return window if gone else None


def _allows(term: PairTerm, nearest: int, farthest: int, tokens: int) -> bool:
    found = evaluate(term, behind(nearest, farthest, tokens))
    if found.low.dtype == bool:
        return bool(found.low.all())
    return not (found.low.any() or found.high.any())


def context_limit(term: PairTerm) -> int | None:
    """The most tokens for which no table behind `term` ends."""
    limits = [limit for entry in walk(term) if (limit := _limit(entry)) is not None]
    return min(limits, default=None)


def _limit(term: PairTerm) -> int | None:
    if term.kind is not TermKind.NODE:
        return None
    node = term.node
    if node.op_type == "Slice":
        shape = dims(node.inputs[0]) or ()
        rows = [
            shape[axis] for axis in (term.axes.query, term.axes.key)
            if axis is not None and entries_of(term.shape[axis]) is not None
        ]  # fmt: skip
        return min((int(n) for n in rows if isinstance(n, int)), default=None)
    if node.op_type == "Gather":
        data, index = term.inputs
        if data is None or index is None or not index.axes:
            return None
        sizes = data.shape[normal(attribute(node, "axis", 0), len(data.shape)) :][:1]
        return _reach(index, sizes)
    if node.op_type == "GatherElements":
        data, index = term.inputs
        if data is None or index is None or not index.axes:
            return None
        return _reach(index, data.shape[normal(attribute(node, "axis", 0), len(data.shape)) :][:1])
    if node.op_type == "GatherND":
        data, index = term.inputs
        if data is None or index is None or not index.axes:
            return None
        return _reach(index, data.shape[: int(index.shape[-1])])
    return None


def _reach(index: PairTerm, sizes: Sequence[int | str]) -> int | None:
    """The most tokens for which `index`, one number or one for each size, stays within `sizes`."""
    if not all(isinstance(size, int) for size in sizes):
        return None
    rows = np.array(sizes, np.float64)

    def inside(tokens: int) -> bool:
        regions = [behind(0, tokens, tokens), ahead(tokens)]
        return all(holds(index, region, fits) for region in regions)

    def fits(found: Bounds) -> bool | None:
        if (found.low >= rows).any() or (found.high < -rows).any():
            return False
        return bool((found.low >= -rows).all() and (found.high < rows).all()) or None

    if inside(LONGEST) or not inside(1):
        return None
    least, most = 1, LONGEST
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if inside(middle) else (least, middle)
    return least


def constants_of(term: PairTerm) -> set[int]:
    """Whole numbers that a mask is computed with, and sizes of its tables: lengths to look past."""
    found: set[int] = set()
    for entry in walk(term):
        if entry.kind is TermKind.CONSTANT and (array := contents(entry.value)) is not None:
            found |= {int(n) for n in array.shape if n > 1}
            if array.size == 1 and array.dtype != bool and abs(float(array.item())) < LONGEST:
                found.add(int(abs(float(array.item()))))
    return found - {0, 1}
