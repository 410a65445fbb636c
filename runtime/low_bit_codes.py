"""Weights of few bits written out as floats, from the bytes of a bundle.

Codes are the bit streams of `intaglio::AffineLowBitMatMul`, a group of columns at a time, or the
blocks of ``com.microsoft::MatMulNBits`` that they were laid out in.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.runtime.bundle import Bundle
from intaglio.runtime.onnx_graph import Tensor

Array = npt.NDArray[Any]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True)
class CodeSizes:
    """K columns of so many bits in groups, as `intaglio::AffineLowBitMatMul` has them."""

    K: int
    bits: int
    group: int

    @classmethod
    def of(cls, sizes: Mapping[str, Any]) -> "CodeSizes | None":
        """Those that attributes or metadata tell; None if they are none."""
        K, bits, group = (sizes.get(name) for name in ("K", "bits", "group"))
        if not (isinstance(K, int) and isinstance(bits, int) and isinstance(group, int)):
            return None
        if min(K, group) < 1 or bits not in (2, 3, 4, 8):
            return None
        return cls(K=K, bits=bits, group=min(group, K))

    @property
    def groups(self) -> int:
        """How many a row has; the last one may be short."""
        return -(-self.K // self.group)

    @property
    def words(self) -> str:
        """What tables call it."""
        return f"{self.bits} bits, groups of {self.group}"


def values_of(bundle: Bundle, tensor: Tensor) -> Array | None:
    """The elements of an initializer in its shape; None where numpy has no such type."""
    values = tensor.values(bundle)
    return None if values is None else values.reshape(tensor.shape)


def write_codes(
    bundle: Bundle,
    codes: Tensor,
    scale: Tensor | None,
    offset: Tensor | None,
    sizes: CodeSizes,
    *,
    turned: bool,
) -> Array | None:
    """A weight [N, K], or [K, N] if `turned`; None where the shapes do not fit each other.

    Codes uint8 [N, G, bytes], scale and offset [N, G].
    """
    packed, scales, offsets = (
        None if each is None else values_of(bundle, each) for each in (codes, scale, offset)
    )
    if packed is None or scales is None or packed.dtype != np.uint8 or not packed.ndim:
        return None
    rows, bits, group = packed.shape[0], sizes.bits, sizes.group
    size = -(-group * bits // 8)
    if packed.ndim != 3 or packed.shape[1] != sizes.groups or packed.shape[2] < size:
        return None
    if scales.shape != (rows, sizes.groups):
        return None
    if offset is not None and (offsets is None or offsets.shape != scales.shape):
        return None
    full = np.empty((rows, sizes.K), np.float32)
    for at in _chunks(rows):
        weight = _signed(packed[at], bits, group) * scales[at, :, None].astype(np.float32)
        if offsets is not None:
            weight += offsets[at, :, None]
        full[at] = weight.reshape(weight.shape[0], -1)[:, : sizes.K]
    return full.T if turned else full


def write_blocks(
    bundle: Bundle,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    sizes: CodeSizes,
    bits: int,
    block: int,
    place: slice,
) -> Array | None:
    """The rows `place` of a weight whose codes are in blocks, each group filled up to whole ones.

    Data [N, blocks, bytes] or [N, bytes], scales [N, blocks], zeros [N, bytes], offset [N, G].
    """
    data, scales, zeros, offset = (
        None if each is None else values_of(bundle, each) for each in tensors
    )
    if data is None or scales is None or data.dtype != np.uint8 or scales.ndim != 2:
        return None
    if (tensors[2] is not None and zeros is None) or (tensors[3] is not None and offset is None):
        return None
    (rows, count), size = scales.shape, block * bits // 8
    width = block * (count // sizes.groups) if sizes.groups > 1 and count % sizes.groups == 0 else 0
    if sizes.groups > 1 and width < sizes.group:
        width = 0  # blocks without a gap, the last one short
    if data.size != rows * count * size or (width or count * block) < min(sizes.group, sizes.K):
        return None
    if sizes.groups > 1 and not width and (sizes.group % block or count * block < sizes.K):
        return None
    if zeros is not None and (zeros.ndim != 2 or 8 * zeros.shape[1] < count * bits):
        return None
    if offset is not None and offset.size != rows * sizes.groups:
        return None
    data = data.reshape(rows, count, size)
    full = np.empty((len(range(*place.indices(rows))), sizes.K), np.float32)
    first = place.indices(rows)[0]
    for at in _chunks(full.shape[0]):
        here = slice(first + at.start, first + min(at.stop, full.shape[0]))
        codes = _signed(data[here], bits, block)
        if zeros is not None:
            codes -= _signed(zeros[here][:, None], bits, count)[:, 0, :, None]
        weight = (codes * scales[here][:, :, None]).reshape(codes.shape[0], -1)
        if width:
            weight = weight.reshape(-1, sizes.groups, width)[:, :, : sizes.group]
            weight = weight.reshape(codes.shape[0], -1)
        weight = weight[:, : sizes.K]
        if offset is not None:
            moved = offset.reshape(rows, sizes.groups)[here]
            weight = weight + np.repeat(moved, sizes.group, 1)[:, : sizes.K]
        full[at] = weight
    return full


def _signed(packed: Array, bits: int, group: int) -> Array:
    """Codes float32 [..., group] of a bit stream uint8 [..., bytes], lowest bits first."""
    stream = np.unpackbits(packed, axis=-1, count=group * bits, bitorder="little")
    fields = stream.reshape(*packed.shape[:-1], group, bits)
    worth = (1 << np.arange(bits)).astype(np.float32)
    codes: Array = fields.astype(np.float32) @ worth - np.float32(1 << (bits - 1))
    return codes


def _chunks(rows: int) -> Iterator[slice]:
    for start in range(0, rows, _ROWS_AT_ONCE):
        yield slice(start, start + _ROWS_AT_ONCE)
