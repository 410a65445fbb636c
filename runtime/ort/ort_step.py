"""A step on ONNX Runtime: a repeat copies inputs and small outputs, and binds the large ones."""

import math
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
from onnxruntime import OrtValue

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array, dtype_of
from intaglio.runtime.bound_step import BoundStep
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.step_inputs import Sizes, shape_of
from intaglio.state import PAST_LENGTH

from .host_buffers import HostAppended, HostBuffer

COPIED = 1 << 16  # bytes up to which copying an output takes less than binding an array for it
_NOTHING = OrtValue.ortvalue_from_numpy(np.empty(0, np.uint8))


class OrtStep(BoundStep):
    """A step with a binding for each side of the states."""

    def __init__(
        self,
        engine: Any,
        entry: GraphEntry,
        sizes: Sizes,
        carried: CarriedStates,
    ) -> None:
        """Bind `carried`, and buffers for inputs of these sizes."""
        feeds = [
            np.empty(shape_of(spec, sizes), dtype_of(spec.dtype, spec.name))
            for spec in entry.inputs
        ]
        super().__init__(entry, sizes, feeds)
        self._engine = engine
        self._names = [spec.name for spec in entry.outputs]
        self._run_with_iobinding = engine.run_with_iobinding
        self._kept = {
            name: np.empty(shape, dtype)
            for name, shape, dtype in self._outputs
            if math.prod(shape) * dtype.itemsize <= COPIED
        }
        self._lent = [name for name, _, _ in self._outputs if name not in self._kept]
        self._appended = [each for each in carried.buffers if isinstance(each, HostAppended)]
        self._past = None
        if entry.past_length:  # it looks into the memory that the steps count in
            self._past = [OrtValue.ortvalue_from_numpy(each) for each in carried.past_lengths]
        self._bindings = [self._bind(carried, side) for side in (0, 1)]

    def run(self, carried: CarriedStates, results: dict[str, Array]) -> None:
        """Run the step that was fed from the current side of `carried`, filling `results`."""
        binding = self._binding(carried, results)
        try:
            if self._told:
                found = self._untold()
                results.clear()  # of those whose shapes were known: all stand in their order
                results |= found
                return
            self._run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime's errors share no base class
            if not type(error).__module__.startswith("onnxruntime") and not isinstance(
                error, RuntimeError | ValueError
            ):
                raise  # of a signal's handler
            raise InputError(
                f"ONNX Runtime cannot take this step: {error}. "
                "Check the values of the inputs; the state is as it was before the step."
            ) from error
        finally:
            for name in self._lent:  # the results are the caller's
                binding.bind_ortvalue_output(name, _NOTHING)
        for name, array in self._kept.items():
            np.copyto(results[name], array)

    def _untold(self) -> dict[str, Array]:
        """The outputs of a graph that alone knows their shapes, in arrays of its own."""
        found = self._engine.run(self._names, dict(self._feeds))
        return dict(zip(self._names, found, strict=True))

    def _binding(self, carried: CarriedStates, results: Mapping[str, Array]) -> Any:
        binding = self._bindings[carried.side]
        for name in self._lent:
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(results[name]))
        for buffer in self._appended:
            buffer.bind_step(binding, carried.side, carried.longest, self.time)
        return binding

    def _bind(self, carried: CarriedStates, side: int) -> Any:
        binding = self._engine.io_binding()
        for name, buffer in self._feeds:
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(buffer))
        if self._past is not None:
            binding.bind_ortvalue_input(PAST_LENGTH, self._past[side])
        for name, array in self._kept.items():
            binding.bind_ortvalue_output(name, OrtValue.ortvalue_from_numpy(array))
        for state in cast("list[HostBuffer]", [*carried.buffers, *carried.prepared]):
            state.bind(binding, side)
        return binding
