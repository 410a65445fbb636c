"""How codes of 2, 3, 4 and 8 bits stand in bytes, the same for checkpoint, graph and engine.

A weight W [N, K] of `group` columns per scale is q = code + 2^(bits-1) in 0 .. 2^bits - 1, a
bit stream for each row and group: code k of a group fills the bits k·bits to (k+1)·bits - 1, the
lowest bits of a byte first, and each group starts at a byte of its own.  At 2, 4 and 8 bits these
are the bytes of ``com.microsoft::MatMulNBits``; read as little-endian words of 32 bits, at 2 bits
those of HQQ and GemLite.  The last group of a row is filled up with zero bits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import InputError

Codes = npt.NDArray[np.int8]
Packed = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.floating[Any]]

BITS = (2, 3, 4, 8)


def groups_of(K: int, group: int) -> int:
    """How many groups a row of K columns has; the last one may be shorter."""
    return -(-K // group)


def packed_shape(N: int, K: int, bits: int, group: int) -> tuple[int, int, int]:
    """Shape of the packed codes of a weight [N, K]: [N, ceil(K/group), ceil(group·bits/8)].

    Raises:
        InputError: if bits is not 2, 3, 4 or 8, or a size is not positive.
    """
    if bits not in BITS:
        raise InputError(f"bits is {bits}; it should be 2, 3, 4 or 8.")
    if min(N, K, group) < 1:
        raise InputError(f"N, K and group are {N}, {K} and {group}; they should be at least 1.")
    return N, groups_of(K, group), -(-group * bits // 8)


def pack_codes(codes: Codes, bits: int, group: int) -> Packed:
    """Pack the signed codes [N, K], each in -2^(bits-1) .. 2^(bits-1) - 1.

    Returns:
        uint8 [N, ceil(K/group), ceil(group·bits/8)].

    Raises:
        InputError: if bits is not 2, 3, 4 or 8, or a code does not fit into them.
    """
    N, K = codes.shape
    shape = packed_shape(N, K, bits, group)
    half = 1 << (bits - 1)
    if codes.size and not -half <= int(codes.min()) <= int(codes.max()) < half:
        raise InputError(
            f"codes are in {codes.min()} .. {codes.max()}; {bits} bits hold {-half} .. {half - 1}."
        )
    unsigned = (codes.astype(np.int16) + half).astype(np.uint8)
    if bits == 8 and K % group == 0:
        return unsigned.reshape(shape)
    rows, count, size = shape
    filled = np.zeros((rows, count * group), np.uint8)
    filled[:, :K] = unsigned
    places = np.arange(bits, dtype=np.uint8)
    stream = (filled.reshape(rows, count, group, 1) >> places) & 1
    return np.packbits(stream.reshape(rows, count, -1), -1, bitorder="little")[..., :size]


def unpack_codes(packed: Packed, K: int, bits: int, group: int) -> Codes:
    """Return the signed codes int8 [N, K] of what `pack_codes` made."""
    _expect("codes", packed.shape, packed_shape(packed.shape[0], K, bits, group))
    stream = np.unpackbits(packed, axis=-1, count=group * bits, bitorder="little")
    fields = stream.reshape(*packed.shape[:2], group, bits)
    places = (1 << np.arange(bits)).astype(np.uint8)
    unsigned = (fields * places).sum(-1, dtype=np.uint8).reshape(packed.shape[0], -1)[:, :K]
    codes: Codes = (unsigned.astype(np.int16) - (1 << (bits - 1))).astype(np.int8)
    return codes


def dequantize_codes(
    packed: Packed, scale: Floats, offset: Floats | None, *, K: int, bits: int, group: int
) -> Floats:
    """Return the weight [N, K] that packed codes stand for: scale · code + offset.

    Args:
        packed: uint8 [N, ceil(K/group), ceil(group·bits/8)].
        scale: [N, ceil(K/group)]; its dtype is that of the result.
        offset: like `scale`, or None for zeros.
        K: columns of the weight.
        bits: 2, 3, 4 or 8.
        group: columns per scale.

    Raises:
        InputError: if the shapes do not fit each other.
    """
    expected = (packed.shape[0], groups_of(K, group))
    _expect("scale", scale.shape, expected)
    codes = unpack_codes(packed, K, bits, group)
    weight = codes * np.repeat(scale, group, 1)[:, :K]
    if offset is None:
        return weight
    _expect("offset", offset.shape, expected)
    return weight + np.repeat(offset, group, 1)[:, :K]


def unpack_tensor(packed: Tensor, K: int, bits: int, group: int) -> Tensor:
    """Do what `unpack_codes` does, on any device: uint8 [..., G, bytes] gives int8 [..., K]."""
    width = 1 if bits == 3 else bits  # a byte is cut into fields of so many bits
    places = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)
    fields = (packed[..., None] >> places) & ((1 << width) - 1)
    fields = fields.flatten(-2)[..., : group * bits // width]
    if bits == 3:
        fields = torch.unflatten(fields, -1, (group, 3))
        fields = fields[..., 0] | (fields[..., 1] << 1) | (fields[..., 2] << 2)
    return (fields.flatten(-2)[..., :K].to(torch.int16) - (1 << (bits - 1))).to(torch.int8)


def dequantize_tensor(
    packed: Tensor, scale: Tensor, offset: Tensor | None, *, K: int, bits: int, group: int
) -> Tensor:
    """Do what `dequantize_codes` does on tensors, for any leading dimensions; differentiable."""
    codes = unpack_tensor(packed, K, bits, group).to(scale.dtype)
    weight = codes * scale.repeat_interleave(group, -1)[..., :K]
    return weight if offset is None else weight + offset.repeat_interleave(group, -1)[..., :K]


def _expect(name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(shape) != tuple(expected):
        raise InputError(f"{name} has the shape {list(shape)}; it should be {list(expected)}.")


def body_of_weight(*, K: int, bits: int, group: int, offset: bool, suffix: str = "") -> str:
    """Write nodes of ONNX, as text, that compute `weight` [R, K].

    They read `codes` [R, G, bytes], `scale` [R, G] and, with `offset`, `offset` [R, G]; `suffix`
    is added to these names.
    """
    width = 1 if bits == 3 else bits  # a byte is cut into fields of so many bits
    digits = bits // width
    shifts = ", ".join(str(shift) for shift in range(0, 8, width))
    worth = ", ".join(f"{1 << digit}.0" for digit in range(digits))
    lines = [
        "zero = Constant <value_ints = [0]> ()",
        "one = Constant <value_ints = [1]> ()",
        "two = Constant <value_ints = [2]> ()",
        "three = Constant <value_ints = [3]> ()",
        f"bytes = Unsqueeze (codes{suffix}, three)",
        f"shifts = Constant <value = uint8[{8 // width}] {{{shifts}}}> ()",
        'shifted = BitShift <direction = "RIGHT"> (bytes, shifts)',
        f"mask = Constant <value = uint8 {{{(1 << width) - 1}}}> ()",
        "fields = BitwiseAnd (shifted, mask)",
        "merged = Constant <value_ints = [0, 0, -1]> ()",
        "stream = Reshape (fields, merged)",
        f"used = Constant <value_ints = [{group * digits}]> ()",
        "cut = Slice (stream, zero, used, two)",
        f"apart = Constant <value_ints = [0, 0, {group}, {digits}]> ()",
        "digits = Reshape (cut, apart)",
        f"real = CastLike (digits, scale{suffix})",
        f"worth = Constant <value_floats = [{worth}]> ()",
        f"real_worth = CastLike (worth, scale{suffix})",
        "weighed = Mul (real, real_worth)",
        "unsigned = ReduceSum <keepdims = 0> (weighed, three)",
        f"half = Constant <value_float = {1 << (bits - 1)}.0> ()",
        f"real_half = CastLike (half, scale{suffix})",
        "signed = Sub (unsigned, real_half)",
        f"scales = Unsqueeze (scale{suffix}, two)",
        "scaled = Mul (signed, scales)",
    ]
    if offset:
        lines += [f"offsets = Unsqueeze (offset{suffix}, two)", "moved = Add (scaled, offsets)"]
    lines += [
        "rows = Constant <value_ints = [0, -1]> ()",
        f"filled = Reshape ({'moved' if offset else 'scaled'}, rows)",
        f"columns = Constant <value_ints = [{K}]> ()",
        "weight = Slice (filled, zero, columns, one)",
    ]
    return "\n".join(lines)
