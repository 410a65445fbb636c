"""Where carried states live: the contract between them and what runs a target."""

from typing import Any, Protocol

from intaglio.runtime.arrays import Array
from intaglio.state import StateSpec


class StateBuffer(Protocol):
    """Memory of one state, for a fixed number of rows and of tokens where the state grows.

    A `side`, 0 or 1, says which of two swapped arrays holds the current state; the `CarriedStates`
    that own the buffer keep it.
    """

    spec: StateSpec

    @property
    def nbytes(self) -> int:
        """Bytes held."""

    def value(self, side: int, tokens: int) -> Array:
        """The current state, for reading: of its first `tokens` tokens where it grows."""

    def put(self, side: int, tokens: int, rows: Any, value: Any) -> None:
        """Set `rows` of what `value` returns."""

    def window(self, rows: slice) -> "StateBuffer | None":
        """The same memory of neighbouring rows alone; None where they do not lie together."""


class StateMemory(Protocol):
    """What gives memory for states."""

    def buffer(self, spec: StateSpec, batch: int, tokens: int) -> StateBuffer:
        """Memory for a state in its initial value."""

    def given(self, spec: StateSpec, value: Array) -> StateBuffer:
        """Memory for a state that no step changes, which holds `value`."""
