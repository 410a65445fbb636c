"""A weight of few bits as the blocks that ONNX Runtime's kernels read.

`com.microsoft::MatMulNBits` has kernels with int8 activations for blocks of 32, 64 and 128 columns
at 2, 4 and 8 bits; other blocks, and zero points that are floats, fall back to writing the whole
matrix out on each call, twenty times slower than a product of floats.  So a group becomes several
blocks with the same scale, or is padded with columns of zero; 3 bits are stored as 4; and an
additive offset becomes an integer zero point where it is one exactly, or stays beside the product:

    X (s c + z)^T = X (s c)^T + (sums of X over each group) Z^T
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from intaglio.ops import Codes, Floats, Packed, pack_codes, unpack_codes
from intaglio.passes.low_bit import LowBitWeight

BLOCKS = (128, 64, 32)


@dataclass(frozen=True, kw_only=True)
class PackedBlocks:
    """What MatMulNBits takes: `data` [N, blocks, bytes], `scales` [N, blocks], `zeros` [N, bytes].

    `width` is what each group of the input has to be padded to, None where it fits as it is; K is
    counted after that.  `offset` [N, G] is left to be added by group sums.
    """

    K: int
    bits: int
    block: int
    width: int | None
    data: Packed
    scales: Floats
    zeros: Packed | None
    offset: Floats | None


def to_blocks(weight: LowBitWeight) -> PackedBlocks:
    """Lay `weight` out in blocks; bytes that are right already are not copied."""
    bits = 4 if weight.bits == 3 else weight.bits
    group = min(weight.group, weight.K)
    count = weight.scale.shape[1]
    block = _block(group, whole=count == 1)
    width = None if count == 1 or group % block == 0 else -(-group // block) * block
    K = weight.K if width is None else count * width
    blocks = -(-K // block)
    repeats = -(-(width or group) // block)
    zeros = None
    signed = None if weight.offset is None else integer_offset(weight.scale, weight.offset, bits)
    if signed is not None and signed.any():
        points = np.repeat(signed, repeats, 1)[:, :blocks]
        zeros = pack_codes(points, bits, blocks)[:, 0]
    return PackedBlocks(
        K=K,
        bits=bits,
        block=block,
        width=width,
        data=_data(weight, bits, block, width),
        scales=np.repeat(weight.scale, repeats, 1)[:, :blocks],
        zeros=zeros,
        offset=weight.offset if signed is None else None,
    )


def _block(group: int, *, whole: bool) -> int:
    """The largest block that divides `group`; else the one that pads it least."""
    fitting = [block for block in BLOCKS if group % block == 0]
    if fitting:
        return fitting[0]
    if whole:  # the last block of a row may be short
        return next((block for block in BLOCKS if group >= block), BLOCKS[-1])
    return min(BLOCKS, key=lambda block: -(-group // block) * block)


def integer_offset(scale: Floats, offset: Floats, bits: int) -> Codes | None:
    """Zero points z, less 2^(bits-1), with scale · -z equal to `offset` to the bit; None if none.

    An offset that a checkpoint derived from integer zero points is found out so.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.rint(np.where(scale == 0, 0, -offset / scale))
    half = 1 << (bits - 1)
    if not np.isfinite(steps).all() or steps.min(initial=0) < -half or steps.max(initial=0) >= half:
        return None
    codes: Codes = steps.astype(np.int8)
    return codes if np.array_equal(-steps.astype(scale.dtype) * scale, offset) else None


def _data(weight: LowBitWeight, bits: int, block: int, width: int | None) -> Packed:
    rows, count, group = weight.rows, weight.scale.shape[1], min(weight.group, weight.K)
    size = block * bits // 8
    whole = count * group == weight.K and group % block == 0
    if bits == weight.bits and weight.group == group and whole:
        return weight.packed.reshape(rows, -1, size)
    codes = unpack_codes(weight.packed, weight.K, weight.bits, weight.group)
    if width is not None:
        apart = np.zeros((rows, count, width), np.int8)
        filled: npt.NDArray[np.int8] = np.zeros((rows, count * group), np.int8)
        filled[:, : weight.K] = codes
        apart[:, :, :group] = filled.reshape(rows, count, group)
        codes = apart.reshape(rows, -1)
    return pack_codes(codes, bits, block)
