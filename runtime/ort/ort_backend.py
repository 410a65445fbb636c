"""What a session runs of ONNX Runtime: states in host memory, steps bound to them."""

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Self

from intaglio.errors import BundleError, InputError
from intaglio.graph_keys import ONE_STEP
from intaglio.runtime.arrays import Array
from intaglio.runtime.bound_step import BoundStep
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.dims import size_of
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import Sizes
from intaglio.state import BATCH, TIME, Layout, StateSpec

from .host_buffers import KINDS, HostBuffer, HostGiven
from .lookup_tables import require_tables
from .ort_engine import open_engine
from .ort_step import OrtStep


class OrtBackend:
    """States in host memory, and steps of an ONNX Runtime session bound to them."""

    spans: Mapping[str, tuple[int, int]] = MappingProxyType({})
    most_tokens: int | None = None
    most_rows: int | None = None

    def __init__(self, engine: Any, entry: GraphEntry, single: Any = None) -> None:
        """Serve a session of `engine`, an `onnxruntime.InferenceSession`.

        Steps of one token of one row run on `single`, if that is given.
        """
        self.engine = engine
        self._single = single
        self._entry = entry
        self.capacity = _fixed_capacity(engine, entry)

    def buffer(self, spec: StateSpec, batch: int, tokens: int) -> HostBuffer:
        """Memory for a state in its initial value."""
        return KINDS[spec.layout](spec, batch, tokens)

    def given(self, spec: StateSpec, value: Array) -> HostGiven:
        """Memory for a state that no step changes, which holds `value`."""
        return HostGiven(spec, value)

    def call(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for inputs of any sizes, of a graph without states.

        Raises:
            InputError: if the engine refuses the values.
        """
        names = [output.name for output in self.engine.get_outputs()]
        try:
            return dict(zip(names, self.engine.run(names, dict(arrays)), strict=True))
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise InputError(
                f"ONNX Runtime cannot take these values: {error}. The session is as it was."
            ) from error

    def bind(self, sizes: Sizes, carried: CarriedStates) -> BoundStep:
        """A step of inputs of these sizes, bound to the memory of `carried`."""
        single = self._single is not None and sizes.get(BATCH, 1) * sizes.get(TIME, 0) == 1
        return OrtStep(self._single if single else self.engine, self._entry, sizes, carried)

    def fork(self) -> Self:
        """Itself: a session of ONNX Runtime serves any thread."""
        return self


def _fixed_capacity(engine: Any, entry: GraphEntry) -> int | None:
    """Tokens that static caches have room for, where the graph fixes that."""
    axes = {spec.input: spec.axis for spec in entry.states if spec.layout is Layout.STATIC}
    fixed = [
        given.shape[axis]
        for given in engine.get_inputs()
        if (axis := axes.get(given.name)) is not None and isinstance(given.shape[axis], int)
    ]
    return min(fixed, default=None)


def open_ort(
    graph: BundleGraph, target: str, threads: int | None, *, tables: bool = False
) -> OrtBackend:
    """What runs `target` of a graph; arguments and errors are those of `open_engine`.

    With `tables`, an engine that looks products up takes the steps of one token of one row; else
    one of which that is known from the start does, where the graph says that it gains by it.

    Raises:
        InputError: if there are tables to use and the graph has nothing for them.
    """
    if tables:
        require_tables(graph.entry)
    engine, single = open_engine(graph, target, threads), None
    if tables:
        single = open_engine(graph, target, threads, tables=True)
    elif ONE_STEP in engine.get_modelmeta().custom_metadata_map:
        with suppress(BundleError):  # of a graph that one token is too few for
            single = open_engine(graph, target, threads, sizes=_one_token(graph.entry))
    return OrtBackend(engine, graph.entry, single)


def _one_token(entry: GraphEntry) -> dict[str, int]:
    """The free dimensions that one token of one row fixes, as inputs and states have them."""
    shapes = [spec.shape for spec in (*entry.inputs, *entry.outputs)]
    shapes += [spec.shape for spec in entry.states]
    free = {dim for shape in shapes for dim in shape if isinstance(dim, str)}
    found = {dim: size_of(dim, {BATCH: 1, TIME: 1}) for dim in sorted(free)}
    return {dim: size for dim, size in found.items() if size is not None}
