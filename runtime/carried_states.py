"""The carried states of some rows together: their memory, their tokens, and their bound steps.

Internal to the runtime: users meet it as `Session.state`.
"""

import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import StateError
from intaglio.runtime.arrays import Array
from intaglio.runtime.prepared_conditions import Conditions
from intaglio.runtime.state_memory import StateBuffer, StateMemory
from intaglio.state import Layout, StateSpec

Rows = slice | npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What holds for the states of a session, whatever its rows.

    `capacity` is the room in tokens that growing states start with, or `max_context` where that is
    less; beyond it they double if `grow`, up to `max_context`.  `memory` is where they live, and
    `relief` tells the user what makes more room.
    """

    memory: StateMemory
    specs: tuple[StateSpec, ...]
    max_context: int | None
    capacity: int
    grow: bool
    relief: str

    @property
    def ceiling(self) -> int:
        """The most tokens that growing states may ever have room for."""
        return min(
            sys.maxsize if self.grow else self.capacity,
            sys.maxsize if self.max_context is None else self.max_context,
        )

    @property
    def changing(self) -> tuple[StateSpec, ...]:
        """The states that steps change."""
        return tuple(spec for spec in self.specs if spec.layout is not Layout.PREPARED)

    @property
    def prepared(self) -> tuple[StateSpec, ...]:
        """The states that follow from conditions, which no step changes."""
        return tuple(spec for spec in self.specs if spec.layout is Layout.PREPARED)

    @property
    def has_growing(self) -> bool:
        """Whether any state grows with the tokens consumed."""
        return any(spec.grows for spec in self.specs)


class CarriedStates:
    """States of `batch` rows.

    Attributes:
        now: side and longest; a new object whenever a step has been taken.
        past_lengths: int64 [batch] for each side, tokens that each row has consumed.
        room: tokens that a row may reach before `reserve` must be called.
        conditions: what was given once for these rows, None before that.
        steps: bound to this memory, by the shapes of their inputs.
    """

    def __init__(
        self,
        settings: Settings,
        batch: int,
        capacity: int | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        """Take memory for `batch` rows in their initial state."""
        self.settings = settings
        self.batch = batch
        self.capacity = min(capacity or settings.capacity, settings.ceiling)
        self.buffers = [self._buffer(spec, self.capacity) for spec in settings.changing]
        self.past_lengths = (np.zeros(batch, np.int64), np.zeros(batch, np.int64))
        self.now = (0, 0)
        self.steps: dict[Any, Any] = {}
        self.condition(conditions)
        self._measure_room()

    @property
    def side(self) -> int:
        """Which of two swapped arrays is current."""
        return self.now[0]

    @property
    def past_length(self) -> npt.NDArray[np.int64]:
        """int64 [batch], tokens that each row has consumed."""
        return self.past_lengths[self.now[0]]

    @property
    def longest(self) -> int:
        """The most tokens that a row has consumed."""
        return self.now[1]

    @longest.setter
    def longest(self, tokens: int) -> None:
        self.now = self.now[0], tokens

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in (*self.buffers, *self.prepared))

    def condition(self, conditions: Conditions | None) -> None:
        """Let the next steps of these rows read what was made of `conditions`."""
        settings = self.settings
        self.conditions = conditions
        states = {} if conditions is None else conditions.states
        self.prepared = [
            settings.memory.given(spec, states[spec.input])
            for spec in settings.prepared
            if spec.input in states
        ]
        self.steps.clear()

    def values(self, tokens: int | None = None) -> dict[str, Array]:
        """The states by graph input, for reading: `tokens` tokens of growing ones, else all."""
        tokens = self.longest if tokens is None else tokens
        return {buffer.spec.input: buffer.value(self.side, tokens) for buffer in self.buffers}

    def fill(self, past_length: Array, values: Mapping[str, Array]) -> None:
        """Take over `values`, arrays of the same shapes, and the tokens that they stand for."""
        self.past_length[:] = past_length
        self.longest = int(past_length.max(initial=0))
        for buffer in self.buffers:
            buffer.put(self.side, self.longest, ..., values[buffer.spec.input])

    def window(self, rows: slice) -> "CarriedStates | None":
        """Neighbouring rows in the same memory, with bound steps of their own.

        Which side is current each keeps for itself, so whoever steps both has to set `now`; only
        the whole may `reserve`, and windows that were taken before then are void.

        Returns:
            None where some state does not hold these rows together.
        """
        buffers = [buffer.window(rows) for buffer in self.buffers]
        part = copy(self)
        part.buffers = [buffer for buffer in buffers if buffer is not None]
        if len(part.buffers) < len(buffers):
            return None
        first, second = self.past_lengths
        part.past_lengths = first[rows], second[rows]
        part.batch, part.steps = len(part.past_lengths[0]), {}
        return part

    def gather(self, rows: Rows) -> "CarriedStates":
        """A copy of some rows, in the order given."""
        past_length = self.past_length[rows]
        values = self.values(int(past_length.max(initial=0)))
        conditions = self.conditions
        if conditions is not None and not isinstance(rows, slice):
            conditions = conditions.select(rows)
        part = CarriedStates(self.settings, len(past_length), self.capacity, conditions)
        places = {spec.input: spec.place_of(rows) for spec in self.settings.changing}
        part.fill(past_length, {name: value[places[name]] for name, value in values.items()})
        return part

    def scatter(self, rows: Rows, part: "CarriedStates") -> None:
        """Put the rows of `part` in place of `rows`; there must be room."""
        self.past_length[rows] = part.past_length
        self.longest = int(self.past_length.max(initial=0))
        values = part.values()
        for buffer in self.buffers:
            place = buffer.spec.place_of(rows)
            buffer.put(self.side, part.longest, place, values[buffer.spec.input])

    def clear(self, rows: Rows) -> None:
        """Bring some rows back to their initial state.

        Raises:
            StateError: if the cache is of the layout grow, or a state is one for all rows, and
                other rows keep their tokens.
        """
        past_length = self.past_length.copy()
        past_length[rows] = 0
        self.require_equal_rows(past_length, "Resetting some rows of several")
        for buffer in self.buffers:
            spec = buffer.spec
            if spec.rows is not None or not past_length.any():
                buffer.put(self.side, self.longest, spec.place_of(rows), spec.initial)
        self.past_length[:] = past_length
        self.longest = int(past_length.max(initial=0))

    @property
    def only_caches(self) -> bool:
        """Whether every state grows, so that its last tokens can be taken back."""
        return all(spec.grows for spec in self.settings.changing)

    def truncate(self, past_length: npt.NDArray[np.int64]) -> None:
        """Let caches forget the tokens beyond `past_length`; states of fixed shape stay.

        Raises:
            StateError: as `require_equal_rows`.
        """
        self.require_equal_rows(past_length, "Taking tokens back")
        longest = int(past_length.max(initial=0))
        for buffer in self.buffers:
            if buffer.spec.layout is Layout.GROW:
                axis = buffer.spec.axis
                assert axis is not None
                kept = buffer.value(self.side, self.longest)[
                    (*[slice(None)] * axis, slice(longest))
                ]
                buffer.put(self.side, longest, ..., kept.copy())
        self.past_length[:] = past_length
        self.longest = longest

    def require_equal_rows(self, past_length: Array, what: str) -> None:
        """Refuse rows of unequal length where a state holds the same tokens for all.

        Raises:
            StateError: if `past_length` differs between rows, and a cache is of the layout grow or
                a state is one for all rows.
        """
        if not past_length.size or past_length.min() == past_length.max():
            return
        specs = self.settings.changing
        if any(spec.layout is Layout.GROW for spec in specs):
            raise StateError(
                f"{what} would leave rows of unequal length, which a KV cache of the layout 'grow' "
                "cannot hold. Export the bundle with the layout 'static'."
            )
        shared = next((spec.input for spec in specs if spec.rows is None), None)
        if shared is not None:
            raise StateError(
                f"{what} would leave rows of unequal length, but the state {shared!r} is one for "
                "all rows. Give each row a session of its own."
            )

    def advance(self, time: int) -> None:
        """Make the states that a step of `time` tokens left the current ones."""
        side, longest = self.now
        past, present = self.past_lengths[side], self.past_lengths[1 - side]
        if self.batch == 1:
            present[0] = past[0] + time  # a tenth of what the same costs as array arithmetic
        else:
            np.add(past, time, out=present)
        self.now = 1 - side, longest + time  # at once, whatever signal comes

    def reserve(self, tokens: int) -> None:
        """Make room for rows of up to `tokens` tokens, by doubling.

        Raises:
            StateError: if that is more than the model, or the session's capacity, allows.
        """
        settings = self.settings
        if settings.max_context is not None and tokens > settings.max_context:
            raise StateError(
                f"A row would hold {tokens} tokens, but the model's positions end at "
                f"{settings.max_context} (max_context). Reset or restore the state first."
            )
        if tokens <= self.room:
            return
        if tokens > settings.ceiling:
            raise StateError(
                f"A row would hold {tokens} tokens, but the session has the fixed "
                f"capacity {settings.ceiling}. {settings.relief}"
            )
        capacity = self.capacity
        while capacity < tokens:
            capacity *= 2
        capacity = min(capacity, settings.ceiling)
        self.buffers = [self._with_room(buffer, capacity) for buffer in self.buffers]
        self.capacity = capacity
        self.steps.clear()
        self._measure_room()

    def _buffer(self, spec: StateSpec, capacity: int) -> StateBuffer:
        return self.settings.memory.buffer(spec, self.batch, capacity)

    def _with_room(self, buffer: StateBuffer, capacity: int) -> StateBuffer:
        if not buffer.spec.grows:
            return buffer
        larger = self._buffer(buffer.spec, capacity)
        larger.put(self.side, self.longest, ..., buffer.value(self.side, self.longest))
        return larger

    def _measure_room(self) -> None:
        settings = self.settings
        room = self.capacity if settings.has_growing else sys.maxsize
        self.room = min(room, settings.max_context or room)
