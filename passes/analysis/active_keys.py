"""Keys that are seen only where they are active, and only by so many active ones after them.

A router lets some tokens be attended to, and of these the last w + 1 alone (SeqBoat, Ren et al.
2023, arXiv:2306.11197, section 3.3), however far apart they lie.  Written over all tokens that is

    active[j]  and  count[i] - count[j] <= w,   count = CumSum(active).

Where a pair weighs nothing as soon as either is false, whatever else there is to it, no later token
sees a key that is not active, or behind which w + 1 active ones lie: those that are left are a
queue.  Entries of a queue have no place among the tokens, so that positions may tell no more than
which of two comes first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, integers
from intaglio.state import BATCH, TIME

from .bounding import evaluate_all
from .bounds import LONGEST, Bounds, ahead, behind, contents
from .mask import context_limit
from .pairs import PairTerm, TermKind, walk
from .time_facts import normal
from .time_rules import ELEMENTWISE

MOVERS = ("Identity", "Reshape", "Squeeze", "Unsqueeze")
MOVED = frozenset((*MOVERS, "Expand", "Transpose"))
ORDERED = {  # the sign of what is at most 0, and whether it is less
    "LessOrEqual": (1, False),
    "Less": (1, True),
    "GreaterOrEqual": (-1, False),
    "Greater": (-1, True),
}


@dataclass(frozen=True, eq=False)
class Queue:
    """Of the keys the last `length` of which `active`, data of each key, is true."""

    active: PairTerm
    length: int


def queue(term: PairTerm) -> Queue | None:
    """The queue that holds all past keys of a mask, or of what is made of them, if one does."""
    order = walk(term)
    flags = [one for one in order if _is_flag(one)]
    if not flags:
        return None
    limit = context_limit(term) or LONGEST
    if not _told_by_order(order, term, limit) or not all(map(_by_pair, order)):
        return None
    sums = [one for one in order if _sums_keys(one)]
    if sums and term.axes.key is not None:
        return None
    for active in flags:
        if not _hides(term, sums, active, limit):
            continue
        for one in order:
            for told in (True, False):
                later = _later(one, active, told)
                within = later is not None and 0 <= later < limit - 1
                if within and _hides(term, sums, one, limit, when=not told):
                    assert later is not None
                    return Queue(active, later + 1)
    return None


def _is_flag(term: PairTerm) -> bool:
    return (
        term.kind is TermKind.DATA
        and term.value.dtype == ir.DataType.BOOL
        and term.axes.key is not None
        and term.axes.query is None
        and _one_a_token(term.value)
    )


def _one_a_token(value: ir.Value) -> bool:
    """Whether there is one entry for each token of a row, and no other."""
    return [dim for dim in dims(value) or () if dim != 1] == [BATCH, TIME]


def _hides(
    term: PairTerm, sums: list[PairTerm], flag: PairTerm, limit: int, *, when: bool = False
) -> bool:
    """Whether earlier keys weigh nothing where `flag` is `when`: in a mask, or in all sums."""
    known = np.full((1,) * len(flag.shape), when)
    region = behind(1, limit, limit)
    if region.empty:
        return False
    found = evaluate_all(term, region, {flag: Bounds(known, known)})
    if not sums:
        return _is_nothing(found[term])
    return all(any(_summed_nothing(side, found) for side in one.inputs) for one in sums)


def _is_nothing(mask: Bounds) -> bool:
    if mask.high.dtype == np.bool_:
        return not mask.high.any()
    return bool((mask.high == -np.inf).all())


def _summed_nothing(side: PairTerm | None, found: Mapping[PairTerm, Bounds]) -> bool:
    """Whether what a sum takes of each pair is 0."""
    if side is None or side.axes.key is None or side.axes.query is None:
        return False
    bounds = found[side]
    return not (bounds.low.any() or bounds.high.any())


def _sums_keys(term: PairTerm) -> bool:
    return (
        term.kind is TermKind.NODE
        and term.axes.key is None
        and any(one is not None and one.axes.key is not None for one in term.inputs)
    )


def _by_pair(term: PairTerm) -> bool:
    """Whether a term with data in it takes each entry from its own pair alone, or sums over keys.

    What takes others by their place among the keys, as a cumulative sum, has no queue.
    """
    if term.kind is not TermKind.NODE or not _with_data(term):
        return True
    node = term.node
    if node.domain:
        return False
    if node.op_type == "MatMul":
        return True
    return not _sums_keys(term) and (node.op_type in ELEMENTWISE or node.op_type in MOVED)


def _with_data(term: PairTerm) -> bool:
    return any(one.kind is TermKind.DATA for one in walk(term))


def _told_by_order(order: list[PairTerm], term: PairTerm, limit: int) -> bool:
    """Whether what positions alone decide is the same for all tokens before another, and after."""
    regions = [one for one in (behind(0, 0, limit), behind(1, limit, limit), ahead(limit))
               if not one.empty]  # fmt: skip
    found = [evaluate_all(term, region) for region in regions]
    mixed = [one for one in order if one.kind is TermKind.NODE and _with_data(one)]
    given = [x for one in mixed for x in one.inputs if x is not None and not _with_data(x)]
    return _with_data(term) and all(
        each[one].known for one in given if _placed(one) for each in found
    )


def _placed(term: PairTerm) -> bool:
    return any(one.axes for one in walk(term))


def _later(term: PairTerm, active: PairTerm, told: bool) -> int | None:
    """w, where a comparison that is `told` says that at most w active tokens come after a key."""
    if term.kind is not TermKind.NODE or term.node.domain or term.node.op_type not in ORDERED:
        return None
    left, right = term.inputs
    if left is None or right is None:
        return None
    sign, strict = ORDERED[term.node.op_type]
    if not told:
        sign, strict = -sign, not strict
    counted, most = {"query": 0, "key": 0}, 0
    for factor, part in (*_summands(left, sign), *_summands(right, -sign)):  # at most 0 in all
        if isinstance(part, int):
            most -= factor * part
        elif part[1] is not None and _counts(part[0], active.value):
            counted[part[1]] += factor
        else:
            return None
    if counted != {"query": 1, "key": -1}:
        return None
    return most - strict


Summand = int | tuple[ir.Value, str | None]  # a number, or a value of the query or of the key


def _summands(term: PairTerm, sign: int) -> Iterator[tuple[int, Summand]]:
    """What a whole number of each pair is the sum of, with signs."""
    if term.kind is TermKind.NODE and _adds(term.value):
        for one, by in _signed(term.node, term.inputs, sign):
            yield from _summands(one, by)
        return
    role = "query" if term.axes.key is None else "key"
    yield from _terms(term.value, sign, role if term.axes else None)


def _terms(value: ir.Value, sign: int, role: str | None) -> Iterator[tuple[int, Summand]]:
    """The same of data, and of numbers."""
    array = contents(value)
    if array is not None and array.size == 1 and array.dtype.kind in "iu":
        yield sign, int(array.item())
    elif _one_a_token(value) and _adds(value):
        node = value.producer()
        assert node is not None
        for one, by in _signed(node, node.inputs, sign):
            yield from _terms(one, by, role)
    else:
        yield sign, (value, role)


def _adds(value: ir.Value) -> bool:
    node = value.producer()
    return node is not None and not node.domain and node.op_type in ("Add", "Sub", *MOVED)


Operand = TypeVar("Operand", PairTerm, ir.Value)


def _signed(
    node: ir.Node, given: Sequence[Operand | None], sign: int
) -> Iterator[tuple[Operand, int]]:
    """The operands of a sum, or what a node moves."""
    second = -sign if node.op_type == "Sub" else sign
    used = given if node.op_type in ("Add", "Sub") else given[:1]
    return ((one, by) for one, by in zip(used, (sign, second), strict=False) if one is not None)


def _counts(value: ir.Value, active: ir.Value) -> bool:
    """Whether `value` is, at each token, how many of the tokens up to it are `active`."""
    value, flags = _plain(value), _plain(active)
    node = value.producer()
    if node is None or node.domain or node.op_type != "CumSum" or not _one_a_token(value):
        return False
    axis, shape = integers(node.inputs[1]), dims(value) or ()
    plain = not attribute(node, "exclusive", 0) and not attribute(node, "reverse", 0)
    if not plain or axis is None or shape[normal(axis[0], len(shape))] != TIME:
        return False
    whole = value.dtype in (ir.DataType.INT32, ir.DataType.INT64)
    cast = node.inputs[0] and _plain(node.inputs[0]).producer()
    if not whole or not cast or cast.op_type != "Cast" or cast.domain:
        return False
    return cast.inputs[0] is not None and _plain(cast.inputs[0]) is flags


def _plain(value: ir.Value) -> ir.Value:
    """What `value` is but for axes of one, where it has an entry for each token."""
    node = value.producer()
    while node is not None and not node.domain and node.op_type in MOVERS:
        given = node.inputs[0]
        if given is None or not _one_a_token(given) or not _one_a_token(node.outputs[0]):
            break
        value, node = given, given.producer()
    return value
