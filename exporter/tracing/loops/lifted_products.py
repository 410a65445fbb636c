"""Products and sums of two factors as products of matrices."""

from collections.abc import Sequence

from .terms import Term, Terms, aten, is_size
from .tidy import UNSQUEEZE


def product(terms: Terms, parts: Sequence[str], result: str, factors: Sequence[Term]) -> Term:
    """Two operands by a product of matrices, which is what can be read best later on."""
    single = {
        letter
        for part, term in zip(parts, factors, strict=True)
        for axis, letter in enumerate(part)
        if is_size(term.shape[axis], 1)
    }
    single -= {
        letter
        for part, term in zip(parts, factors, strict=True)
        for axis, letter in enumerate(part)
        if not is_size(term.shape[axis], 1)
    }
    if single and len(parts) == 2:
        squeezed = []
        for part, term in zip(parts, factors, strict=True):
            for axis in sorted((n for n, x in enumerate(part) if x in single), reverse=True):
                term = terms(aten.squeeze.dim, term, axis)  # noqa: PLW2901
            squeezed.append(term)
        kept = ["".join(x for x in part if x not in single) for part in (*parts, result)]
        found = product(terms, kept[:2], kept[2], squeezed)
        for axis, letter in enumerate(result):
            if letter in single:
                found = terms(UNSQUEEZE, found, axis)
        return found
    inner = [x for x in parts[0] if x not in result and x in parts[-1]]
    rows = [x for x in result if x not in parts[-1]]
    columns = [x for x in result if x not in parts[0]]
    summed = [x for part in parts for x in part if x not in result and x not in inner]
    if len(parts) != 2 or len(inner) != 1 or summed or not rows or not columns:
        return terms(aten.einsum.default, f"{','.join(parts)}->{result}", list(factors))
    batch = [x for x in result if x not in (rows[-1], columns[-1])]
    left = _arranged(terms, factors[0], parts[0], [*batch, rows[-1], *inner])
    right = _arranged(terms, factors[1], parts[1], [*batch, *inner, columns[-1]])
    found = terms(aten.matmul.default, left, right)
    given = [*batch, rows[-1], columns[-1]]
    return ordered(terms, found, [given.index(x) for x in result])


def _arranged(terms: Terms, term: Term, letters: str, order: Sequence[str]) -> Term:
    """`term`, its axes in another order, of size one where it has none."""
    there = [x for x in order if x in letters]
    term = ordered(terms, term, [letters.index(x) for x in there])
    for axis, letter in enumerate(order):
        if letter not in letters:
            term = terms(UNSQUEEZE, term, axis)
    return term


def ordered(terms: Terms, term: Term, order: Sequence[int]) -> Term:
    """`term`, its axes in another order."""
    if list(order) == list(range(len(term.shape))):
        return term
    return terms(aten.permute.default, term, list(order))
