"""First tokens of their own, later ones beside those before -> all tokens, chosen by position.

    concat(f(x[:, :k]), g(x[:, k:], x[:, :-k]))  ->  Where(position < k, f(x), g(x, shift(x)))
    pad(g(x[:, k:], x[:, :-k]), k c in front)    ->  Where(position < k, c, g(x, shift(x)))
    concat(f(x[:, :1]), x)[:, :-1]               ->  Where(position == 0, f(x), shift(x))
    concat(f(x[:, :1]), x)[:, 1:]                ->  x

with ``shift(x)`` what was k tokens before, as `fuse_token_shift` writes it; slices between these
are shifts by less.  So pre-emphasis of speech is written, ``cat(x[:, :1], x[:, 1:] - 0.97 x[:,
:-1])``, what `torch.diff` gives, and channels that are moved in time, ``y[:, 2:, :4] = x[:, :-2,
:4]``.  Holds where f and g take each token alone: elementwise operators, products with constant
matrices, and pieces along other axes, of what has no time axis beside.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    attributes_of,
    constant,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
)
from intaglio.state import BATCH, TIME

from ._initial_values import is_zero
from .fuse_token_shift import earlier, time_axis
from .join_padding import is_first

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
LONGER = f"{TIME} + 1"  # the length of what has one more in front


class PeelFirstToken(Exact):
    """Write sequences whose first token is computed otherwise as one choice by position."""

    for_tokens = True

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite every join of a first token and later ones."""
        notes = []
        for node in list(model.graph):
            try:
                chosen = _by_position(node)
            except _UnfitError:
                continue
            if chosen is None:
                continue
            replace_uses(node.outputs[0], chosen)
            model.graph.remove(node, safe=True)
            notes.append(f"{describe(node)} is chosen by position")
        return PassResult(changed=bool(notes), notes=notes)


def _by_position(node: ir.Node) -> ir.Value | None:
    """What `node` gives as a choice by position; None where it neither joins nor cuts."""
    join = _joined(node)
    if join is not None:
        emit, whole = Emitter(node), _Whole(join.axis, join.count)
        return _chosen(emit, node, join, whole.rebuilt(emit, join.later, _later(join.count)))
    cut = _cut(node)
    if cut is None:
        return None
    emit, (join, start) = Emitter(node), cut
    if start:
        return emit("Identity", [join.later], join.later.dtype, dims(join.later))
    return _chosen(emit, node, join, _shifted(emit, join.later, 1))


class _UnfitError(Exception):
    """A value does not hold one entry for each token, computed from that and the one before."""


@dataclass(frozen=True)
class _Join:
    """`count` first tokens, or the number they are filled with, before `later` along `axis`."""

    first: ir.Value | float
    later: ir.Value
    axis: int
    count: int


def _later(count: int) -> str:
    """The length of what the first `count` tokens are missing from."""
    return f"{TIME} - {count}"


def _joined(node: ir.Node, length: str = TIME) -> _Join | None:
    """What `node` joins to `length` tokens: first ones, and later ones; None if it does not."""
    shape = dims(node.outputs[0]) or ()
    if node.domain or [dim for dim in shape if TIME in str(dim)] != [length] or BATCH not in shape:
        return None
    axis = shape.index(length)
    if node.op_type == "Concat" and len(node.inputs) == 2:
        first, rest = node.inputs
        count, left = ((dims(value) or ("?",) * len(shape))[axis] for value in (first, rest))
        if attribute(node, "axis") % len(shape) != axis or not isinstance(count, int):
            return None
        fits = left == _later(count) if length == TIME else (count, left) == (1, TIME)
        if fits and first is not None and rest is not None:
            return _Join(first, rest, axis, count)
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        rest, pads, given = node.inputs[0], integers(input_of(node, 1)), input_of(node, 2)
        fill = np.zeros(1) if given is None else constant(given)
        axes = [a % len(shape) for a in integers(input_of(node, 3)) or range(len(shape))]
        if rest is None or fill is None or pads is None or axis not in axes:
            return None
        count, left = pads[axes.index(axis)], (dims(rest) or ("?",) * len(shape))[axis]
        if count < 1 or sum(map(abs, pads)) != count:
            return None
        if left == _later(count) if length == TIME else (count, left) == (1, TIME):
            return _Join(float(fill.item()), rest, axis, count)
    return None


def _cut(node: ir.Node) -> tuple[_Join, int] | None:
    """What `node` cuts back to `TIME` tokens after one more was put in front, and where from."""
    given = node.inputs[0] if node.inputs else None
    maker = None if given is None else given.producer()
    join = None if maker is None else _joined(maker, LONGER)
    if node.op_type != "Slice" or node.domain or join is None:
        return None
    shape, rank = dims(node.outputs[0]) or (), len(dims(given) or ())
    starts, axes, steps = (integers(input_of(node, i)) for i in (1, 3, 4))
    along = [a % rank for a in axes or [0]] == [join.axis] and steps in (None, [1])
    if along and starts in ([0], [1]) and shape[join.axis] == TIME:
        return join, starts[0]
    return None


def _chosen(emit: Emitter, node: ir.Node, join: _Join, rest: ir.Value) -> ir.Value:
    """The first tokens of `join` at their positions, and `rest`, of all tokens, behind them."""
    old, axis, first = node.outputs[0], join.axis, join.first
    shape = dims(old) or ()
    if not isinstance(first, ir.Value):
        fill = np.full([1] * len(shape), first)
        start = emit.constant(fill, (old.dtype or ir.DataType.FLOAT).numpy())
    elif is_zero(first):
        zero = np.zeros([1] * len(shape))
        start = emit.constant(zero, (old.dtype or ir.DataType.FLOAT).numpy())
    elif join.count == 1 and _holds_no_token(first):
        start = first
    else:
        start = _Whole(axis, join.count).rebuilt(emit, first, join.count)
    place = [-1 if i == axis else 1 for i in range(len(shape))]
    tokens = emit("Shape", [rest], INT64, [1], start=axis, end=axis + 1)
    count = emit("Squeeze", [tokens], INT64, [])
    index = emit("Range", [emit.constant(0), count, emit.constant(1)], INT64, [TIME])
    is_first = emit("Less", [index, emit.constant(join.count)], BOOL, [TIME])
    target = [TIME if i == axis else 1 for i in range(len(shape))]
    mask = emit("Reshape", [is_first, emit.constant(place)], BOOL, target)
    return emit("Where", [mask, start, rest], old.dtype, shape)


def _holds_no_token(value: ir.Value) -> bool:
    """Whether `value` is computed from weights and sizes alone, as zeros are."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        node = each.producer()
        if each in seen or constant(each) is not None or (node and node.op_type == "Shape"):
            continue
        seen.add(each)
        if node is None and not each.is_initializer():
            return False
        waiting += [entry for entry in (node.inputs if node else ()) if entry is not None]
    return True


@dataclass(frozen=True)
class _Whole:
    """Emits for every token, along `axis`, what is there for the first `count`, or for the others.

    Either is computed from slices of sequences, each token alone.
    """

    axis: int
    count: int

    def rebuilt(self, emit: Emitter, value: ir.Value, length: int | str) -> ir.Value:
        """`value`, of `length` along the axis, for every token: by the same nodes on all of them.

        Raises:
            _UnfitError: if one of them may combine tokens.
        """
        known: dict[ir.Value, ir.Value] = {}
        for node in self._cone(value, length):
            back, given = self._offset(node, length), self._sequence(node, length)
            old = node.outputs[0]
            if back is not None and given is not None:
                known[old] = _shifted(emit, given, back) if back else given
                continue
            shape = list(dims(old) or ())
            shape[self.axis] = TIME
            inputs = [known.get(each, each) if each is not None else None for each in node.inputs]
            known[old] = emit.node(
                node.op_type, inputs, [(old.dtype, shape)], attributes_of(node), node.domain
            )[0]
        return known[value]

    def _cone(self, value: ir.Value, length: int | str) -> list[ir.Node]:
        """The nodes from slices of sequences to `value`, all of `length` along the axis."""
        found: list[ir.Node] = []

        def visit(each: ir.Value) -> None:
            node = each.producer()
            if node is None or node.domain:
                raise _UnfitError
            if node in found:
                return
            if self._offset(node, length) is None:
                for given in self._along(node, length):
                    visit(given)
            found.append(node)

        visit(value)
        return found

    def _along(self, node: ir.Node, length: int | str) -> Iterator[ir.Value]:
        """The inputs of `node` that hold tokens; `node` takes each of them alone."""
        rank = len(dims(node.outputs[0]) or ())
        if node.op_type in PIECES and self._beside(node, rank):
            yield from [each for each in node.inputs[: PIECES[node.op_type]] if each is not None]
            return
        if node.op_type not in ELEMENTWISE and node.op_type != "MatMul":
            raise _UnfitError
        for place, value in enumerate(node.inputs):
            shape = dims(value)
            if value is None or shape is None:
                raise _UnfitError
            own = self.axis - rank + len(shape)
            tokens = 0 <= own < len(shape) and shape[own] == length and constant(value) is None
            if node.op_type == "MatMul" and (place == 1 or own >= len(shape) - 1) and tokens:
                raise _UnfitError
            if tokens and not (isinstance(length, int) and BATCH not in shape):
                yield value
            elif TIME in str(shape) or (0 <= own < len(shape) and shape[own] != 1
                                        and node.op_type != "MatMul"):  # fmt: skip
                raise _UnfitError

    def _beside(self, node: ir.Node, rank: int) -> bool:
        """Whether a Slice or a Concat is along other axes than that of time."""
        if node.op_type == "Concat":
            return bool(attribute(node, "axis") % rank != self.axis)
        axes = integers(input_of(node, 3))
        return axes is not None and self.axis not in [axis % rank for axis in axes]

    def _offset(self, node: ir.Node, length: int | str) -> int | None:
        """By how many tokens `node`, a slice of a sequence, looks back from its own."""
        given = self._sequence(node, length)
        if given is not None and length == 1 and is_first(node, given, self.axis):
            return 0
        shape = dims(given) or ()
        if node.op_type != "Slice" or self.axis >= len(shape) or shape[self.axis] != TIME:
            return None
        starts, _, axes, steps = (integers(input_of(node, i)) for i in range(1, 5))
        if [a % len(shape) for a in axes or [0]] != [self.axis] or steps not in (None, [1]):
            return None
        made = (dims(node.outputs[0]) or ("?",) * len(shape))[self.axis]
        if made != length or not starts:
            return None
        if isinstance(length, int):
            return 0 if starts == [0] else None
        return self.count - starts[0] if 0 <= starts[0] <= self.count else None

    def _sequence(self, node: ir.Node, length: int | str) -> ir.Value | None:
        """What `node` takes a piece of; of a first token that was selected, the sequence."""
        given = node.inputs[0] if node.inputs else None
        selects = None if node.op_type != "Unsqueeze" or length != 1 else producer(given, "Gather")
        return given if selects is None else selects.inputs[0]


PIECES = {"Concat": None, "Slice": 1}
"""Operators that cut or join along axes, and how many of their inputs hold entries."""


def _shifted(emit: Emitter, x: ir.Value, count: int) -> ir.Value:
    """What was `count` tokens before each of `x`."""
    if time_axis(x) is None:
        raise _UnfitError
    return earlier(x, count, emit)
