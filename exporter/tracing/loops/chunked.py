"""Loops over chunks of tokens, in the terms of loops over tokens.

Of a program of n chunks of C tokens each, what is sliced for a chunk is an entry of
``chunked(x)``, [..., n, C, ...], and what is joined of n results is ``joined`` of their stack.  So
a chunk is to the rest of `loops` what a token is elsewhere.  How the rolled loop then goes over
tokens is in `outer` and `tokens`.
"""

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .pushed import entries, pushed
from .terms import Term, Terms, aten, is_size
from .tidy import CAT, FULL, RULES, SELECT, SLICE, STACK, Rule


def chunked(x: Tensor, axis: int, size: int) -> Tensor:
    """`x` with chunks of `size` entries along `axis` as an axis of their own, before it."""
    return torch.unflatten(x, axis, (-1, size))


def joined(x: Tensor, axis: int) -> Tensor:
    """`x` with chunks along `axis` and their entries behind it as one axis again."""
    return x.flatten(axis, axis + 1)


def _parted(terms: Terms, x: Term, axis: int) -> Term:
    """The chunks of `x` along `axis`."""
    if x.op is joined and x.leaves[1] == axis:
        whole = x.leaves[0]
        assert isinstance(whole, Term)
        return whole
    if x.op is FULL:
        sizes = [*x.shape[:axis], terms.time, terms.chunk, *x.shape[axis + 1 :]]
        return terms.filled(sizes, x.leaves[-2], x.value)
    return terms.plain(chunked, x, axis, terms.chunk)


def _is_tokens(terms: Terms, x: Term, axis: int) -> bool:
    return is_size(x.shape[axis], terms.tokens)


def _chunk_of(terms: Terms, x: Term, axis: int, start: Any, end: Any, step: int) -> int | None:
    """The number of the chunk that a range along `axis` is; None for other ranges."""
    if step != 1 or isinstance(start, Term) or isinstance(end, Term):
        return None
    if not _is_tokens(terms, x, axis):
        return None
    first, last, _ = slice(start, end).indices(terms.tokens)
    whole = last - first == terms.chunk and first % terms.chunk == 0
    return first // terms.chunk if whole else None


def _chunk(terms: Terms, x: Term, axis: int, index: int) -> Term:
    return terms(SELECT, _parted(terms, x, axis), axis, index)


def _select(terms: Terms, x: Term, axis: int, index: Any) -> Term | None:
    axis %= len(x.shape)
    found = RULES[SELECT](terms, x, axis, index)
    if found is None or found.op is not SELECT or found.leaves[0] is not x:
        return found
    return pushed(terms, x, axis, found.leaves[2]) or found


def _slice(
    terms: Terms, x: Term, axis: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Term | None:
    axis %= len(x.shape)
    index = _chunk_of(terms, x, axis, start, end, step)
    if index is not None:
        return _chunk(terms, x, axis, index)
    return RULES[SLICE](terms, x, axis, start, end, step)


def _write(
    terms: Terms,
    x: Term,
    entries: Term,
    axis: int = 0,
    start: Any = None,
    end: Any = None,
    step: int = 1,
) -> Term | None:
    axis %= len(x.shape)
    index = _chunk_of(terms, x, axis, start, end, step)
    if index is not None:
        chunks = [
            entries if at == index else _chunk(terms, x, axis, at) for at in range(terms.time)
        ]
        return _join(terms, chunks, axis)
    return RULES[aten.slice_scatter.default](terms, x, entries, axis, start, end, step)


def _join(terms: Terms, chunks: Sequence[Term], axis: int) -> Term:
    return terms.plain(joined, terms(STACK, list(chunks), axis), axis)


def _cat(terms: Terms, parts: Sequence[Term], axis: int = 0) -> Term | None:
    found = RULES[CAT](terms, parts, axis)
    if found is None or found.op is not CAT:
        return found
    entries, along = found.leaves[:-1], found.leaves[-1]
    sizes = [part.shape[along] for part in entries if isinstance(part, Term)]
    if len(sizes) == terms.time and all(is_size(size, terms.chunk) for size in sizes):
        return _join(terms, entries, along)
    return found


def _view(terms: Terms, x: Term, size: Sequence[Any], **kwargs: Any) -> Term | None:
    """A view that takes chunks apart, or puts them together again."""
    found = RULES[aten.view.default](terms, x, size, **kwargs)
    if found is not None:
        return found
    given = [s.value if isinstance(s, Term) else s for s in size]
    shape = terms.run(aten.reshape.default, x.value, given).shape
    for axis, dim in enumerate(x.shape):
        if not _same(x.shape[:axis], shape[:axis]) or axis >= len(shape):
            return None
        parts = [terms.time, terms.chunk]
        if is_size(dim, terms.tokens) and [*map(_whole, shape[axis : axis + 2])] == parts:
            rest = [terms.size(each) for each in (*shape[:axis], dim, *shape[axis + 2 :])]
            return _parted(terms, terms(aten.reshape.default, x, rest), axis)
        pair = [*map(_whole, x.shape[axis : axis + 2])]
        if pair == parts and is_size(shape[axis], terms.tokens):
            rest = [terms.size(each) for each in shape]
            whole = _join(terms, entries(terms, x, axis), axis)
            return terms(aten.reshape.default, whole, rest)
    return None


def _whole(dim: Any) -> int | None:
    return dim if isinstance(dim, int) else None


def _same(a: Sequence[Any], b: Sequence[Any]) -> bool:
    written = [[d if isinstance(d, int) else d.node.expr for d in shape] for shape in (a, b)]
    return written[0] == written[1]


def _split(terms: Terms, x: Any, index: int) -> Term | None:
    """Chunks that `split` gives."""
    if isinstance(x, Term) and x.op is aten.split.Tensor:
        (base, size, *rest), _ = x.arguments
        axis = (rest[0] if rest else 0) % len(base.shape)
        if size == terms.chunk and _is_tokens(terms, base, axis):
            return _chunk(terms, base, axis, index)
    return RULES[operator.getitem](terms, x, index)


def _pad(terms: Terms, x: Term, pads: Sequence[int], *rest: Any) -> Term | None:
    """Padding to whole chunks, of which there are none too few."""
    del terms, rest
    return None if any(pads) else x


CHUNK_RULES: dict[Any, Rule] = {
    **RULES,
    SELECT: _select,
    SLICE: _slice,
    CAT: _cat,
    operator.getitem: _split,
    aten.slice_scatter.default: _write,
    aten.constant_pad_nd.default: _pad,
    **dict.fromkeys(
        (aten.view.default, aten.reshape.default, aten._unsafe_view.default),  # noqa: SLF001
        _view,
    ),
}
"""The rules of `tidy`, and those that find chunks."""
