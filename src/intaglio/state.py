"""What passes, bundles and sessions agree on: carried states and the inputs that steer a step.

A step graph takes ``T`` new tokens for each of ``batch`` rows and the states left by the tokens
before them; it returns the outputs and the states after them.  Each state is one graph input and,
if steps change it, one graph output.  The graph may also take `PAST_LENGTH`, the number of tokens
each row has consumed, from which positions, masks and write indices are computed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any, Self

PAST_LENGTH = "past_length"  # int64 [batch]: tokens consumed before this step, for each row

BATCH = "batch"  # symbolic dimensions of step graphs
TIME = "time"
CAPACITY = "capacity"
PAST = "past"

OWN = "own"  # `StateSpec.op` of a state that the source takes and gives back itself

_ENTRIES = re.compile(rf"(?:([1-9][0-9]*)\*)?{TIME}")


def entries_of(dim: int | str) -> int | None:
    """How many entries of an axis make one token: 1 of ``time``, 4 of ``4*time``; else None."""
    found = _ENTRIES.fullmatch(str(dim))
    return None if found is None else int(found[1] or 1)


def time_of(shape: Sequence[int | str]) -> tuple[int, int] | None:
    """The axis of time in `shape` and how many of its entries make a token; None without one."""
    found = ((axis, entries_of(dim)) for axis, dim in enumerate(shape))
    return next(((axis, each) for axis, each in found if each is not None), None)


_BITS = {f"{sign}int{bits}": bits for sign in ("", "u") for bits in (8, 16, 32, 64)} | {
    "bool": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "float64": 64,
}


class Layout(StrEnum):
    """How a state is stored, which decides how a session allocates and binds it."""

    RECURRENT = "recurrent"  # fixed shape, replaced by each step
    CONV = "conv"  # fixed shape: the last k-1 inputs of a causal convolution
    WINDOW = "window"  # fixed shape: the last w-1 keys or values, right-aligned along `axis`
    STATIC = "static"  # `CAPACITY` along `axis`: written in place at `PAST_LENGTH`
    GROW = "grow"  # `PAST` along `axis`, 0 at the start: the output is longer than the input
    PREPARED = "prepared"  # computed once of a sequence's conditions: no step changes it


@dataclass(frozen=True, kw_only=True)
class StateSpec:
    """One carried state of a step graph, read from `input` and left in `output`.

    `output` is empty where no step changes the state, see `Layout.PREPARED`.  `shape` holds ints
    and the symbols above, `BATCH` at any place; a state without it is one for all rows.  `axis` is
    the dimension along which a KV cache holds tokens, None for recurrent and convolution states.
    `module` is the path of the PyTorch module that owns the state, `op` the operator, `port` which
    of its states, and `call` counts that operator's calls within the module.
    """

    input: str
    output: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: Layout
    axis: int | None
    op: str
    port: str
    module: str
    layer: int
    call: int
    window: int | None = None
    initial: float = 0.0

    @property
    def grows(self) -> bool:
        """Whether memory and time of a step grow with the tokens consumed."""
        return self.layout in (Layout.STATIC, Layout.GROW)

    @property
    def rows(self) -> int | None:
        """The axis of rows; None where all rows share the state."""
        return self.shape.index(BATCH) if BATCH in self.shape else None

    def place_of(self, rows: Any) -> Any:
        """What indexes `rows` in an array of the state; everything where rows share it."""
        return ... if self.rows is None else (*[slice(None)] * self.rows, rows)

    def stored_in(self, dtype: str) -> Self:
        """As a graph has it that computes in `dtype`: caches follow, recurrent states do not."""
        follows = self.layout is not Layout.RECURRENT and self.dtype == "float32"
        return replace(self, dtype=dtype) if follows else self

    def sized(self, batch: int, tokens: int) -> tuple[int, ...]:
        """The shape for `batch` rows, with room for `tokens` tokens where the state grows.

        A size that its conditions bring is 1.
        """
        sizes = {BATCH: batch, CAPACITY: tokens, PAST: tokens}
        return tuple(dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in self.shape)

    @property
    def own_dims(self) -> tuple[str, ...]:
        """The names of the sizes that conditions bring, as the length of a source."""
        known = (BATCH, CAPACITY, PAST)
        return tuple(dim for dim in self.shape if isinstance(dim, str) and dim not in known)

    def nbytes(self, batch: int, tokens: int) -> int:
        """Bytes that `batch` rows take, with `tokens` tokens in them where the state grows."""
        return math.prod(self.sized(batch, tokens)) * _BITS[self.dtype] // 8

    def to_json(self) -> dict[str, Any]:
        """As it stands in a manifest."""
        return {**asdict(self), "shape": list(self.shape), "layout": str(self.layout)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Back from a manifest's entry."""
        fields = {**entry, "shape": tuple(entry["shape"]), "layout": Layout(entry["layout"])}
        return cls(**fields)
