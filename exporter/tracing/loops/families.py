"""A value by iteration, as a loop that was unrolled has it."""

import itertools
import operator
from collections.abc import Sequence
from typing import Any

from torch.utils import _pytree as pytree

from .terms import Term, aten
from .tidy import same

EXTREMES = (aten.max.dim, aten.min.dim)

Family = tuple[Any, ...]


def repeated(family: Family) -> bool:
    """Whether members are one computation, the sizes of what they take left."""
    first = family[0]
    if any(x.op is not first.op or x.spec != first.spec for x in family):
        return False
    if not hasattr(first.value, "shape"):
        return True
    return all(same(x.shape, first.shape) for x in family)


def growing(family: Family) -> int | None:
    """The one axis that is a token longer with each iteration, of a value by iteration."""
    if not all(isinstance(x, Term) and hasattr(x.value, "shape") for x in family):
        return None
    shapes = [x.shape for x in family]
    if len({len(shape) for shape in shapes}) > 1:
        return None
    grown = []
    for axis, dims in enumerate(zip(*shapes, strict=True)):
        if all(isinstance(dim, int) for dim in dims) and len(set(dims)) > 1:
            if any(b - a != 1 for a, b in itertools.pairwise(dims)):
                return None
            grown.append(axis)
    return grown[0] if len(grown) == 1 else None


def call_of(term: Term) -> Term:
    """What computes `term`: where it is the values of an extreme, that."""
    inner = term.leaves[0] if term.op is operator.getitem else None
    return inner if inner is not None and inner.op in EXTREMES and term.leaves[1] == 0 else term


def arguments_of(family: Family) -> list[Family]:
    """The arguments of a computation, each by iteration."""
    return list(zip(*(call_of(x).leaves for x in family), strict=True))


def is_one(family: Sequence[Any]) -> bool:
    """Whether all iterations have the same."""
    return all(x is family[-1] for x in family)


def unflattened(term: Term, leaves: Sequence[Any]) -> tuple[Any, Any]:
    """Arguments as `term` has them."""
    return pytree.tree_unflatten(list(leaves), term.spec)  # type: ignore[no-any-return]
