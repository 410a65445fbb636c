"""Iterations that compute over all tokens before them, as one computation over pairs of tokens.

A loop may keep a list, or read a slice, that grows by a token with each iteration, and sum over
it: attention written as a loop.  Its iterations then are the same but for the size of one axis.
What iteration t computes from entries 0..t of a list L, and from values q_t of its own, by
operators of which each acts on an entry alone or leaves later ones out (`lifted_axes`), is row t
of one computation from all of L and all q.  That row is put into its place: no iteration has an
axis that grows any more, and the list of q's and L are those of loops, or of none.

A list of what the sums themselves lead to cannot be had before them, and is refused.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from .families import Family, arguments_of, call_of, growing, is_one, repeated, unflattened
from .lifted_axes import Lifting
from .lifted_values import Line, PerIteration
from .loop_streams import PartedError
from .pairing import Pairing
from .terms import ALWAYS, WEIGHT, Term, Terms, ancestors, aten, is_size
from .tidy import CAT, FULL, SELECT, SLICE, STACK, UNSQUEEZE, same

FIRST = 2  # the first iteration in which an axis that grows is told from one of size one
ROUNDS = 64  # computations over prefixes that follow from one another

COUNTS = (aten.arange.default, aten.arange.start, aten.arange.start_step)


def settle_prefixes(terms: Terms) -> None:
    """Put rows of one computation for what iterations compute over all tokens before them.

    Raises:
        PartedError: there is such a computation, and it is none that can be so written.
    """
    for _ in range(ROUNDS):
        results = list(_results(terms))
        if not results:
            return
        known = {member for family in results for member in family}
        refusal = None
        for family in results:
            try:
                prefix = _Prefix(terms, known)
                found = prefix.rows(family)
            except PartedError as error:
                refusal = refusal or error
                continue
            terms.outputs = _replaced(terms, found, prefix.lists)
            break
        else:
            assert refusal is not None
            raise refusal


def _results(terms: Terms) -> Iterator[Family]:
    """What iterations compute over tokens so far that has no axis of these any more."""
    waiting: list[Family] = [
        tuple(term.leaves[FIRST:-1])
        for term in ancestors(terms.outputs)
        if term.op is STACK and len(term.leaves) - 1 == terms.time and term.fed
    ]
    seen: set[Any] = set()
    while waiting:
        family = waiting.pop()
        last = family[-1]
        if last in seen or not all(isinstance(x, Term) for x in family) or last.latest == ALWAYS:
            continue
        seen.add(last)
        if any(x.latest != t for t, x in enumerate(family, FIRST)) or len(set(family)) < 2:
            continue
        if not repeated(family):
            continue
        leaves = arguments_of(family)
        if any(growing(each) is not None for each in leaves):
            yield family
        else:
            waiting += leaves


class _Prefix:
    """What one result of the iterations is computed from, taken for all of them at once."""

    def __init__(self, terms: Terms, results: set[Term]) -> None:
        self._terms = terms
        self._results = results
        self._lead: int | None = None
        self._pairing = Pairing(terms.time)
        self._made: dict[Any, PerIteration] = {}
        self._again: dict[Any, Any] = {}
        self._growing: dict[Term, bool] = {}
        self.lists: list[Term] = []  # that all iterations take together

    def rows(self, family: Family) -> dict[Term, Term]:
        """What takes the place of each member of `family`."""
        terms = self._terms
        self._pair(family)
        lifting = Lifting(terms, self._lead_of(family))
        whole = self._lift(lifting, family)
        if not whole.each:
            raise PartedError("computes nothing over the tokens so far that is its own")
        every = lifting.own(whole)
        # A row is taken after the batch, where it has one, so that lists of rows stand as others.
        axis = 0
        if whole.batch == 0:
            every, axis = whole.term, 1
        found = {x: terms(SELECT, every, axis, t) for t, x in enumerate(family, FIRST)}
        for t in range(FIRST):
            early = self._at(family, t)
            if isinstance(early, Term) and same(early.shape, family[-1].shape):
                found[early] = terms(SELECT, every, axis, t)
        return found

    def _pair(self, family: Family) -> None:
        """Unify what iterations have of their own, by which the first ones have the same."""
        waiting, seen = [family], set[Any]()
        while waiting:
            each = waiting.pop()
            if not isinstance(each[-1], Term) or each[-1] in seen or is_one(each):
                continue
            seen.add(each[-1])
            grown = growing(each)
            if grown is not None and (whole := self._nested(each, grown)) is not None:
                if all(isinstance(x, Term) and x.latest == t for t, x in enumerate(whole)):
                    self._pairing.pair(whole)
            elif grown is None and not self._takes_growing(each):
                self._pairing.pair(each, FIRST)
            elif _alike(each):
                waiting += arguments_of(each)

    def _lead_of(self, family: Family) -> int:
        """Tokens that an iteration has beside those up to its own."""
        waiting, seen = [family], set()
        while waiting:
            each = waiting.pop()
            if each[-1] in seen or not isinstance(each[-1], Term):
                continue
            seen.add(each[-1])
            axis = growing(each)
            if axis is not None:
                return int(each[-1].shape[axis]) - self._terms.time
            if not is_one(each) and _alike(each):
                waiting += zip(*(x.leaves for x in each), strict=True)
        raise PartedError("computes over what grows in no order")

    def _lift(self, lifting: Lifting, family: Family) -> PerIteration:
        last = family[-1]
        if last not in self._made:
            self._made[last] = self._lifted(lifting, family)
        return self._made[last]

    def _lifted(self, lifting: Lifting, family: Family) -> PerIteration:
        last, grown = family[-1], growing(family)
        if grown is None:
            if is_one(family):
                if last.latest > 0:
                    raise PartedError(f"looks ahead: all iterations depend on token {last.latest}")
                return lifting.whole(last)
            if not self._takes_growing(family):
                return self._each(lifting, family)
        elif (source := self._source(family, grown)) is not None:
            return lifting.whole(source, grown=grown)
        if not all(x.op is last.op and x.spec == last.spec for x in family):
            if grown is not None and last.op in (STACK, CAT):
                raise PartedError(
                    "keeps a list of the tokens so far in another order than theirs, or not all of "
                    "them: append each to its end"
                )
            raise PartedError(
                f"computes over the tokens so far in another way at each iteration, at {last.op}"
            )
        call = call_of(last)
        leaves = [self._leaf(lifting, each) for each in arguments_of(family)]
        return lifting.apply(call, leaves, grown, last)

    def _leaf(self, lifting: Lifting, each: Family) -> Any:
        last = each[-1]
        if isinstance(last, Term):
            return last if not hasattr(last.value, "shape") else self._lift(lifting, each)
        if all(type(x) is type(last) and x == last for x in each):
            return last
        step = last - each[-2]
        if any(b - a != step for a, b in itertools.pairwise(each)):
            raise PartedError(f"computes with another number at each iteration: {list(each)}")
        return Line(each[0] - step * FIRST, step)

    def _takes_growing(self, family: Family) -> bool:
        """Whether members are computed from what grows, in this iteration."""
        key = family[-1]
        if key not in self._growing:
            self._growing[key] = False  # of what follows from itself
            leaves = arguments_of(family) if repeated(family) else []
            self._growing[key] = any(growing(each) is not None for each in leaves) or any(
                all(isinstance(x, Term) and x.latest == t for t, x in enumerate(each, FIRST))
                and not is_one(each)
                and self._takes_growing(each)
                for each in leaves
            )
        return self._growing[key]

    def _each(self, lifting: Lifting, family: Family) -> PerIteration:
        """A value of each iteration's own: a list of all of them."""
        for t, x in enumerate(family, FIRST):
            if x.latest > t:
                raise PartedError(f"looks ahead at iteration {t}, at token {x.latest}")
        self._refuse_own(family[-1])
        if not all(same(x.shape, family[-1].shape) for x in family):
            raise PartedError(
                "computes over pairs of tokens so far, at each iteration: only one axis may grow, "
                f"but of what {family[-1].op} gives several do"
            )
        early = [self._at(family, t) for t in range(FIRST)]
        if any(x is None or not same(x.shape, family[-1].shape) for x in early):
            nothing = self._terms.filled(family[-1].shape, 0, family[-1].value)
            early = [nothing if x is None else x for x in early]
        self.lists.append(self._terms(STACK, [*early, *family], 0))
        return lifting.whole(self.lists[-1], each=True)

    def _refuse_own(self, term: Term) -> None:
        for each in ancestors([term]):
            if each in self._results:
                raise PartedError(
                    "computes over all tokens before each, and carries what it finds on to what "
                    "the next ones compute over, as a cell that attends to its own earlier states "
                    "does: its state would grow within the loop"
                )

    def _source(self, family: Family, axis: int) -> Term | None:
        """All entries of a list that grows by one with each iteration."""
        last: Term = family[-1]
        if (whole := self._nested(family, axis)) is None:
            return None
        if last.op in (*COUNTS, FULL):
            return last
        base = _base(whole, axis, len(whole))
        if base is not None:
            if is_size(base.shape[axis], len(whole)):
                return base
            return self._terms(SLICE, base, axis, 0, len(whole))
        for entry in whole:
            self._refuse_own(entry)
        missing, first = self._terms.time - len(whole), whole[0]
        if isinstance(first, Term) and first.latest > 0:
            raise PartedError(
                f"computes over the tokens from token {first.latest} on, without the first ones: "
                "keep those as well, and mask them"
            )
        if missing > 0:
            raise PartedError(
                "computes over the tokens before each, without its own: keep that one in the list "
                "as well, and mask it"
            )
        if missing < 0:
            raise PartedError(
                f"computes over {-missing} more entries than there are tokens so far: start from "
                "an empty list, or give a mask"
            )
        self.lists.append(self._terms(STACK, list(whole), axis))
        return self.lists[-1]

    def _nested(self, family: Family, axis: int) -> list[Any] | None:
        """All entries of a list, if each iteration has the first ones of it."""
        entries = [self._entries(x, axis) for x in family]
        whole = entries[-1]
        if whole is None or any(x is None or x != whole[: len(x)] for x in entries):
            return None
        return whole

    def _entries(self, term: Term, axis: int) -> list[Any] | None:
        """The entries of `term` along `axis`."""
        terms, args = self._terms, term.arguments[0]
        size = term.shape[axis]
        if term.op is STACK and args[1] % len(term.shape) == axis:
            return list(args[0])
        if term.op is CAT and (args[1] if len(args) > 1 else 0) % len(term.shape) == axis:
            if any(not is_size(part.shape[axis], 1) for part in args[0]):
                return None
            return [terms(aten.squeeze.dim, part, axis) for part in args[0]]
        if term.op is UNSQUEEZE and args[1] % len(term.shape) == axis:
            return [args[0]]
        if term.op is SLICE and args[1] == axis and len(args) == 4 and isinstance(size, int):
            return [terms(SELECT, args[0], axis, args[2] + n) for n in range(size)]
        if is_size(size, terms.time) and (term.fed or term.op is WEIGHT):
            return [terms(SELECT, term, axis, n) for n in range(size)]
        if term.op is aten.arange.default:
            return list(range(int(size)))
        if term.op in COUNTS and not any(isinstance(x, Term) for x in args):
            return [args[0] + n * (args[2] if len(args) > 2 else 1) for n in range(int(size))]
        if term.op is FULL:
            return [term.leaves[-2]] * int(size)
        return None

    def _at(self, family: Family, t: int) -> Any:
        """What iteration `t`, before `FIRST`, would compute as the later ones do; None for none."""
        key = (family[-1], t)
        if key not in self._again:
            self._again[key] = None  # of what follows from itself
            self._again[key] = self._computed(family, t)
        return self._again[key]

    def _computed(self, family: Family, t: int) -> Any:
        terms, last = self._terms, family[-1]
        if not isinstance(last, Term):
            step = 0 if all(x == last for x in family) else last - family[-2]
            return last if not step else family[0] - step * (FIRST - t)
        if is_one(family):
            return last if last.latest <= t else None
        grown = growing(family)
        if grown is not None and (whole := self._nested(family, grown)) is not None:
            return self._prefix(family, grown, whole, int(family[0].shape[grown]) - FIRST + t)
        before = family[0]
        for _ in range(FIRST - t):
            before = self._pairing.before(before)
            if before is None:
                break
        if before is not None and grown is None and before.latest <= t:
            return before
        if not all(x.op is last.op and x.spec == last.spec for x in family):
            return None
        if last.op is SELECT and last.leaves[0].fed and is_one([x.leaves[0] for x in family]):
            at = self._computed(tuple(x.leaves[2] for x in family), t)
            return terms(SELECT, *last.leaves[:2], at) if at >= 0 else None
        leaves = [self._at(each, t) if isinstance(each[-1], Term) else self._computed(each, t)
                  for each in zip(*(x.leaves for x in family), strict=True)]  # fmt: skip
        if any(x is None and last.leaves[n] is not None for n, x in enumerate(leaves)):
            return None
        args, kwargs = unflattened(last, leaves)
        try:
            return terms(last.op, *args, **kwargs)
        except Exception:  # noqa: BLE001  sizes that such an iteration does not have
            return None

    def _prefix(self, family: Family, axis: int, whole: Sequence[Any], size: int) -> Any:
        """The first entries of a list, as the source would have put them."""
        terms, like = self._terms, family[0]
        if like.op in (*COUNTS, FULL) or size < 1:
            return None if like.op is not aten.arange.default else terms(like.op, size)
        entries = list(whole[:size])
        if like.op is CAT:
            return terms(CAT, list(like.arguments[0][0][:size]), axis)
        if like.op is SLICE:
            return terms(SLICE, like.leaves[0], axis, like.leaves[2], like.leaves[2] + size)
        return terms(STACK, entries, axis)


def _alike(family: Family) -> bool:
    """Whether members take as many values each."""
    return all(x.spec == family[-1].spec for x in family)


def _base(entries: Sequence[Any], axis: int, count: int) -> Term | None:
    """The sequence whose first entries these are."""
    first = entries[0]
    if not isinstance(first, Term) or first.op is not SELECT or first.leaves[1] != axis:
        return None
    base: Term = first.leaves[0]
    for at, entry in enumerate(entries):
        if entry.op is not SELECT or entry.leaves[0] is not base or entry.leaves[1:] != (axis, at):
            return None
    return base if base.shape[axis] >= count else None


def _replaced(terms: Terms, found: dict[Term, Term], lists: Sequence[Term]) -> list[Term]:
    """The outputs with `found` in the places of what it stands for.

    What follows from these reads `lists` as sequences, since the loops that give them have ended.
    """
    made: dict[Term, Term] = dict(found)
    read: dict[Term, Term] = {}
    for each in lists:
        for t, entry in enumerate(each.leaves[:-1]):
            if entry.fed and entry.op is not SELECT:
                read[entry] = terms.plain(SELECT, each, each.leaves[-1], t)
    later = dict(read)  # terms as what follows from `found` has them
    above = set(found)
    for term in sorted(ancestors(terms.outputs), key=lambda each: each.order):
        if term in found:
            continue
        parts = [x for x in term.leaves if isinstance(x, Term)]
        if above.isdisjoint(parts):
            made[term] = term
            if term not in later:
                later[term] = _again(terms, term, later)
        else:
            above.add(term)
            made[term] = _again(terms, term, {x: (made if x in above else later)[x] for x in parts})
    return [made[output] for output in terms.outputs]


def _again(terms: Terms, term: Term, given: dict[Term, Term]) -> Term:
    """`term`, of other parts where these are given."""
    leaves = [given.get(x, x) if isinstance(x, Term) else x for x in term.leaves]
    if all(a is b for a, b in zip(leaves, term.leaves, strict=True)):
        return term
    args, kwargs = unflattened(term, leaves)
    return terms(term.op, *args, value=term.value, **kwargs)
