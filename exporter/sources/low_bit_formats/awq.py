"""AWQ, version gemm: 4 bits, packed along the outputs in 32-bit words, interleaved.

    qweight int32 [K, N/8]   scales [G, N]   qzeros int32 [G, N/8]

W = scale (value - zero).  Of eight outputs, a word holds 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first.
Source: the checkpoints that AutoAWQ 0.2 writes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import SourceError

from .stored import StoredWeight
from .words import from_words, to_words

METHOD = "awq"
MARK = "qweight"
PARTS = ("qweight", "qzeros", "scales")
BITS = 4
ORDER = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the output at each place of a word

Array = npt.NDArray[Any]


def read(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StoredWeight:
    """Read a projection of its tensors by their last names, and the quantization_config.

    Raises:
        SourceError: if a tensor is missing, they do not fit each other, or are packed otherwise.
    """
    _check(config)
    missing = [name for name in PARTS if name not in tensors]
    if missing:
        raise SourceError(f"it has no {missing[0]}. Copy the checkpoint again.")
    scales = tensors["scales"]
    values, zeros = (_unpack(tensors[name].numpy()) for name in ("qweight", "qzeros"))
    (N, K), G = values.shape, scales.shape[0]
    if scales.shape != (G, N) or zeros.shape != (N, G):
        raise SourceError(
            f"its scales are {list(scales.shape)} and its zero points {list(zeros.T.shape)}; for "
            f"qweight {list(tensors['qweight'].shape)} both should be [groups, {N}]."
        )
    size = int(config.get("group_size", config.get("q_group_size", -1)))
    group = K if size == -1 else size
    if group < 1 or -(-K // group) != G:
        raise SourceError(
            f"it has {G} groups for {K} inputs, but group_size is {size}. Correct config.json."
        )
    return StoredWeight(
        values=values,
        scale=scales.T.contiguous(),
        zero=torch.from_numpy(zeros.astype(np.int32)),
        bits=BITS,
        group=group,
        bias=tensors.get("bias"),
    )


def write(stored: StoredWeight, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Write what `read` reads.

    Raises:
        SourceError: if the weight has no integer zero points, not 4 bits, or channels out of order.
    """
    _check(config)
    if stored.zero is None or stored.bits != BITS or stored.groups is not None:
        raise SourceError("AWQ has 4 bits, integer zero points, and its inputs in order.")
    if stored.shape[0] % len(ORDER):
        raise SourceError(f"{stored.shape[0]} outputs fill no whole 32-bit words.")
    found = {
        "qweight": _pack(stored.values),
        "qzeros": _pack(stored.zero.numpy().astype(np.uint8)),
        "scales": stored.scale.T.contiguous(),
    }
    return found if stored.bias is None else {**found, "bias": stored.bias}


def _check(config: Mapping[str, Any]) -> None:
    version, bits = str(config.get("version", "gemm")).lower(), config.get("bits", BITS)
    if version != "gemm" or config.get("w_bit", bits) != BITS:
        raise SourceError(
            f"it is of AWQ's version {version!r} at {config.get('w_bit', bits)} bits; version "
            "'gemm' at 4 bits is read. Save it so with AutoAWQ."
        )


def _unpack(words: Array) -> Array:
    """int32 [rows, N/8] -> uint8 [N, rows]."""
    places = from_words(words, BITS).reshape(len(words), -1, len(ORDER))
    values = np.empty_like(places)
    values[..., ORDER] = places
    return values.reshape(len(words), -1).T


def _pack(values: Array) -> Tensor:
    """uint8 [N, rows] -> int32 [rows, N/8]."""
    turned = np.ascontiguousarray(values.T).reshape(values.shape[1], -1, len(ORDER))
    return torch.from_numpy(to_words(turned[..., ORDER].reshape(values.shape[1], -1), BITS))
