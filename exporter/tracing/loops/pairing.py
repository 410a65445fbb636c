"""What a loop repeats, found in the terms of a program that was unrolled.

Take the entries ``e_0, e_1, ...`` of a list that was stacked along time.  Two neighbours are
unified: the same operator, and arguments that are the same, or numbers, or neighbours again.  The
terms paired so form `Stream`s, one for each computation of the body: what it gives at each
iteration.  The iteration of a term is the last token that it depends on, so that a step computes
what its token makes computable, however the code was ordered.  An argument of a stream then is

* the same at all iterations (`Fixed`), a number that grows with them (`Counted`),
* another stream, `delay` iterations ago (`Flow`): what is carried, if the delay is not 0;

and where the first iterations are something else, that is noted: what the loop starts from, and
what was computed before the code began to repeat itself.  Nothing is sampled: every iteration of
the program is compared, and what does not unify is refused with the iteration where it parts.
"""

import itertools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from .delays import delayed, shared
from .loop_streams import Counted, Edge, Fixed, Flow, Invariant, PartedError, Stream
from .terms import ALWAYS, Term, aten, is_size
from .tidy import SELECT, same

PEELED = 2  # iterations at the start that may be code of their own
LEAST = 3  # iterations that must agree for a loop to be one


class Pairing:
    """The streams of one program of `time` tokens, from its stacked lists."""

    def __init__(self, time: int) -> None:
        self._time = time
        self._before: dict[Term, Term] = {}
        self._after: dict[Term, Term] = {}
        self._streams: dict[tuple[Term, int], Stream] = {}
        self._waiting: list[Stream] = []  # those whose arguments are not described yet
        self._later: dict[Term, int] = {}  # by how much a stream runs after its token
        self._recurrent: dict[Term, bool] = {}  # of the last of a stream: it follows from itself

    def pair(self, entries: Sequence[Term], first: int = 0) -> None:
        """Unify each of `entries` with the one before it; iteration `first` gives the first."""
        for index, entry in enumerate(entries):
            if entry.latest > index + first:
                raise PartedError(
                    f"looks ahead: what it gives for token {index + first} depends on token "
                    f"{entry.latest}"
                )
        waiting = list(itertools.pairwise(entries))
        while waiting:
            earlier, later = waiting.pop()
            if earlier is later or later in self._before or not alike(earlier, later):
                continue
            self._before[later] = earlier
            if earlier not in self._after or later.latest > self._after[earlier].latest:
                self._after[earlier] = later
            waiting += [
                (a, b)
                for a, b in zip(earlier.leaves, later.leaves, strict=True)
                if isinstance(a, Term) and isinstance(b, Term)
            ]

    def before(self, term: Term) -> Term | None:
        """The same computation one iteration ago."""
        return self._before.get(term)

    def flows(self, stacks: Sequence[Sequence[Any]]) -> list[Edge]:
        """What lists that were stacked hold, as arguments are described.

        Each stream runs as soon as its token is there, or later where less is carried then.
        """
        edges = [self._described(entries) for entries in stacks]
        later = delayed(edges)
        if any(later.values()):
            self._later = {stream.sample: by for stream, by in later.items()}
            self._streams.clear()
            edges = [self._described(entries) for entries in stacks]
        return shared(edges)

    def _described(self, entries: Sequence[Any]) -> Edge:
        edge = self._edge(dict(enumerate(entries)), "")
        while self._waiting:
            stream = self._waiting.pop()
            own = {t: m for t, m in stream.members.items() if t >= stream.start}
            stream.edges = [
                Fixed(stream.sample.leaves[0])
                if place == 0 and self._is_sequence(own)
                else self._edge({t: m.leaves[place] for t, m in own.items()}, named(stream.sample))
                for place in range(len(stream.sample.leaves))
            ]
        return edge

    def _is_sequence(self, members: Mapping[int, Term]) -> bool:
        """Whether `members` are the tokens of one sequence, of which a step has one alone."""
        sample = next(iter(members.values()))
        base = sample.leaves[0] if sample.op is SELECT else None
        return (
            isinstance(base, Term)
            and is_size(base.shape[sample.leaves[1]], self._time)
            and all(member.leaves[0] is base for member in members.values())
        )

    def _stream(self, term: Term, at: int) -> Stream:
        """The stream of `term`, which is its member of iteration `at`."""
        end = self._end(term)
        while term is not end:
            term, at = self._after[term], at + 1
        if (term, at) in self._streams:
            return self._streams[term, at]
        members, last = {at: term}, term
        while (last := self._before.get(last)) and last not in members.values():  # type: ignore[assignment]
            at -= 1
            members[at] = last
        stream = self._streams[term, max(members)] = Stream(members)
        stream.start = _start(members)
        if len([t for t in members if t >= stream.start]) < LEAST:
            if len(members) >= LEAST:  # which are alike but for numbers
                raise PartedError(
                    f"has {named(stream.sample)} with a number that grows in no straight line with "
                    "the iterations: carry it in a tensor, or take it from a table"
                )
            raise _parted(min(members) - 1, named(stream.sample))
        self._waiting.append(stream)
        return stream

    def _end(self, term: Term) -> Term:
        """The last term of the stream that `term` is of."""
        while (later := self._after.get(term)) is not None and self._before.get(later) is term:
            term = later
        return term

    def _iteration(self, term: Term, used: int) -> int:
        """The iteration of `term`, the newest of its stream that one at `used` takes.

        What no token flows into and follows from itself, as the covariance of a Kalman filter, runs
        so that its last member belongs to the last iteration; entries of tables run with the user.
        """
        if term.latest != ALWAYS:
            return term.latest + self._later.get(self._end(term), 0)
        if not self._follows_from_itself(end := self._end(term)):
            return used
        at = self._time - 1
        while end is not term:
            end, at = self._before[end], at - 1
        return at

    def _follows_from_itself(self, end: Term) -> bool:
        """Whether a term is computed from the one before it in its stream."""
        if end not in self._recurrent:
            before, pending, seen = self._before.get(end), [end], set[Term]()
            while pending and before not in seen:
                term = pending.pop()
                leaves = [x for x in term.leaves if isinstance(x, Term) and x not in seen]
                seen.update(leaves)
                pending += leaves
            self._recurrent[end] = before in seen
        return self._recurrent[end]

    def _edge(self, values: Mapping[int, Any], what: str) -> Edge:
        """What `values`, an argument by iteration, are."""
        last, times = values[max(values)], sorted(values, reverse=True)
        if not isinstance(last, Term):
            found = _number([values[t] for t in sorted(values)], min(values))
            if found is None:
                raise PartedError(f"has {what} with another constant at each iteration: {last!r}")
            return found
        if all(value is last for value in values.values()):
            return Fixed(last) if last.latest == ALWAYS else self._held(last)
        if len(times) > 1 and values[times[1]] is last:
            return self._mostly(values, last, what)
        stream = self._stream(last, at := self._iteration(last, times[0]))
        delay = times[0] - at
        return self._flow(values, stream, delay, what)

    def _held(self, term: Term) -> Edge:
        if term.latest > 0:
            raise PartedError(f"looks ahead: all iterations depend on token {term.latest}")
        return Invariant(term)

    def _mostly(self, values: Mapping[int, Any], last: Term, what: str) -> Edge:
        """The same at all iterations but the first ones."""
        early = {t: value for t, value in values.items() if value is not last}
        self._check_early(early, what)
        if last.latest != ALWAYS:
            raise PartedError(f"takes {what} of token {last.latest} at all later iterations")
        return Fixed(last, tuple(sorted(early.items())))

    def _flow(self, values: Mapping[int, Any], stream: Stream, delay: int, what: str) -> Edge:
        starts: dict[int, Any] = {}
        early: dict[int, Any] = {}
        here: dict[int, Any] = {}
        for t in sorted(values, reverse=True):
            value, at = values[t], t - delay
            known = stream.members.get(at) if at >= stream.start else None
            if value is known and not (starts or early or here):
                continue
            latest = value.latest if isinstance(value, Term) else ALWAYS
            if at < 0 and latest == ALWAYS:
                starts[at] = value
            elif at >= 0 and latest <= at and isinstance(value, Term):
                early[at] = value
            elif latest <= t:
                here[t] = value
            else:
                raise PartedError(f"looks ahead at iteration {t}, at token {latest}")
        self._check_early({**early, **here}, what)
        depth = range(-delay, 0)
        return Flow(
            stream,
            delay,
            starts=tuple(starts.get(at) for at in depth),
            early=tuple(sorted(early.items())),
            here=tuple(sorted(here.items())),
        )

    def _check_early(self, early: Mapping[int, Any], what: str) -> None:
        if early and max(early) >= PEELED:
            raise _parted(max(early), what)


def _parted(at: int, what: str) -> PartedError:
    where = f" at {what}" if what else ""
    return PartedError(f"does not repeat itself: iterations {at} and {at + 1} part{where}")


def alike(a: Term, b: Term) -> bool:
    """Whether two terms may be one computation at two iterations."""
    if a.op is not b.op or a.spec != b.spec or not _same_value(a.value, b.value):
        return False
    if a.op is operator.getitem and a.leaves[1] != b.leaves[1]:
        return False  # another result of the operator, not one of another token
    for x, y in zip(a.leaves, b.leaves, strict=True):
        if isinstance(x, Term) or isinstance(y, Term):
            continue
        if type(x) is not type(y) or (x != y and not _is_number(x)):
            return False
    return True


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return all(_same_value(x, y) for x, y in zip(a, b, strict=True))
    if not hasattr(a, "shape") or not hasattr(b, "shape"):
        return type(a) is type(b)
    return a.dtype == b.dtype and same(a.shape, b.shape)


def _is_number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


def _start(members: Mapping[int, Term]) -> int:
    """The first iteration from which numbers and constants are as they are at the last."""
    times = sorted((t for t in members if t >= 0), reverse=True)
    start = times[0] if times else 0
    for t in times:
        window = [members[u] for u in range(t, times[0] + 1)]
        for place in range(len(window[0].leaves)):
            values = [member.leaves[place] for member in window]
            fixed = isinstance(values[-1], Term) and len(window) > 2 and values[-1] is values[-2]
            if fixed and values[-1].latest == ALWAYS and values[0] is not values[-1]:
                return start
            if not isinstance(values[-1], Term) and _number(values, t) is None:
                return start
        start = t
    return start


def _number(values: Sequence[Any], start: int) -> Edge | None:
    """Constants of iterations from `start` on, as one description; None where there is none."""
    first = values[0]
    if all(type(value) is type(first) and _equal(value, first) for value in values):
        return Fixed(first)
    if not all(_is_number(value) for value in values):
        return None
    if len(values) < LEAST:
        return Counted(0, 0)
    for inverse in (False, True):
        if inverse and not all(values):
            continue
        line = [1 / value for value in values] if inverse else values
        near = 1e-12 * max(map(abs, line))
        step = _round(line[-1] - line[-2], near)
        begin = _round(line[-1] - step * (start + len(line) - 1), near)
        if all(abs(begin + step * (start + i) - v) <= near for i, v in enumerate(line)):
            return Counted(begin, step, inverse)
    return None


def _round(number: float, near: float) -> float:
    """`number` as it was written, without what subtraction left behind it."""
    if isinstance(number, int):
        return number
    return 0.0 if abs(number) <= near else float(f"{number:.12g}")


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a is b or a == b)
    except Exception:  # noqa: BLE001  tensors, which are compared by identity
        return False


def named(term: Term) -> str:
    """A computation in an error's words."""
    return "what it reads" if term.op is SELECT else str(term.op).removesuffix(".default")


def is_read(stream: Stream) -> bool:
    """Whether `stream` is one entry of a sequence or of a table at each iteration."""
    return stream.sample.op is aten.select.int and isinstance(stream.edges[2], Counted)
