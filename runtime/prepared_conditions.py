"""What is given once for a sequence, and the states that the graph `prepare` makes of it.

`Conditions` never change: rows that are chosen, repeated or given anew are another object, so that
sessions which were forked may share one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, StateError
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import GraphEntry, TensorSpec
from intaglio.runtime.step_inputs import as_array, list_of, shape_of, stray
from intaglio.state import BATCH, Layout, StateSpec

Arrays = Mapping[str, Array]
Rows = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """The conditions of some rows.

    Attributes:
        given: the conditions by name, as the graph that prepares takes them.
        states: what it made of them, by input of the step graph.
        sizes: of the free axes of the conditions, batch among them where they have rows.
        axes: which axis of each array has the rows; those that hold for all rows are not named.
    """

    given: Arrays
    states: Arrays
    sizes: Mapping[str, int]
    axes: Mapping[str, int]

    @property
    def batch(self) -> int | None:
        """Rows, None where no condition tells rows apart."""
        return self.sizes.get(BATCH)

    @property
    def own_sizes(self) -> dict[str, int]:
        """The sizes of free axes beside the rows."""
        return {dim: size for dim, size in self.sizes.items() if dim != BATCH}

    def select(self, rows: Rows) -> "Conditions":
        """Those of `rows`, in this order."""
        if self.batch is None:
            return self
        kept = np.arange(self.batch)[rows]
        return replace(
            self,
            given={name: self._of(name, array, kept) for name, array in self.given.items()},
            states={name: self._of(name, array, kept) for name, array in self.states.items()},
            sizes={**self.sizes, BATCH: len(kept)},
        )

    def with_rows(self, rows: Rows, part: "Conditions") -> "Conditions":
        """A copy with `part`, of the same sizes, in place of `rows`."""
        return replace(
            self,
            given={n: self._put(n, x, rows, part.given[n]) for n, x in self.given.items()},
            states={n: self._put(n, x, rows, part.states[n]) for n, x in self.states.items()},
        )

    def _of(self, name: str, array: Array, rows: Rows) -> Array:
        return array.take(rows, self.axes[name]) if name in self.axes else array

    def _put(self, name: str, array: Array, rows: Rows, part: Array) -> Array:
        if name not in self.axes:
            return array
        whole = array.copy()
        np.moveaxis(whole, self.axes[name], 0)[rows] = np.moveaxis(part, self.axes[name], 0)
        return whole


class Preparer:
    """Makes `Conditions` for a graph: checks what is given, pads it, and runs its `prepare`.

    Attributes:
        specs: the conditions that the graph takes.
    """

    def __init__(
        self, entry: GraphEntry, states: Sequence[StateSpec], run: Callable[[Arrays], Arrays]
    ) -> None:
        """Prepare for `entry` with `run`, which maps arrays by name to outputs by name.

        Args:
            entry: of the graph that is stepped.
            states: as the engine has them that steps it.
            run: makes them, in their own dtypes or wider ones.
        """
        self.specs = entry.conditions
        self._states = [spec for spec in states if spec.layout is Layout.PREPARED]
        self._batch = entry.limits.batch
        self._run = run

    @property
    def names(self) -> list[str]:
        """The names of the conditions."""
        return [spec.name for spec in self.specs]

    def read(self, given: Mapping[str, Any], batch: int | None = None) -> dict[str, Array]:
        """What was given as arrays; those that may be left out filled.

        Args:
            given: arrays by name.
            batch: rows that there have to be, None for any number.

        Raises:
            InputError: if one is missing, unknown, or of another dtype or shape.
        """
        for name in given:
            if name not in self.names:
                raise InputError(
                    f"There is no condition {name!r}. The bundle takes: {list_of(self.names)}."
                )
        arrays = {s.name: as_array(given[s.name], s, "condition") for s in self.specs
                  if s.name in given}  # fmt: skip
        sizes = self.sizes(arrays)
        found = sizes.get(BATCH)
        for wanted, why in ((batch, "rows to condition"), (self._batch, "rows of the bundle")):
            if None not in (wanted, found) and wanted != found:
                raise InputError(f"The conditions have {found} rows; there are {wanted} {why}.")
        for spec in self.specs:
            if spec.name not in arrays:
                free = [dim for dim in spec.shape if isinstance(dim, str)]
                if spec.default is None or not all(dim in sizes for dim in free):
                    raise InputError(
                        f"The condition {spec.name!r} is missing. The bundle takes: "
                        f"{list_of(self.names)}."
                    )
                arrays[spec.name] = np.full(shape_of(spec, sizes), spec.default, spec.dtype)
        return {spec.name: _checked(spec, arrays[spec.name]) for spec in self.specs}

    def sizes(self, arrays: Arrays) -> dict[str, int]:
        """The sizes of the free axes of conditions.

        Raises:
            InputError: if two conditions have another, or one is 0.
        """
        found: dict[str, int] = {}
        for spec in self.specs:
            if spec.name not in arrays:
                continue
            shape = arrays[spec.name].shape
            for size, dim in zip(shape, spec.shape, strict=True):
                expected = dim if isinstance(dim, int) else found.setdefault(dim, size)
                if size != expected or not size:
                    raise InputError(
                        f"The condition {spec.name!r} has the shape {shape}, should be "
                        f"[{list_of(spec.shape)}] with {dim} = {expected or 'at least 1'}."
                    )
        return found

    def prepare(self, arrays: Arrays) -> Conditions:
        """The conditions of `arrays`, as `read` returns them.

        Raises:
            InputError: if the engine refuses the values.
        """
        made = self._run(arrays)
        kept = {name: array.copy() for name, array in arrays.items()}
        with np.errstate(over="ignore"):  # what hides an entry is minus infinity in fp16
            states = {s.input: made[s.input].astype(s.dtype, copy=False) for s in self._states}
        return self._conditions(kept, states)

    def put(self, held: Conditions, rows: Rows, arrays: Arrays) -> Conditions:
        """`held` with other conditions for `rows`: padded to the longer ones where that is hidden.

        Raises:
            InputError: if they differ in what holds for all rows, or in a size that no mask hides.
        """
        for spec in self.specs:
            if BATCH not in spec.shape and not np.array_equal(
                arrays[spec.name], held.given[spec.name]
            ):
                raise InputError(
                    f"The condition {spec.name!r} holds for all rows, so it cannot be given anew "
                    "for some. Give the conditions of all rows."
                )
        own, sizes = self.sizes(arrays), held.own_sizes
        longest = {dim: max(own[dim], size) for dim, size in sizes.items()}
        part = self._padded(arrays, longest)
        if longest == sizes:
            return held.with_rows(rows, self.prepare(part))
        wider = replace(held, given=self._padded(held.given, longest), states={})
        return self.prepare(wider.with_rows(rows, self._conditions(part, {})).given)

    def _conditions(self, given: Arrays, states: Arrays) -> Conditions:
        shapes = {spec.name: spec.shape for spec in self.specs}
        shapes |= {spec.input: spec.shape for spec in self._states}
        axes = {name: shape.index(BATCH) for name, shape in shapes.items() if BATCH in shape}
        return Conditions(given=given, states=states, sizes=self.sizes(given), axes=axes)

    def _padded(self, arrays: Arrays, longest: Mapping[str, int]) -> Arrays:
        """`arrays` with their axes as long as `longest`; what is added is hidden by a mask."""
        sizes = self.sizes(arrays)
        grown = [dim for dim, size in longest.items() if sizes[dim] < size]
        for dim in grown:
            if not any(hides(spec, dim) for spec in self.specs):
                raise InputError(
                    f"The conditions have {dim} = {sizes[dim]}, those of other rows {dim} = "
                    f"{longest[dim]}, and no condition is a mask that could hide what is padded. "
                    "Give all rows the same size, or each a session of its own."
                )
        found = {}
        for spec in self.specs:
            array = arrays[spec.name]
            more = [
                longest.get(str(dim), size) - size
                for dim, size in zip(spec.shape, array.shape, strict=True)
            ]
            found[spec.name] = np.pad(array, [(0, n) for n in more]) if any(more) else array
        return found

    def restore(self, given: Arrays, states: Arrays, batch: int) -> Conditions:
        """Conditions that a snapshot holds, of `batch` rows.

        Raises:
            StateError: if they are not those of the bundle.
        """
        try:
            arrays = self.read(given)
            sizes = self.sizes(arrays)
        except InputError as error:
            raise StateError(f"The snapshot is damaged: {error}") from error
        fits = sizes.get(BATCH, batch) == batch and set(states) == {s.input for s in self._states}
        for spec in self._states if fits else ():
            found = states[spec.input]
            expected = [sizes.get(str(dim), dim) for dim in spec.shape]
            fits = fits and found.dtype == spec.dtype and found.ndim == len(spec.shape)
            fits = fits and all(
                isinstance(dim, str) or dim == size
                for dim, size in zip(expected, found.shape, strict=True)
            )
        if not fits:
            raise StateError("The snapshot is damaged: its arrays are not the bundle's states.")
        return self._conditions(arrays, dict(states))


def joined(parts: Sequence[Conditions], first: Conditions) -> Conditions:
    """What steps read of rows that were conditioned apart, with the same sizes: their states.

    What holds for all rows is that of `first`, one of them.
    """
    if first.batch is None or len(parts) == 1:
        return first
    states = {
        name: np.concatenate([part.states[name] for part in parts], first.axes[name])
        if name in first.axes
        else array
        for name, array in first.states.items()
    }
    return replace(first, given={}, states=states, sizes={**first.sizes, BATCH: len(parts)})


def hides(spec: TensorSpec, dim: str) -> bool:
    """Whether a condition is a mask over the axis `dim`: 0 hides an entry, 1 is what it is else."""
    return spec.default == 1 and spec.shape == (BATCH, dim)


def _checked(spec: TensorSpec, array: Array) -> Array:
    """`array` in the dtype of the graph, once its ids are those of its table."""
    entries = spec.entries
    if entries is not None and (array.min() < 0 or array.max() >= entries):
        raise InputError(stray(spec, entries, array, "condition"))
    return array.astype(spec.dtype)
