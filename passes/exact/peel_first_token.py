"""A first token of its own, later ones beside the one before -> all tokens, chosen by position.

    concat(f(x[:, :1]), g(x[:, 1:], x[:, :-1]))  ->  Where(position == 0, f(x), g(x, shift(x)))
    pad(g(x[:, 1:], x[:, :-1]), 1 c in front)    ->  Where(position == 0, c, g(x, shift(x)))
    concat(f(x[:, :1]), x)[:, :-1]               ->  Where(position == 0, f(x), shift(x))
    concat(f(x[:, :1]), x)[:, 1:]                ->  x

with ``shift(x)`` the token before, as `fuse_token_shift` writes it.  So pre-emphasis of speech is
written, ``cat(x[:, :1], x[:, 1:] - 0.97 x[:, :-1])``, and what `torch.diff` gives.  Holds where f
and g take each token alone: elementwise operators, and products with constant matrices, of what has
no time axis beside.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    END,
    Emitter,
    attribute,
    attributes_of,
    constant,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import BATCH, TIME

from .fuse_token_shift import earlier, time_axis

INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL
LATER = f"{TIME} - 1"  # the length of what the first token is missing from
LONGER = f"{TIME} + 1"  # and of what has one more in front


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
        emit, cone = Emitter(node), _cone(join.later, join.axis, LATER)
        return _chosen(emit, node, join, _rebuilt(emit, join.later, cone, join.axis, {}))
    cut = _cut(node)
    if cut is None:
        return None
    emit, (join, start) = Emitter(node), cut
    if start:
        return emit("Identity", [join.later], join.later.dtype, dims(join.later))
    return _chosen(emit, node, join, _shifted(emit, join.later))


class _UnfitError(Exception):
    """A value does not hold one entry for each token, computed from that and the one before."""


@dataclass(frozen=True)
class _Join:
    """A first token, or the number that it is filled with, before `later` along `axis`."""

    first: ir.Value | float
    later: ir.Value
    axis: int


def _joined(node: ir.Node, length: str = TIME, later: str = LATER) -> _Join | None:
    """What `node` joins to `length` tokens: a first one, and `later` ones; None if it does not."""
    shape = dims(node.outputs[0]) or ()
    if node.domain or [dim for dim in shape if TIME in str(dim)] != [length] or BATCH not in shape:
        return None
    axis = shape.index(length)
    if node.op_type == "Concat" and len(node.inputs) == 2:
        first, rest = node.inputs
        sizes = [(dims(value) or ("?",) * len(shape))[axis] for value in (first, rest)]
        joined = attribute(node, "axis") % len(shape) == axis
        if joined and sizes == [1, later] and first is not None and rest is not None:
            return _Join(first, rest, axis)
    if node.op_type == "Pad" and attribute(node, "mode", "constant") == "constant":
        rest, pads, given = node.inputs[0], integers(input_of(node, 1)), input_of(node, 2)
        fill = np.zeros(1) if given is None else constant(given)
        axes = [a % len(shape) for a in integers(input_of(node, 3)) or range(len(shape))]
        wanted = [int(a == axis) for a in axes] + [0] * len(axes)
        if rest is None or fill is None or pads != wanted or axis not in axes:
            return None
        if (dims(rest) or ("?",) * len(shape))[axis] == later:
            return _Join(float(fill.item()), rest, axis)
    return None


def _cut(node: ir.Node) -> tuple[_Join, int] | None:
    """What `node` cuts back to `TIME` tokens after one more was put in front, and where from."""
    given = node.inputs[0] if node.inputs else None
    maker = None if given is None else given.producer()
    join = None if maker is None else _joined(maker, LONGER, TIME)
    if node.op_type != "Slice" or node.domain or join is None:
        return None
    shape, rank = dims(node.outputs[0]) or (), len(dims(given) or ())
    starts, axes, steps = (integers(input_of(node, i)) for i in (1, 3, 4))
    along = [a % rank for a in axes or [0]] == [join.axis] and steps in (None, [1])
    if along and starts in ([0], [1]) and shape[join.axis] == TIME:
        return join, starts[0]
    return None


def _chosen(emit: Emitter, node: ir.Node, join: _Join, rest: ir.Value) -> ir.Value:
    """The first token of `join` at position 0, and `rest`, of all tokens, behind it."""
    old, axis, first = node.outputs[0], join.axis, join.first
    shape = dims(old) or ()
    if not isinstance(first, ir.Value):
        fill = np.full([1] * len(shape), first)
        start = emit.constant(fill, (old.dtype or ir.DataType.FLOAT).numpy())
    elif _holds_no_token(first):
        start = first
    else:
        start = _rebuilt(emit, first, _cone(first, axis, 1), axis, {})
    place = [-1 if i == axis else 1 for i in range(len(shape))]
    tokens = emit("Shape", [rest], INT64, [1], start=axis, end=axis + 1)
    count = emit("Squeeze", [tokens], INT64, [])
    index = emit("Range", [emit.constant(0), count, emit.constant(1)], INT64, [TIME])
    is_first = emit("Equal", [index, emit.constant(0)], BOOL, [TIME])
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


def _cone(value: ir.Value, axis: int, length: int | str) -> list[ir.Node]:
    """The nodes from slices of sequences to `value`, all of `length` along `axis`.

    Raises:
        _UnfitError: if one of them may combine tokens.
    """
    found: list[ir.Node] = []

    def visit(each: ir.Value) -> None:
        node = each.producer()
        if node is None or node.domain:
            raise _UnfitError
        if node in found:
            return
        if _offset(node, axis, length) is None:
            for given in _along(node, axis, length):
                visit(given)
        found.append(node)

    visit(value)
    return found


def _along(node: ir.Node, axis: int, length: int | str) -> Iterator[ir.Value]:
    """The inputs of `node` that hold tokens; `node` takes each of them alone."""
    rank = len(dims(node.outputs[0]) or ())
    if node.op_type not in ELEMENTWISE and node.op_type != "MatMul":
        raise _UnfitError
    for place, value in enumerate(node.inputs):
        shape = dims(value)
        if value is None or shape is None:
            raise _UnfitError
        own = axis - rank + len(shape)
        tokens = 0 <= own < len(shape) and shape[own] == length and constant(value) is None
        if node.op_type == "MatMul" and (place == 1 or own >= len(shape) - 1) and tokens:
            raise _UnfitError
        if tokens and not (length == 1 and BATCH not in shape):
            yield value
        elif TIME in str(shape) or (0 <= own < len(shape) and shape[own] != 1
                                    and node.op_type != "MatMul"):  # fmt: skip
            raise _UnfitError


def _offset(node: ir.Node, axis: int, length: int | str) -> int | None:
    """By how many tokens `node`, a slice of a sequence, looks back from its own."""
    given = node.inputs[0] if node.inputs else None
    shape = dims(given) or ()
    if node.op_type != "Slice" or axis >= len(shape) or shape[axis] != TIME:
        return None
    starts, ends, axes, steps = (integers(input_of(node, i)) for i in range(1, 5))
    if [a % len(shape) for a in axes or [0]] != [axis] or steps not in (None, [1]):
        return None
    if length == 1:
        return 0 if starts == [0] and ends == [1] else None
    fits = (dims(node.outputs[0]) or ("?",) * len(shape))[axis] == LATER  # if ends are computed
    if starts == [1] and (fits if ends is None else ends[0] >= END):
        return 0
    return 1 if starts == [0] and (fits if ends is None else ends == [-1]) else None


def _rebuilt(
    emit: Emitter,
    value: ir.Value,
    cone: list[ir.Node],
    axis: int,
    known: dict[ir.Value, ir.Value],
) -> ir.Value:
    """`value` for every token, by the same nodes on whole sequences."""
    for node in cone:
        back = _offset(node, axis, LATER) if LATER in (dims(node.outputs[0]) or ()) else None
        if back is None and _offset(node, axis, 1) is not None:
            back = 0
        given = node.inputs[0] if node.inputs else None
        if back is not None and given is not None:
            known[node.outputs[0]] = _shifted(emit, given) if back else given
            continue
        old = node.outputs[0]
        shape = list(dims(old) or ())
        shape[axis] = TIME
        inputs = [known.get(each, each) if each is not None else None for each in node.inputs]
        known[old] = emit.node(
            node.op_type, inputs, [(old.dtype, shape)], attributes_of(node), node.domain
        )[0]
    return known[value]


def _shifted(emit: Emitter, x: ir.Value) -> ir.Value:
    """The token before each of `x`."""
    if time_axis(x) is None:
        raise _UnfitError
    return earlier(x, 1, emit)
