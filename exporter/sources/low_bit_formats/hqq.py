"""HQQ: values packed across rows, a float zero point per group, each projection with its facts.

    W_q   scale [R, 1]   zero [R, 1]   nbits   group_size   shape   axis   packing   ...

W = scale (value - zero).  The weight [N, K] is cut into R = N·K/group rows of one group each
(axis 1).  A byte holds the rows r, r + R/4, r + 2R/4, r + 3R/4 at 2 bits, r and r + R/2 at 4, the
first in the highest bits; at 3 bits a word of 32 holds ten such rows, R filled up to tens.
Source: hqq 0.2, whose ``state_dict`` transformers saves as safetensors.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import SourceError

from .stored import StoredWeight

METHOD = "hqq"
MARK = "W_q"
FACTS = ("nbits", "group_size", "shape", "axis", "packing", "view_as_float")
UNREAD = (  # what the library keeps beside, and what speaks of quantized scales and zero points
    "unpack_view_dtype compute_dtype channel_wise optimize round_zero offload_meta quant_scale "
    "quant_zero encoded_state_dict stores_quant_config"
).split()
QUANTIZED = ("scale_q", "zero_q", "zero_scale")
PARTS = ("W_q", "scale", "zero", *FACTS, *UNREAD, *QUANTIZED)
PACKING = {2: ("2bit_u8", 4), 3: ("3bit_32", 10), 4: ("4bit_u8", 2), 8: ("8bit_u8", 1)}

Array = npt.NDArray[Any]


def read(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StoredWeight:  # noqa: ARG001
    """Read a projection of its tensors by their last names.

    Raises:
        SourceError: if it is packed along axis 0, with bits of another number, or not whole.
    """
    _check(tensors)
    bits, (N, K) = _number(tensors, "nbits"), (int(x) for x in tensors["shape"])
    group = K if "group_size" not in tensors else _number(tensors, "group_size")
    scale, zero, rows = tensors["scale"], tensors["zero"], N * K // max(group, 1)
    if group < 1 or K % group or scale.numel() != rows or zero.numel() not in (1, rows):
        raise SourceError(
            f"its scale {list(scale.shape)} and zero {list(zero.shape)} do not fit groups of "
            f"{group} in {N} rows of {K}. Quantize with a group size that divides {K}."
        )
    words = tensors["W_q"]
    if _number(tensors, "view_as_float", 0):
        words = words.view(torch.int32 if bits == 3 else torch.uint8)
    values = _unpack(words.numpy(), bits)[:rows]
    if values.shape != (rows, group):
        raise SourceError(f"its W_q {list(words.shape)} holds no {rows} groups of {group}.")
    return StoredWeight(
        values=values.reshape(N, K),
        scale=scale.reshape(N, -1),
        zero=zero.expand(rows, 1).reshape(N, -1),
        bits=bits,
        group=group,
        bias=tensors.get("bias"),
    )


def write(stored: StoredWeight, config: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG001
    """Write what `read` reads.

    Raises:
        SourceError: if the weight has offsets, columns out of order, or groups that do not pack.
    """
    (N, K), (packing, count) = stored.shape, PACKING[stored.bits]
    rows = N * K // stored.group
    if stored.zero is None or stored.groups is not None or K % stored.group:
        raise SourceError("HQQ has zero points, its inputs in order, and whole groups.")
    if rows % count and stored.bits != 3:
        raise SourceError(f"{rows} groups do not pack by {count}.")
    found = {
        "W_q": torch.from_numpy(_pack(stored.values.reshape(rows, -1), stored.bits)),
        "scale": stored.scale.reshape(rows, 1),
        "zero": stored.zero.reshape(rows, 1),
        "nbits": torch.tensor(stored.bits, dtype=torch.int32),
        "group_size": torch.tensor(stored.group, dtype=torch.int32),
        "shape": torch.tensor([N, K]),
        "axis": torch.tensor(1, dtype=torch.int32),
        "packing": torch.tensor(list(packing.encode()), dtype=torch.uint8),
    }
    return found if stored.bias is None else {**found, "bias": stored.bias}


def _check(tensors: Mapping[str, Tensor]) -> None:
    if any(name in tensors for name in QUANTIZED):
        raise SourceError(
            "its scales or zero points are quantized themselves, which is not read. Quantize "
            "without quant_scale and quant_zero."
        )
    missing = [n for n in ("scale", "zero", "nbits", "shape", "axis") if n not in tensors]
    if missing:
        raise SourceError(f"it has no {missing[0]}. Save it with a later hqq.")
    if _number(tensors, "axis") != 1:
        raise SourceError(
            "its groups run along the outputs (axis=0): a scale belongs to a column, not to "
            "a part of a row; no kernel here multiplies by such. Quantize with axis=1."
        )
    bits = float(tensors["nbits"])
    name = bytes(tensors["packing"].tolist()).decode() if "packing" in tensors else ""
    if bits not in PACKING or name not in ("", PACKING[int(bits)][0]):
        raise SourceError(f"its nbits are {bits:g}, packed as {name!r}; 2, 3, 4 and 8 are read.")


def _number(tensors: Mapping[str, Tensor], name: str, default: int = 0) -> int:
    return int(tensors[name]) if name in tensors else default


def _unpack(words: Array, bits: int) -> Array:
    """[R/count, group] -> uint8 [R, group]."""
    count = PACKING[bits][1]
    shifts = [bits * place for place in reversed(range(count))]
    parts = [(words >> shift) & (2**bits - 1) for shift in shifts]
    return np.concatenate(parts).astype(np.uint8)


def _pack(values: Array, bits: int) -> Array:
    """uint8 [R, group] -> [R/count, group]."""
    count = PACKING[bits][1]
    kind = np.int32 if bits == 3 else np.uint8
    filled = np.zeros((-(-len(values) // count) * count, values.shape[1]), kind)
    filled[: len(values)] = values
    words = np.zeros((len(filled) // count, values.shape[1]), kind)
    for place, part in enumerate(np.split(filled, count)):
        words |= part << (bits * (count - 1 - place))
    return words
