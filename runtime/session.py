"""Stepping a bundle: tokens in, outputs out, the state carried along.

session = Session.load("bundle/")
logits = session.step({"input_ids": ids})["logits"]
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError, StateError
from intaglio.runtime.arrays import Array
from intaglio.runtime.backend import Backend
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.carried_states import Settings
from intaglio.runtime.convergence import require_converged
from intaglio.runtime.engines import (
    AUTO,
    choose_target,
    open_backend,
    open_preparer,
    preparing_target,
)
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.prepared_conditions import Preparer
from intaglio.runtime.ragged import step_parts
from intaglio.runtime.session_state import State
from intaglio.runtime.step_inputs import as_arrays, lengths_of, require_no_conditions, sizes_of
from intaglio.runtime.stepper import Stepper
from intaglio.runtime.turn import Turn
from intaglio.state import BATCH, TIME

CAPACITY = 256
LOAD_LARGER = "Load it with a larger capacity or with grow=True."
BUSY = (
    "A session serves one thread, and another one is within its step. Give each thread a session "
    "of its own, by fork or load: sessions of one bundle share its weights."
)
EXPORT_LARGER = "The engine's caches have that size: export with --shapes of longer prefills."


class Session:
    """A step engine with a state of its own; load one with `Session.load`.

    Sessions of one bundle share its weights.  A session serves one thread; threads may run
    sessions of one bundle side by side.

    Attributes:
        graph: the graph of a bundle that was loaded.
        entry: what the manifest says of it: inputs, outputs, states.
        target: name of the target that runs.
        state: the carried state.
        stepper: what takes its steps.
        require_convergence: whether a step raises where a loop ended above its tolerance.
    """

    def __init__(self, graph: BundleGraph, target: str, backend: Backend, state: State) -> None:
        self.require_convergence = False
        self.graph = graph
        self.entry: GraphEntry = graph.entry
        self.target = target
        self.state = state
        self._backend = backend
        self.stepper = Stepper(backend, self.entry)
        self._turn = Turn()

    @classmethod
    def load(
        cls,
        bundle: str | os.PathLike[str] | Bundle,
        target: str = AUTO,
        *,
        graph: str = MAIN,
        threads: int | None = None,
        capacity: int | None = None,
        grow: bool = True,
        require_signature: str | os.PathLike[str] | None = None,
        tables: bool = False,
        private: bool = False,
        require_convergence: bool = False,
    ) -> Self:
        """Open a bundle for stepping.

        Args:
            bundle: the folder that `intaglio export` wrote.
            target: "ort", "trt" for the TensorRT engine, or "auto" for the best that the bundle
                holds.
            graph: which of the bundle's graphs to step.
            threads: threads for the work inside one operator; None leaves it to the engine.
            capacity: tokens that KV caches have room for at the start: 256, or the model's
                max_context if that is less; an engine of TensorRT has its own.
            grow: whether caches double when they are full; if not, a step beyond is refused.
            require_signature: file of the public key that must have signed the bundle.
            tables: whether steps of one token of one row look products with weights of 2 bits up
                in tables, on ONNX Runtime: faster, for the memory of these weights once more.
            private: whether to run a copy of the bundle, which is made now and which no other
                program writes; weights are mapped from the bundle's own files otherwise.
            require_convergence: whether a step raises where a loop, as of a solver, ended above
                its tolerance; its outputs tell that otherwise.

        Raises:
            BundleError: if the bundle is absent, incomplete, changed, not for this target, or not
                signed by the key that is required.
            DeviceError: if its engine is for another GPU or another library, or there is no GPU.
            MissingExtraError: if the library of its engine is not installed.
            InputError: if `capacity` is below 1, or nothing is there that tables could serve.
        """
        opened = Bundle.open(bundle, require_signature=require_signature)
        opened = opened.private() if private else opened
        chosen = opened.graph(graph)
        target = choose_target(chosen, target)
        backend = open_backend(chosen, target, threads, tables=tables)
        found = cls.over(chosen, target, backend, capacity=capacity, grow=grow, threads=threads)
        found.require_convergence = require_convergence
        return found

    @classmethod
    def over(
        cls,
        graph: BundleGraph,
        target: str,
        backend: Backend,
        *,
        capacity: int | None = None,
        grow: bool = True,
        threads: int | None = None,
        preparer: Preparer | None = None,
    ) -> Self:
        """A session of an engine that is open, and perhaps of what prepares it; see `load`."""
        if capacity is not None and capacity < 1:
            raise InputError(f"capacity is {capacity}, should be at least 1.")
        limits = graph.entry.limits
        fixed = backend.capacity
        settings = Settings(
            memory=backend,
            specs=graph.entry.states_of(target),
            max_context=limits.max_context,
            capacity=fixed or capacity or CAPACITY,
            grow=grow and fixed is None,
            relief=LOAD_LARGER if fixed is None else EXPORT_LARGER,
        )
        preparer = preparer or open_preparer(graph, target, threads)
        state = State(settings, _fingerprint(graph, target), limits.batch, preparer)
        return cls(graph, target, backend, state)

    def __repr__(self) -> str:
        """In short: ``Session('kws', ort, rows=2)``."""
        name = "" if self.graph.name == MAIN else f", graph={self.graph.name!r}"
        rows = f", rows={self.state.batch}" if self.state.batch else ""
        return f"{type(self).__name__}({self.bundle.root.name!r}, {self.target}{name}{rows})"

    @property
    def bundle(self) -> Bundle:
        """The bundle that the graph is of."""
        return self.graph.bundle

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def most_rows(self) -> int | None:
        """Rows that the engine takes at once, None for any number."""
        return self._backend.most_rows

    @property
    def spans(self) -> Mapping[str, tuple[int, int]]:
        """Least and largest size of each free axis, where the engine was built for such."""
        return self._backend.spans

    def __copy__(self) -> "Session":
        """As `fork`: two sessions never share a state."""
        return self.fork()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Session":
        """As `fork`: weights are the engine's, and shared."""
        memo[id(self)] = forked = self.fork()
        return forked

    def fork(self) -> "Session":
        """A session that continues from here with a state of its own, sharing the weights."""
        forked = Session(self.graph, self.target, self._backend.fork(), self.state.copy())
        forked.require_convergence = self.require_convergence
        return forked

    def condition(
        self,
        conditions: Mapping[str, npt.ArrayLike],
        *,
        rows: Sequence[int] | npt.NDArray[Any] | None = None,
    ) -> None:
        """Give what holds for a whole sequence: an encoder's input, a label, a picture.

        Whatever follows from it alone is computed here, once, and read by each step.  Conditions
        stay until others are given: forks, selected rows and snapshots have them, and so has a
        state that was reset.  A call that fails leaves the session as it was.

        Args:
            conditions: arrays by name, as `entry.conditions` says.  They bring the rows.
            rows: to which rows they belong, where others keep theirs; all of them otherwise.  Where
                a size differs from that of the other rows, the shorter ones are padded, if a mask
                among the conditions hides that.

        Raises:
            InputError: if a condition is missing, unknown, or of a wrong dtype, shape or value.
            StateError: if a sequence has begun with conditions of another size, or there is no
                such row.
        """
        try:
            if not self._turn.take():
                raise StateError(BUSY)
            self.state.condition(conditions, rows)
        finally:
            self._turn.give()

    def step(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        *,
        lengths: Sequence[int] | npt.NDArray[Any] | None = None,
        out: Mapping[str, Array] | None = None,
    ) -> dict[str, Array]:
        """Consume the next tokens of each row and return the outputs for them.

        Any way to cut a sequence into steps gives the same outputs.  The first step after load or
        reset decides the number of rows.  A step that fails leaves the state as it was.
        A graph of whole inputs (`entry.whole`) carries nothing: each call stands alone, and its
        inputs have whatever axes the manifest names.

        Args:
            inputs: arrays by name, as `entry.inputs` says: for language models
                `input_ids`, integers [batch, time].
            lengths: how many tokens of each row count, where rows are of unequal length and
                padded on the right; outputs beyond a row's length are 0.
            out: arrays to write outputs into, by name; the others are allocated.

        Returns:
            The outputs by name, those of `out` included; the session keeps no hold on them.

        Raises:
            InputError: if an input is missing, unknown, or of a wrong dtype or shape, or a value
                is one the model cannot take, like a token beyond its vocabulary.
            StateError: if the number of rows changed, a row would exceed max_context or a fixed
                capacity, or another thread is within a step of this session.
            DeviceError: if the GPU that runs an engine of TensorRT fails.
            ConvergenceError: if a loop ended above its tolerance, where that is required.  It has
                the outputs, and what is carried stands behind the step.
        """
        try:
            if not self._turn.take():
                raise StateError(BUSY)
            found = self._step(inputs, lengths, out)
        finally:
            self._turn.give()
        if self.require_convergence:
            require_converged(self.entry.outputs, found)
        return found

    def _step(
        self,
        inputs: Mapping[str, npt.ArrayLike],
        lengths: Sequence[int] | npt.NDArray[Any] | None,
        out: Mapping[str, Array] | None,
    ) -> dict[str, Array]:
        if lengths is None:
            carried = self.state.carried
            step = self.stepper.known(carried, inputs)
            if step is not None:
                if self.entry.whole:  # which has no states: nothing else to start over
                    carried.past_length.fill(0)
                    carried.longest = 0
                return self.stepper.run(carried, step, inputs, out)
        entry = self.entry
        require_no_conditions(inputs, entry.conditions, "session.condition({})")
        arrays = as_arrays(inputs, entry.inputs)
        sizes = {**self.state.own_sizes, **sizes_of(arrays, entry.inputs, entry.limits)}
        counts = (
            np.full(sizes[BATCH], sizes[TIME]) if lengths is None else lengths_of(lengths, sizes)
        )
        most = self.stepper.most_tokens
        if counts.min() < sizes[TIME] or (most is not None and sizes[TIME] > most):
            return step_parts(self.stepper, self.state, entry, arrays, sizes, counts, out)
        begin = self.state.start_over if entry.whole else self.state.begin
        carried = begin(sizes[BATCH])
        results = self.stepper.step(carried, arrays, sizes, out)
        self.state.carried = carried
        return results


def _fingerprint(graph: BundleGraph, target: str) -> str:
    """Of what runs a graph and of what prepares its states."""
    prepare = graph.entry.prepare
    found = graph.fingerprint(target)
    if prepare is None:
        return found
    return f"{found}:{graph.bundle.graph(prepare).fingerprint(preparing_target(graph, target))}"
