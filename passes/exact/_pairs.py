"""Values of pairs of tokens, emitted again for the queries and keys of a step.

A step has T queries, at positions past_length[b] + t of row b, and S keys: the entries of the
caches, at positions 0 .. S-1.  The terms that `analysis.pairs` read off the training graph are
emitted over these.  What is computed from positions alone has all batch*T queries along one axis,
as positions have elsewhere, and is cut into rows where it meets data of rows.  Data of single
tokens is at hand for the queries; for the keys it is carried as a state and read from there.
"""

from collections.abc import Container
from itertools import chain, count
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes.analysis.bounding import constants, evaluate
from intaglio.passes.analysis.bounds import LONGEST, ahead, behind, contents
from intaglio.passes.analysis.mask import context_limit
from intaglio.passes.analysis.pair_rules import shift
from intaglio.passes.analysis.pairs import PairTerm, TermKind, leaves, surplus, walk
from intaglio.passes.analysis.time import refuse
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import Dim, Shape, attribute, attributes_of, dims, input_of, integers
from intaglio.state import BATCH, CAPACITY, PAST, TIME, Layout

from ._pair_values import KEPT, PairValues, StepValue, as_cache
from ._stateful_ops import Carried, by_entry, by_token, past_value
from ._step_values import INT64, StepValues


class Pairs(PairValues):
    """Emits terms; what layers share is emitted once."""

    def __init__(self, step: StepValues, *, grow: bool) -> None:
        super().__init__(step, grow=grow)
        self.length: Dim = PAST if grow else CAPACITY
        self.layout = Layout.GROW if grow else Layout.STATIC
        self.carried: list[Carried] = []
        self._emitted: dict[PairTerm, StepValue] = {}
        self._caches: dict[tuple[ir.Value, int], ir.Value] = {}
        self._folded: dict[PairTerm, npt.NDArray[Any]] = {}
        self._ports: dict[PairTerm, str] = {}

    def mask(self, term: PairTerm, node: ir.Node, past: ir.Value) -> ir.Value:
        """The mask of an Attention `node`, [batch, heads or 1, T, S], `past` being its keys."""
        self.begin(node, past)
        self._ports = {}
        found = self.by_row(self._emit(term), 4)
        shape = found.shape
        whole: list[Dim] = [shape[0], shape[1], self.step.time, self.kept]
        if list(shape) != whole:
            found = self.expanded(found, whole)
        return found.value

    def result(self, node: ir.Node, term: PairTerm) -> ir.Value:
        """The result of a written-out node, by row where data is in it."""
        self.begin(node, None)
        self._ports = {}
        for one in walk(term):
            sides = [x for x in one.inputs if x is not None]
            if one.kind is TermKind.NODE and one.node.op_type == "MatMul" and len(sides) == 2:
                port = "value" if one.axes.key is None else "key"
                for leaf in (x for side in sides if side.axes.query is None for x in leaves(side)):
                    self._ports.setdefault(leaf, port)
        return self._emit(term).value

    def _emit(self, term: PairTerm) -> StepValue:
        if term not in self._folded:
            self._folded |= constants(term, context_limit(term) or LONGEST)
        # Caches first: they tell how many keys there are.
        for one in _order(term, self._folded):
            if one not in self._emitted:
                self._emitted[one] = self._one(one)
        return self._emitted[term]

    def _one(self, term: PairTerm) -> StepValue:
        if term in self._folded:
            dtype = term.value.dtype or ir.DataType.FLOAT
            return StepValue(self.at.constant(self._folded[term], dtype.numpy()), by_row=False)
        if term.kind is TermKind.CONSTANT:
            return StepValue(term.value, by_row=False)
        if term.kind is TermKind.DATA:
            value = term.value if term.axes.key is None else self._cached(term)
            return StepValue(value, by_row=True)
        if term.kind is TermKind.POSITION:
            return self._position(term)
        return self._node(term, [None if x is None else self._emitted[x] for x in term.inputs])

    def _cached(self, term: PairTerm) -> ir.Value:
        """Data of the keys: carried, and read with that of the new tokens."""
        assert term.axes.key is not None
        if (term.value, term.axes.key) not in self._caches:
            self.hold(term.value, term.axes.key, "entries", self._port(term))
        return self._caches[term.value, term.axes.key]

    def hold(self, value: ir.Value, axis: int, op: str, port: str) -> ir.Value:
        """Carry `value`, data of each token, from call to call; that of all keys."""
        assert self.owner is not None
        shape = dims(value) or ("",)
        if shape[0] != BATCH or any(
            not isinstance(d, int) for d in shape[1:axis] + shape[axis + 1 :]
        ):
            raise refuse(
                self.owner,
                f"takes values {value.name!r} of shape {list(shape)} from past tokens; they can be "
                "carried only as [batch, ..., time, ...].",
            )
        dtype, given, each = value.dtype or ir.DataType.FLOAT, value, self.step.each
        whole = [*shape[:axis], self.kept, *shape[axis + 1 :]]
        value = by_token(self.at, value, each, TIME, axis)
        shape = dims(value) or ()
        wide, place = as_cache(shape, axis) if self.layout is Layout.STATIC else ((), axis)
        added = self.at.constant(wide) if wide else None
        sizes = list(shape)
        for each in wide:
            sizes.insert(each, 1)
        new = value if added is None else self.at("Unsqueeze", [value, added], dtype, sizes)
        before, behind = sizes[:place], sizes[place + 1 :]
        past = past_value("entries", dtype, [*before, self.length, *behind])
        self.size_by(past, place)
        present = self.joined(past, new, place, [*before, KEPT[self.grow], *behind])
        self.carried.append(
            Carried(node=self.owner, op=op, port=port, layout=self.layout, past=past,
                    present=present, axis=place)
        )  # fmt: skip
        if added is not None:
            held = [*shape[:axis], KEPT[self.grow], *shape[axis + 1 :]]
            present = self.at("Squeeze", [present, added], dtype, held)
        if each > 1:
            present = by_entry(self.at, present, whole, axis)
        self._caches[given, axis] = present
        return present

    def joined(self, past: ir.Value, new: ir.Value, axis: int, whole: Shape) -> ir.Value:
        """The entries of past tokens and of new ones."""
        if self.layout is not Layout.STATIC:
            return self.at("Concat", [past, new], new.dtype, whole, axis=axis)
        return self.at(
            "TensorScatter", [past, new, self.step.tokens.past_length], new.dtype, whole, axis=axis
        )

    def _port(self, term: PairTerm) -> str:
        """What a state is called: keys and values of written-out attention, data of a mask."""
        assert self.owner is not None
        port = next((port for leaf, port in self._ports.items() if leaf is term), "mask")
        taken = {state.port for state in self.carried if state.node is self.owner}
        names = chain([port], (f"{port}{n}" for n in count(2)))
        return next(name for name in names if name not in taken)

    def _position(self, term: PairTerm) -> StepValue:
        """Start + step * position, for each query or for each key."""
        emit, dtype = self.at, term.value.dtype or INT64
        start, pace = (contents(v) for v in (term.node.inputs[0], term.node.inputs[2]) if v)
        if start is None or pace is None:
            raise refuse(term.node, "counts from, or in steps of, the number of tokens.")
        value = self.queries() if term.axes.query is not None else self.keys()
        shape = dims(value) or ()
        if dtype != INT64:
            value = emit("Cast", [value], dtype, shape, to=dtype)
        for op, number, idle in (("Mul", pace, 1), ("Add", start, 0)):
            if number != idle:
                value = emit(op, [value, emit.constant(number, dtype.numpy())], dtype, shape)
        return StepValue(value, by_row=False)

    def _affine(self, term: PairTerm) -> StepValue:
        """What bounds know to be a multiple of the position and a number."""
        slope = evaluate(term, behind(0)).slope
        if slope is None:
            raise refuse(term.node, "sums or shifts positions in a way that has no step.")
        query = term.axes.query is not None
        positions = self.queries() if query else self.keys()
        dtype, emit = term.value.dtype or INT64, self.at
        sizes = self.sizes(term, by_row=False)
        axis = term.axes.query if query else term.axes.key
        along = [size if at == axis else 1 for at, size in enumerate(sizes)]
        value = self.reshaped(emit("Cast", [positions], dtype, dims(positions), to=dtype), along)
        for op, number in (("Mul", slope[0] if query else slope[1]), ("Add", slope[2])):
            value = emit(op, [value, emit.constant(number, dtype.numpy())], dtype, sizes)
        return StepValue(value, by_row=False)

    def _node(self, term: PairTerm, given: list[StepValue | None]) -> StepValue:
        node, rank = term.node, len(term.shape)
        if shift(node, term.axes) is not None and len(given) == 1 and given[0] is not None:
            return given[0]
        if not term.axes and node.op_type == "Slice" and term.inputs[0] and term.inputs[0].axes:
            raise refuse(node, "takes the first token out of positions.")
        pairs = term.axes.query is not None and term.axes.key is not None
        if (node.op_type == "CumSum" and not pairs) or shift(node, term.axes) is not None:
            return self._affine(term)
        by_row = any(x is not None and x.by_row for x in given)
        if node.op_type == "Tile" and integers(node.inputs[1]) is None:
            by_row = True
        elif not by_row and any(BATCH in str(dim) for dim in term.shape if dim != BATCH):
            by_row, whole = True, zip(given, term.inputs, strict=True)
            given = [self._of_rows(x, one) for x, one in whole]
        elif by_row:
            given = [
                x if x is None or one is None or one.kind is TermKind.CONSTANT
                else self.by_row(x, rank if _pads(node) else len(x.shape))
                for x, one in zip(given, term.inputs, strict=True)
            ]  # fmt: skip
        sizes = self.sizes(term, by_row=by_row)
        special = SPECIAL.get(node.op_type)
        if special is not None:
            return StepValue(special(self, term, given, sizes), by_row)
        inputs = [
            old if new is None else new.value for old, new in zip(node.inputs, given, strict=True)
        ]
        attributes = attributes_of(node)
        value = self.at(node.op_type, inputs, term.value.dtype, sizes, **attributes)
        if _broadcasts(node):
            shapes = [x.shape for x in given if x is not None]
            value.shape = ir.Shape(list(_broadcast(shapes)))
        return StepValue(value, by_row)

    def _of_rows(self, found: StepValue | None, term: PairTerm | None) -> StepValue | None:
        """`found` with all rows of the batch, which is about to be merged with another axis."""
        if found is None or term is None or term.kind is TermKind.CONSTANT:
            return found
        if term.shape[:1] != (BATCH,):
            raise refuse(term.node, "merges rows with another axis that stands before them.")
        by_row = self.by_row(found, len(term.shape))
        return self.expanded(by_row, self.sizes(term, by_row=True))

    def reshape(self, _: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        assert given[0] is not None
        return self.reshaped(given[0].value, sizes)

    def expand(self, _: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        assert given[0] is not None
        return self.expanded(given[0], sizes).value

    def fill(self, term: PairTerm, _: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        attributes = attributes_of(term.node)
        given = [self.sizes_of(sizes)]
        return self.at("ConstantOfShape", given, term.value.dtype, sizes, **attributes)

    def concat(self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        axis, parts = attribute(term.node, "axis") % len(sizes), []
        for one in given:
            assert one is not None
            whole = [*sizes[:axis], one.shape[axis], *sizes[axis + 1 :]]
            parts.append(self.expanded(one, whole).value)
        return self.at("Concat", parts, term.value.dtype, sizes, axis=axis)

    def slice(self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        """Rows of a table at positions; along other axes the slice stays."""
        assert given[0] is not None
        node, value, emit = term.node, given[0].value, self.at
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
        self, value: ir.Value, axis: int, rows: int, term: PairTerm, shape: list[Dim]
    ) -> ir.Value:
        query = axis == term.axes.query
        positions = self.queries() if query else self.keys()
        index = self._within(positions, 0, rows - 1)
        shape[axis] = (dims(index) or ())[0]
        return self.at("Gather", [value, index], value.dtype, list(shape), axis=axis)

    def _within(self, index: ir.Value, least: int | list[int], most: int | list[int]) -> ir.Value:
        """An index that stays inside a table: entries of a cache behind its end are of no token."""
        emit, dtype = self.at, index.dtype or INT64
        ends = [emit.constant(end, dtype.numpy()) for end in (most, least)]
        below = emit("Min", [index, ends[0]], dtype, dims(index))
        return emit("Max", [below, ends[1]], dtype, dims(index))

    def _in_cache(self, term: PairTerm, index: ir.Value) -> ir.Value:
        """An index into values of positions, which are as many as the cache has entries."""
        assert self.count is not None
        emit, shape, source = self.at, dims(index), term.inputs[1]
        regions = [behind(0), ahead()]
        if source is None or any(evaluate(source, one).low.min() < 0 for one in regions):
            raise refuse(term.node, "takes places that may be counted from the last token back.")
        last = emit("Sub", [self.count, emit.constant([1])], INT64, [1])
        return emit("Min", [index, last], INT64, shape)

    def gather(self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        data, index = given
        assert data is not None
        assert index is not None
        axis = attribute(term.node, "axis", 0) % len(data.shape)
        rows, places = data.shape[axis], index.value
        if isinstance(rows, int) and term.inputs[1] is not None and term.inputs[1].axes:
            places = self._within(places, -rows, rows - 1)
        elif term.inputs[0] is not None and term.inputs[0].axes.key == axis:
            places = self._in_cache(term, places)
        sizes = [*data.shape[:axis], *index.shape, *data.shape[axis + 1 :]]
        return self.at("Gather", [data.value, places], term.value.dtype, sizes, axis=axis)

    def gather_elements(
        self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]
    ) -> ir.Value:
        """Of scores by distance those of each pair, within the cache; or entries by number."""
        data, index = given
        assert data is not None
        assert index is not None
        axis = attribute(term.node, "axis", 0) % len(sizes)
        rows, emit = data.shape[axis], self.at
        places = self.expanded(index, sizes).value
        if isinstance(rows, int):
            places = self._within(places, -rows, rows - 1)
            whole = self.expanded(data, [*sizes[:axis], rows, *sizes[axis + 1 :]]).value
        else:
            places = self._in_cache(term, places)
            whole = self.expanded(data, sizes).value
        return emit("GatherElements", [whole, places], term.value.dtype, sizes, axis=axis)

    def gather_nd(
        self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]
    ) -> ir.Value:
        data, index = given
        assert data is not None
        assert index is not None
        rows, places = data.shape[: int(index.shape[-1])], index.value
        if term.inputs[0] is not None and term.inputs[0].axes.key == 0 and len(rows) == 1:
            places = self._in_cache(term, places)
        elif term.inputs[1] is not None and term.inputs[1].axes:
            ends = [[-n for n in rows if isinstance(n, int)], [int(n) - 1 for n in rows]]
            places = self._within(places, *ends)
        return self.at("GatherND", [data.value, places], term.value.dtype, sizes)

    def trilu(self, term: PairTerm, given: list[StepValue | None], sizes: list[Dim]) -> ir.Value:
        """The triangle by positions: column - row against k."""
        assert given[0] is not None
        emit, node, dtype = self.at, term.node, term.value.dtype
        query, key = term.axes.query, term.axes.key
        assert query is not None
        assert key is not None
        positions = {query: self.queries(), key: self.keys()}
        row, column = (positions[axis] for axis in sorted(positions))
        tall = [*(dims(row) or ()), 1]
        apart = [*(dims(row) or ()), *(dims(column) or ())]
        row = emit("Unsqueeze", [row, emit.constant([1])], INT64, tall)
        ahead = emit("Sub", [column, row], INT64, apart)
        k = emit.constant(0) if input_of(node, 1) is None else node.inputs[1]
        kept = "GreaterOrEqual" if attribute(node, "upper", 1) else "LessOrEqual"
        inside = StepValue(emit(kept, [ahead, k], ir.DataType.BOOL, apart), by_row=False)
        if given[0].by_row:
            inside = self.by_row(inside, max(len(sizes), 3))
        if dtype == ir.DataType.BOOL:
            return emit("And", [given[0].value, inside.value], dtype, sizes)
        zero = emit.constant(0, dtype.numpy() if dtype else float)
        return emit("Where", [inside.value, given[0].value, zero], dtype, sizes)


SPECIAL = {
    "Concat": Pairs.concat,
    "ConstantOfShape": Pairs.fill,
    "Expand": Pairs.expand,
    "Gather": Pairs.gather,
    "GatherElements": Pairs.gather_elements,
    "GatherND": Pairs.gather_nd,
    "Reshape": Pairs.reshape,
    "Slice": Pairs.slice,
    "Trilu": Pairs.trilu,
}


def _order(term: PairTerm, known: Container[PairTerm]) -> list[PairTerm]:
    found = walk(term, known)
    return sorted(
        found, key=lambda one: not (one.kind is TermKind.DATA and one.axes.key is not None)
    )


def _broadcasts(node: ir.Node) -> bool:
    return node.op_type in ELEMENTWISE


def _pads(node: ir.Node) -> bool:
    return _broadcasts(node) or node.op_type == "MatMul"


def _broadcast(shapes: list[tuple[Dim, ...]]) -> list[Dim]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return [next((d for d in column if d != 1), 1) for column in zip(*padded, strict=True)]
