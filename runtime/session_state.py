"""The carried state of a session, as its user handles it, and snapshots of it."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, StateError
from intaglio.runtime.arrays import Array, read_npz
from intaglio.runtime.carried_states import CarriedStates, Rows, Settings
from intaglio.runtime.prepared_conditions import Preparer
from intaglio.runtime.step_inputs import list_of
from intaglio.state import BATCH
from intaglio.whole_files import output

SNAPSHOT_VERSION = 1
LARGEST = 2**40  # tokens
TRIES = 64  # to copy a state that another thread steps
_HEADER = "intaglio"
_PAST_LENGTH = "past_length"
_CONDITION, _PREPARED = "condition:", "prepared:"  # before names, in the file of a snapshot


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A copy of a session's state: what it takes to continue from there, bit for bit.

    Attributes:
        fingerprint: of the graph and weights that the state belongs to.
        past_length: int64 [batch], tokens that each row had consumed.
        capacity: room of growing states, in tokens.
        arrays: the states by the names of their graph inputs; growing ones hold
            max(past_length) tokens.
        conditions: what was given once for the sequences, by name; empty before that.
        prepared: the states that follow from the conditions, by the names of their graph inputs.
    """

    fingerprint: str
    past_length: npt.NDArray[np.int64]
    capacity: int
    arrays: Mapping[str, Array]
    conditions: Mapping[str, Array] = field(default_factory=dict)
    prepared: Mapping[str, Array] = field(default_factory=dict)

    def __repr__(self) -> str:
        """In short: ``Snapshot(rows=2, tokens=[7, 5])``."""
        return f"Snapshot(rows={len(self.past_length)}, tokens={self.past_length.tolist()})"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write to `path` in numpy's .npz format; an old file stays whole until then."""
        header = {
            "version": SNAPSHOT_VERSION,
            "fingerprint": self.fingerprint,
            "capacity": self.capacity,
        }
        content = {_HEADER: np.array(json.dumps(header)), _PAST_LENGTH: self.past_length}
        content |= {f"{_CONDITION}{name}": array for name, array in self.conditions.items()}
        content |= {f"{_PREPARED}{name}": array for name, array in self.prepared.items()}
        with output(path) as draft, draft.open("wb") as file:
            np.savez(file, allow_pickle=False, **content, **self.arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            StateError: if `path` cannot be read or is not a snapshot.
        """
        try:
            arrays = read_npz(path)
            header = json.loads(str(arrays.pop(_HEADER)))
            if header["version"] != SNAPSHOT_VERSION:
                raise StateError(
                    f"{path} is a snapshot of version {header['version']}; this intaglio reads "
                    f"version {SNAPSHOT_VERSION}. Take it again."
                )
            for name, array in arrays.items():
                if array.dtype.kind == "f" and np.isnan(array).any():
                    raise StateError(f"{path} holds NaN in {name!r}: no step can go on from there.")
            return cls(
                fingerprint=header["fingerprint"],
                capacity=header["capacity"],
                past_length=arrays.pop(_PAST_LENGTH),
                conditions=_taken_out(arrays, _CONDITION),
                prepared=_taken_out(arrays, _PREPARED),
                arrays=arrays,
            )
        except (InputError, ValueError, KeyError, TypeError, RecursionError) as error:
            if isinstance(error.__cause__, OSError):
                raise StateError(str(error)) from error
            raise StateError(
                f"{path} is not a snapshot, or it is damaged ({error}). "
                "Give a file that session.state.save wrote."
            ) from error

    @property
    def is_sound(self) -> bool:
        """Whether its numbers are those of a snapshot: a file may hold anything."""
        length, capacity = self.past_length, self.capacity
        return (
            length.ndim == 1
            and length.dtype == np.int64
            and bool((length >= 0).all())
            and type(capacity) is int
            and 1 <= capacity <= LARGEST
        )


def _taken_out(arrays: dict[str, Array], start: str) -> dict[str, Array]:
    """The arrays whose names begin with `start`, without it; they are no longer in `arrays`."""
    names = [name for name in arrays if name.startswith(start)]
    return {name.removeprefix(start): arrays.pop(name) for name in names}


class State:
    """The states that a session carries from step to step, row by row.

    Attributes:
        settings: what holds for the states, whatever the rows.
        fingerprint: of what runs them.
        preparer: makes states of conditions, None where there are none.
        carried: the states of the rows that there are.
    """

    def __init__(
        self,
        settings: Settings,
        fingerprint: str,
        batch: int | None,
        preparer: Preparer | None = None,
    ) -> None:
        """Start in the initial state, before the first step.

        Args:
            settings: what holds for the states, whatever the rows.
            fingerprint: of what runs them.
            batch: a fixed number of rows.
            preparer: makes states of conditions, None where there are none.
        """
        self.settings = settings
        self.fingerprint = fingerprint
        self._batch = batch
        self.preparer = preparer
        self.carried = CarriedStates(settings, 0)

    def __repr__(self) -> str:
        """In short: ``State(rows=2)``."""
        return f"State(rows={self.batch})" if self.batch else "State()"

    @property
    def batch(self) -> int | None:
        """Rows, None before the first step."""
        return self.carried.batch or None

    @property
    def past_length(self) -> npt.NDArray[np.int64]:
        """Tokens that each row has consumed, int64 [batch]; a copy."""
        return self.carried.past_length.copy()

    @property
    def capacity(self) -> int | None:
        """Tokens that growing states have room for, None where no state grows."""
        return self.carried.capacity if self.settings.has_growing else None

    @property
    def own_sizes(self) -> dict[str, int]:
        """Sizes of the free axes that conditions brought, as the length of a source."""
        held = self.carried.conditions
        return {} if held is None else held.own_sizes

    @property
    def most_tokens(self) -> int | None:
        """Tokens that a row may ever hold, None where nothing bounds them."""
        settings = self.settings
        bound = settings.ceiling if settings.has_growing else settings.max_context
        return None if bound in (None, sys.maxsize) else bound

    @property
    def memory(self) -> int:
        """Bytes that the states take, both of two swapped buffers counted."""
        return self.carried.nbytes

    def save(self, path: str | os.PathLike[str] | None = None) -> Snapshot:
        """Copy the state, and write the copy to `path` (.npz) unless that is None."""
        for _ in range(TRIES):
            carried, now = self.carried, self.carried.now
            snapshot = self._snapshot(carried)
            if carried is self.carried and carried.now is now:
                break
        else:
            raise StateError(
                "Another thread steps the session while its state is saved. Save between steps, or "
                "from the thread that steps it."
            )
        if path is not None:
            snapshot.save(path)
        return snapshot

    def _snapshot(self, carried: CarriedStates) -> Snapshot:
        """A copy of states, a torn one if another thread steps them meanwhile."""
        return Snapshot(
            fingerprint=self.fingerprint,
            past_length=carried.past_length.copy(),
            capacity=carried.capacity,
            arrays={name: value.copy() for name, value in carried.values().items()},
            conditions={} if carried.conditions is None else carried.conditions.given,
            prepared={} if carried.conditions is None else carried.conditions.states,
        )

    def restore(self, snapshot: Snapshot | str | os.PathLike[str]) -> None:
        """Continue from a snapshot, or from the file of one.

        Raises:
            StateError: if it belongs to another bundle, does not fit, or cannot be read.
        """
        if not isinstance(snapshot, Snapshot):
            snapshot = Snapshot.load(snapshot)
        if snapshot.fingerprint != self.fingerprint:
            raise StateError(
                "The snapshot belongs to another bundle: its graph or weights are not those of "
                "this session. Restore it in a session of the bundle that it was taken from."
            )
        if not snapshot.is_sound:
            raise StateError("The snapshot is damaged: it counts no tokens that a state can hold.")
        batch, longest = len(snapshot.past_length), int(snapshot.past_length.max(initial=0))
        sizes = [max(array.shape, default=0) for array in snapshot.arrays.values()]
        if longest > max(sizes, default=0) and any(s.grows for s in self.settings.specs):
            raise StateError(
                f"The snapshot is damaged: it counts {longest} tokens, and no array of it holds "
                "so many."
            )
        conditions = None
        if self.preparer is not None and (snapshot.conditions or snapshot.prepared):
            made = snapshot.conditions, snapshot.prepared
            conditions = self.preparer.restore(*made, batch)
        try:
            carried = CarriedStates(self.settings, batch, snapshot.capacity, conditions)
            if batch:
                carried.reserve(longest)
        except (MemoryError, ValueError, OverflowError) as error:
            raise StateError(
                f"The snapshot says that it holds {batch} rows of up to {longest} tokens with "
                f"room for {snapshot.capacity}, for which there is no memory."
            ) from error
        if batch:
            carried.longest = longest
            expected = {name: (v.shape, v.dtype) for name, v in carried.values().items()}
            found = {name: (v.shape, v.dtype) for name, v in snapshot.arrays.items()}
            if expected != found:
                raise StateError("The snapshot is damaged: its arrays are not the bundle's states.")
            carried.fill(snapshot.past_length, snapshot.arrays)
        self.carried = carried

    def select(self, rows: Sequence[int] | npt.NDArray[Any]) -> None:
        """Keep only `rows`, in this order; a row may come more than once.

        Raises:
            StateError: if there is no such row, or the bundle has a fixed batch of another size.
        """
        indices = self._indices(rows)
        if len(indices) == 0:
            raise StateError("select was given no row. Call reset to start over.")
        if self._batch not in (None, len(indices)):
            raise StateError(
                f"select was given {len(indices)} rows, but the bundle was exported for a batch of "
                f"exactly {self._batch}."
            )
        self.carried = self.carried.gather(indices)

    def reset(self, rows: Sequence[int] | npt.NDArray[Any] | None = None) -> None:
        """Bring `rows` back to the initial state; None is all, and frees the batch size.

        Conditions stay, and with them the rows that they are of, until others are given.

        Raises:
            StateError: if there is no such row, or a cache of the layout grow would be left with
                rows of unequal length.
        """
        if rows is None:
            kept = self.carried.conditions
            batch = 0 if kept is None else kept.batch or 0
            self.carried = CarriedStates(self.settings, batch, conditions=kept)
        else:
            self.carried.clear(self._indices(rows))

    def condition(
        self, given: Mapping[str, Any], rows: Sequence[int] | npt.NDArray[Any] | None
    ) -> None:
        """Take conditions, see `Session.condition`."""
        carried, preparer = self.carried, self.preparer
        if preparer is None:
            raise InputError("This bundle takes no conditions: give all inputs to each step.")
        if rows is None:
            arrays = preparer.read(given)
            sizes = preparer.sizes(arrays)
            batch = sizes.get(BATCH, carried.batch)
            if batch != carried.batch:
                self._require_start(slice(None), f"{batch} rows", f"{carried.batch}")
                self.carried = CarriedStates(
                    self.settings, batch, conditions=preparer.prepare(arrays)
                )
                return
            self._require_same(slice(None), sizes)
            carried.condition(preparer.prepare(arrays))
            return
        if carried.conditions is None:
            raise StateError("No row has conditions yet: give those of all rows, without rows.")
        indices = self._indices(rows)
        arrays = preparer.read(given, len(indices))
        self._require_same(indices, preparer.sizes(arrays))
        carried.condition(preparer.put(carried.conditions, indices, arrays))

    def _require_same(self, rows: Rows, sizes: Mapping[str, int]) -> None:
        for dim, size in self.own_sizes.items():
            if sizes[dim] != size:
                self._require_start(rows, f"{dim} = {sizes[dim]}", f"{dim} = {size}")

    def _require_start(self, rows: Rows, found: str, held: str) -> None:
        """Refuse conditions of another size for `rows` whose sequence has begun."""
        if self.carried.past_length[rows].any():
            raise StateError(
                f"The conditions have {found}, and the sequence that has begun has {held}. Start "
                "over with state.reset, of these rows alone perhaps, and then give them."
            )

    def begin(self, batch: int) -> CarriedStates:
        """The states for a step of `batch` rows: those carried, or new ones for the first step.

        The caller makes new ones `carried` once the step has succeeded.

        Raises:
            StateError: if the carried states have another number of rows.
        """
        if self.preparer is not None and self.carried.conditions is None:
            raise StateError(
                "The session lacks its conditions, which are given once, before the first step: "
                f"session.condition({{...}}) with {list_of(self.preparer.names)}."
            )
        if self.carried.batch == 0:
            return CarriedStates(self.settings, batch, conditions=self.carried.conditions)
        if self.carried.batch != batch:
            raise StateError(
                f"The step has {batch} rows, the carried state {self.carried.batch}. "
                "Choose rows of the state with state.select, or start over with state.reset."
            )
        return self.carried

    def start_over(self, batch: int) -> CarriedStates:
        """The initial state of `batch` rows, with the steps that are bound to it, where it is kept.

        For whole sequences, of which none continues another.
        """
        if self.carried.batch == batch:
            self.carried.clear(slice(None))
        else:
            self.carried = CarriedStates(self.settings, batch)
        return self.carried

    def copy(self) -> "State":
        """The same state in memory of its own."""
        twin = State(self.settings, self.fingerprint, self._batch, self.preparer)
        twin.carried = self.carried.gather(slice(None))
        return twin

    def _indices(self, rows: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[np.intp]:
        batch = self.carried.batch
        array = np.asarray(rows)
        if array.dtype == np.bool_ and array.shape == (batch,):
            return np.flatnonzero(array)
        integers = array.ndim == 1 and (np.issubdtype(array.dtype, np.integer) or not array.size)
        if not integers or (array.size and (array.min() < 0 or array.max() >= batch)):
            raise StateError(
                f"rows is {rows!r}, should be indices from 0 to {batch - 1} or {batch} booleans."
                if batch
                else "The state has no rows yet: they come with the first step."
            )
        return array.astype(np.intp)
