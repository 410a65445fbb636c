"""What a session runs of an engine of TensorRT: states on the GPU, steps bound to them."""

from collections.abc import Mapping
from typing import Self

from intaglio.runtime.arrays import Array
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.carried_states import CarriedStates, Settings
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import Sizes, sizes_of
from intaglio.state import BATCH, TIME, StateSpec

from .device_buffers import KINDS, DeviceBuffer, DeviceGiven
from .engine_stream import EngineStream
from .trt_engine import TrtEngine, open_engine
from .trt_step import TrtStep


class TrtBackend:
    """States in the memory of a GPU, and steps of an engine on a stream of its own.

    Attributes:
        most_tokens: of a row that a step takes.
        spans: least and largest size of each free axis that a step takes.
        most_rows: that a step takes.
        capacity: tokens that its caches have room for, None where no state grows.
        engine: what the steps run.
        stream: where they run, one after the other.
    """

    def __init__(self, engine: TrtEngine, entry: GraphEntry) -> None:
        """Serve a session of `engine`."""
        self.engine = engine
        self.stream = EngineStream(engine, entry)
        self._entry = entry
        self.spans: Mapping[str, tuple[int, int]] = engine.built.spans(entry)
        most = {symbol: largest for symbol, (_, largest) in self.spans.items()}
        self.most_tokens, self.most_rows = most.get(TIME), most.get(BATCH)
        self.capacity = engine.built.capacity(entry)

    def buffer(self, spec: StateSpec, batch: int, tokens: int) -> DeviceBuffer:
        """Memory for a state in its initial value, of the size that the engine has it."""
        device = self.engine.device
        device.use()
        return KINDS[spec.layout](device, spec, batch, self.capacity or tokens)

    def given(self, spec: StateSpec, value: Array) -> DeviceGiven:
        """Memory for a state that no step changes, which holds `value`."""
        self.engine.device.use()
        return DeviceGiven(self.engine.device, spec, value)

    def call(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs for inputs of any sizes, of a graph without states.

        Raises:
            InputError: if the engine was not built for such sizes.
            DeviceError: if the engine fails.
        """
        sizes = sizes_of(arrays, self._entry.inputs, self._entry.limits)
        none = Settings(memory=self, specs=(), max_context=None, capacity=1, grow=False, relief="")
        carried = CarriedStates(none, sizes[BATCH])
        step = self.bind(sizes, carried)
        step.feed(arrays)
        results = step.results(None)
        step.run(carried, results)
        return results

    def bind(self, sizes: Sizes, carried: CarriedStates) -> TrtStep:
        """A step of inputs of these sizes, bound to the memory of `carried`."""
        self.engine.device.use()
        return TrtStep(self.stream, self._entry, sizes, carried)

    def fork(self) -> Self:
        """A backend for another session of the same engine."""
        return type(self)(self.engine, self._entry)


def open_trt(graph: BundleGraph) -> TrtBackend:
    """What runs the engine of a graph; errors are those of `open_engine`."""
    return TrtBackend(open_engine(graph), graph.entry)
