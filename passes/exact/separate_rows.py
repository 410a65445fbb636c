"""f(Concat(a, b)) -> f(a), f(b) along the batch, where each row is computed for itself.

Classifier-free guidance inside a model doubles the batch, runs it, and halves the result (Ho and
Salimans 2022, https://arxiv.org/abs/2207.12598, equation 6).  In a step graph each of the parts is
a sequence of its own for each row, so what lies between is written once for each, of the same
weights, and has states for each.  That is equal where no node in between brings rows together,
which statefulize shows of what is written here (`analysis.rows`): an operator that keeps `batch`
rows apart keeps any number apart.  What counts joined rows is refused, and shapes are given anew.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.errors import PassError
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    END,
    Dim,
    Emitter,
    attribute,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
    subgraphs,
    taken,
)
from intaglio.passes.own_ops import define
from intaglio.state import BATCH

INT64 = ir.DataType.INT64
Parts = tuple[ir.Value, ...]
SIZES = frozenset("Cast Concat Gather Identity Shape Slice Squeeze Unsqueeze".split())
SIZED = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1}
"""Operators that take a shape, and where: a part is given that of its own rows."""
JOINED = re.compile(rf"\b(\d+)\*{BATCH}\b")


class SeparateRows(Exact):
    """Compute each part of a batch of joined rows by itself."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Follow what is joined along the batch to where its parts are taken.

        Raises:
            PassError: if a node is not known to keep the parts apart; it is named.
        """
        follow = _Follow(model.graph)
        for node in list(model.graph):
            follow.on(node)
        for value in model.graph.outputs:
            if value in follow.parts:
                raise PassError(
                    f"the output {value.name!r} has {len(follow.parts[value])} rows for each row "
                    "of the batch. Return each part by itself: value.chunk(2, 0)."
                )
        if follow.joins:
            common.RemoveUnusedNodesPass()(model)
            define(model)
        notes = [describe(node) for node in follow.joins]
        return PassResult(changed=bool(notes), notes=notes)


@dataclass
class _Follow:
    """What is known of joined rows: their parts, and which values are sizes of them."""

    graph: ir.Graph
    parts: dict[ir.Value, Parts] = field(default_factory=dict)
    sizes: set[ir.Value] = field(default_factory=set)
    joins: list[ir.Node] = field(default_factory=list)

    def on(self, node: ir.Node) -> None:
        """Learn of `node`, and write it anew for each part that it takes."""
        if (parts := _joined(node) or _unstacked(node)) is not None:
            self.parts[node.outputs[0]] = parts
            self.joins.append(node)
        elif node.op_type in SIZES and self._is_size(node):
            self.sizes.update(node.outputs)
        elif any(value in self.parts for value in taken(node)) or self._fills(node):
            if not self._takes_apart(node):
                self._write(node)
        elif any(value in self.sizes for value in node.inputs):
            raise _unknown(node, "counts them")

    def _is_size(self, node: ir.Node) -> bool:
        if node.op_type == "Shape":
            return node.inputs[0] in self.parts
        return any(value in self.sizes for value in node.inputs)

    def _fills(self, node: ir.Node) -> bool:
        """Whether `node` gives the same for all joined rows, of which it is told the number."""
        plain = not any(BATCH in str(d) for v in node.inputs for d in dims(v) or ())
        return node.op_type in SIZED and plain and self._number(node.outputs[0]) > 1

    def _number(self, value: ir.Value) -> int:
        """How many parts are joined in a value, by its shape."""
        known = {f"{len(parts)}*{BATCH}": len(parts) for parts in self.parts.values()}
        return max((known.get(str(dim), 1) for dim in dims(value) or ()), default=1)

    def _takes_apart(self, node: ir.Node) -> bool:
        """Take parts out of joined rows, if `node` does."""
        source, old = node.inputs[0], node.outputs[0]
        parts = None if source is None or node.domain else self.parts.get(source)
        if parts is None:
            return False
        shape, emit = dims(old) or (), Emitter(node)
        if node.op_type == "Slice" and (part := _part(node, len(parts))) is not None:
            replace_uses(old, emit("Identity", [parts[part]], old.dtype, shape))
            return True
        each = [(dims(value) or ())[:1] for value in node.outputs]
        along = node.op_type == "Split" and attribute(node, "axis", 0) == 0
        if along and each == [(BATCH,)] * len(parts):
            for value, one in zip(node.outputs, parts, strict=True):
                replace_uses(value, emit("Identity", [one], value.dtype, dims(value)))
            return True
        stacked = node.op_type == "Reshape" and shape[:2] == (len(parts), BATCH)
        if stacked and shape[2:] == (dims(source) or ())[1:]:
            zero = emit.constant([0])
            rows = [emit("Unsqueeze", [x, zero], old.dtype, [1, *shape[1:]]) for x in parts]
            replace_uses(old, emit("Concat", rows, old.dtype, shape, axis=0))
            return True
        return False

    def _write(self, node: ir.Node) -> None:
        if subgraphs(node):
            raise _unknown(node, "is a loop or a branch over them")
        numbers = {len(self.parts[value]) for value in node.inputs if value in self.parts}
        count = max(numbers, default=self._number(node.outputs[0]))
        if len(numbers) > 1:
            raise _unknown(node, "takes others that were joined in another number")
        shapes = [_own_shape(node, value, count) for value in node.outputs]
        emit, written = Emitter(node), []
        given = [self._given(node, place, emit, shapes[0]) for place in range(len(node.inputs))]
        kinds = [(v.dtype, shape) for v, shape in zip(node.outputs, shapes, strict=True)]
        for part in range(count):
            own = [each[part] if isinstance(each, tuple) else each for each in given]
            values = emit.node(node.op_type, own, kinds, {}, node.domain)
            new = values[0].producer()
            assert new is not None
            new.attributes.update(node.attributes)
            written.append(values)
        for place, value in enumerate(node.outputs):
            self.parts[value] = tuple(values[place] for values in written)

    def _given(
        self, node: ir.Node, place: int, emit: Emitter, shape: Sequence[Dim]
    ) -> ir.Value | Parts | None:
        """An input of each part; what is not joined has to be the same for all rows."""
        value = node.inputs[place]
        if SIZED.get(node.op_type) == place:
            return self._sized(node, emit, shape)
        if value is None or value in self.parts:
            return None if value is None else self.parts[value]
        if value in self.sizes:
            raise _unknown(node, "counts them")
        if dims(value) is None or any(BATCH in str(dim) for dim in dims(value) or ()):
            raise _unknown(node, f"{value.name!r}, whose rows were not")
        return value

    def _sized(self, node: ir.Node, emit: Emitter, shape: Sequence[Dim]) -> ir.Value:
        """A shape as the values of a part have it."""
        sizes, free = [], 0
        for dim in shape:
            source = next((v for v in self.graph.inputs if dim in (dims(v) or ())), None)
            if isinstance(dim, int):
                sizes.append(emit.constant([dim]))
            elif source is not None:
                at = (dims(source) or ()).index(dim)
                sizes.append(emit("Shape", [source], INT64, [1], start=at, end=at + 1))
            else:
                free += 1
                sizes.append(emit.constant([-1]))
        if free > (node.op_type == "Reshape"):
            raise _unknown(node, f"gives them the shape {list(shape)}")
        return emit("Concat", sizes, INT64, [len(sizes)], axis=0)


def _joined(node: ir.Node) -> Parts | None:
    """The parts of what a node joins along the batch; None where it does not."""
    if node.domain or node.op_type not in ("Concat", "Tile"):
        return None
    given = [value for value in node.inputs if value is not None]
    if node.op_type == "Concat":
        along = attribute(node, "axis") in (0, -len(dims(node.outputs[0]) or ()))
        rows = all((dims(value) or ())[:1] == (BATCH,) for value in given)
        return tuple(given) if along and rows and len(given) > 1 else None
    repeats = integers(given[1]) or [1]
    rows = (dims(given[0]) or ())[:1] == (BATCH,)
    whole = rows and repeats[0] > 1 and set(repeats[1:]) <= {1}
    return (given[0],) * repeats[0] if whole else None


def _unstacked(node: ir.Node) -> Parts | None:
    """The parts of [k, batch, ..] that are put one behind the other, [k * batch, ..]."""
    if node.domain or node.op_type != "Reshape":
        return None
    before, after = dims(node.inputs[0]) or (), dims(node.outputs[0])
    count = before[0] if before[1:2] == (BATCH,) else None
    if not isinstance(count, int) or after != (f"{count}*{BATCH}", *before[2:]) or count < 2:
        return None
    emit, source = Emitter(node), node.inputs[0]
    assert source is not None
    return tuple(
        emit("Gather", [source, emit.constant(i)], source.dtype, before[1:], axis=0)
        for i in range(count)
    )


def _unknown(node: ir.Node, why: str) -> PassError:
    return PassError(
        f"{describe(node)} takes rows that were joined along the batch, as for guidance, and {why}."
        " Each row of a step has to be computed from its own inputs alone: run the model once for "
        "each part instead."
    )


def _own_shape(node: ir.Node, value: ir.Value, count: int) -> list[Dim]:
    """The shape of one part of a result."""
    shape = dims(value)
    if shape is None:
        raise _unknown(node, "gives a value of unknown shape")
    found = [_divided(dim, count) if BATCH in str(dim) else dim for dim in shape]
    timed = [dim for dim in found if dim is None or BATCH in str(dim)]
    if len(timed) != 1 or timed[0] is None:
        raise _unknown(node, f"gives {list(shape)}")
    return [dim for dim in found if dim is not None]


def _divided(dim: Dim, count: int) -> Dim | None:
    """The dimension of one of `count` parts; None where it is no multiple of their rows."""
    names, number = [], 1
    for factor in str(dim).replace(" ", "").split("*"):
        if factor.isdigit():
            number *= int(factor)
        elif not factor.isidentifier():
            return None
        else:
            names.append(factor)
    if BATCH not in names or number % count:
        return None
    least = number // count
    return "*".join([*([str(least)] if least > 1 else []), *names])


def _part(node: ir.Node, count: int) -> int | None:
    """Which part a Slice takes, None where it takes something else."""
    before, axes = dims(node.inputs[0]) or (), integers(input_of(node, 3)) or [0]
    steps = [1] if input_of(node, 4) is None else integers(input_of(node, 4))
    if len(axes) != 1 or steps != [1] or before[axes[0]] != f"{count}*{BATCH}":
        return None
    start = 0 if integers(node.inputs[1]) == [0] else _rows(node.inputs[1])
    end = count if (integers(node.inputs[2]) or [0])[0] >= END else _rows(node.inputs[2])
    fits = start is not None and end == start + 1 and 0 <= start < count
    return start if fits else None


def _rows(value: ir.Value | None) -> int | None:
    """How many times the number of rows an integer is; None where it is not known to be."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    first = node.inputs[0] if node.inputs else None
    if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
        return _rows(first)
    if node.op_type == "Shape":
        shape = dims(first) or ()
        picked = shape[slice(attribute(node, "start", 0), attribute(node, "end"))]
        return _of_dim(picked[0]) if len(picked) == 1 else None
    if node.op_type == "Gather" and (sizes := producer(first, "Shape")) is not None:
        index, shape = integers(node.inputs[1]), dims(sizes.inputs[0]) or ()
        plain = not sizes.attributes and index is not None and len(index) == 1
        return _of_dim(shape[index[0]]) if plain and index is not None else None
    if node.op_type == "Mul":
        for one, other in ((0, 1), (1, 0)):
            by, times = integers(node.inputs[one]), _rows(node.inputs[other])
            if by is not None and len(by) == 1 and times is not None:
                return times * by[0]
    return None


def _of_dim(dim: Dim) -> int | None:
    if dim == BATCH:
        return 1
    found = JOINED.fullmatch(str(dim))
    return None if found is None else int(found[1])
