"""Memory of carried states, one class for each way a session binds a state.

Every buffer is a numpy array that an `OrtValue` of ONNX Runtime looks into, so that a step reads
and writes it in place and Python can gather rows of it.
"""

import math
from copy import copy
from typing import Any, Self

import numpy as np
from onnxruntime import OrtValue

from intaglio.runtime.arrays import Array, dtype_of
from intaglio.state import Layout, StateSpec


class HostBuffer:
    """A state of fixed shape, for a fixed number of rows: a step reads one array, writes the other.

    Attributes:
        memory: the two arrays, by side.
    """

    memory: tuple[Array, Array]

    def __init__(self, spec: StateSpec, batch: int, tokens: int) -> None:
        """Take memory for `batch` rows and, where the state grows, `tokens` tokens; fill it."""
        self.spec = spec
        self.batch = batch
        self._allocate(tokens)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(array.nbytes for array in self.memory)

    def bind(self, binding: Any, side: int) -> None:
        """Bind the state's input and output for steps from `side`."""
        binding.bind_ortvalue_input(self.spec.input, self._values[side])
        binding.bind_ortvalue_output(self.spec.output, self._values[1 - side])

    def value(self, side: int, tokens: int) -> Array:  # noqa: ARG002
        """View of the current state: of its first `tokens` tokens where it grows."""
        return self.memory[side]

    def put(self, side: int, tokens: int, rows: Any, value: Any) -> None:
        """Set `rows` of what `value` returns."""
        self.value(side, tokens)[rows] = value

    def window(self, rows: slice) -> Self | None:
        """The same memory of neighbouring rows alone; None where they do not lie together."""
        axis = self.spec.rows
        if axis is None or math.prod(self.memory[0].shape[:axis]) != 1:
            return None
        twin, place = copy(self), self.spec.place_of(rows)
        first = self.memory[0][place]
        second = first if self.memory[1] is self.memory[0] else self.memory[1][place]
        twin.batch, twin.memory = first.shape[axis], (first, second)
        twin._wrap()  # noqa: SLF001
        return twin

    def _allocate(self, tokens: int) -> None:
        shape = self._shape(tokens)
        self.memory = (self._fresh(shape), self._fresh(shape))
        self._wrap()

    def _wrap(self) -> None:
        self._values = [OrtValue.ortvalue_from_numpy(array) for array in self.memory]

    def _shape(self, tokens: int) -> tuple[int, ...]:
        return self.spec.sized(self.batch, tokens)

    def _fresh(self, shape: tuple[int, ...]) -> Array:
        dtype = dtype_of(self.spec.dtype, self.spec.input)
        if self.spec.initial == 0:
            return np.zeros(shape, dtype)  # pages stay untouched until they are used
        return np.full(shape, self.spec.initial, dtype)


class HostInPlace(HostBuffer):
    """A cache with room to spare: a step writes its tokens into the array that it reads."""

    @property
    def nbytes(self) -> int:
        """Bytes held: both sides are the same array."""
        return self.memory[0].nbytes

    def value(self, side: int, tokens: int) -> Array:
        """View of the first `tokens` tokens."""
        axis = self.spec.axis
        assert axis is not None
        return self.memory[side][(*[slice(None)] * axis, slice(tokens))]

    def _allocate(self, tokens: int) -> None:
        array = self._fresh(self._shape(tokens))
        self.memory = (array, array)
        self._wrap()


class HostAppended(HostBuffer):
    """A cache as long as its tokens: a step reads one array and writes a longer one.

    Both are views of the start of memory with room to spare, so that most steps allocate none.
    """

    def bind(self, binding: Any, side: int) -> None:
        """Bind nothing: shapes change with each step, see `bind_step`."""

    def window(self, rows: slice) -> Self | None:  # noqa: ARG002
        """None: the rows lie further apart with each token."""
        return None

    def bind_step(self, binding: Any, side: int, past: int, time: int) -> None:
        """Bind for one step of `time` tokens after `past`."""
        binding.bind_ortvalue_input(self.spec.input, self._view(side, past))
        binding.bind_ortvalue_output(self.spec.output, self._view(1 - side, past + time))

    def value(self, side: int, tokens: int) -> Array:
        """View of the state when it holds `tokens` tokens."""
        shape = (*self._before, tokens, *self._after)
        return self.memory[side][: tokens * self._token].reshape(shape)

    def _view(self, side: int, tokens: int) -> Any:
        if self._views[side][0] != tokens:
            self._views[side] = (tokens, OrtValue.ortvalue_from_numpy(self.value(side, tokens)))
        return self._views[side][1]

    def _allocate(self, tokens: int) -> None:
        axis, shape = self.spec.axis, self._shape(1)
        assert axis is not None
        self._before, self._after = shape[:axis], shape[axis + 1 :]
        self._token = math.prod(shape)
        self._views: list[tuple[int, Any]] = [(-1, None), (-1, None)]
        size = (tokens * self._token,)
        self.memory = (self._fresh(size), self._fresh(size))


class HostGiven(HostBuffer):
    """A state that no step changes: an array of somebody else's, which steps read."""

    def __init__(self, spec: StateSpec, value: Array) -> None:
        """Let steps read `value`, which must not change."""
        self.spec = spec
        self.batch = 0
        kept = np.ascontiguousarray(value)
        self.memory = (kept, kept)
        self._wrap()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.memory[0].nbytes

    def bind(self, binding: Any, side: int) -> None:
        """Bind the state's input."""
        binding.bind_ortvalue_input(self.spec.input, self._values[side])


KINDS: dict[Layout, type[HostBuffer]] = {
    Layout.RECURRENT: HostBuffer,
    Layout.CONV: HostBuffer,
    Layout.WINDOW: HostBuffer,
    Layout.STATIC: HostInPlace,
    Layout.GROW: HostAppended,
}
