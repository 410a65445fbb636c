"""Values of pairs of tokens, emitted again for the queries and keys of a step.

A step has T queries, at positions past_length[b] + t of row b, and S keys: the entries of the
caches, at positions 0 .. S-1.  The terms that `analysis.pairs` read off the training graph are
emitted over these.  What is computed from positions alone has all batch*T queries along one axis,
as positions have elsewhere, and is cut into rows where it meets data of rows.  Data of single
tokens is at hand for the queries; for the keys it is carried as a state and read from there.
"""

from collections.abc import Container
from dataclasses import dataclass, field, replace
from itertools import chain, count
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.bounds import LONGEST, behind, constants, contents, evaluate
from intaglio.passes.analysis.mask import context_limit
from intaglio.passes.analysis.pair_rules import shift
from intaglio.passes.analysis.pairs import Kind, Term, leaves, surplus, walk
from intaglio.passes.analysis.time import refuse
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import Dim, Emitter, attribute, attributes_of, dims, input_of, integers
from intaglio.state import BATCH, CAPACITY, PAST, TIME, Layout

from ._stateful_ops import Carried, past_value
from ._step_values import FLAT, INT64, StepValues

KEPT = {False: CAPACITY, True: f"{PAST} + {TIME}"}  # entries of a cache after a step, if it grows


@dataclass(frozen=True)
class Emitted:
    """A value over the positions of a step; `by_row` where its first axis is the batch."""

    value: ir.Value
    by_row: bool

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its shape, in the symbols of the step graph."""
        return dims(self.value) or ()


@dataclass
class Pairs:
    """Emits terms; what layers share is emitted once."""

    step: StepValues
    grow: bool
    carried: list[Carried] = field(default_factory=list)
    _emitted: dict[Term, Emitted] = field(default_factory=dict)
    _caches: dict[tuple[ir.Value, int], ir.Value] = field(default_factory=dict)
    _folded: dict[Term, npt.NDArray[Any]] = field(default_factory=dict)
    _count: ir.Value | None = None
    _owner: ir.Node | None = None
    _ports: dict[Term, str] = field(default_factory=dict)

    def mask(self, term: Term, node: ir.Node, past: ir.Value) -> ir.Value:
        """The mask of an Attention `node`, [batch, heads or 1, T, S], `past` being its keys."""
        self._begin(node, past)
        found = self._by_row(self._emit(term), 4)
        shape = found.shape
        whole: list[Dim] = [shape[0], shape[1], TIME, KEPT[self.grow]]
        if list(shape) != whole:
            found = self._expanded(found, whole)
        return found.value

    def result(self, node: ir.Node, term: Term) -> ir.Value:
        """The result of a written-out node, by row where data is in it."""
        self._begin(node, None)
        for one in walk(term):
            sides = [x for x in one.inputs if x is not None]
            if one.kind is Kind.NODE and one.node.op_type == "MatMul" and len(sides) == 2:
                port = "value" if one.axes.key is None else "key"
                for leaf in (x for side in sides if side.axes.query is None for x in leaves(side)):
                    self._ports.setdefault(leaf, port)
        return self._emit(term).value

    def _begin(self, node: ir.Node, past: ir.Value | None) -> None:
        self._owner, self._at, self._ports = node, Emitter(node), {}
        if past is not None:
            self._size_by(past, 2)

    def _size_by(self, past: ir.Value, axis: int) -> None:
        """All caches hold equally many tokens, so that the first one tells how many keys."""
        if self._count is None:
            emit = self._at
            held = emit("Shape", [past], INT64, [1], start=axis, end=axis + 1)
            self._count = emit("Add", [held, self.step.count], INT64, [1]) if self.grow else held

    def _emit(self, term: Term) -> Emitted:
        if term not in self._folded:
            self._folded |= constants(term, context_limit(term) or LONGEST)
        # Caches first: they tell how many keys there are.
        for one in _order(term, self._folded):
            if one not in self._emitted:
                self._emitted[one] = self._one(one)
        return self._emitted[term]

    def _one(self, term: Term) -> Emitted:
        if term in self._folded:
            dtype = term.value.dtype or ir.DataType.FLOAT
            return Emitted(self._at.constant(self._folded[term], dtype.numpy()), by_row=False)
        if term.kind is Kind.CONSTANT:
            return Emitted(term.value, by_row=False)
        if term.kind is Kind.DATA:
            value = term.value if term.axes.key is None else self._cached(term)
            return Emitted(value, by_row=True)
        if term.kind is Kind.POSITION:
            return self._position(term)
        return self._node(term, [None if x is None else self._emitted[x] for x in term.inputs])

    def _cached(self, term: Term) -> ir.Value:
        """Data of the keys: carried, and read with that of the new tokens."""
        axis, value, emit = term.axes.key, term.value, self._at
        assert axis is not None
        assert self._owner is not None
        if (value, axis) in self._caches:
            return self._caches[value, axis]
        shape = term.shape
        if shape[0] != BATCH or any(
            not isinstance(d, int) for d in shape[1:axis] + shape[axis + 1 :]
        ):
            raise refuse(
                self._owner,
                f"takes values {value.name!r} of shape {list(shape)} from past tokens; they can be "
                "carried only as [batch, ..., time, ...].",
            )
        length = PAST if self.grow else CAPACITY
        past = past_value("entries", value.dtype, [*shape[:axis], length, *shape[axis + 1 :]])
        self._size_by(past, axis)
        whole = [*shape[:axis], KEPT[self.grow], *shape[axis + 1 :]]
        if self.grow:
            present = emit("Concat", [past, value], value.dtype, whole, axis=axis)
        else:
            given = [past, value, self.step.past_length]
            present = emit("TensorScatter", given, value.dtype, whole, axis=axis)
        self.carried.append(
            Carried(
                node=self._owner,
                op="entries",
                port=self._port(term),
                layout=Layout.GROW if self.grow else Layout.STATIC,
                past=past,
                present=present,
                axis=axis,
            )
        )
        self._caches[value, axis] = present
        return present

    def _port(self, term: Term) -> str:
        """What a state is called: keys and values of written-out attention, data of a mask."""
        assert self._owner is not None
        port = next((port for leaf, port in self._ports.items() if leaf is term), "mask")
        taken = {state.port for state in self.carried if state.node is self._owner}
        names = chain([port], (f"{port}{n}" for n in count(2)))
        return next(name for name in names if name not in taken)

    def _position(self, term: Term) -> Emitted:
        """start + step * position, for each query or for each key."""
        emit, dtype = self._at, term.value.dtype or INT64
        start, pace = (contents(v) for v in (term.node.inputs[0], term.node.inputs[2]) if v)
        if start is None or pace is None:
            raise refuse(term.node, "counts from, or in steps of, the number of tokens.")
        value = self.step.flat_positions if term.axes.query is not None else self._keys()
        shape = dims(value) or ()
        if dtype != INT64:
            value = emit("Cast", [value], dtype, shape, to=dtype)
        for op, number, idle in (("Mul", pace, 1), ("Add", start, 0)):
            if number != idle:
                value = emit(op, [value, emit.constant(number, dtype.numpy())], dtype, shape)
        return Emitted(value, by_row=False)

    def _keys(self) -> ir.Value:
        """Int64 [S]: the positions of the keys."""
        if self._count is None:
            assert self._owner is not None
            raise refuse(self._owner, "compares positions alone; no data of tokens is in it.")
        if not hasattr(self, "_key_positions"):
            emit = self._at
            count = emit("Squeeze", [self._count], INT64, [])
            ends = [emit.constant(0), count, emit.constant(1)]
            self._key_positions = emit("Range", ends, INT64, [KEPT[self.grow]])
        return self._key_positions

    def _affine(self, term: Term) -> Emitted:
        """What bounds know to be a multiple of the position and a number, though no node is kept."""
        slope = evaluate(term, behind(0)).slope
        if slope is None:
            raise refuse(term.node, "sums or shifts positions in a way that has no step.")
        query = term.axes.query is not None
        positions = self.step.flat_positions if query else self._keys()
        dtype, emit = term.value.dtype or INT64, self._at
        sizes = self._sizes(term, by_row=False)
        axis = term.axes.query if query else term.axes.key
        along = [size if at == axis else 1 for at, size in enumerate(sizes)]
        value = self._reshaped(emit("Cast", [positions], dtype, dims(positions), to=dtype), along)
        for op, number in (("Mul", slope[0] if query else slope[1]), ("Add", slope[2])):
            value = emit(op, [value, emit.constant(number, dtype.numpy())], dtype, sizes)
        return Emitted(value, by_row=False)

    def _node(self, term: Term, given: list[Emitted | None]) -> Emitted:
        node, rank = term.node, len(term.shape)
        if shift(node, term.axes) is not None and len(given) == 1 and given[0] is not None:
            return given[0]
        if not term.axes and node.op_type == "Slice" and term.inputs[0] and term.inputs[0].axes:
            raise refuse(node, "takes the first token out of positions.")
        if node.op_type == "CumSum" or shift(node, term.axes) is not None:
            return self._affine(term)
        by_row = any(x is not None and x.by_row for x in given)
        if node.op_type == "Tile" and integers(node.inputs[1]) is None:
            by_row = True
        elif not by_row and any("*" in str(dim) for dim in term.shape):
            by_row, given = True, [self._of_rows(x, one) for x, one in zip(given, term.inputs)]
        elif by_row:
            given = [
                x if x is None or one is None or one.kind is Kind.CONSTANT
                else self._by_row(x, rank if _pads(node) else len(x.shape))
                for x, one in zip(given, term.inputs, strict=True)
            ]  # fmt: skip
        sizes = self._sizes(term, by_row=by_row)
        special = SPECIAL.get(node.op_type)
        if special is not None:
            return Emitted(special(self, term, given, sizes), by_row)
        inputs = [
            old if new is None else new.value for old, new in zip(node.inputs, given, strict=True)
        ]
        attributes = attributes_of(node)
        value = self._at(node.op_type, inputs, term.value.dtype, sizes, **attributes)
        if _broadcasts(node):
            shapes = [x.shape for x in given if x is not None]
            value.shape = ir.Shape(list(_broadcast(shapes)))
        return Emitted(value, by_row)

    def _of_rows(self, found: Emitted | None, term: Term | None) -> Emitted | None:
        """`found` with all rows of the batch, which is about to be merged with another axis."""
        if found is None or term is None or term.kind is Kind.CONSTANT:
            return found
        if term.shape[:1] != (BATCH,):
            raise refuse(term.node, "merges rows with another axis that stands before them.")
        by_row = self._by_row(found, len(term.shape))
        return self._expanded(by_row, self._sizes(term, by_row=True))

    def _sizes(self, term: Term, *, by_row: bool) -> list[Dim]:
        """The shape of a term in the step graph."""
        query = TIME if by_row else FLAT
        found: list[Dim] = []
        for axis, dim in enumerate(term.shape):
            extra = surplus(dim) or 0
            if axis == term.axes.query:
                found.append(query)
            elif axis == term.axes.key:
                found.append(KEPT[self.grow] + (f" + {extra}" if extra else ""))
            elif isinstance(dim, int) or (by_row and dim == BATCH):
                found.append(dim)
            else:
                found.append(self._of_batch(term, str(dim), by_row=by_row))
        return found

    def _of_batch(self, term: Term, dim: str, *, by_row: bool) -> Dim:
        parts = [part.strip() for part in dim.strip("()").split("*")]
        number = 1
        for part in parts:
            if part.isdigit():
                number *= int(part)
            elif part != BATCH:
                raise refuse(term.node, f"has a dimension {dim!r} beside batch and time.")
        return f"{number}*{BATCH}" if by_row and number > 1 else number

    def _shape(self, sizes: list[Dim]) -> ir.Value:
        """The sizes as an int64 vector."""
        emit, parts = self._at, []
        for dim in sizes:
            if isinstance(dim, int):
                parts.append(emit.constant([dim]))
                continue
            left, _, right = dim.partition("*")
            if dim == TIME:
                parts.append(self.step.count)
            elif dim == FLAT:
                parts.append(self.step.flat_count)
            elif dim == BATCH:
                parts.append(self.step.rows)
            elif right == BATCH:
                product = [self.step.rows, emit.constant([int(left)])]
                parts.append(emit("Mul", product, INT64, [1]))
            else:
                assert self._count is not None
                extra = int(dim.removeprefix(KEPT[self.grow]).removeprefix(" + ") or 0)
                held = [self._count, emit.constant([extra])]
                parts.append(emit("Add", held, INT64, [1]) if extra else self._count)
        return parts[0] if len(parts) == 1 else emit("Concat", parts, INT64, [len(parts)], axis=0)

    def _expanded(self, found: Emitted, sizes: list[Dim]) -> Emitted:
        if list(found.shape) == sizes:
            return found
        given = [found.value, self._shape(sizes)]
        return replace(found, value=self._at("Expand", given, found.value.dtype, sizes))

    def _reshaped(self, value: ir.Value, sizes: list[Dim]) -> ir.Value:
        if list(dims(value) or ()) == sizes:
            return value
        return self._at("Reshape", [value, self._shape(sizes)], value.dtype, sizes)

    def _by_row(self, found: Emitted, rank: int) -> Emitted:
        """`found` with the batch as the first of `rank` axes, of size one where rows are equal."""
        if found.by_row and len(found.shape) == rank:
            return found
        shape, value, emit = list(found.shape), found.value, self._at
        missing = rank - len(shape)
        if FLAT not in shape:
            sizes: list[Dim] = [*[1] * missing, *shape]
            return Emitted(self._reshaped(value, sizes), by_row=True)
        axis = shape.index(FLAT)
        outer, inner = shape[:axis], shape[axis + 1 :]
        if missing == 0 and (not outer or outer[0] != 1):
            assert self._owner is not None
            raise refuse(
                self._owner,
                f"takes {value.name!r} of shape {shape}, which depends on positions and has no "
                "room for a batch axis in front; give it a leading axis of one.",
            )
        if missing == 0:
            outer = outer[1:]
        ones: list[Dim] = [1] * max(missing - 1, 0)
        split = self._reshaped(value, [*outer, BATCH, TIME, *inner])
        if any(dim != 1 for dim in outer):
            count = len(outer)
            perm = [count, *range(count), *range(count + 1, count + 2 + len(inner))]
            turned = [BATCH, *outer, TIME, *inner]
            split = emit("Transpose", [split], value.dtype, turned, perm=perm)
        return Emitted(self._reshaped(split, [BATCH, *ones, *outer, TIME, *inner]), by_row=True)

    def reshape(self, _: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        assert given[0] is not None
        return self._reshaped(given[0].value, sizes)

    def expand(self, _: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        assert given[0] is not None
        return self._expanded(given[0], sizes).value

    def fill(self, term: Term, _: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        attributes = attributes_of(term.node)
        given = [self._shape(sizes)]
        return self._at("ConstantOfShape", given, term.value.dtype, sizes, **attributes)

    def concat(self, term: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        axis, parts = attribute(term.node, "axis") % len(sizes), []
        for one in given:
            assert one is not None
            whole = [*sizes[:axis], one.shape[axis], *sizes[axis + 1 :]]
            parts.append(self._expanded(one, whole).value)
        return self._at("Concat", parts, term.value.dtype, sizes, axis=axis)

    def slice(self, term: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        """Rows of a table at positions; along other axes the slice stays."""
        assert given[0] is not None
        node, value, emit = term.node, given[0].value, self._at
        before = dims(node.inputs[0]) or ()
        starts, ends, axes, steps = (integers(input_of(node, i)) for i in (1, 2, 3, 4))
        axes = [axis % len(before) for axis in axes or range(len(before))]
        shape = list(given[0].shape)
        for axis in (term.axes.query, term.axes.key):
            if axis is None or not isinstance(rows := before[axis], int):
                continue
            value = self._rows(value, axis, rows, term, shape)
        timed = [
            axis for axis in (term.axes.query, term.axes.key)
            if axis is not None and not surplus(before[axis])
        ]  # fmt: skip
        left = [at for at, axis in enumerate(axes) if axis not in timed]
        if not left:
            return value
        if starts is None or ends is None:
            raise refuse(node, "slices at places that depend on the number of tokens.")
        places = [
            [starts[at] for at in left],
            [ends[at] if axes[at] != term.axes.key else -surplus(before[axes[at]]) for at in left],  # type: ignore[operator]
            [axes[at] for at in left],
            [(steps or [1] * len(axes))[at] for at in left],
        ]
        return emit("Slice", [value, *map(emit.constant, places)], value.dtype, sizes)

    def _rows(
        self, value: ir.Value, axis: int, rows: int, term: Term, shape: list[Dim]
    ) -> ir.Value:
        query = axis == term.axes.query
        positions = self.step.flat_positions if query else self._keys()
        index = self._within(positions, 0, rows - 1)
        shape[axis] = (dims(index) or ())[0]
        return self._at("Gather", [value, index], value.dtype, list(shape), axis=axis)

    def _within(self, index: ir.Value, least: int | list[int], most: int | list[int]) -> ir.Value:
        """An index that stays inside a table: entries of a cache behind its end are of no token."""
        emit, dtype = self._at, index.dtype or INT64
        ends = [emit.constant(end, dtype.numpy()) for end in (most, least)]
        below = emit("Min", [index, ends[0]], dtype, dims(index))
        return emit("Max", [below, ends[1]], dtype, dims(index))

    def gather(self, term: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        data, index = given
        assert data is not None
        assert index is not None
        axis = attribute(term.node, "axis", 0) % len(data.shape)
        rows, places = data.shape[axis], index.value
        if isinstance(rows, int) and term.inputs[1] is not None and term.inputs[1].axes:
            places = self._within(places, -rows, rows - 1)
        sizes = [*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]]
        return self._at("Gather", [data.value, places], term.value.dtype, sizes, axis=axis)

    def gather_nd(self, term: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        data, index = given
        assert data is not None
        assert index is not None
        rows, places = data.shape[: int(index.shape[-1])], index.value
        if term.inputs[1] is not None and term.inputs[1].axes:
            ends = [[-n for n in rows if isinstance(n, int)], [int(n) - 1 for n in rows]]
            places = self._within(places, *ends)
        return self._at("GatherND", [data.value, places], term.value.dtype, sizes)

    def trilu(self, term: Term, given: list[Emitted | None], sizes: list[Dim]) -> ir.Value:
        """The triangle by positions: column - row against k."""
        assert given[0] is not None
        emit, node, dtype = self._at, term.node, term.value.dtype
        query, key = term.axes.query, term.axes.key
        assert query is not None
        assert key is not None
        positions = {query: self.step.flat_positions, key: self._keys()}
        row, column = (positions[axis] for axis in sorted(positions))
        tall = [*(dims(row) or ()), 1]
        apart = [*(dims(row) or ()), *(dims(column) or ())]
        row = emit("Unsqueeze", [row, emit.constant([1])], INT64, tall)
        ahead = emit("Sub", [column, row], INT64, apart)
        k = emit.constant(0) if input_of(node, 1) is None else node.inputs[1]
        kept = "GreaterOrEqual" if attribute(node, "upper", 1) else "LessOrEqual"
        inside = Emitted(emit(kept, [ahead, k], ir.DataType.BOOL, apart), by_row=False)
        if given[0].by_row:
            inside = self._by_row(inside, max(len(sizes), 3))
        if dtype == ir.DataType.BOOL:
            return emit("And", [given[0].value, inside.value], dtype, sizes)
        zero = emit.constant(0, dtype.numpy() if dtype else float)
        return emit("Where", [inside.value, given[0].value, zero], dtype, sizes)


SPECIAL = {
    "Concat": Pairs.concat,
    "ConstantOfShape": Pairs.fill,
    "Expand": Pairs.expand,
    "Gather": Pairs.gather,
    "GatherND": Pairs.gather_nd,
    "Reshape": Pairs.reshape,
    "Slice": Pairs.slice,
    "Trilu": Pairs.trilu,
}


def _order(term: Term, known: Container[Term]) -> list[Term]:
    found = walk(term, known)
    return sorted(found, key=lambda one: not (one.kind is Kind.DATA and one.axes.key is not None))


def _broadcasts(node: ir.Node) -> bool:
    return node.op_type in ELEMENTWISE


def _pads(node: ir.Node) -> bool:
    return _broadcasts(node) or node.op_type == "MatMul"


def _broadcast(shapes: list[tuple[Dim, ...]]) -> list[Dim]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return [next((d for d in column if d != 1), 1) for column in zip(*padded, strict=True)]
