"""The data that calibrated passes learn from: a contract of passes and whoever reads the data.

Rows of the user's data come in batches, drawn from a file when asked for.  Every eighth batch, or
the last one of few, is held out: nothing is fitted to it, so that it tells how a change will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
HELD_OUT = 8  # one batch in so many is kept from fitting


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Some `rows` of every input, by name; `lengths` [rows] where they are padded at the end."""

    inputs: Mapping[str, Array]
    rows: int
    steps: int
    lengths: Array | None = None

    @property
    def tokens(self) -> int:
        """Steps of all rows, without padding."""
        return self.rows * self.steps if self.lengths is None else int(self.lengths.sum())

    def valid(self, values: Array) -> Array:
        """The rows of `values` [..., K] that are no padding, as [tokens, K]."""
        flat = values.reshape(-1, values.shape[-1])
        if self.lengths is None or len(flat) != self.rows * self.steps:
            return flat
        kept: Array = flat[(np.arange(self.steps) < self.lengths[:, None]).reshape(-1)]
        return kept


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Batches of the user's data, the SHA-256 of all of it, and what was done to make them."""

    batches: Sequence[Batch]
    sha256: str
    notes: Sequence[str] = ()

    @property
    def held_out(self) -> list[int]:
        """The batches that nothing is fitted to: none if there is one batch only."""
        count = len(self.batches)
        return [i for i in range(count) if i % HELD_OUT == min(count, HELD_OUT) - 1 and count > 1]

    @property
    def fitted(self) -> list[int]:
        """The other batches."""
        return [i for i in range(len(self.batches)) if i not in set(self.held_out)]

    def tokens(self, batches: Sequence[int]) -> int:
        """Steps of these batches together."""
        return sum(self.batches[index].tokens for index in batches)
