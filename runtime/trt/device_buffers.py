"""DeviceMemory of carried states on the device, one class for each way a step binds a state.

Reading and writing rows goes through the host, which snapshots need anyway; steps do neither.
"""

import math
from typing import Any

import numpy as np

from intaglio.runtime.arrays import Array, dtype_of
from intaglio.state import Layout, StateSpec

from .driver import Device, DeviceMemory


class DeviceBuffer:
    """A state of fixed shape: a step reads one of two arrays and writes the other."""

    def __init__(self, device: Device, spec: StateSpec, batch: int, tokens: int) -> None:
        """Take memory for `batch` rows and, where the state grows, `tokens` tokens; fill it."""
        self.spec = spec
        self._device = device
        self._shape = spec.sized(batch, tokens)
        self._dtype = dtype_of(spec.dtype, spec.input)
        self._memory = self._allocate()
        for memory in self._memory:
            device.upload(memory, np.full(self._shape, spec.initial, self._dtype))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(memory.nbytes for memory in set(self._memory))

    def bind(self, context: Any, side: int, past: int, time: int) -> None:  # noqa: ARG002
        """Bind the state's input and output for a step of `time` tokens after `past` from `side`.

        Args:
            context: an execution context of TensorRT.
            side: which array holds the current state.
            past: tokens consumed.
            time: tokens of the step.
        """
        context.set_tensor_address(self.spec.input, self._memory[side].address)
        context.set_tensor_address(self.spec.output, self._memory[1 - side].address)

    def value(self, side: int, tokens: int) -> Array:
        """A copy of the current state: of its first `tokens` tokens where it grows."""
        return self._part(self._read(side, tokens), tokens)

    def put(self, side: int, tokens: int, rows: Any, value: Any) -> None:
        """Set `rows` of what `value` returns."""
        whole = self._read(side, tokens)
        self._part(whole, tokens)[rows] = value
        self._device.upload(self._memory[side], whole)

    def window(self, rows: slice) -> None:  # noqa: ARG002
        """None: an engine steps all rows that it has memory for, in hardly more time than one."""
        return

    def shape(self, tokens: int) -> tuple[int, ...]:  # noqa: ARG002
        """The shape of its memory when it holds `tokens` tokens."""
        return self._shape

    def _read(self, side: int, tokens: int) -> Array:
        whole = np.empty(self.shape(tokens), self._dtype)
        self._device.download(self._memory[side], whole)
        return whole

    def _part(self, whole: Array, tokens: int) -> Array:  # noqa: ARG002
        return whole

    def _allocate(self) -> tuple[DeviceMemory, DeviceMemory]:
        size = math.prod(self._shape) * self._dtype.itemsize
        return DeviceMemory(self._device, size), DeviceMemory(self._device, size)


class DeviceInPlace(DeviceBuffer):
    """A cache with room to spare: a step writes its tokens into the array that it reads."""

    def _part(self, whole: Array, tokens: int) -> Array:
        assert self.spec.axis is not None
        return whole[(*[slice(None)] * self.spec.axis, slice(tokens))]

    def _allocate(self) -> tuple[DeviceMemory, DeviceMemory]:
        memory = DeviceMemory(self._device, math.prod(self._shape) * self._dtype.itemsize)
        return memory, memory


class DeviceAppended(DeviceBuffer):
    """A cache as long as its tokens, at the start of memory with room to spare."""

    def bind(self, context: Any, side: int, past: int, time: int) -> None:
        """Bind the state's input and output, and the shape of the input."""
        super().bind(context, side, past, time)
        context.set_input_shape(self.spec.input, self.shape(past))

    def shape(self, tokens: int) -> tuple[int, ...]:
        """The shape when it holds `tokens` tokens."""
        axis = self.spec.axis
        assert axis is not None
        return (*self._shape[:axis], tokens, *self._shape[axis + 1 :])


class DeviceGiven(DeviceBuffer):
    """A state that no step changes, of the size that it was given with."""

    def __init__(self, device: Device, spec: StateSpec, value: Array) -> None:
        """Copy `value` to the device."""
        self.spec = spec
        self._device = device
        self._shape, self._dtype = value.shape, value.dtype
        memory = DeviceMemory(device, value.nbytes)
        self._memory = (memory, memory)
        device.upload(memory, np.ascontiguousarray(value))

    def bind(self, context: Any, side: int, past: int, time: int) -> None:  # noqa: ARG002
        """Bind the state's input."""
        context.set_tensor_address(self.spec.input, self._memory[side].address)


KINDS: dict[Layout, type[DeviceBuffer]] = {
    Layout.RECURRENT: DeviceBuffer,
    Layout.CONV: DeviceBuffer,
    Layout.WINDOW: DeviceBuffer,
    Layout.STATIC: DeviceInPlace,
    Layout.GROW: DeviceAppended,
}
