"""What a loop leaves after the last token, as the last entry of a list of all tokens.

Such a loop stacks nothing: ``h`` of the last token is computed from ``h`` of the token before, and
so on.  A term of the last token that has one of its own kind of the token before among what it was
computed from, the whole iteration being the same, is carried; following the way from one to the
other leads back to the first token.  Here this is only proposed.  `streams` shows that the entries
are iterations of one body, and `outer` that it is the same body in each program, so that an entry
is what a shorter input leaves.
"""

from collections import deque
from collections.abc import Collection, Iterator
from itertools import chain

from torch import Tensor

from .lifted import batch_axis, is_batched
from .pairing import alike
from .terms import ALWAYS, Term, Terms
from .tidy import SELECT, STACK


def lasts(program: Terms, stacks: Collection[Term]) -> dict[Term, Term]:
    """Terms that outputs take of the last token alone, each with the list that it ends.

    `stacks` are lists that the program has.
    """
    ends = {stack.leaves[program.time - 1]: stack for stack in stacks}
    found: dict[Term, Term] = {}
    seen: set[Term] = set(stacks)
    waiting = list(program.outputs)
    while waiting:
        term = waiting.pop()
        if term in seen or term.latest != program.time - 1:
            continue
        seen.add(term)
        if term.op is not SELECT and term in ends:
            found[term] = ends[term]
        elif isinstance(term.value, Tensor) and (entries := _entries(term)) is not None:
            axis = batch_axis(term) + 1 if is_batched(term) else 0
            found[term] = program.plain(STACK, entries, axis)
        else:
            waiting += [leaf for leaf in term.leaves if isinstance(leaf, Term)]
    return found


def _entries(last: Term) -> list[Term] | None:
    """`last` and what it was after each token before, the first one first; None for no such."""
    for way in chain(_ways(last, same=True), _ways(last, same=False)):
        entries = [last]
        while entries[-1].latest > 0:
            before = _followed(entries[-1], way)
            if before is None or before.latest != entries[-1].latest - 1:
                break
            entries.append(before)
        else:
            return entries[::-1]
    return None


def _ways(last: Term, *, same: bool) -> Iterator[tuple[int, ...]]:
    """Places of arguments that lead from `last` to the same of the token before, shortest first.

    `same` tells whether all numbers are to be the same, or may count tokens.
    """
    waiting: deque[tuple[Term, tuple[int, ...]]] = deque([(last, ())])
    seen = {last}
    while waiting:
        term, way = waiting.popleft()
        if term.latest == last.latest - 1 and _repeats(term, last, same=same):
            yield way
        for place, leaf in enumerate(term.leaves):
            if isinstance(leaf, Term) and leaf.latest >= last.latest - 1 and leaf not in seen:
                seen.add(leaf)
                waiting.append((leaf, (*way, place)))


def _followed(term: Term, way: tuple[int, ...]) -> Term | None:
    for place in way:
        found = term.leaves[place] if place < len(term.leaves) else None
        if not isinstance(found, Term):
            return None
        term = found
    return term


def _repeats(earlier: Term, later: Term, *, same: bool) -> bool:
    """Whether all that is computed at the token of `later` is at that of `earlier`, one before."""
    waiting, seen = [(earlier, later)], set[tuple[Term, Term]]()
    while waiting:
        a, b = waiting.pop()
        if (a, b) in seen:
            continue
        seen.add((a, b))
        if b.latest == ALWAYS:
            if a is not b and a.latest != ALWAYS:
                return False
        elif b.latest == later.latest:
            if a.latest != earlier.latest or not alike(a, b):
                return False
            if b.op is SELECT and a.leaves[0] is b.leaves[0]:
                continue
            leaves = list(zip(a.leaves, b.leaves, strict=True))
            waiting += [(x, y) for x, y in leaves if isinstance(x, Term) and isinstance(y, Term)]
            if same and any(x != y for x, y in leaves if not isinstance(x, Term)):
                return False
    return True
