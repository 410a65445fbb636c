"""Values over the positions of a step, and their sizes: what `_pairs` emits terms with.

In a step graph the queries of positions alone lie along one axis of batch*T entries, those of data
along an axis of T behind the batch; the keys along an axis of as many entries as caches hold.
"""

from dataclasses import dataclass, replace

import onnx_ir as ir

from intaglio.passes.analysis.pairs import PairTerm, surplus
from intaglio.passes.analysis.time import refuse
from intaglio.passes.graph import Dim, Emitter, Shape, dims
from intaglio.state import BATCH, CAPACITY, PAST, TIME

from ._step_values import INT64, StepValues, by_entries

KEPT = {False: CAPACITY, True: f"{PAST} + {TIME}"}  # entries of a cache after a step, if it grows


@dataclass(frozen=True)
class StepValue:
    """A value over the positions of a step; `by_row` where its first axis is the batch."""

    value: ir.Value
    by_row: bool

    @property
    def shape(self) -> tuple[Dim, ...]:
        """Its shape, in the symbols of the step graph."""
        return dims(self.value) or ()


class PairValues:
    """What values of pairs share in one step graph: how many keys there are, and where they are."""

    at: Emitter
    owner: ir.Node | None = None

    def __init__(self, step: StepValues, *, grow: bool) -> None:
        self.step, self.grow = step, grow
        self.kept = by_entries(KEPT[grow], step.each)
        self.count: ir.Value | None = None
        self._positions: ir.Value | None = None

    def begin(self, node: ir.Node, past: ir.Value | None) -> None:
        """Emit before `node`; `past` are the keys of its cache, where it has one."""
        self.owner, self.at = node, Emitter(node)
        if past is not None:
            self.size_by(past, 2)

    def size_by(self, past: ir.Value, axis: int) -> None:
        """All caches hold equally many tokens, so that the first one tells how many keys."""
        if self.count is None:
            emit = self.at
            held = emit("Shape", [past], INT64, [1], start=axis, end=axis + 1)
            if self.grow:
                held = emit("Add", [held, self.step.tokens.count], INT64, [1])
            if self.step.each > 1:
                held = emit("Mul", [held, emit.constant([self.step.each])], INT64, [1])
            self.count = held

    def queries(self) -> ir.Value:
        """Int64 [batch*time]: the positions of the queries."""
        return self.step.flat_positions

    def keys(self) -> ir.Value:
        """Int64 [S]: the positions of the keys."""
        if self.count is None:
            assert self.owner is not None
            raise refuse(self.owner, "compares positions alone; no data of tokens is in it.")
        if self._positions is None:
            emit = self.at
            count = emit("Squeeze", [self.count], INT64, [])
            ends = [emit.constant(0), count, emit.constant(1)]
            self._positions = emit("Range", ends, INT64, [self.kept])
        return self._positions

    def sizes(self, term: PairTerm, *, by_row: bool) -> list[Dim]:
        """The shape of a term in the step graph."""
        query = self.step.time if by_row else self.step.flat
        found: list[Dim] = []
        for axis, dim in enumerate(term.shape):
            extra = surplus(dim) or 0
            if axis == term.axes.query:
                found.append(query)
            elif axis == term.axes.key:
                found.append(self.kept + (f" + {extra}" if extra else ""))
            elif isinstance(dim, int) or (by_row and dim == BATCH):
                found.append(dim)
            else:
                found.append(self._of_batch(term, str(dim), by_row=by_row))
        return found

    def _of_batch(self, term: PairTerm, dim: str, *, by_row: bool) -> Dim:
        parts = [part.strip() for part in dim.strip("()").split("*")]
        number = 1
        for part in parts:
            if part.isdigit():
                number *= int(part)
            elif part != BATCH:
                raise refuse(term.node, f"has a dimension {dim!r} beside batch and time.")
        return f"{number}*{BATCH}" if by_row and number > 1 else number

    def sizes_of(self, sizes: list[Dim]) -> ir.Value:
        """The sizes as an int64 vector."""
        emit, parts = self.at, []
        for dim in sizes:
            if isinstance(dim, int):
                parts.append(emit.constant([dim]))
                continue
            left, _, right = dim.partition("*")
            if dim == self.step.time:
                parts.append(self.step.count)
            elif dim == self.step.flat:
                parts.append(self.step.flat_count)
            elif dim == BATCH:
                parts.append(self.step.rows)
            elif right == BATCH:
                product = [self.step.rows, emit.constant([int(left)])]
                parts.append(emit("Mul", product, INT64, [1]))
            else:
                assert self.count is not None
                extra = int(dim.removeprefix(self.kept).removeprefix(" + ") or 0)
                held = [self.count, emit.constant([extra])]
                parts.append(emit("Add", held, INT64, [1]) if extra else self.count)
        return parts[0] if len(parts) == 1 else emit("Concat", parts, INT64, [len(parts)], axis=0)

    def expanded(self, found: StepValue, sizes: list[Dim]) -> StepValue:
        """`found`, repeated to the shape `sizes`."""
        if list(found.shape) == sizes:
            return found
        given = [found.value, self.sizes_of(sizes)]
        return replace(found, value=self.at("Expand", given, found.value.dtype, sizes))

    def reshaped(self, value: ir.Value, sizes: list[Dim]) -> ir.Value:
        """`value` in the shape `sizes`."""
        if list(dims(value) or ()) == sizes:
            return value
        return self.at("Reshape", [value, self.sizes_of(sizes)], value.dtype, sizes)

    def by_row(self, found: StepValue, rank: int) -> StepValue:
        """`found` with the batch as the first of `rank` axes, of size one where rows are equal."""
        if found.by_row and len(found.shape) == rank:
            return found
        shape, value, emit = list(found.shape), found.value, self.at
        missing = rank - len(shape)
        if self.step.flat not in shape:
            sizes: list[Dim] = [*[1] * missing, *shape]
            return StepValue(self.reshaped(value, sizes), by_row=True)
        axis = shape.index(self.step.flat)
        outer, inner = shape[:axis], shape[axis + 1 :]
        if missing == 0 and (not outer or outer[0] != 1):
            assert self.owner is not None
            raise refuse(
                self.owner,
                f"takes {value.name!r} of shape {shape}, which depends on positions and has no "
                "room for a batch axis in front; give it a leading axis of one.",
            )
        if missing == 0:
            outer = outer[1:]
        ones: list[Dim] = [1] * max(missing - 1, 0)
        split = self.reshaped(value, [*outer, BATCH, self.step.time, *inner])
        if any(dim != 1 for dim in outer):
            count = len(outer)
            perm = [count, *range(count), *range(count + 1, count + 2 + len(inner))]
            turned = [BATCH, *outer, self.step.time, *inner]
            split = emit("Transpose", [split], value.dtype, turned, perm=perm)
        return StepValue(
            self.reshaped(split, [BATCH, *ones, *outer, self.step.time, *inner]), by_row=True
        )


def as_cache(shape: Shape, axis: int) -> tuple[tuple[int, ...], int]:
    """Axes of one entry that make four of fewer, tokens the third, and where tokens then are.

    TensorRT writes into caches of [rows, heads, tokens, entries] alone.
    """
    front, behind = 2 - axis, 2 - (len(shape) - axis)
    if front < 0 or behind < 0:
        return (), axis
    return (*range(1, 1 + front), *range(3, 3 + behind)), 2
