"""One iteration as a graph of its own: what a scan runs for each token.

The streams of a loop, those of several unrolled programs in step, are emitted once.  A value of an
iteration before comes from a register, of which the scan carries one for each delay.  Where the
first iterations are something else, both are computed and the position chooses.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import SymInt, Tensor, fx

from .lifted import Inner, aligned, apply, batch_axis, own_shape
from .loop_streams import Counted, Edge, Fixed, Flow, Invariant, PartedError, Stream
from .pairing import is_read, named
from .terms import ALWAYS, Term, aten

Terms = tuple[Term, ...]  # one of each program
Edges = tuple[Edge, ...]
Streams = tuple[Stream, ...]


class Read(NamedTuple):
    """Entries of `bases` along `axis`, from `offset` on, one for each iteration."""

    bases: Terms
    axis: int
    offset: int


@dataclass
class Register:
    """A value that is carried, its batch first; `starts` is a term or number of each program."""

    holder: fx.Node
    like: Term
    starts: tuple[Any, ...]
    result: fx.Node | None = None


class IterationGraph:
    """The graph of one iteration, grown from what the loop gives.

    Its holders are to be given in the order `registers`, `reads`, `position`, `fixed`; it returns
    the registers and then the results.
    """

    def __init__(self, results: Sequence[Edges], number: Callable[[Sequence[Any]], Any]) -> None:
        """Grow it; `number` tells the constant that those of all programs are."""
        self.graph = fx.Graph()
        self.reads: dict[Read, fx.Node] = {}
        self.fixed: dict[Terms, fx.Node] = {}
        self.registers: dict[Any, Register] = {}
        self.position: fx.Node | None = None
        self._constant_of = number
        self._made: dict[Streams, Inner] = {}
        self._early: dict[Any, Inner] = {}
        self._unfilled: list[Callable[[], None]] = []
        ordered, self._flows = _ordered(results)
        for streams in ordered:
            self._made[streams] = self._emit(streams)
        self.results = [self._result(edges) for edges in results]
        while self._unfilled:
            self._unfilled.pop()()
        self._close()

    def _close(self) -> None:
        """Return what is carried and what is given, no holder and none twice."""
        call = self.graph.call_function
        whole: dict[str, Any] = {"memory_format": torch.contiguous_format}
        given = []
        for node in (*(r.result for r in self.registers.values()), *self.results):
            assert node is not None
            # None may share memory with another, and what is carried is laid out as its start.
            given.append(call(aten.clone.default, (node,), whole))
        self.graph.output(tuple(given))
        order = [r.holder for r in self.registers.values()]
        order += [*self.reads.values(), *([self.position] if self.position else [])]
        first = next(node for node in self.graph.nodes if node.op != "placeholder")
        for node in (*order, *self.fixed.values()):
            first.prepend(node)

    def _emit(self, streams: Streams) -> Inner:
        edges = list(zip(*(stream.edges for stream in streams), strict=True))
        if is_read(streams[0]):
            return self._read(edges)
        sample = streams[0].sample
        return apply(self.graph, sample, [self._value(each, sample) for each in edges])

    def _read(self, edges: Sequence[Edges]) -> Inner:
        bases, axis, count = (list(each) for each in edges)
        index = count[0]
        if not all(isinstance(edge, Fixed) for edge in bases):
            raise PartedError("reads an entry of what it computes itself, at its position")
        assert isinstance(index, Counted)
        if index.step != 1 or index.inverse:
            raise PartedError(f"reads every {index.step}th entry of a sequence")
        terms = tuple(edge.what for edge in bases if isinstance(edge, Fixed))
        assert isinstance(axis[0], Fixed)
        return self._entry(Read(terms, int(axis[0].what), int(index.start)))

    def _entry(self, read: Read) -> Inner:
        base = read.bases[0]
        if read not in self.reads:
            self.reads[read] = self._holder("read")
        own = own_shape(base)
        entry = None if own is None else own[: read.axis] + own[read.axis + 1 :]
        return Inner(self.reads[read], entry)

    def _holder(self, name: str) -> fx.Node:
        return self.graph.placeholder(f"{name}_{len(self.graph.nodes)}")

    def _value(self, edges: Edges, user: Term | None) -> Any:
        """The argument that `edges` describe: a constant, the node of a size, or a value."""
        edge = edges[0]
        if isinstance(edge, Fixed):
            value = self._constant(tuple(e.what for e in edges if isinstance(e, Fixed)))
            return self._replaced(edges, value, edge.what) if edge.here else value
        if isinstance(edge, Counted):
            return self._counted(edge, user)
        if isinstance(edge, Invariant):
            return self._held(tuple(e.what for e in edges if isinstance(e, Invariant)))
        flows = tuple(e for e in edges if isinstance(e, Flow))
        value = self._kept(flows, edge.delay) if edge.delay else self._given(flows)
        return self._replaced(edges, value, edge.stream.sample)

    def _replaced(self, edges: Edges, value: Inner, like: Term) -> Inner:
        """`value`, but for the iterations that take something else instead."""
        here = [edge.here for edge in edges if isinstance(edge, Fixed | Flow)]
        for each in zip(*here, strict=True):
            at = each[0][0]
            then = self._computed(tuple(term for _, term in each), at, like)
            value = self._choose(at, then, value, like)
        return value

    def _constant(self, whats: tuple[Any, ...]) -> Any:
        what = whats[0]
        if not isinstance(what, Term):
            return self._number(whats)
        if isinstance(what.value, SymInt):
            return self._size(what)
        if whats not in self.fixed:
            self.fixed[whats] = self._holder("fixed")
        return Inner(self.fixed[whats])

    def _number(self, values: Sequence[Any]) -> Any:
        found = self._constant_of(values)
        if isinstance(found, fx.Node):
            raise PartedError(f"computes with the number of tokens: {list(values)}")
        return found

    def _size(self, term: Term) -> fx.Node:
        """A size that is free, which is the batch or a multiple of it."""
        if term.op is operator.mul:
            size = self._size(term.leaves[0])
            return self.graph.call_function(operator.mul, (size, term.leaves[1]))
        return self.graph.call_function(aten.sym_size.int, (self._positions(), 0))

    def _positions(self) -> fx.Node:
        """The position of each row: [batch]."""
        if self.position is None:
            self.position = self._holder("position")
        return self.position

    def _counted(self, number: Counted, user: Term | None) -> Inner:
        """A number that grows with the position, for each row."""
        assert user is not None
        dtype = user.value.dtype if user.value.dtype.is_floating_point else torch.int64
        call, value = self.graph.call_function, self._positions()
        if dtype != torch.int64:
            value = call(aten._to_copy.default, (value,), {"dtype": dtype})  # noqa: SLF001
        if number.step != 1:
            value = call(aten.mul.Tensor, (value, number.step))
        if number.start:
            value = call(aten.add.Tensor, (value, number.start))
        if number.inverse:
            value = call(aten.reciprocal.default, (value,))
        return Inner(value, ())

    def _held(self, terms: Terms) -> Inner:
        """What the first token gave, kept."""
        key = ("held", terms)
        if key not in self._early:
            like = terms[0]
            register = self.registers[key] = self._register(like, tuple(0 for _ in terms))
            value = self._choose(0, self._computed(terms, 0, like), self._taken(register), like)
            self._early[key], register.result = value, self._batch_first(value.node, like)
        return self._early[key]

    def _given(self, flows: tuple[Flow, ...]) -> Inner:
        """What a stream gives at this iteration, the first ones included."""
        streams = tuple(flow.stream for flow in flows)
        key = (streams, tuple(flow.early for flow in flows))
        if key not in self._early:
            value, like = self._made[streams], streams[0].sample
            for index, (at, _) in enumerate(flows[0].early):
                terms = tuple(flow.early[index][1] for flow in flows)
                value = self._choose(at, self._computed(terms, at, like), value, like)
            self._early[key] = value
        return self._early[key]

    def _kept(self, flows: tuple[Flow, ...], age: int) -> Inner:
        """What a stream gave `age` iterations ago, from a register for each of these."""
        like, source = flows[0].stream.sample, tuple((f.stream, f.early) for f in flows)
        starts = tuple(flow.starts[-age:] for flow in flows)
        key = (source, starts)
        if key not in self.registers:
            register = self._register(like, tuple(each[0] for each in starts))
            self.registers[key] = register

            def fill() -> None:
                if age == 1:
                    register.result = self._batch_first(self._given(flows).node, like)
                else:
                    self._kept(flows, age - 1)
                    younger = (source, tuple(each[1:] for each in starts))
                    register.result = self.registers[younger].holder

            self._unfilled.append(fill)
        return self._taken(self.registers[key])

    def _register(self, like: Term, starts: tuple[Any, ...]) -> Register:
        return Register(self._holder("carried"), like, starts)

    def _taken(self, register: Register) -> Inner:
        axis, node = batch_axis(register.like), register.holder
        if axis:
            node = self.graph.call_function(aten.movedim.int, (node, 0, axis))
        return Inner(node, own_shape(register.like))

    def _batch_first(self, node: fx.Node, like: Term) -> fx.Node:
        axis = batch_axis(like)
        return self.graph.call_function(aten.movedim.int, (node, axis, 0)) if axis else node

    def _result(self, edges: Edges) -> fx.Node:
        value = self._value(edges, None)
        if not isinstance(value, Inner) or value.own is not None:
            raise PartedError("gives what does not depend on the inputs")
        return value.node

    def _choose(self, at: int, then: Inner, other: Inner, like: Term) -> Inner:
        """`then` at iteration `at`, `other` at all others."""
        if not isinstance(like.value, Tensor):
            raise PartedError(f"calls {named(like)} in another way at iteration {at}")
        call = self.graph.call_function
        is_at = Inner(call(aten.eq.Scalar, (self._positions(), at)), ())
        sides = [aligned(self.graph, side, like) for side in (is_at, then, other)]
        return Inner(call(aten.where.self, tuple(sides)), own_shape(like))

    def _computed(self, terms: tuple[Any, ...], at: int, like: Term) -> Inner:
        """Terms of iteration `at`, which are code of their own."""
        if not isinstance(terms[0], Term):
            dtype = {"dtype": like.value.dtype}
            number = self._number(terms)
            return Inner(self.graph.call_function(aten.full.default, ([], number), dtype))
        cone: dict[Terms, None] = {}
        waiting: list[tuple[Any, ...]] = [terms]
        while waiting:
            each = waiting.pop()
            if not isinstance(each[0], Term) or each in cone or each[0].latest == ALWAYS:
                continue
            cone[each] = None
            if not _is_entry(each, at) and self._carried(each, at) is None:
                waiting += _leaves(each)
        for each in sorted(cone, key=lambda t: t[0].order):
            if (each, at) not in self._early:
                self._early[each, at] = self._compute(each, at)
        found = self._inner(terms, at)
        assert isinstance(found, Inner)
        return found

    def _carried(self, terms: Terms, at: int) -> tuple[Flow, ...] | None:
        """What carries `terms`, which are of an iteration before `at`, for others already."""
        age = at - terms[0].latest
        for flows in self._flows:
            if 0 < age <= flows[0].delay and all(
                dict(flow.early).get(at - age, flow.stream.members.get(at - age)) is term
                for flow, term in zip(flows, terms, strict=True)
            ):
                return flows
        return None

    def _compute(self, terms: Terms, at: int) -> Inner:
        if (flows := self._carried(terms, at)) is not None:
            return self._kept(flows, at - terms[0].latest)
        if _is_entry(terms, at):
            _, axis, index = terms[0].leaves
            read = Read(tuple(term.leaves[0] for term in terms), axis, 0)
            return self._remembered(read, at - index, terms[0]) if index < at else self._entry(read)
        return apply(self.graph, terms[0], [self._inner(each, at) for each in _leaves(terms)])

    def _remembered(self, read: Read, age: int, like: Term) -> Inner:
        """What was read `age` iterations ago, in a register for each of these."""
        if age == 0:
            return self._entry(read)
        if (read, age) not in self.registers:
            register = self._register(like, tuple(0 for _ in read.bases))
            self.registers[read, age] = register
            younger = self._remembered(read, age - 1, like)
            register.result = self._batch_first(younger.node, like)
        return self._taken(self.registers[read, age])

    def _inner(self, leaves: tuple[Any, ...], at: int) -> Any:
        if isinstance(leaves[0], Term) and (leaves, at) in self._early:
            return self._early[leaves, at]
        return self._constant(leaves)


def _is_entry(terms: Terms, at: int) -> bool:
    """Whether `terms` are one token of sequences as long as each program is, not after `at`."""
    if not all(t.op is aten.select.int and t.leaves[0].fed and t.leaves[2] <= at for t in terms):
        return False
    return len({str(t.leaves[0].shape[t.leaves[1]]) for t in terms}) == len(terms)


def _leaves(terms: Terms) -> list[tuple[Any, ...]]:
    """Arguments of all programs, one by one."""
    if any(t.op is not terms[0].op or t.spec != terms[0].spec for t in terms):
        raise PartedError("begins in another way for other numbers of tokens")
    return list(zip(*(term.leaves for term in terms), strict=True))


def _ordered(results: Sequence[Edges]) -> tuple[list[Streams], list[tuple[Flow, ...]]]:
    """All streams that `results` need, each after those it takes from at the same iteration.

    Beside them, how they are taken.
    """
    found: dict[Streams, None] = {}
    taken: list[tuple[Flow, ...]] = []
    waiting = list(results)
    while waiting:
        edges = waiting.pop()
        _agree(edges)
        flows = tuple(edge for edge in edges if isinstance(edge, Flow))
        streams = tuple(flow.stream for flow in flows)
        taken += [flows] if flows else []
        if flows and streams not in found:
            found[streams] = None
            samples = [stream.sample for stream in streams]
            if any(s.op is not samples[0].op or s.spec != samples[0].spec for s in samples):
                raise PartedError(f"differs with the number of tokens, at {named(samples[0])}")
            waiting += zip(*(stream.edges for stream in streams), strict=True)
    at = min((streams[0].last for streams in found), default=0)
    return sorted(found, key=lambda streams: streams[0].members[at].order), taken


def _agree(edges: Edges) -> None:
    """Refuse arguments that are something else at other numbers of tokens."""
    first = edges[0]
    for other in edges[1:]:
        if type(other) is not type(first):
            raise PartedError("takes other arguments for other numbers of tokens")
        if isinstance(first, Counted) and isinstance(other, Counted):
            pairs = ((first.start, other.start), (first.step, other.step))
            if any(abs(a - b) > 1e-9 * max(abs(a), abs(b), 1) for a, b in pairs):
                raise PartedError("computes with the number of tokens")
        if _form(first) != _form(other):
            raise PartedError("carries other values for other numbers of tokens")


def _form(flow: Edge) -> tuple[Any, ...]:
    if isinstance(flow, Fixed):
        return (tuple(t for t, _ in flow.here),)
    if not isinstance(flow, Flow):
        return ()
    return flow.delay, [t for t, _ in flow.early], [t for t, _ in flow.here]
