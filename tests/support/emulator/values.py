"""The types of PTX: bits of registers as numbers, and numbers as bits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from .memory import Array

UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
# A type of PTX: what numpy reads its bits as, and how many values a register holds.
KINDS: dict[str, tuple[Any, int]] = {
    **{f"{letter}{8 * n}": (UNSIGNED[n], 1) for letter in "bu" for n in UNSIGNED},
    "s8": (np.int8, 1),
    "s16": (np.int16, 1),
    "s32": (np.int32, 1),
    "s64": (np.int64, 1),
    "s16x2": (np.int16, 2),
    "f16": (np.float16, 1),
    "f16x2": (np.float16, 2),
    "f32": (np.float32, 1),
    "f32x2": (np.float32, 2),
    "f64": (np.float64, 1),
}


def decode(kind: str, bits: Array) -> Array:
    """Values of bits; those of half precision are widened."""
    if kind == "pred":
        return bits
    if kind.startswith("bf16"):
        words = bits.astype(np.uint16) if kind == "bf16" else bits.view(np.uint16).reshape(-1, 2)
        return (words.astype(np.uint32) << 16).view(np.float32)
    dtype, count = KINDS[kind]
    wanted = np.dtype(dtype).itemsize * count
    if bits.itemsize != wanted:
        bits = bits.astype(UNSIGNED[wanted])
    values = bits.view(dtype)
    if count > 1:
        values = values.reshape(-1, count)
    return np.asarray(values.astype(np.float32) if dtype is np.float16 else values)


def decoder(kind: str, width: int) -> Callable[[Array], Array]:
    """What `decode` does to registers of so many bytes, with as little of it as is needed."""
    dtype, count = KINDS.get(kind, (None, 0))
    if count == 1 and dtype is not np.float16 and np.dtype(dtype).itemsize == width:
        return lambda bits: bits.view(dtype)
    return lambda bits: decode(kind, bits)


def encode(kind: str, values: Array) -> Array:
    """Bits of values, rounded to the nearest even."""
    if kind == "pred":
        return np.asarray(values, bool)
    if kind.startswith("bf16"):
        words = _brain(np.asarray(values, np.float32))
        return np.asarray(words if kind == "bf16" else words.view(np.uint32)[..., 0])
    dtype, count = KINDS[kind]
    made = np.ascontiguousarray(np.asarray(values).astype(dtype, copy=False))
    bits = made.view(UNSIGNED[made.itemsize * count])
    return np.asarray(bits[..., 0] if count > 1 else bits.reshape(made.shape))


def _brain(values: Array) -> Array:
    bits = np.ascontiguousarray(values).view(np.uint32).reshape(values.shape)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.ascontiguousarray(np.where(np.isnan(values), np.uint16(0x7FFF), rounded))


def constant(bits: int, kind: str) -> Array:
    """The value of an immediate, [2] of a packed type."""
    if kind == "pred":
        return np.asarray(bool(bits))
    count = 2 if kind.endswith("x2") else 1
    width = 2 * count if kind.startswith("bf16") else np.dtype(KINDS[kind][0]).itemsize * count
    made = np.array([bits & (1 << 8 * width) - 1], UNSIGNED[width])
    return np.asarray(decode(kind, made)[0])
