"""What the entries along an axis are: terms of parts that are permuted, each by itself.

An axis is a leaf, a sum (its entries are those of its parts, one after the other, as Concat makes
it) or a product (a grid of its factors, the first one outermost, as Reshape merges axes).  A
permutation of each leaf gives one of every axis: block by block of a sum, the Kronecker product of
a product.  Leaves are the variables of a unification: where two axes must be permuted alike, one
is refined until both are the same term.  Where no common refinement is known, both are fixed,
which is always right: nothing is permuted then.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

LARGEST = 512  # factors of a product that are written out as a sum at most

Index = npt.NDArray[np.int64]


class Channels:
    """The entries of an axis: `size` of them, None where that is not known, which is fixed."""

    def __init__(self, size: int | None, *, fixed: bool = False) -> None:
        self.size = size
        self.fixed = fixed or size in (None, 0, 1)
        self.parent: Channels | None = None
        self.terms: list[Channels] = []
        self.is_product = False

    @property
    def root(self) -> "Channels":
        """The term that this one is by now."""
        found = self
        while found.parent is not None:
            found = found.parent
        node = self
        while node.parent is not None:
            node.parent, node = found, node.parent
        return found

    @property
    def is_leaf(self) -> bool:
        """Whether it has no parts."""
        return not self.root.terms

    def become(self, other: "Channels") -> None:
        """Be `other` from now on."""
        a, b = self.root, other.root
        if a is not b:
            a.parent = b


def fixed(size: int | None) -> Channels:
    """Entries that stay where they are."""
    return Channels(size, fixed=True)


def add(parts: Sequence[Channels]) -> Channels:
    """The entries of all `parts`, one after the other."""
    return _term(parts, is_product=False)


def multiply(factors: Sequence[Channels]) -> Channels:
    """The grid of `factors`, the first one outermost."""
    return _term([each for each in factors if each.size != 1], is_product=True)


def _term(terms: Sequence[Channels], *, is_product: bool) -> Channels:
    if len(terms) == 1:
        return terms[0]
    sizes = [each.size for each in terms if each.size is not None]
    if len(sizes) < len(terms):
        for each in terms:
            fix(each)
        return fixed(None)
    made = Channels(math.prod(sizes) if is_product else sum(sizes))
    if terms:
        made.fixed, made.terms, made.is_product = False, list(terms), is_product
    return made


def fix(channels: Channels) -> None:
    """Let every entry stay where it is."""
    for leaf in leaves(channels):
        leaf.fixed = True


def leaves(channels: Channels) -> Iterator[Channels]:
    """The leaves of a term, as often as they are in it."""
    root = channels.root
    if not root.terms:
        yield root
    for term in root.terms:
        yield from leaves(term)


def unify(a: Channels, b: Channels) -> None:
    """Let both be permuted alike: equal terms from now on, or fixed."""
    a, b = a.root, b.root
    if a is b:
        return
    if a.size is None or b.size is None or a.size != b.size:
        fix(a)
        fix(b)
    elif a.is_leaf or b.is_leaf:
        leaf, other = (a, b) if a.is_leaf else (b, a)
        if leaf.fixed:
            fix(other)
        leaf.become(other)
    elif a.is_product and b.is_product:
        first, *rest = a.terms
        outer, inner = factor(b, _size(first))
        unify(first, outer)
        unify(multiply(rest), inner)
        a.become(b)
    else:
        total, other = (b, a) if a.is_product else (a, b)
        parts = _parts(total)
        for part, piece in zip(parts, cut(other, [_size(each) for each in parts]), strict=True):
            unify(part, piece)
        a.become(b)


def cut(channels: Channels, sizes: Sequence[int]) -> list[Channels]:
    """Cut an axis into consecutive parts of `sizes`, which sum up to its own."""
    pieces, rest = [], channels
    for size in sizes[:-1]:
        piece, rest = _cut_once(rest, size)
        pieces.append(piece)
    return [*pieces, rest]


def factor(channels: Channels, outer: int) -> tuple[Channels, Channels]:
    """Take an axis for a grid of `outer` rows: its rows, and what is in each of them."""
    root = channels.root
    size = _size(root)
    if outer == 1:
        return fixed(1), root
    if outer == size:
        return root, fixed(1)
    inner = size // outer
    if root.is_leaf:
        made = (Channels(outer, fixed=root.fixed), Channels(inner, fixed=root.fixed))
        root.become(multiply(made))
        return made
    if root.is_product:
        return _factor_product(root, outer)
    parts = _parts(root)
    if any(_size(part) % inner for part in parts):
        return _given_up(root, [outer, inner])
    pairs = [factor(part, _size(part) // inner) for part in parts]
    for _, row in pairs[1:]:
        unify(pairs[0][1], row)
    return add([rows for rows, _ in pairs]), pairs[0][1]


def _factor_product(root: Channels, outer: int) -> tuple[Channels, Channels]:
    first, *rest = root.terms
    size = _size(first)
    if size % outer == 0:
        rows, more = factor(first, outer)
        return rows, multiply([more, *rest])
    if outer % size == 0:
        rows, inner = factor(multiply(rest), outer // size)
        return multiply([first, rows]), inner
    return _given_up(root, [outer, _size(root) // outer])


def _cut_once(channels: Channels, at: int) -> tuple[Channels, Channels]:
    root = channels.root
    size = _size(root)
    if root.is_leaf:
        made = (Channels(at, fixed=root.fixed), Channels(size - at, fixed=root.fixed))
        root.become(add(made))
        return made
    if root.is_product:
        _as_sum(root, at)
        if root.is_product:
            first, second = _given_up(root, [at, size - at])
            return first, second
    before: list[Channels] = []
    parts, seen = _parts(root), 0
    for part in parts:
        if seen + _size(part) > at:
            break
        before.append(part)
        seen += _size(part)
    after = parts[len(before) :]
    if seen < at:
        head, tail = _cut_once(after[0], at - seen)
        before, after = [*before, head], [tail, *after[1:]]
    return add(before), add(after)


def _as_sum(root: Channels, at: int) -> None:
    """Write a product as a sum that has a boundary at `at`, or at the row that this is in."""
    first, *others = root.terms
    rest = multiply(others)
    inner, rows = _size(rest), _size(first)
    if at % inner == 0:
        pieces = cut(first, [at // inner, rows - at // inner])
        root.terms = [multiply([piece, rest]) for piece in pieces]
        root.is_product = False
    elif rows <= LARGEST:
        fix(first)
        root.terms = [rest] * rows
        root.is_product = False


def _given_up(root: Channels, sizes: Sequence[int]) -> tuple[Channels, Channels]:
    """Parts or factors of an axis that is fixed, since it cannot be told what they are."""
    fix(root)
    first, second = (fixed(size) for size in sizes)
    return first, second


def _parts(channels: Channels) -> list[Channels]:
    """The parts of a sum, those of sums within it in their place."""
    root = channels.root
    if root.is_leaf or root.is_product:
        return [root]
    return [part for term in root.terms for part in _parts(term)]


def _size(channels: Channels) -> int:
    assert channels.size is not None
    return channels.size


def places(channels: Channels, leaf: Channels) -> Index:
    """Where along an axis each entry of `leaf` is: [size of the leaf, how often it is there]."""
    root = channels.root
    if root is leaf:
        return np.arange(_size(leaf))[:, None]
    none = np.zeros((_size(leaf), 0), np.int64)
    if not root.terms:
        return none
    found, start = [none], 0
    sizes = [_size(term) for term in root.terms]
    for index, term in enumerate(root.terms):
        own = places(term, leaf)
        if root.is_product:
            inner = math.prod(sizes[index + 1 :])
            around = np.arange(math.prod(sizes[:index])) * inner * sizes[index]
            within = (own[:, :, None] * inner + np.arange(inner)).reshape(len(own), -1)
            own = (around[None, :, None] + within[:, None, :]).reshape(len(own), -1)
        else:
            own, start = own + start, start + sizes[index]
        found.append(own)
    return np.concatenate(found, axis=1)
