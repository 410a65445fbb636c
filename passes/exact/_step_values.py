"""Values that every rewritten operator of a step graph shares: token counts, positions, masks."""

from functools import cached_property

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_facts import dim_of
from intaglio.passes.graph import Emitter, dims
from intaglio.state import BATCH, PAST_LENGTH, TIME, time_of

INT64 = ir.DataType.INT64
BOOL = ir.DataType.BOOL
FLAT = f"{BATCH}*{TIME}"


def flat_of(each: int) -> str:
    """The axis of all rows' tokens, or of `each` entries for each of them."""
    return f"{BATCH}*{dim_of(each)}"


def past_length_of(graph: ir.Graph) -> ir.Value:
    """The input `PAST_LENGTH` of `graph`, int64 [batch], made where there is none."""
    for value in graph.inputs:
        if value.name == PAST_LENGTH:
            return value
    value = ir.Value(name=PAST_LENGTH, type=ir.TensorType(INT64), shape=ir.Shape([BATCH]))
    graph.inputs.append(value)
    return value


def by_entries(length: str, each: int) -> str:
    """The axis of `each` entries for each of as many tokens as `length`."""
    several = f"{each}*({length})" if " " in length else f"{each}*{length}"
    return length if each == 1 else several


class StepValues:
    """Shared values of one step graph, each emitted at its start when first asked for.

    They count tokens, or where a sequence has several entries for a token (`at`) those.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph, self.each = graph, 1
        self.tokens = self  # the same of tokens
        self._rates: dict[int, StepValues] = {}
        self._emit = Emitter(next(iter(graph)), prefix="step")
        self._masks: dict[int, ir.Value] = {}
        self._blocks: dict[tuple[int, ...], ir.Value] = {}
        timed = ((v, time_of(dims(v) or ())) for v in graph.inputs)
        self._timed, (self._axis, self._each) = next((v, at) for v, at in timed if at is not None)

    def at(self, each: int) -> "StepValues":
        """The same of a sequence with `each` entries for a token."""
        if each == self.each:
            return self
        if each not in self._rates:
            other = StepValues(self._graph)
            other.each, other.tokens = each, self
            self._rates[each] = other
        return self._rates[each]

    @property
    def time(self) -> str:
        """The axis of the sequence."""
        return dim_of(self.each)

    @property
    def flat(self) -> str:
        """The axis of the entries of all rows."""
        return flat_of(self.each)

    @cached_property
    def past_length(self) -> ir.Value:
        """Int64 [batch]: entries consumed before this step, for each row; of tokens an input."""
        if self.each > 1:
            return self._times_each(self.tokens.past_length, [BATCH])
        return past_length_of(self._graph)

    @cached_property
    def count(self) -> ir.Value:
        """Int64 [1]: T, the entries of this step."""
        if self.each > 1:
            return self._times_each(self.tokens.count, [1])
        axis = self._axis
        count = self._emit("Shape", [self._timed], INT64, [1], start=axis, end=axis + 1)
        if self._each == 1:
            return count
        return self._emit("Div", [count, self._emit.constant([self._each])], INT64, [1])

    def _times_each(self, count: ir.Value, shape: list[int | str]) -> ir.Value:
        return self._emit("Mul", [count, self._emit.constant([self.each])], INT64, shape)

    @cached_property
    def total_length(self) -> ir.Value:
        """Int64 [batch]: tokens consumed after this step."""
        return self._emit("Add", [self.past_length, self.count], INT64, [BATCH])

    @cached_property
    def flat_indices(self) -> ir.Value:
        """Int64 [batch*time]: the place of every token in its call, row after row."""
        emit = self._emit
        shape = emit("Concat", [self.rows, self.count], INT64, [2], axis=0)
        table = emit("Expand", [self._indices, shape], INT64, [BATCH, self.time])
        return emit("Reshape", [table, emit.constant([-1])], INT64, [self.flat])

    @cached_property
    def _indices(self) -> ir.Value:
        """Int64 [time]: 0 .. T-1."""
        emit = self._emit
        scalar = emit("Squeeze", [self.count], INT64, [])
        return emit("Range", [emit.constant(0), scalar, emit.constant(1)], INT64, [self.time])

    @cached_property
    def flat_positions(self) -> ir.Value:
        """Int64 [batch*time]: the position of every token, row after row."""
        emit = self._emit
        starts = emit("Unsqueeze", [self.past_length, emit.constant([1])], INT64, [BATCH, 1])
        table = emit("Add", [starts, self._indices], INT64, [BATCH, self.time])
        return emit("Reshape", [table, emit.constant([-1])], INT64, [self.flat])

    @cached_property
    def flat_count(self) -> ir.Value:
        """Int64 [1]: batch*time, the tokens of all rows."""
        return self._emit("Shape", [self.flat_positions], INT64, [1])

    @cached_property
    def rows(self) -> ir.Value:
        """Int64 [1]: the batch size."""
        return self._emit("Shape", [self.past_length], INT64, [1])

    def block_mask(self, ends: tuple[int, ...]) -> ir.Value:
        """Bool [batch, 1, time, time]: which tokens of a call lie in one block."""
        if ends not in self._blocks:
            self._blocks[ends] = self._block_mask(ends)
        return self._blocks[ends]

    def _block_mask(self, ends: tuple[int, ...]) -> ir.Value:
        emit = self._emit
        block = np.searchsorted(ends, np.arange(ends[-1]), side="right")
        own = emit("Gather", [emit.constant(block), self.flat_positions], INT64, [self.flat])
        count = emit("Concat", [emit.constant([-1]), self.count], INT64, [2], axis=0)
        rows = emit("Reshape", [own, count], INT64, [BATCH, self.time])
        query = emit("Unsqueeze", [rows, emit.constant([1, 3])], INT64, [BATCH, 1, self.time, 1])
        key = emit("Unsqueeze", [rows, emit.constant([1, 2])], INT64, [BATCH, 1, 1, self.time])
        return emit("Equal", [query, key], BOOL, [BATCH, 1, self.time, self.time])

    def window_mask(self, window: int) -> ir.Value:
        """Bool [batch, 1, time, window - 1 + time]: who sees what behind a window cache.

        Entry c of the keys is at position past_length - (window - 1) + c.  Query i, at position
        past_length + i, sees the last `window` positions up to its own (i <= c <= i + window - 1)
        that exist (c >= window - 1 - past_length).
        """
        if window not in self._masks:
            self._masks[window] = self._window_mask(window)
        return self._masks[window]

    def _window_mask(self, window: int) -> ir.Value:
        emit, kept = self._emit, window - 1
        span = f"{self.time} + {kept}"
        total = emit("Add", [self.count, emit.constant([kept])], INT64, [1])
        limit = emit("Squeeze", [total], INT64, [])
        keys = emit("Range", [emit.constant(0), limit, emit.constant(1)], INT64, [span])
        first = emit("Unsqueeze", [self._indices, emit.constant([1])], INT64, [self.time, 1])
        last = emit("Add", [first, emit.constant(kept)], INT64, [self.time, 1])
        recent = emit("GreaterOrEqual", [keys, first], BOOL, [self.time, span])
        causal = emit("LessOrEqual", [keys, last], BOOL, [self.time, span])
        inside = emit("And", [recent, causal], BOOL, [self.time, span])
        axes = emit.constant([1, 2, 3])
        rows = emit("Unsqueeze", [self.past_length, axes], INT64, [BATCH, 1, 1, 1])
        begin = emit("Sub", [emit.constant(kept), rows], INT64, [BATCH, 1, 1, 1])
        exists = emit("GreaterOrEqual", [keys, begin], BOOL, [BATCH, 1, 1, span])
        return emit("And", [inside, exists], BOOL, [BATCH, 1, self.time, span])
