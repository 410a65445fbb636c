"""A weight of few bits as a checkpoint says it, and the module that computes with it.

    W[n, k] = scale[n, g] (values[n, k] - zero[n, g])               with zero points
    W[n, k] = scale[n, g] (values[n, k] - 2^(bits-1)) + offset[n, g]     with offsets

g is the group of column k.  The module has offsets alone: those of integer zero points and scales
in half precision are exact in single precision, and give the zero points back.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.exporter.sources.low_bit_modules import LowBitLinear

Values = npt.NDArray[np.uint8]
Groups = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True)
class StoredWeight:
    """A projection of a checkpoint, its numbers in the types of the file.

    `values` are [N, K] in 0 .. 2^bits - 1; `scale` and `zero` or `offset` are [N, G]; with neither
    of these, the zero point is 2^(bits-1).
    `groups` [K] names the group of each column where that is not k // group; `bias` is [N].
    """

    values: Values
    scale: Tensor
    zero: Tensor | None = None
    offset: Tensor | None = None
    bits: int
    group: int
    groups: Groups | None = None
    bias: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """N and K."""
        N, K = self.values.shape
        return N, K

    def offsets(self) -> Tensor | None:
        """Offsets [N, G] in float32, None where all are zero."""
        found = None if self.offset is None else self.offset.float()
        if self.zero is not None:
            found = (2 ** (self.bits - 1) - self.zero.float()) * self.scale.float()
        return None if found is None or not found.any() else found

    def module(self) -> LowBitLinear:
        """The projection; where columns of a group lie apart, their inputs are brought together.

        Raises:
            SourceError: if a group has more or fewer columns than it can.
        """
        order = self._order()
        values = self.values if order is None else self.values[:, order]
        return LowBitLinear(
            (values.astype(np.int16) - 2 ** (self.bits - 1)).astype(np.int8),
            self.scale,
            self.offsets(),
            self.bias,
            None if order is None else torch.from_numpy(order),
            bits=self.bits,
            group=self.group,
        )

    def _order(self) -> npt.NDArray[np.int64] | None:
        if self.groups is None:
            return None
        order = np.argsort(self.groups, kind="stable")
        regular = np.arange(len(order)) // self.group
        if not np.array_equal(self.groups[order], regular):
            raise SourceError(
                f"its g_idx puts other than {self.group} columns into a group, which has no form "
                "here. Quantize with groups of one size."
            )
        return None if np.array_equal(self.groups, regular) else order


def stored_weight(module: LowBitLinear, *, integers: bool, dtype: torch.dtype) -> StoredWeight:
    """What `StoredWeight.module` was made of, its scales in `dtype`.

    With `integers` offsets become integer zero points.

    Raises:
        SourceError: if an offset is no integer number of scales, or a scale has no such `dtype`.
    """
    half = 2 ** (module.bits - 1)
    values = (module.signed().astype(np.int16) + half).astype(np.uint8)
    groups: Groups | None = None
    if module.order is not None:
        order = module.order.numpy()
        groups = np.empty(len(order), np.int32)
        groups[order] = np.arange(len(order)) // module.group
        apart = np.empty_like(values)
        apart[:, order] = values
        values = apart
    offset = torch.zeros_like(module.scale) if module.offset is None else module.offset
    zero = half - offset.double() / module.scale.double()
    if integers and not torch.equal((half - zero.round()).float() * module.scale, offset):
        raise SourceError("Its offsets are no integer numbers of scales; this format needs that.")
    scale = module.scale.to(dtype)
    if not torch.equal(scale.float(), module.scale):
        raise SourceError(f"Its scales are not exact in {dtype}.")
    return StoredWeight(
        values=values,
        scale=scale,
        zero=zero.round().int() if integers else None,
        offset=None if integers else offset,
        bits=module.bits,
        group=module.group,
        groups=groups,
        bias=module.bias,
    )
