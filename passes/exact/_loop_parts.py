"""A loop in parts: an operator or a smaller loop for each group of states, the rest at once."""

from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import Emitter, dims, type_of
from intaglio.state import BATCH, TIME

from ._affine_steps import Steps
from ._all_tokens import RULES, AllTokens, Lifted, UnliftedError, one, over_time, shape_of, turned
from ._initial_values import is_zero
from ._log_decay import decays, log_decay
from ._loop_body import LoopBody, entries, same
from ._outer_products import LAYOUTS, Product, Update, query, update
from ._smaller_loop import FREE, smaller_loop
from ._updates import EmittedOperator
from .fuse_token_shift import earlier

ONES = "float32"


class StaysInLoop(Exception):  # noqa: N818  no error: these states stay in a loop
    """States that no operator carries."""

    def __init__(self, states: Iterable[int]) -> None:
        super().__init__()
        self.states = list(states)


class Parts:
    """What becomes of the groups of `body`; states in `looped` stay in a loop."""

    def __init__(self, emit: Emitter, body: LoopBody, looped: set[int]) -> None:
        """Emit all parts.

        Raises:
            StaysInLoop: states that have to stay in a loop beyond those of `looped`.
            UnliftedError: something cannot be computed of all tokens at once.
        """
        self._emit, self._body, self._looped = emit, body, looped
        self._inner = Emitter(next(iter(body.graph)))
        self._tokens = AllTokens(emit, body.graph, self._given)
        self._final: dict[int, ir.Value] = {}
        self.kinds: list[str] = []
        groups = list(body.groups())
        self.smaller = not groups
        if not groups:
            self.kinds.append("what it computes of each token alone")
        for group in _joined(groups, looped):
            if set(group) & looped:
                self._loop(group)
            elif len(group) > 1:
                raise StaysInLoop(group)
            else:
                self._single(group[0])

    def results(self) -> list[ir.Value]:
        """What the loop gives for each token, laid out as it gives it."""
        found = []
        for value, axis in zip(self._body.results, self._body.output_axes, strict=True):
            over = self._tokens.of(value)
            if not over.along:
                raise UnliftedError
            rows = shape_of(value)[:1] == (BATCH,)
            rank = len(dims(over.value) or ())
            order = [a for a in range(rank) if a != int(rows)]
            order.insert(axis % rank, int(rows))
            result = turned(self._emit, over.value, order)
            told = result.uses() or result.is_graph_output() or result.is_graph_input()
            if told or result in found:  # a name of its own
                result = self._emit("Identity", [result], result.dtype, dims(result))
            found.append(result)
        return found

    def finals(self) -> list[ir.Value | None]:
        """The carried values after the last token, where they are asked for."""
        found: list[ir.Value | None] = []
        for index, value in enumerate(self._body.node.outputs[: self._body.count]):
            if not (value.uses() or value.is_graph_output()):
                found.append(None)
            elif index in self._final:
                found.append(self._final[index])
            else:
                raise StaysInLoop([index])
        return found

    def _given(self, value: ir.Value) -> Lifted | None:
        """A token's input, or a state before a token."""
        body = self._body
        if value in body.tokens:
            index = body.tokens.index(value)
            outer = body.node.inputs[body.count + index]
            assert outer is not None
            rank = len(dims(outer) or ())
            axis = body.input_axes[index] % rank
            if (dims(outer) or ())[axis] != TIME:  # a part of the tokens, or several for each
                raise UnliftedError
            rest = [a for a in range(rank) if a != axis]
            rows = shape_of(value)[:1] == (BATCH,)
            order = [rest[0], axis, *rest[1:]] if rows else [axis, *rest]
            return Lifted(turned(self._emit, outer, order), along=True)
        if value in body.states:
            return self._before(body.states.index(value))
        return None

    def _start(self, index: int) -> ir.Value | None:
        value = self._body.node.inputs[index]
        return None if is_zero(value) else value

    def _before(self, index: int) -> Lifted:
        """A state before each token: what it was after the one before."""
        after = self._tokens.known.get(self._body.following[index])
        if after is None or not after.along or self._start(index) is not None:
            raise StaysInLoop([index])
        shape = dims(after.value) or ()
        floating = after.value.dtype == ir.DataType.FLOAT
        if shape[:2] != (BATCH, TIME) or not floating:
            raise StaysInLoop([index])
        flat = self._tokens.reshaped(after.value, (BATCH, TIME, prod(map(int, shape[2:]))))
        shifted = earlier(flat, 1, self._emit)
        return Lifted(self._tokens.reshaped(shifted, shape), along=True)

    def _single(self, index: int) -> None:
        body = self._body
        state, following = body.states[index], body.following[index]
        depends = body.depends(index)
        if following not in depends:
            self._tokens.of(following)
            self.kinds.append("a shift in time")
            self.smaller = True
            return
        for layout in LAYOUTS:
            found = update(state, following, depends, layout)
            if found is not None and self._outer_products(index, found):
                return
        form = Steps(self._inner, state, depends).of(following)
        if form is None or not self._entry_by_entry(index, form.factor, form.addend):
            raise StaysInLoop([index])

    def _entry_by_entry(self, index: int, factor: ir.Value | None, addend: ir.Value | None) -> bool:
        following = self._body.following[index]
        shape = shape_of(following)
        if factor is None or addend is None or following.dtype != ir.DataType.FLOAT:
            return False
        size, emit = prod(int(dim) for dim in shape[1:]), self._emit
        if shape[:1] != (BATCH,):
            return False
        drive = self._spread(addend, shape)
        start = self._start(index)
        if one(factor) == 1.0:
            axis = emit.constant(1)
            y = emit("CumSum", [drive, axis], drive.dtype, dims(drive))
            if start is not None:
                looks = (BATCH, 1, *shape[1:])
                wide = emit("Unsqueeze", [start, emit.constant([1])], start.dtype, looks)
                y = emit("Add", [y, wide], drive.dtype, dims(drive))
            self.kinds.append("a cumulative sum")
        else:
            over = self._tokens.of(factor)
            log = log_decay(emit, over.value, shown=decays(factor))
            if log is None:
                return False
            flat = (BATCH, TIME, size)
            if over.along:
                rate = self._spread(factor, shape, log)
                delta = emit("Neg", [self._tokens.reshaped(rate, flat)], log.dtype, flat)
                a = emit.constant(-np.ones((size, 1)), ONES)
            else:
                if BATCH in (dims(log) or ()):
                    return False
                delta = None
                sized = emit.constant([int(dim) for dim in shape[1:]] or [1])
                full = emit("Expand", [log, sized], log.dtype, shape[1:])
                a = emit("Reshape", [full, emit.constant([size, 1])], log.dtype, (size, 1))
            if start is not None:
                target = emit.constant([0, size, 1])
                start = emit("Reshape", [start, target], start.dtype, (BATCH, size, 1))
            ones = emit.constant(np.ones((size, 1)), ONES)
            inputs = [self._tokens.reshaped(drive, flat), a, ones, ones, delta, start]
            while inputs[-1] is None:
                inputs.pop()
            y, last = emit.node(
                "DiagonalSSM",
                inputs,
                [(drive.dtype, flat), (drive.dtype, (BATCH, size, 1))],
                {"discretization": "none", "lti": 1},
                "intaglio",
            )
            y = self._tokens.reshaped(y, over_time(shape))
            target = emit.constant([0, *(int(dim) for dim in shape[1:])])
            self._final[index] = emit("Reshape", [last, target], drive.dtype, shape)
            self.kinds.append("DiagonalSSM")
        self._tokens.known[following] = Lifted(y, along=True)
        self.smaller = True
        return True

    def _spread(
        self, value: ir.Value, shape: Sequence[int | str], over: ir.Value | None = None
    ) -> ir.Value:
        """`value`, or `over` in its place, with an entry of its own for each of `shape`."""
        found = self._tokens.of(value)
        given = found.value if over is None else over
        wanted = over_time(shape)
        if dims(given) == wanted:
            return given
        own = shape_of(value)
        if not found.along:
            raise UnliftedError
        if own[:1] != (BATCH,):
            raise UnliftedError
        target = self._emit.constant([1, 1, *(int(dim) for dim in shape[1:])])
        return self._emit("Expand", [given, target], given.dtype, wanted)

    def _outer_products(self, index: int, found: Update) -> bool:
        body = self._body
        reads = self._reads(index, found)
        if reads is None:
            return False
        try:
            made = EmittedOperator(self._tokens, found, list(reads.values()), self._start(index))
        except UnliftedError:
            return False
        for value, result in zip(reads, made.results, strict=False):
            over = self._tokens.reshaped(result, over_time(shape_of(value)))
            self._tokens.known[value] = Lifted(over, along=True)
        final = body.node.outputs[index]
        if final.uses() or final.is_graph_output():
            self._final[index] = made.final()
        self.kinds.append(made.kind)
        self.smaller = True
        return True

    def _reads(self, index: int, found: Update) -> dict[ir.Value, Product] | None:
        """What reads the new state, with its query; None where something reads it otherwise."""
        body, following = self._body, self._body.following[index]
        live = _live(body)
        before = body.after(body.states[index])
        after = body.after(following)
        for node in live:  # the old state is there for the update alone
            inside = node.outputs[0] in before and following not in body.after(node.outputs[0])
            if inside and not any(value in after for value in node.inputs):
                return None
        reads: dict[ir.Value, Product] = {}
        waiting = [following]
        while waiting:
            value = waiting.pop()
            if value is not following and value in (*body.following, *body.results):
                return None
            for node, _ in value.uses():
                if node not in live:
                    continue
                result = node.outputs[0]
                if node.op_type == "Identity" and result in body.graph.outputs:
                    if same(result) is following and result in body.graph.outputs[body.count :]:
                        return None
                    continue
                asked = query(found, following, result, after)
                if asked is None:
                    waiting.append(result)
                else:
                    reads[result] = asked
        return None if following in body.results else reads

    def _loop(self, group: Sequence[int]) -> None:
        """A Scan of what depends on the states of `group`, and what is needed of it outside."""
        body = self._body
        own = body.within(group)
        cuts: dict[ir.Value, None] = {}

        def need(value: ir.Value | None) -> None:
            if value is None or value not in own or value in cuts:
                return
            node = value.producer()
            if value in body.following or value in body.states or node is None:
                cuts[value] = None
                return
            inner = [x for x in node.inputs if x in own]
            known = type_of(node) in ELEMENTWISE or type_of(node) in RULES
            if not known or sum(map(entries, inner)) > 2 * entries(value):
                cuts[value] = None
                return
            for x in inner:
                need(x)

        for value in body.results:
            need(value)
        for index, value in enumerate(body.following):
            if index in group:
                continue
            node = value.producer()
            for x in node.inputs if node is not None and node.graph is body.graph else ():
                need(x)
        made = smaller_loop(self._emit, body, group, list(cuts), self._tokens)
        self._tokens.known.update(made.over)
        self._final.update(made.finals)
        self.kinds.append("a loop")
        self.smaller = self.smaller or made.nodes < sum(
            node.op_type not in FREE for node in _live(body)
        )


def _live(body: LoopBody) -> set[ir.Node]:
    """The nodes of the body on which its outputs stand."""
    found: set[ir.Node] = set()
    waiting = [value.producer() for value in body.graph.outputs]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and node.graph is body.graph:
            found.add(node)
            waiting += [value.producer() for value in node.inputs if value is not None]
    return found


def _joined(groups: Sequence[list[int]], looped: set[int]) -> list[list[int]]:
    """Groups that stay in a loop and follow each other are one."""
    found: list[list[int]] = []
    for group in groups:
        if found and set(group) & looped and set(found[-1]) & looped:
            found[-1] += group
        else:
            found.append(list(group))
    return found
