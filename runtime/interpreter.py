"""The affine map that a network is for one input: rows, columns, bias term, singular vectors.

y(x1) = W x1 + r for an input x0, with y(x0) the network's own output.  A bundle that was exported
with ``--pass linear-interpreter`` holds the graphs.  `record` runs the network once and keeps what
it decided, `replay` runs any number of columns through the map in one call, and `transpose` weights
of the outputs through its transpose.  Where there are more columns than outputs, the rows are the
shorter side of W: they are taken once, and columns are products with them.

Source: Navarrete Michelini et al. 2019, arXiv:1908.05168.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError, InputError
from intaglio.spelling import perhaps

from .bundle import Bundle
from .session import Session

Array = npt.NDArray[Any]
RECORD, REPLAY, TRANSPOSE = "record", "replay", "transpose"
COLUMNS = 64  # in one call
ROW = "row"
STEPS, SETTLED = 100, 1e-6  # of the search for singular vectors, and when their values stand


@dataclass(frozen=True, kw_only=True)
class Singular:
    """Singular vectors of a map: `values` [k], `outputs` [k, ...] and `inputs` [k, ...]."""

    values: Array
    outputs: Array
    inputs: Array


class Interpreter:
    """The map of one input of a bundle, and of one of its outputs.

    Attributes:
        output: what the network gives for the input, [...] without rows.
        bias: r, what the map gives for zeros.
    """

    def __init__(
        self, record: Session, replay: Session, transpose: Session | None, name: str
    ) -> None:
        """Use `load`."""
        self._record, self._replay, self._transpose = record, replay, transpose
        self.name = name
        self._spec = record.entry.inputs[0]
        self._decisions: dict[str, Array] = {}
        self._matrix: Array | None = None  # the rows of W, flat, once they were taken
        self.output = self.bias = np.zeros(0)

    @classmethod
    def load(
        cls, bundle: str | os.PathLike[str] | Bundle, output: str | None = None, **how: Any
    ) -> Self:
        """Open the graphs of a bundle.

        Args:
            bundle: the folder, or what was opened of it.
            output: whose map is taken, the first one otherwise.
            **how: as `Session.load` takes it.

        Raises:
            BundleError: if the bundle has no such graphs, or no such output.
        """
        opened = Bundle.open(bundle)
        if not {RECORD, REPLAY} <= set(opened.graphs):
            raise BundleError(
                f"{opened.root} holds no graphs that record and replay. Export it with "
                "--pass linear-interpreter."
            )
        names = [spec.name for spec in opened.graph(REPLAY).entry.outputs]
        if output is not None and output not in names:
            raise BundleError(
                f"There is no output {output!r}{perhaps(output, names)}; there are: "
                f"{', '.join(names)}."
            )
        record, replay = (Session.load(opened, graph=name, **how) for name in (RECORD, REPLAY))
        has = TRANSPOSE in opened.graphs
        back = Session.load(opened, graph=TRANSPOSE, **how) if has else None
        return cls(record, replay, back, output or names[0])

    def record(self, x0: Array) -> Array:
        """Take the map of `x0` [...], an input without rows; return what the network gives for it.

        Raises:
            InputError: if it is of another shape.
        """
        shape = self.shape
        if x0.shape != shape:
            raise InputError(
                f"The input {self._spec.name!r} has the shape {list(x0.shape)}; the map is of "
                f"{list(shape)}."
            )
        found = self._record.step({self._spec.name: x0[None].astype(self._spec.dtype)})
        wanted = {spec.name for spec in self._replay.entry.inputs}
        self._decisions = {name: x for name, x in found.items() if name in wanted}
        self.output, self._matrix = found[self.name][0], None
        self.bias = self.replay(np.zeros((1, *shape), self._spec.dtype))[0]
        return self.output

    @property
    def gives_rows(self) -> bool:
        """Whether the bundle has the transpose of the map."""
        return self._transpose is not None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of an input, without rows."""
        return tuple(int(dim) for dim in self._spec.shape[1:])

    def replay(self, x1: Array) -> Array:
        """W x + r of each x of `x1` [columns, ...], in one call.

        Raises:
            InputError: if nothing was recorded yet, or the columns have another shape.
        """
        self._require_recorded()
        fits = x1.shape[1:] == self.shape and x1.dtype == self._spec.dtype
        if self.gives_rows and fits and len(x1) > self.output.size:
            return self._product(x1)
        found = self._replay.step({self._spec.name: x1, **self._decisions})
        return found[self.name]

    def _product(self, x1: Array) -> Array:
        """The same by the rows of W, which are fewer and smaller than the columns given."""
        if self._matrix is None:
            size = self.output.size
            units = np.eye(size, dtype=self._spec.dtype).reshape(size, *self.output.shape)
            self._matrix = self.transpose(units).reshape(size, -1)
        moved: Array = x1.reshape(len(x1), -1) @ self._matrix.T
        return moved.reshape(len(x1), *self.output.shape) + self.bias

    def columns(self, places: Iterable[int]) -> Array:
        """Columns of W [count, ...]: what a one at each of the flat `places` of the input adds."""
        return self._columns(list(places), self.shape, lambda x: self.replay(x) - self.bias)

    def rows(self, places: Iterable[int]) -> Array:
        """Rows of W [count, ...]: what each of the flat `places` of the output is made of.

        Raises:
            BundleError: if the bundle has no transpose; its passes say why.
            InputError: if nothing was recorded yet, or there is no such place.
        """
        return self._columns(list(places), self.output.shape, self.transpose)

    def _columns(self, places: Sequence[int], shape: tuple[int, ...], run: Any) -> Array:
        self._require_recorded()
        size = int(np.prod(shape))
        wrong = [place for place in places if not 0 <= place < size]
        if wrong:
            raise InputError(f"There is no entry {wrong[0]}; there are 0 to {size - 1}.")
        made = []
        for low in range(0, len(places), COLUMNS):
            part = places[low : low + COLUMNS]
            units = np.zeros((len(part), size), self._spec.dtype)
            units[np.arange(len(part)), part] = 1
            made.append(run(units.reshape(len(part), *shape)))
        return np.concatenate(made)

    def transpose(self, weights: Array) -> Array:
        """W^T v of each v of `weights` [rows, ...], shaped as the output, in one call.

        Raises:
            BundleError: if the bundle has no transpose.
            InputError: if nothing was recorded yet.
        """
        self._require_recorded()
        if self._transpose is None:
            raise BundleError(
                "The bundle has no graph of rows: the record of the pass linear-interpreter in its "
                "manifest says which operator has no transpose."
            )
        feeds: dict[str, Array] = {}
        for spec in self._transpose.entry.inputs:
            if spec.name in self._decisions:
                feeds[spec.name] = self._decisions[spec.name]
            elif spec.name == f"{self.name}_weights":
                feeds[spec.name] = weights.astype(spec.dtype)
            else:
                shape = [len(weights), *map(int, spec.shape[1:])]
                feeds[spec.name] = np.zeros(shape, spec.dtype)
        return self._transpose.step(feeds)[ROW]

    def singular(self, count: int, seed: int = 0) -> Singular:
        """The `count` largest singular values of W and their vectors, by subspace iteration.

        Raises:
            BundleError: if the bundle has no transpose.
            InputError: if the map has fewer.
        """
        sizes = int(np.prod(self.shape)), self.output.size
        if not 1 <= count <= min(sizes):
            raise InputError(
                f"{count} singular vectors are asked for; there are 1 to {min(sizes)}."
            )
        more = min(count + 4, *sizes)
        vectors = np.random.default_rng(seed).standard_normal((more, sizes[0]))
        before = np.zeros(count)
        for _ in range(STEPS):
            inputs = np.linalg.qr(vectors.T)[0].T
            moved = self.replay(self._shaped(inputs)) - self.bias
            outputs = np.linalg.qr(moved.reshape(more, -1).astype(np.float64).T)[0].T
            vectors = self.transpose(self._given(outputs)).reshape(more, -1).astype(np.float64)
            left, values, right = np.linalg.svd(vectors, full_matrices=False)
            if np.abs(values[:count] - before).max() <= SETTLED * values[0]:
                break
            before = values[:count]
        outputs = left.T @ outputs
        return Singular(
            values=values[:count],
            outputs=outputs[:count].reshape(count, *self.output.shape),
            inputs=right[:count].reshape(count, *self.shape),
        )

    def _shaped(self, flat: Array) -> Array:
        return flat.reshape(len(flat), *self.shape).astype(self._spec.dtype)

    def _given(self, flat: Array) -> Array:
        return flat.reshape(len(flat), *self.output.shape).astype(self._spec.dtype)

    def _require_recorded(self) -> None:
        if not self._decisions and not self.output.size:
            raise InputError("Nothing is recorded yet: call record with an input first.")


def arrays_of(
    found: Interpreter, rows: Sequence[int], columns: Sequence[int], singular: int
) -> Mapping[str, Array]:
    """What is asked of a map, by name: output, bias, rows, columns, singular vectors."""
    made = {"output": found.output, "bias": found.bias}
    if rows:
        made["rows"] = found.rows(rows)
    if columns:
        made["columns"] = found.columns(columns)
    if singular:
        vectors = found.singular(singular)
        made["singular_values"] = vectors.values
        made["singular_inputs"], made["singular_outputs"] = vectors.inputs, vectors.outputs
    return made
