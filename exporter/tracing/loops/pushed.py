"""One chunk of what is computed for all chunks at once, computed for it alone.

``select(f(x), i)`` along the axis of chunks is ``f(select(x, i))`` where f takes each chunk by
itself: elementwise operators, products of matrices, what rearranges or sums other axes.  A sum over
the chunks so far is added up chunk by chunk.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload

from .terms import Term, Terms, aten, is_size
from .tidy import CAT, SELECT, SLICE, same

Pushed = Callable[[Terms, Term, int, int], Term | None]


def pushed(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    """Chunk `index` of `x`, whose chunks are along `axis`; None where it is of no known kind."""
    if not x.fed or not is_size(x.shape[axis], terms.time):
        return None
    if (rule := RULES.get(x.op)) is not None:
        return rule(terms, x, axis, index)
    if isinstance(x.op, OpOverload) and torch.Tag.pointwise in x.op.tags:
        return _aligned(terms, x, axis, index)
    return None


def _entry(terms: Terms, x: Any, axis: int, index: int, rank: int) -> Any:
    """A chunk of an operand that is aligned from the right with a result of `rank` axes."""
    if not isinstance(x, Term) or not hasattr(x.value, "shape"):
        return x
    own = axis - rank + len(x.shape)
    if own < 0:
        return x
    return terms(SELECT, x, own, 0 if is_size(x.shape[own], 1) else index)


def _aligned(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    args, kwargs = x.arguments
    rank = len(x.shape)
    given = [_entry(terms, each, axis, index, rank) for each in args]
    return terms(x.op, *given, **kwargs)


def _product(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    parts = [part for part in x.leaves if isinstance(part, Term)]
    if axis >= len(x.shape) - 2 or any(len(part.shape) < 2 for part in parts):
        return None
    return _aligned(terms, x, axis, index)


def _triangle(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    return None if axis >= len(x.shape) - 2 else _aligned(terms, x, axis, index)


def _linear(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    (base, *rest), _ = x.arguments
    if axis == len(x.shape) - 1:
        return None
    return terms(x.op, terms(SELECT, base, axis, index), *rest)


def _permuted(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    (base, *rest), _ = x.arguments
    rank = len(x.shape)
    order = list(range(rank))
    if x.op is aten.permute.default:
        order = [each % rank for each in rest[0]]
    else:
        a, b = (each % rank for each in (rest or (-2, -1)))
        order[a], order[b] = order[b], order[a]
    gone = order.pop(axis)
    entry = terms(SELECT, base, gone, index)
    order = [each - (each > gone) for each in order]
    return entry if order == sorted(order) else terms(aten.permute.default, entry, order)


def _unsqueezed(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    base, added = x.leaves[0], x.leaves[1] % len(x.shape)
    entry = terms(SELECT, base, axis - (added < axis), index)
    return terms(aten.unsqueeze.default, entry, added - (added > axis))


def _selected(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    base, other, at = x.leaves
    assert isinstance(base, Term)
    own = axis + (other <= axis)
    if not is_size(base.shape[own], terms.time):
        return None
    return terms(SELECT, terms(SELECT, base, own, index), other - (other > own), at)


def _along(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    """An operator along one other axis, which stays."""
    (base, along, *rest), kwargs = x.arguments
    along %= len(x.shape)
    if along == axis:
        return None
    return terms(x.op, terms(SELECT, base, axis, index), along - (along > axis), *rest, **kwargs)


def _joined(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    *parts, along = x.leaves
    along %= len(x.shape)
    if along == axis:
        return None
    chunks = [terms(SELECT, part, axis, index) for part in parts if isinstance(part, Term)]
    return terms(x.op, chunks, along - (along > axis))


def _summed_up(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    base, along = x.leaves[0], x.leaves[1] % len(x.shape)
    if along != axis:
        return _along(terms, x, axis, index)
    entry = terms(SELECT, base, axis, index)
    return entry if not index else terms(aten.add.Tensor, terms(SELECT, x, axis, index - 1), entry)


def _reduced(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    (base, over, *rest), kwargs = x.arguments
    rank = len(base.shape)
    over = [over] if isinstance(over, int) else over
    if not over:
        return None
    gone = sorted(each % rank for each in over)
    keep = bool(rest[0]) if rest else bool(kwargs.get("keepdim", False))
    own = axis
    if not keep:
        for each in gone:
            own += each <= own
    if own in gone:
        return None
    left = [each - (each > own) for each in gone]
    return terms(x.op, terms(SELECT, base, own, index), left, *rest, **kwargs)


def _viewed(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    """A view that leaves the chunks, and what is before them, as they are."""
    base = x.leaves[0]
    assert isinstance(base, Term)
    if len(base.shape) <= axis or not same(base.shape[: axis + 1], x.shape[: axis + 1]):
        return None
    sizes = [terms.size(dim) for at, dim in enumerate(x.shape) if at != axis]
    return terms(aten.reshape.default, terms(SELECT, base, axis, index), sizes)


def _expanded(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    base, rank = x.leaves[0], len(x.shape)
    sizes = [terms.size(dim) for at, dim in enumerate(x.shape) if at != axis]
    return terms(aten.expand.default, _entry(terms, base, axis, index, rank), sizes)


def _einsum(terms: Terms, x: Term, axis: int, index: int) -> Term | None:
    (equation, operands, *_), _ = x.arguments
    given, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow or "." in equation or axis >= len(result):
        return None
    letter, parts, entries = result[axis], given.split(","), []
    for part, operand in zip(parts, operands, strict=True):
        if part.count(letter) > 1:
            return None
        own = part.find(letter)
        entries.append(operand if own < 0 else terms(SELECT, operand, own, index))
    left = ",".join(part.replace(letter, "") for part in parts)
    return terms(x.op, f"{left}->{result.replace(letter, '')}", entries)


RULES: dict[Any, Pushed] = {
    aten.matmul.default: _product,
    aten.linear.default: _linear,
    aten.einsum.default: _einsum,
    aten.cumsum.default: _summed_up,
    SELECT: _selected,
    SLICE: _along,
    CAT: _joined,
    aten.unsqueeze.default: _unsqueezed,
    aten.expand.default: _expanded,
    **dict.fromkeys((aten.tril.default, aten.triu.default), _triangle),
    **dict.fromkeys((aten.permute.default, aten.transpose.int, aten.mT.default), _permuted),
    **dict.fromkeys((aten.view.default, aten.reshape.default), _viewed),
    **dict.fromkeys((aten.softmax.int, aten.log_softmax.int), _along),
    **dict.fromkeys(
        (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default), _reduced
    ),
}
"""How one chunk of what an operator gives is computed."""


def entries(terms: Terms, x: Term, axis: int) -> Sequence[Term]:
    """All chunks of `x`."""
    return [terms(SELECT, x, axis, index) for index in range(terms.time)]
