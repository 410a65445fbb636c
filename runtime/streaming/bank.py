"""Rows of memory that streams lie in, stepped together while others of them stay as they are.

A step of some rows runs over a window, neighbouring rows of the memory in place: whatever lies
outside is not touched, and nothing is gathered or copied back.  Within it, rows without input run
along on zeros and keep their state: of the two sides that a step reads and writes, each row has a
current one of its own, and that of a row without input stays the one that was read.  What such a
row writes into a cache in place lies beyond its tokens, where its next token overwrites it.

Windows have a power of two of rows and begin at a multiple of it, so there are few shapes and few
bound steps.  A stream outside of the window is exchanged with a row in it where that copies less
than a step reads anyway; otherwise the window is larger.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.runtime.arrays import Array
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.prepared_conditions import Conditions, joined
from intaglio.runtime.session_state import State
from intaglio.runtime.stepper import Stepper
from intaglio.state import BATCH, TIME, Layout, StateSpec

WINDOWS = 64  # that are kept with their bound steps

Arrays = Mapping[str, Array]


class Bank:
    """Memory of `width` rows, each empty or with a stream, which is told by its key.

    One thread at a time may use it.
    """

    def __init__(
        self,
        state: State,
        stepper: Stepper,
        entry: GraphEntry,
        width: int,
        *,
        all_rows: bool,
        worth: int,
    ) -> None:
        """Take memory for `width` rows.

        Args:
            state: with what holds for the states, of a session of the graph.
            stepper: takes the steps.
            entry: of the graph.
            width: how many rows.
            all_rows: whether each step runs over all rows, so that its shape is always the same.
            worth: bytes that may be copied so that a step has fewer rows.
        """
        self._specs = state.settings.changing
        self._ceiling = min(state.settings.ceiling, state.settings.max_context or 2**62)
        self._stepper, self._entry = stepper, entry
        self._whole = CarriedStates(state.settings, width)
        self._sides = np.zeros(width, np.intp)
        self._keys: list[Hashable | None] = [None] * width
        self._rows: dict[Hashable, int] = {}
        self._windows: OrderedDict[tuple[int, int], CarriedStates] = OrderedDict()
        self._conditioned: dict[tuple[int, int], tuple[Conditions | None, list[Conditions]]] = {}
        self._fixed = sum(spec.nbytes(1, 0) for spec in self._specs)
        self._token = sum(spec.nbytes(1, 1) for spec in self._specs) - self._fixed
        self._input_axes = [spec.shape.index(BATCH) for spec in entry.inputs] if width > 1 else []
        self._output_axes = [
            (spec.name, spec.shape.index(BATCH) if BATCH in spec.shape else None)
            for spec in entry.outputs
        ]
        self._all_rows = all_rows or width == 1 or self._whole.window(slice(1)) is None
        self._worth = worth

    def __contains__(self, key: Hashable) -> bool:
        return key in self._rows

    @property
    def width(self) -> int:
        """How many rows there are."""
        return len(self._keys)

    @property
    def free(self) -> int:
        """How many rows are empty."""
        return self.width - len(self._rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the states."""
        return self._whole.nbytes

    def admit(self, key: Hashable, part: CarriedStates | None) -> None:
        """Give a stream an empty row, with the state of `part`, one row, or the initial one.

        Raises:
            StateError: if it holds more tokens than there may be room for.
        """
        row = self._keys.index(None)
        if part is not None:
            self._reserve(part.longest)
        self._look_from(row)
        if part is None:
            self._whole.clear(np.array([row]))
        else:
            self._whole.scatter(np.array([row]), part)
        self._keys[row], self._rows[key] = key, row

    def part(self, key: Hashable) -> CarriedStates:
        """A copy of the state of a stream, one row."""
        row = self._rows[key]
        self._look_from(row)
        plain = copy(self._whole)
        plain.conditions = None  # those of a window, for rows that may have changed since
        return plain.gather(np.array([row]))

    def release(self, key: Hashable) -> None:
        """Empty the row of a stream."""
        row = self._rows.pop(key)
        self._keys[row] = None
        self._whole.past_lengths[self._sides[row]][row] = 0

    def tokens(self, key: Hashable) -> int:
        """Tokens that a stream has consumed."""
        return self._past(self._rows[key])

    def mark(self, key: Hashable) -> tuple[int, dict[str, Array]]:
        """What `rewind` needs to bring a stream back to where it is now: less than its state."""
        row = self._rows[key]
        side, past = self._sides[row], self._past(row)
        return past, {
            buffer.spec.input: buffer.value(side, past)[_place(buffer.spec, row)].copy()
            for buffer in self._whole.buffers
            if buffer.spec.layout is not Layout.STATIC  # whose tokens nothing overwrites
        }

    def rewind(self, key: Hashable, mark: tuple[int, Arrays]) -> None:
        """Bring a stream back to where it was marked."""
        row = self._rows[key]
        side, (past, values) = self._sides[row], mark
        for buffer in self._whole.buffers:
            if buffer.spec.input in values:
                buffer.put(side, past, _place(buffer.spec, row), values[buffer.spec.input])
        self._whole.past_lengths[side][row] = past

    def step(
        self, inputs: Mapping[Any, Arrays], time: int, conditions: Sequence[Conditions | None]
    ) -> dict[Hashable, dict[str, Array]]:
        """Step some streams by `time` tokens; all others stay as they are.

        Args:
            inputs: arrays of one row by name, for each stream.
            time: tokens that each has.
            conditions: of each stream, all of the same sizes.

        Returns:
            The outputs of each, of one row, in memory of their own.

        Raises:
            InputError: if the engine refuses the values; no stream has moved then.
            StateError: if there is no room; no stream has moved then.
            DeviceError: if the GPU that runs it fails.
        """
        rows = {key: self._rows[key] for key in inputs}
        start, stop = self._choose([*rows.values()])
        rows = {key: self._rows[key] for key in inputs}  # which may have moved
        side = self._settle(slice(start, stop))
        past = self._whole.past_lengths[side][start:stop]
        taken = np.array([*rows.values()]) - start
        longest = int(past[taken].max())
        self._reserve(max(longest + time, min(int(past.max()) + time, self._ceiling)))
        idle = np.ones(stop - start, bool)
        idle[taken] = False
        beyond = idle & (past + time > self._whole.room)
        crowded = [int(row) for row in np.flatnonzero(beyond) + start]
        kept = [self._set_back(row, time) for row in crowded]
        try:
            window = self._window(start, stop)
            past = window.past_lengths[side]
            window.now = side, int(past.max())
            held = dict(zip(rows.values(), conditions, strict=True))
            self._condition(window, (start, stop), held)
            arrays = self._joined([*inputs.values()], taken, stop - start)
            sizes = {BATCH: stop - start, TIME: time}
            if window.conditions is not None:
                sizes |= window.conditions.own_sizes
            outputs = self._stepper.step(window, arrays, sizes)
        finally:
            for row, each in zip(crowded, kept, strict=True):
                self._put_back(row, time, each)
        self._sides[taken + start] = 1 - side
        return {key: self._row_of(outputs, row - start) for key, row in rows.items()}

    def _past(self, row: int) -> int:
        return int(self._whole.past_lengths[self._sides[row]][row])

    def _look_from(self, row: int) -> None:
        """Let the whole show the current side of `row`."""
        longest = np.where(self._sides == 0, *self._whole.past_lengths).max(initial=0)
        self._whole.now = int(self._sides[row]), int(longest)

    def _reserve(self, tokens: int) -> None:
        capacity = self._whole.capacity
        self._look_from(0)
        self._whole.reserve(tokens)
        if self._whole.capacity != capacity:
            self._windows.clear()
            self._conditioned.clear()

    def _choose(self, rows: Sequence[int]) -> tuple[int, int]:
        """A window with all `rows`, or one that they are moved into."""
        if self._all_rows:
            return 0, self.width
        size = 1 << (len(rows) - 1).bit_length()
        costs = [self._cost(row) for row in rows] if size < self.width else []
        while size < self.width:
            places = np.array(rows) // size
            inside = np.bincount(places, minlength=1)[: self.width // size]
            if inside.any():
                at = int(inside.argmax())
                outside = [i for i, place in enumerate(places) if place != at]
                if sum(costs[i] for i in outside) <= self._worth:
                    start = at * size
                    self._move([rows[i] for i in outside], start, size, rows)
                    return start, start + size
            size *= 2
        return 0, self.width

    def _cost(self, row: int) -> int:
        """Bytes that an exchange of a row copies at most."""
        return 3 * (self._fixed + self._past(row) * self._token)

    def _move(self, outside: Iterable[int], start: int, size: int, rows: Sequence[int]) -> None:
        stay = set(rows)
        idle = [row for row in range(start, start + size) if row not in stay]
        idle.sort(key=lambda row: self._keys[row] is not None)  # an empty row costs a copy less
        for row, place in zip(outside, idle, strict=False):
            self._exchange(row, place)

    def _exchange(self, one: int, other: int) -> None:
        full = [row for row in (one, other) if self._keys[row] is not None]
        values = {row: self._take(row) for row in full}
        past = {row: self._past(row) for row in full}
        keys = self._keys
        keys[one], keys[other] = keys[other], keys[one]
        for row, to in ((one, other), (other, one)):
            self._whole.past_lengths[self._sides[to]][to] = past.get(row, 0)
            key = keys[to]
            if key is None:
                continue
            self._rows[key] = to
            for buffer in self._whole.buffers:
                place = _place(buffer.spec, to)
                buffer.put(self._sides[to], past[row], place, values[row][buffer.spec.input])

    def _take(self, row: int) -> dict[str, Array]:
        side, past = self._sides[row], self._past(row)
        return {
            buffer.spec.input: buffer.value(side, past)[_place(buffer.spec, row)].copy()
            for buffer in self._whole.buffers
        }

    def _settle(self, window: slice) -> int:
        """Bring all rows of a window to one side, the one that fewer have to be copied to."""
        sides = self._sides[window]
        full = np.array([key is not None for key in self._keys[window]])
        side = int(2 * np.count_nonzero(sides[full]) > np.count_nonzero(full))
        whole = self._whole
        other = np.flatnonzero((sides != side) & full) + window.start
        if other.size:
            for buffer in whole.buffers:
                if buffer.spec.layout is not Layout.STATIC:
                    place = buffer.spec.place_of(other)
                    buffer.put(side, 0, place, buffer.value(1 - side, 0)[place])
            whole.past_lengths[side][other] = whole.past_lengths[1 - side][other]
        whole.past_lengths[side][np.flatnonzero(~full) + window.start] = 0
        self._sides[window] = side
        return side

    def _set_back(self, row: int, time: int) -> tuple[int, dict[str, Array]]:
        """Let a row without room for `time` tokens write over its last ones, which are returned."""
        side, past, room = self._sides[row], self._past(row), self._whole.room
        last = {
            buffer.spec.input: buffer.value(side, room)[
                _tokens(buffer.spec, row, room, time)
            ].copy()
            for buffer in self._whole.buffers
            if buffer.spec.layout is Layout.STATIC
        }
        self._whole.past_lengths[side][row] = room - time
        return past, last

    def _put_back(self, row: int, time: int, kept: tuple[int, Arrays]) -> None:
        side, room, (past, last) = self._sides[row], self._whole.room, kept
        for buffer in self._whole.buffers:
            if buffer.spec.input in last:
                place = _tokens(buffer.spec, row, room, time)
                buffer.put(side, room, place, last[buffer.spec.input])
        self._whole.past_lengths[side][row] = past

    def _window(self, start: int, stop: int) -> CarriedStates:
        """Rows of the memory for a step."""
        if (start, stop) == (0, self.width):
            return self._whole
        window = self._windows.get((start, stop))
        if window is None:
            window = self._whole.window(slice(start, stop))
            assert window is not None, "some rows lie together and others do not"
            while len(self._windows) >= WINDOWS:
                gone, _ = self._windows.popitem(last=False)
                self._conditioned.pop(gone, None)
            self._windows[start, stop] = window
        self._windows.move_to_end((start, stop))
        return window

    def _condition(
        self,
        window: CarriedStates,
        place: tuple[int, int],
        held: Mapping[int, Conditions | None],
    ) -> None:
        """Let the steps of a window read the conditions of its rows, each its own."""
        first = next(iter(held.values()))
        if first is None:
            return
        shared = None if all(name in first.axes for name in first.states) else first
        last, before = self._conditioned.get(place, (None, [first] * (place[1] - place[0])))
        rows = [  # a row without input keeps those of a step before, so that little changes
            held.get(row) or (old if old.sizes == first.sizes else first)
            for row, old in zip(range(*place), before, strict=True)
        ]
        same = all(a is b for a, b in zip(before, rows, strict=True))
        if place not in self._conditioned or last is not shared or not same:
            window.condition(joined(rows, first))
            self._conditioned[place] = shared, rows

    def _joined(
        self, inputs: Sequence[Arrays], rows: npt.NDArray[np.intp], width: int
    ) -> dict[str, Array]:
        """Inputs of one row each as those of all rows, zeros where there are none."""
        if width == 1:
            return dict(inputs[0])
        found = {}
        for spec, axis in zip(self._entry.inputs, self._input_axes, strict=True):
            given = np.concatenate([arrays[spec.name] for arrays in inputs], axis)
            shape = list(given.shape)
            shape[axis] = width
            whole = np.zeros(shape, spec.dtype)
            place: Any = (*[slice(None)] * axis, rows)
            whole[place] = given
            found[spec.name] = whole
        return found

    def _row_of(self, outputs: Arrays, row: int) -> dict[str, Array]:
        """The outputs of one row, in memory of their own."""
        found = {}
        for name, axis in self._output_axes:
            array = outputs[name]
            if axis is not None and array.shape[axis] > 1:
                array = array[(*[slice(None)] * axis, slice(row, row + 1))].copy()
            found[name] = array
        return found


def _place(spec: StateSpec, row: int) -> Any:
    """What indexes one row, kept as an axis."""
    return spec.place_of(slice(row, row + 1))


def _tokens(spec: StateSpec, row: int, room: int, time: int) -> Any:
    """What indexes the last `time` of `room` tokens of a row."""
    assert spec.axis is not None
    place: list[Any] = [slice(None)] * len(spec.shape)
    place[spec.axis] = slice(room - time, room)
    if spec.rows is not None:
        place[spec.rows] = slice(row, row + 1)
    return tuple(place)


def width_of(entry: GraphEntry, specs: Sequence[StateSpec], rows: int, most: int | None) -> int:
    """How many of `rows` rows may share a call of the engine.

    One where a state or a tensor is the same for all rows, where rows have to be of equal length,
    and where tokens see each other in blocks, which begin elsewhere in each stream.
    """
    if entry.limits.batch is not None:
        return entry.limits.batch
    tensors = (*entry.inputs, *entry.outputs)
    alone = (
        bool(entry.limits.ends)
        or any(BATCH not in tensor.shape for tensor in tensors)
        or any(spec.layout is Layout.GROW or spec.rows is None for spec in specs)
        or any(not _plain(dim) for tensor in entry.outputs for dim in tensor.shape)
    )
    return 1 if alone else min(rows, most or rows)


def _plain(dim: int | str) -> bool:
    return isinstance(dim, int) or dim.isidentifier() or dim.endswith(f"*{TIME}")
