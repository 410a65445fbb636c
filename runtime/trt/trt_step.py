"""A step of a TensorRT engine: inputs go up, the engine runs, outputs come down, states stay.

The first step from each side of the states launches everything one by one, which TensorRT needs to
settle; a step that may be repeated is captured then, and is one launch of a CUDA graph from there.
"""

from contextlib import nullcontext
from typing import cast

import numpy as np

from intaglio.errors import DeviceError
from intaglio.runtime.arrays import dtype_of
from intaglio.runtime.bound_step import Arrays, BoundStep
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import Sizes, shape_of
from intaglio.state import PAST_LENGTH

from .device_buffers import DeviceAppended, DeviceBuffer
from .driver import Repeated, Staging
from .engine_stream import EngineStream


class TrtStep(BoundStep):
    """A step in an execution context of its own, which a captured graph stays valid for."""

    def __init__(
        self, stream: EngineStream, entry: GraphEntry, sizes: Sizes, carried: CarriedStates
    ) -> None:
        """Take an execution context, and memory for inputs and outputs of these sizes.

        Raises:
            InputError: if the engine was not built for such sizes.
        """
        self._stream = stream
        inputs = {spec.name: shape_of(spec, sizes) for spec in entry.inputs}
        takes = [(inputs[s.name], dtype_of(s.dtype, s.name)) for s in entry.inputs]
        if entry.past_length:
            takes.append(((carried.batch,), np.dtype(np.int64)))
        self._in = Staging(stream.device, takes)
        super().__init__(entry, sizes, self._in.arrays[: len(inputs)])
        self._out = Staging(stream.device, [(shape, dtype) for _, shape, dtype in self._outputs])
        names = [*inputs, PAST_LENGTH][: len(takes)]
        shapes = dict(zip(names, (shape for shape, _ in takes), strict=True))
        self._buffers = cast("list[DeviceBuffer]", [*carried.buffers, *carried.prepared])
        held = {each.spec.input: each.shape(0) for each in self._buffers}
        self._context = stream.context({**shapes, **held})
        on_host = [stream.reads_on_host(name) for name in names]
        for name, host, array, address in zip(
            names, on_host, self._in.arrays, self._in.addresses, strict=True
        ):
            self._context.set_input_shape(name, shapes[name])
            self._context.set_tensor_address(name, array.ctypes.data if host else address)
        for (name, _, _), address in zip(self._outputs, self._out.addresses, strict=True):
            self._context.set_tensor_address(name, address)
        for each in self._buffers:
            self._context.set_input_shape(each.spec.input, each.shape(0))
        self._past = self._in.arrays[-1] if entry.past_length else None
        grows = any(isinstance(each, DeviceAppended) for each in self._buffers)
        # A shape that the host reads is part of a graph, and would stay what it was at its capture.
        self._repeats = (self.time == 1 or entry.whole) and not grows and not any(on_host)
        self._settled = [False, False]
        self._graphs: list[Repeated | None] = [None, None]

    def run(self, carried: CarriedStates, results: Arrays) -> None:
        """Run the step that was fed from the current side of `carried`, filling `results`.

        Raises:
            DeviceError: if the engine fails.
        """
        stream, side = self._stream, carried.side
        stream.device.use()
        if self._past is not None:
            np.copyto(self._past, carried.past_length)
        if self._repeats and self._settled[side] and self._graphs[side] is None:
            self._capture(carried)
        graph = self._graphs[side]
        if graph is not None:
            graph.launch()
        else:
            self._enqueue(carried)
        stream.device.wait(stream.stream)
        if stream.tracer is not None:
            stream.tracer.take(self._context)
        if not any(self._settled):
            stream.settled()
        self._settled[side] = True
        for (name, _, _), array in zip(self._outputs, self._out.arrays, strict=True):
            np.copyto(results[name], array)

    def _enqueue(self, carried: CarriedStates) -> None:
        stream = self._stream
        for each in self._buffers:
            each.bind(self._context, carried.side, carried.longest, self.time)
        self._in.upload(stream.stream)
        with nullcontext() if stream.tracer is None else stream.tracer.timed():
            if not self._context.execute_async_v3(stream.stream):
                raise DeviceError(f"TensorRT cannot take this step: {stream.complaint()}.")
        self._out.download(stream.stream)

    def _capture(self, carried: CarriedStates) -> None:
        stream = self._stream
        try:
            self._graphs[carried.side] = Repeated(
                stream.device, stream.stream, lambda: self._enqueue(carried)
            )
        except DeviceError:  # it runs as it did before, launch by launch
            self._repeats = False
