"""What the body of a loop computes of one token, computed of all tokens at once.

A value of shape [batch, ...] becomes one of [batch, time, ...], one without batch [time, ...].
What is the same in each iteration stays as it is.  Nodes that mix rows, or that are not known, are
not lifted, and neither is what stands on them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_facts import normal
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    attributes_of,
    constant,
    dims,
    input_of,
    integers,
    producer,
    type_of,
)
from intaglio.state import BATCH, TIME


class UnliftedError(Exception):
    """A value is not computed of each token alone, as far as is known."""


@dataclass(frozen=True)
class Lifted:
    """A value outside the loop; `along` says whether it has an entry for each token."""

    value: ir.Value
    along: bool


def shape_of(value: ir.Value | None) -> tuple[Dim, ...]:
    """The shape of a value of the body, whose sizes are known but for the batch."""
    shape = dims(value)
    if shape is None or any(not isinstance(dim, int) and dim != BATCH for dim in shape):
        raise UnliftedError
    if BATCH in shape[1:]:
        raise UnliftedError
    return shape


def over_time(shape: Sequence[Dim]) -> tuple[Dim, ...]:
    """The shape of a value of `shape` over all tokens."""
    rows = shape[:1] == (BATCH,)
    return (BATCH, TIME, *shape[1:]) if rows else (TIME, *shape)


class AllTokens:
    """Values of a body over all tokens; `given` tells those that are not to be computed."""

    def __init__(
        self, emit: Emitter, body: ir.Graph, given: Callable[[ir.Value], Lifted | None]
    ) -> None:
        self.emit = emit
        self._body = body
        self._given = given
        self.known: dict[ir.Value, Lifted] = {}

    def of(self, value: ir.Value | None) -> Lifted:
        """`value` over all tokens.

        Raises:
            UnliftedError: it is not computed of each token alone, or stands on what is not given.
        """
        if value is None:
            raise UnliftedError
        if value not in self.known:
            self.known[value] = self._given(value) or self._lift(value)
        return self.known[value]

    def along(self, value: ir.Value) -> ir.Value:
        """`value` with an entry for each token, whether it differs between them or not."""
        found = self.of(value)
        if found.along:
            return found.value
        raise UnliftedError

    def _lift(self, value: ir.Value) -> Lifted:
        node = value.producer()
        if node is None or node.graph is not self._body:
            if value.graph is self._body and value.const_value is None:
                raise UnliftedError
            if value.const_value is not None and value.graph is self._body:
                array = value.const_value.numpy()
                return Lifted(self.emit.constant(array, array.dtype), along=False)
            if TIME in "".join(map(str, dims(value) or ())):
                raise UnliftedError
            return Lifted(value, along=False)
        if type_of(node) == "Shape":
            return self._shape(node)
        given = [None if x is None else self.of(x) for x in node.inputs]
        if not any(x is not None and x.along for x in given):
            outside = self._again(node, [_value(x) for x in given])
            for old, new in zip(node.outputs, outside, strict=True):
                self.known[old] = Lifted(new, along=False)
            return self.known[value]
        rule = elementwise if type_of(node) in ELEMENTWISE else RULES.get(type_of(node))
        if rule is None:
            raise UnliftedError
        for old, new in zip(node.outputs, rule(self, node, given), strict=True):
            self.known[old] = Lifted(new, along=True)
        return self.known[value]

    def _shape(self, node: ir.Node) -> Lifted:
        shape = shape_of(node.inputs[0])
        picked = shape[slice(attribute(node, "start", 0), attribute(node, "end"))]
        if BATCH not in picked:
            return Lifted(self.emit.constant(list(picked)), along=False)
        given = self.of(node.inputs[0]).value
        if picked != (BATCH,):
            raise UnliftedError
        size = self.emit("Shape", [given], ir.DataType.INT64, [1], start=0, end=1)
        return Lifted(size, along=False)

    def _again(self, node: ir.Node, given: Sequence[ir.Value | None]) -> tuple[ir.Value, ...]:
        looks = [(value.dtype, dims(value)) for value in node.outputs]
        return self.emit.node(node.op_type, given, looks, attributes_of(node), node.domain)

    def node(
        self, like: ir.Node, op: str, inputs: Sequence[ir.Value | None], **attributes: object
    ) -> tuple[ir.Value, ...]:
        """Emit `op` in the place of `like`, whose outputs it gives over all tokens."""
        looks = [(value.dtype, over_time(shape_of(value))) for value in like.outputs]
        return self.emit.node(op, inputs, looks, attributes)

    def reshaped(self, value: ir.Value, shape: Sequence[Dim]) -> ir.Value:
        """`value` as `shape`, whose batch and time lead and stay."""
        if dims(value) == tuple(shape):
            return value
        keep = sum(dim in (BATCH, TIME) for dim in shape)
        target = [0] * keep + [int(dim) for dim in shape[keep:]]
        return self.emit("Reshape", [value, self.emit.constant(target)], value.dtype, shape)


Given = Sequence[Lifted | None]
Rule = Callable[[AllTokens, ir.Node, Given], Sequence[ir.Value]]


def _value(found: Lifted | None) -> ir.Value | None:
    return None if found is None else found.value


def _rows(value: ir.Value | None) -> bool:
    return shape_of(value)[:1] == (BATCH,)


def elementwise(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    shape = shape_of(node.outputs[0])
    rank, rows = len(shape), _rows(node.outputs[0])
    inputs = [
        None if x is None else _aligned(tokens, value, x, rank, rows)
        for value, x in zip(node.inputs, given, strict=True)
    ]
    return tokens.node(node, node.op_type, inputs, **attributes_of(node))


def _aligned(
    tokens: AllTokens, value: ir.Value | None, found: Lifted, rank: int, rows: bool
) -> ir.Value:
    """An operand whose last axes stand where they stood, and whose time is that of the result."""
    own = shape_of(value)
    if own[:1] == (BATCH,) and (len(own) < rank or not rows):
        raise UnliftedError
    if not found.along:
        if own[:1] != (BATCH,):
            return found.value
        looks = (BATCH, 1, *own[1:])
        return tokens.emit(
            "Unsqueeze", [found.value, tokens.emit.constant([1])], found.value.dtype, looks
        )
    if own[:1] == (BATCH,):
        return found.value
    inner = rank - rows
    if len(own) > inner:  # its first axis is that of the rows, of which it has one
        own = own[1:]
    return tokens.reshaped(found.value, (TIME, *[1] * (inner - len(own)), *own))


def _only(node: ir.Node, given: Given) -> tuple[ir.Value, tuple[Dim, ...]]:
    """The first operand over all tokens, and its shape in the loop; the others are the same."""
    first, *others = given
    if first is None or not first.along or any(x is not None and x.along for x in others):
        raise UnliftedError
    return first.value, shape_of(node.inputs[0])


def _axis(axis: int, shape: Sequence[Dim]) -> int:
    """Where an axis of the loop's value stands over all tokens."""
    place = normal(axis, len(shape))
    if place == 0 and shape[0] == BATCH:
        raise UnliftedError
    return place + 1


def _by_attribute(default: int) -> Rule:
    """Operators with one axis: softmax, norms, splits."""

    def rule(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
        x, shape = _only(node, given)
        others = [_value(y) for y in given[1:]]
        axis = _axis(attribute(node, "axis", default), shape)
        return tokens.node(
            node, node.op_type, [x, *others], **{**attributes_of(node), "axis": axis}
        )

    return rule


def _by_input(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    """Reductions, and what inserts or drops axes of size one: axes are the second input."""
    x, shape = _only(node, given)
    axes = integers(input_of(node, 1))
    if axes is None or (not axes and attribute(node, "noop_with_empty_axes", 0)):
        raise UnliftedError
    if node.op_type == "Unsqueeze":
        shape = shape_of(node.outputs[0])
    places = tokens.emit.constant([_axis(axis, shape) for axis in axes])
    return tokens.node(node, node.op_type, [x, places], **attributes_of(node))


def _concat(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    shape = shape_of(node.outputs[0])
    if any(x is None or not x.along for x in given):
        raise UnliftedError
    if any(_rows(value) != _rows(node.outputs[0]) for value in node.inputs):
        raise UnliftedError
    axis = _axis(attribute(node, "axis"), shape)
    return tokens.node(node, "Concat", [x.value for x in given if x], axis=axis)


def _slice(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    x, shape = _only(node, given)
    axes = integers(input_of(node, 3))
    starts, ends, _, *steps = [_value(y) for y in given[1:]] + [None] * (4 - len(given[1:]))
    if axes is None:
        raise UnliftedError
    places = tokens.emit.constant([_axis(axis, shape) for axis in axes])
    inputs = [x, starts, ends, places, *(y for y in steps if y is not None)]
    return tokens.node(node, "Slice", inputs)


def _gather(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    table, indices = given
    assert table is not None
    assert indices is not None
    axis = normal(attribute(node, "axis", 0), len(shape_of(node.inputs[0])))
    if table.along and not indices.along:
        axis = _axis(axis, shape_of(node.inputs[0]))
    elif table.along or axis:  # entries of each token's own, or rows of a table that are not rows
        raise UnliftedError
    return tokens.node(node, "Gather", [table.value, indices.value], axis=axis)


def _transpose(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    x, shape = _only(node, given)
    perm = list(attribute(node, "perm") or reversed(range(len(shape))))
    if _rows(node.inputs[0]) and perm[0]:
        raise UnliftedError
    if _rows(node.inputs[0]):
        perm = [0, 1, *(axis + 1 for axis in perm[1:])]
    else:
        perm = [0, *(axis + 1 for axis in perm)]
    return tokens.node(node, "Transpose", [x], perm=perm)


def _reshape(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    x, _ = _only(node, given)
    if _rows(node.inputs[0]) != _rows(node.outputs[0]):
        raise UnliftedError
    return [tokens.reshaped(x, over_time(shape_of(node.outputs[0])))]


def _expand(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    x, shape = _only(node, given)
    wanted = shape_of(node.outputs[0])
    if _rows(node.inputs[0]) != _rows(node.outputs[0]) or len(shape) != len(wanted):
        raise UnliftedError
    target = [1 if isinstance(dim, str) else dim for dim in over_time(wanted)]
    return tokens.node(node, "Expand", [x, tokens.emit.constant(target)])


def _mat_mul(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    left, right = given
    assert left is not None
    assert right is not None
    shapes = [shape_of(value) for value in node.inputs]
    rank = max(map(len, shapes))
    if not (_rows(node.outputs[0]) and _rows(node.inputs[0]) and left.along):
        raise UnliftedError
    if right.along and not (_rows(node.inputs[1]) and len(shapes[0]) == len(shapes[1]) > 2):
        raise UnliftedError
    if not right.along and (BATCH in shapes[1] or len(shapes[1]) >= max(rank, 3)):
        raise UnliftedError
    return tokens.node(node, "MatMul", [left.value, right.value])


def _gemm(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    x, shape = _only(node, [given[0], given[1], *given[2:]])
    plain = attribute(node, "alpha", 1.0) == attribute(node, "beta", 1.0) == 1.0
    if not plain or attribute(node, "transA", 0) or shape[0] != BATCH or given[1] is None:
        raise UnliftedError
    weight = given[1].value
    if attribute(node, "transB", 0):
        turned = tuple(reversed(dims(weight) or ()))
        weight = tokens.emit("Transpose", [weight], weight.dtype, turned, perm=[1, 0])
    product = tokens.node(node, "MatMul", [x, weight])
    bias = given[2] if len(given) > 2 else None
    if bias is None:
        return product
    if BATCH in (dims(bias.value) or ()):
        raise UnliftedError
    return tokens.node(node, "Add", [product[0], bias.value])


def _einsum(tokens: AllTokens, node: ir.Node, given: Given) -> Sequence[ir.Value]:
    equation = str(attribute(node, "equation")).replace(" ", "")
    takes, _, gives = equation.partition("->")
    sides = takes.split(",")
    if "." in equation or not _rows(node.outputs[0]):
        raise UnliftedError
    rows = gives[0]
    time = next(letter for letter in "tzyxwvusrqponmlkjihgfedcba" if letter not in equation)
    turned = []
    for side, value, found in zip(sides, node.inputs, given, strict=True):
        if found is not None and found.along:
            if not (_rows(value) and side.startswith(rows)):
                raise UnliftedError
            turned.append(f"{rows}{time}{side[1:]}")
        elif rows in side:
            raise UnliftedError
        else:
            turned.append(side)
    text = f"{','.join(turned)}->{rows}{time}{gives[1:]}"
    return tokens.node(node, "Einsum", [_value(x) for x in given], equation=text)


RULES: dict[str, Rule] = {
    "Concat": _concat,
    "Einsum": _einsum,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _gemm,
    "LayerNormalization": _by_attribute(-1),
    "LogSoftmax": _by_attribute(-1),
    "LpNormalization": _by_attribute(-1),
    "MatMul": _mat_mul,
    "RMSNormalization": _by_attribute(-1),
    "Reshape": _reshape,
    "Slice": _slice,
    "Softmax": _by_attribute(-1),
    "Split": _by_attribute(0),
    "Squeeze": _by_input,
    "Transpose": _transpose,
    "Unsqueeze": _by_input,
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare".split(),
        _by_input,
    ),
}


def turned(emit: Emitter, value: ir.Value, perm: Sequence[int]) -> ir.Value:
    """`value` with its axes in the order `perm`; two turns are one, or none."""
    before = producer(value, "Transpose")
    if before is not None and before.inputs[0] is not None:
        inner = attribute(before, "perm") or list(reversed(range(len(perm))))
        value, perm = before.inputs[0], [inner[axis] for axis in perm]
    if list(perm) == list(range(len(perm))):
        return value
    shape = dims(value) or ()
    return emit("Transpose", [value], value.dtype, [shape[axis] for axis in perm], perm=list(perm))


def one(value: ir.Value | None) -> float | None:
    """The number that a constant holds everywhere."""
    array = constant(value)
    if array is None or array.size == 0 or not np.issubdtype(array.dtype, np.number):
        return None
    flat = array.reshape(-1)
    return float(flat[0]) if (flat == flat[0]).all() else None
