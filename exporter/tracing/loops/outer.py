"""The graph around the loops, for any number of tokens.

Programs that were unrolled at several numbers of tokens are one graph where they agree: the same
operator on the same arguments.  A whole number among these may grow with the tokens, in a straight
line through all programs; anything else that differs is refused.  A list stacked along time is
what a loop gives, and loops that share what they carry are one scan.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from intaglio.state import BATCH, TIME

from .body import Edges, IterationGraph, Read, Register, Terms
from .chunked import chunked, joined
from .last import lasts
from .lifted import batch_axis, is_batched
from .loop_streams import Flow, PartedError, Stream
from .pairing import Pairing, named
from .terms import ALWAYS, INPUT, WEIGHT, Term, ancestors, aten, is_size
from .terms import Terms as Program
from .tidy import SELECT, STACK, same
from .token_prefixes import settle_prefixes
from .tokens import PerToken, layout

SCAN = torch.ops.higher_order.scan


class Outer:
    """The graph of several programs in step; `graph` once `build` has run."""

    def __init__(self, programs: Sequence[Program], dynamic: dict[str, dict[int, str]]) -> None:
        self.graph = fx.Graph()
        self.root: dict[str, Any] = {}
        self.loops = 0
        self._programs = programs
        self._dynamic = dynamic
        self._times = [program.tokens for program in programs]
        self._chunk = programs[0].chunk
        self._made: dict[Any, Any] = {}
        self._groups: dict[Terms, list[tuple[Terms, Edges]]] = {}
        self._inputs: dict[str, fx.Node] = {}
        self._last: dict[Terms, Terms] = {}  # of what lists a term is the last entry

    def build(self, names: Sequence[str]) -> None:
        """Emit everything that the outputs need, for inputs called `names`.

        Raises:
            PartedError: something is no loop, or differs between programs.
        """
        for name in names:
            self._inputs[name] = self.graph.placeholder(name)
        self._find()
        outputs: list[Terms] = list(zip(*(p.outputs for p in self._programs), strict=True))
        self._emit(outputs)
        self.graph.output(tuple(self._made[terms] for terms in outputs))

    def _find(self) -> None:
        """Describe what is stacked along time in each program, and group it by what it shares.

        What is taken of the last token alone is the last entry of such a list.
        """
        described, ends = [], []
        for program in self._programs:
            if self._chunk == 1:
                settle_prefixes(program)
            streams = Pairing(program.time)
            stacked = list(_stacked(program))
            last = {} if self._chunk > 1 else lasts(program, stacked)
            ends.append(list(last.items()))
            lists = sorted({*stacked, *last.values()}, key=lambda term: term.order)
            for each in lists:
                streams.pair(each.leaves[:-1])
            edges = streams.flows([each.leaves[:-1] for each in lists])
            described.append(list(zip(lists, edges, strict=True)))
        if len({len(pairs) for pairs in described}) > 1:
            raise PartedError("is there another number of times for other numbers of tokens")
        for pairs in zip(*ends, strict=True):
            self._last[tuple(end for end, _ in pairs)] = tuple(stack for _, stack in pairs)
        found = [
            (tuple(stack for stack, _ in pairs), tuple(edge for _, edge in pairs))
            for pairs in zip(*described, strict=True)
        ]
        for group in _joined(found):
            for stacks, _ in group:
                self._groups[stacks] = group

    def _emit(self, wanted: Sequence[Any]) -> None:
        """Make nodes of `wanted`, after those that they take from."""
        waiting: list[tuple[Terms, bool]] = [(terms, False) for terms in reversed(wanted)]
        plans: dict[Terms, tuple[IterationGraph, list[Any]]] = {}
        within: set[Terms] = set()  # lists of loops that wait for what they take
        while waiting:
            terms, ready = waiting.pop()
            if terms in self._made:
                continue
            group = self._groups.get(terms)
            if group is not None and terms not in plans:
                body = IterationGraph([edges for _, edges in group], self.number)
                plan = (body, list(_taken(body)))
                plans.update(dict.fromkeys((stacks for stacks, _ in group), plan))
            if ready:
                if group is None:
                    self._made[terms] = self._node(terms)
                else:
                    self._loop(group, plans[terms][0])
                    within.difference_update(stacks for stacks, _ in group)
                continue
            if terms in within:
                raise PartedError("takes at each token what follows from all of its own results")
            within.update(stacks for stacks, _ in group or ())
            waiting.append((terms, True))
            if group is not None:
                needs = plans[terms][1]
            else:
                needs = [self._last[terms]] if terms in self._last else _arguments(terms)
            waiting += [(each, False) for each in reversed(needs) if each not in self._made]

    def _node(self, terms: Terms) -> Any:
        term = terms[0]
        if term.op in (chunked, joined):  # which are for what is carried from chunk to chunk
            return self._made[tuple(t.leaves[0] for t in terms)]
        self._refuse_chunks(terms)
        if (stacks := self._last.get(terms)) is not None:
            axis = int(stacks[0].leaves[-1])
            return self._call(SELECT, self._made[stacks], axis, -1, source=term)
        if self._is_last(terms):
            bases = tuple(t.leaves[0] for t in terms)
            return self._call(SELECT, self._made[bases], term.leaves[1], -1, source=term)
        if any(t.op is not term.op or t.spec != term.spec for t in terms[1:]):
            if all(
                t.op is STACK and len(t.leaves) - 1 == p.time
                for t, p in zip(terms, self._programs, strict=True)
            ):
                raise PartedError(
                    f"looks ahead: what it gives for every token depends on token {term.latest}"
                )
            raise PartedError(
                f"differs with the number of tokens, at {named(term)}: what is returned for the "
                "last token alone has to be carried to it, from the first token on"
            )
        if term.op == INPUT:
            return self._inputs[term.leaves[0]]
        if term.op == WEIGHT:
            return self._weight(tuple(t.leaves[0] for t in terms))
        leaves = [
            self._made[each] if isinstance(each[0], Term) else self.number(each)
            for each in zip(*(t.leaves for t in terms), strict=True)
        ]
        args, kwargs = pytree.tree_unflatten(leaves, term.spec)
        return self._call(term.op, *args, source=term, **kwargs)

    def _refuse_chunks(self, terms: Terms) -> None:
        """Refuse what takes chunks, or what a loop gives for them, other than by token."""
        for each in _arguments(terms) if self._chunk > 1 else ():
            if each[0].op is chunked or each in self._groups:
                raise PartedError(f"computes with all chunks at once, in {named(terms[0])}")

    def _is_last(self, terms: Terms) -> bool:
        """Whether `terms` are the last token of a sequence."""
        return all(
            t.op is SELECT and t.leaves[2] == n - 1 and is_size(t.leaves[0].shape[t.leaves[1]], n)
            for t, n in zip(terms, self._times, strict=True)
        )

    def _call(self, op: Any, *args: Any, source: Term | None = None, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(op, args, kwargs)
        if source is not None and "nn_module_stack" in source.source:
            node.meta["nn_module_stack"] = source.source["nn_module_stack"]
        return node

    def _weight(self, names: tuple[Any, ...]) -> fx.Node:
        name = names[0]
        if isinstance(name, Tensor):
            if any(n.shape != name.shape or not torch.equal(n, name) for n in names[1:]):
                raise PartedError("takes a constant that depends on the number of tokens")
            constant, name = name, f"constant_{len(self.root)}"
            self.root[name] = constant
        return self.graph.get_attr(name)

    def number(self, values: Sequence[Any]) -> Any:
        """The constant that `values` are; a node where it grows with the number of tokens."""
        first = values[0]
        if all(type(v) is type(first) and (v is first or v == first) for v in values):
            return first
        if not all(type(value) is int for value in values):
            raise PartedError(f"computes with the number of tokens: {first!r}, {values[1]!r}")
        (t0, t1, *_), (v0, v1, *_) = self._times, values
        slope, rest = divmod(v1 - v0, t1 - t0)
        begin = v0 - slope * t0
        line = [begin + slope * t for t in self._times]
        if rest or line != list(values):
            raise PartedError(f"takes the sizes {list(values)} for {self._times} tokens")
        node = self._time()
        if slope != 1:
            node = self._call(operator.mul, node, slope)
        return self._call(operator.add, node, begin) if begin else node

    def _size(self, symbol: str) -> fx.Node:
        if symbol not in self._made:
            name, axis = next(
                (name, axis)
                for name, axes in self._dynamic.items()
                for axis, kind in axes.items()
                if kind == symbol and name in self._inputs
            )
            self._made[symbol] = self._call(aten.sym_size.int, self._inputs[name], axis)
        return self._made[symbol]  # type: ignore[no-any-return]

    def _time(self) -> fx.Node:
        return self._size(TIME)

    def _loop(self, group: list[tuple[Terms, Edges]], body: IterationGraph) -> None:
        """A scan over what `body` reads, which gives the lists of `group`."""
        name = f"rolled_up_loop_{self.loops}"
        self.loops += 1
        body.graph.eliminate_dead_code()
        graph = body.graph
        if self._chunk > 1:
            entries = [(stacks[0].leaves[0], int(stacks[0].leaves[-1])) for stacks, _ in group]
            graph = PerToken(body, self._chunk, entries).graph
        self.root[name] = fx.GraphModule(nn.Module(), graph)
        starts = [
            # One tensor given twice would be taken for one value by the tracer.
            self._call(aten.clone.default, self._start(r), memory_format=torch.contiguous_format)
            for r in body.registers.values()
        ]
        reads = [self._sequence(read) for read in body.reads]
        fixed = [self._fixed(terms) for terms in body.fixed]
        if self._chunk > 1:
            starts += [self._empty(read) for read in body.reads]
            fixed.insert(0, self._call(aten.arange.default, self._chunk, dtype=torch.int64))
        if body.position is not None or not reads or self._chunk > 1:
            reads.append(self._positions())
        source = group[0][0][0]
        scan = self._call(
            SCAN, self.graph.get_attr(name), starts, reads, tuple(fixed), source=source
        )
        for index, (stacks, _) in enumerate(group):
            place = len(starts) + index
            given = self._call(operator.getitem, scan, place, source=source)
            axis = int(stacks[0].leaves[-1])
            self._made[stacks] = self._call(aten.movedim.int, given, 0, axis) if axis else given

    def _fixed(self, terms: Terms) -> fx.Node:
        """What all iterations take; parts of one weight are taken for one value by the tracer."""
        node: fx.Node = self._made[terms]
        return node if terms[0].op == WEIGHT else self._call(aten.clone.default, node)

    def _start(self, register: Register) -> fx.Node:
        """What a register holds before the first token."""
        like, first = register.like, register.starts[0]
        axis = batch_axis(like)
        sizes = [self._dimension(dim, like) for dim in like.shape]
        dtype = like.value.dtype
        batched = is_batched(like)
        whole = sizes if batched else [self._size(BATCH), *sizes]
        if not isinstance(first, Term):
            number = 0 if first is None else self.number(register.starts)
            node = self._call(aten.full.default, whole, number, dtype=dtype)
        else:
            node = self._made[register.starts]
            if first.value.dtype != dtype:
                node = self._call(aten._to_copy.default, node, dtype=dtype)  # noqa: SLF001
            if not same(first.shape, like.shape) or not batched:
                node = self._call(aten.expand.default, node, whole)
        return self._call(aten.movedim.int, node, axis, 0) if axis else node

    def _dimension(self, dim: Any, like: Term) -> Any:
        if isinstance(dim, int):
            return dim
        factor, symbol = dim.node.expr.as_coeff_Mul()
        if not symbol.is_symbol:
            raise PartedError(f"carries {named(like)}, of which a size is {dim}")
        size = self._size(BATCH)
        return size if factor == 1 else self._call(operator.mul, size, int(factor))

    def _sequence(self, read: Read) -> fx.Node:
        """What is read, time first; a table for each row, from its place on."""
        node, base = self._made[read.bases], read.bases[0]
        if self._chunk > 1 and (read.offset or any(b.op is not chunked for b in read.bases)):
            raise PartedError("reads more of a sequence than the chunks that it goes over")
        if self._chunk > 1:
            node = self._call(aten.movedim.int, node, read.axis, 0) if read.axis else node
            return node if is_batched(base) else self._for_rows(node, len(base.shape) - 1)
        of_time = [b.shape[read.axis] for b in read.bases] == self._times
        if read.offset or not of_time:
            end = self._time()
            if read.offset:
                end = self._call(operator.add, end, read.offset)
            node = self._call(aten.slice.Tensor, node, read.axis, read.offset, end)
        if read.axis:
            node = self._call(aten.movedim.int, node, read.axis, 0)
        return node if is_batched(base) else self._for_rows(node, len(base.shape))

    def _empty(self, read: Read) -> fx.Node:
        """Room for the tokens of a chunk: [batch, chunk, ...]."""
        base = read.bases[0]
        rest = layout(base, read.axis)[1]
        sizes = [self._size(BATCH), self._chunk, *rest]
        return self._call(aten.full.default, sizes, 0, dtype=base.value.dtype)

    def _positions(self) -> fx.Node:
        places = self._call(aten.arange.default, self._time(), dtype=torch.int64)
        return self._for_rows(places, 1)

    def _for_rows(self, node: fx.Node, rank: int) -> fx.Node:
        """[time, ...] as [time, batch, ...]."""
        one = self._call(aten.unsqueeze.default, node, 0)
        sizes = [self._size(BATCH), *[-1] * rank]
        return self._call(aten.movedim.int, self._call(aten.expand.default, one, sizes), 1, 0)


def _stacked(program: Program) -> Iterator[Term]:
    """Lists of all tokens that were stacked."""
    for term in ancestors(program.outputs):
        entries = term.leaves[:-1]
        if term.op is STACK and len(entries) == program.time and term.fed:
            first, last = (
                e.latest if isinstance(e, Term) else ALWAYS for e in entries[:: len(entries) - 1]
            )
            if first != last:
                yield term


def _joined(found: list[tuple[Terms, Edges]]) -> list[list[tuple[Terms, Edges]]]:
    """Groups of lists that share a stream which depends on tokens and is more than a read.

    One that is computed from another as a whole is of a later loop.
    """
    groups: list[tuple[int, set[Stream], list[tuple[Terms, Edges]]]] = []
    depths = _depths([stacks[0] for stacks, _ in found])
    for each in found:
        streams, members, depth = _streams(each[1][0]), [each], depths[each[0][0]]
        for other in [group for group in groups if group[0] == depth and group[1] & streams]:
            groups.remove(other)
            streams |= other[1]
            members = other[2] + members
        groups.append((depth, streams, members))
    return [members for _, _, members in groups]


def _depths(lists: Sequence[Term]) -> dict[Term, int]:
    """How many lists stand before each, of which one is computed from the other."""
    depths: dict[Term, int] = {}
    for each in sorted(lists, key=lambda term: term.order):
        before = (depths[term] for term in ancestors([each]) if term in depths)
        depths[each] = max(before, default=-1) + 1
    return depths


def _streams(edge: Any) -> set[Stream]:
    seen: set[Stream] = set()
    waiting = [edge]
    while waiting:
        edge = waiting.pop()
        if isinstance(edge, Flow) and edge.stream not in seen:
            seen.add(edge.stream)
            waiting += edge.stream.edges
    return {s for s in seen if s.sample.latest != ALWAYS and s.sample.op is not aten.select.int}


def _arguments(terms: Terms) -> list[Terms]:
    if any(t.op is not terms[0].op or len(t.leaves) != len(terms[0].leaves) for t in terms):
        return []  # which is refused when they are emitted
    return [
        each
        for each in zip(*(t.leaves for t in terms), strict=True)
        if all(isinstance(leaf, Term) for leaf in each)
    ]


def _taken(body: IterationGraph) -> Iterator[Terms]:
    """What a loop takes from outside."""
    yield from (read.bases for read in body.reads)
    yield from body.fixed
    for register in body.registers.values():
        if isinstance(register.starts[0], Term):
            yield register.starts
