"""Weights of 2 bits as kernels of GPUs read them: planes of 16 columns.

A block of 128 columns is 16 words of 16 bits: the bits 2i and 2i+1 of word j hold the code of
column 16 i + j, plus 2.  One mask gives the codes of 16 consecutive columns, a plane, as tensor
cores take them; groups of 16, 32, 64 and 128 columns, and multiples of these, are whole planes.
TensorRT has no integers of 16 bits, so two words stand in one of 32.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from ._low_bit_packing import Floats, Packed, unpack_codes

BITS = 2
BLOCK = 128  # columns
PLANE = 16

Words = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True)
class Planes:
    """A weight [N, K] of 2 bits.

    Attributes:
        words: int32 [N, ceil(K/128), 8].
        scale: [G, N], of groups of `size` columns: threads that hold rows next to each other read
            numbers next to each other.
        offset: like `scale`.
        size: columns of a group: 16, 32, 64, a multiple of 128, or the row filled up to one.
    """

    words: Words
    scale: Floats
    offset: Floats
    size: int


def size_in_planes(K: int, bits: int, group: int) -> int | None:
    """Columns of the groups that stand for those of `group`; None where planes hold no such."""
    if bits != BITS:
        return None
    if group >= K:
        return -(-K // BLOCK) * BLOCK
    size = next((size for size in (BLOCK, 64, 32, PLANE) if group % size == 0), None)
    return group if size == BLOCK else size


def to_planes(codes: Packed, scale: Floats, offset: Floats | None, *, K: int, group: int) -> Planes:
    """Arrange packed codes and their scales and offsets; what they stand for stays the same.

    Args:
        codes: uint8 [N, ceil(K/group), ceil(group/4)], see `pack_codes`.
        scale: [N, ceil(K/group)].
        offset: like `scale`, or None for zeros.
        K: columns of the weight.
        group: columns per scale; `size_in_planes` has to be a number.
    """
    size = size_in_planes(K, BITS, group)
    assert size is not None
    N, blocks = codes.shape[0], -(-K // BLOCK)
    filled = np.zeros((N, blocks * BLOCK), np.uint16)
    filled[:, :K] = unpack_codes(codes, K, BITS, group) + 2
    planes = filled.reshape(N, blocks, BLOCK // PLANE, PLANE)
    words = np.zeros((N, blocks, PLANE), "<u2")
    for i in range(BLOCK // PLANE):
        words |= planes[:, :, i] << np.uint16(2 * i)
    count = blocks * BLOCK // size + (blocks * BLOCK % size > 0)

    def regrouped(x: Floats) -> Floats:
        x = np.repeat(x, max(1, group // size), 1)[:, :count]
        filled = np.concatenate([x, np.zeros((N, count - x.shape[1]), x.dtype)], 1)
        return np.ascontiguousarray(filled.T)

    return Planes(
        words=words.view("<i4"),
        scale=regrouped(scale),
        offset=regrouped(np.zeros_like(scale) if offset is None else offset),
        size=size,
    )


def body_of_planes(*, K: int, size: int, bias: bool) -> str:
    """Write nodes of ONNX, as text: `input` times what `words`, `scale` and `offset` stand for.

    Args:
        K: columns of the weight.
        size: columns of a group, as `Planes` has it.
        bias: whether `bias` is added.
    """
    blocks = -(-K // BLOCK)
    width = min(size, BLOCK)  # columns of one scale within a block
    which = ", ".join(str(block * BLOCK // size) for block in range(blocks))
    shifts = ", ".join(str(2 * plane + 16 * half) for plane in range(8) for half in range(2))

    def spread(name: str) -> list[str]:
        """One entry of `name` for each group that a block holds, or for each block of a group."""
        rows = f"{name}_rows = Transpose <perm = [1, 0]> ({name})"
        if size <= BLOCK:
            return [rows, f"{name}s = Unsqueeze ({name}_rows, two)"]
        return [rows, f"{name}_of = Gather <axis = 1> ({name}_rows, which)",
                f"{name}s = Unsqueeze ({name}_of, two)"]  # fmt: skip

    return "\n".join(
        [
            "zero = Constant <value_ints = [0]> ()",
            "one = Constant <value_ints = [1]> ()",
            "two = Constant <value_ints = [2]> ()",
            f"unsigned = Cast <to = {onnx.TensorProto.UINT32}> (words)",
            "axes = Constant <value_ints = [2, 4]> ()",
            "wide = Unsqueeze (unsigned, axes)",
            f"places = Constant <value = uint32[16] {{{shifts}}}> ()",
            "grid = Constant <value_ints = [8, 1, 2]> ()",
            "shifts = Reshape (places, grid)",
            'shifted = BitShift <direction = "RIGHT"> (wide, shifts)',
            "mask = Constant <value = uint32 {3}> ()",
            "fields = BitwiseAnd (shifted, mask)",
            f"apart = Constant <value_ints = [0, {blocks * BLOCK // width}, {width}]> ()",
            "codes = Reshape (fields, apart)",
            "real = CastLike (codes, scale)",
            "half = Constant <value_float = 2.0> ()",
            "real_half = CastLike (half, scale)",
            "signed = Sub (real, real_half)",
            f"which = Constant <value_ints = [{which}]> ()",
            *spread("scale"),
            *spread("offset"),
            "scaled = Mul (signed, scales)",
            "moved = Add (scaled, offsets)",
            "flat = Constant <value_ints = [0, -1]> ()",
            "filled = Reshape (moved, flat)",
            f"columns = Constant <value_ints = [{K}]> ()",
            "weight = Slice (filled, zero, columns, one)",
            "turned = Transpose <perm = [1, 0]> (weight)",
            f"{'product' if bias else 'output'} = MatMul (input, turned)",
            *(["output = Add (product, bias)"] if bias else []),
        ]
    )
