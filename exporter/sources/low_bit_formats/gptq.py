"""GPTQ: values packed along the inputs, zero points along the outputs, in 32-bit words.

    qweight int32 [K·bits/32, N]   scales [G, N]   qzeros int32 [G, N·bits/32]   g_idx int32 [K]

W = scale (value - zero).  The format called gptq stores each zero point less one, modulo 2^bits;
gptq_v2 stores it as it is.  g_idx is the group of each input, out of order after `desc_act`.
Source: the checkpoints that AutoGPTQ 0.7 and GPTQModel 2 write.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.ops import BITS

from .stored import StoredWeight
from .words import from_words, to_words

METHOD = "gptq"
MARK = "qweight"  # the tensor that tells a projection in this format
PARTS = ("qweight", "qzeros", "scales", "g_idx")
V2 = "gptq_v2"


def read(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StoredWeight:
    """Read a projection of its tensors by their last names, and the quantization_config.

    Raises:
        SourceError: if a tensor is missing, or they do not fit each other.
    """
    missing = [name for name in ("qweight", "qzeros", "scales") if name not in tensors]
    if missing:
        raise SourceError(f"it has no {missing[0]}. Copy the checkpoint again.")
    words, scales, index = tensors["qweight"], tensors["scales"], tensors.get("g_idx")
    bits, K = _sizes(words, index, config)
    values = from_words(words.numpy().T, bits)
    zeros = from_words(tensors["qzeros"].numpy(), bits).T
    N, G = values.shape[0], scales.shape[0]
    if scales.shape != (G, N) or zeros.shape != (N, G):
        raise SourceError(
            f"its scales are {list(scales.shape)} and its zero points {list(zeros.T.shape)}; for "
            f"qweight {list(words.shape)} at {bits} bits both should be [groups, {N}]."
        )
    group = _group(config.get("group_size", -1), K, G)
    if not _is_v2(config):
        zeros = (zeros + 1) & (2**bits - 1)
    return StoredWeight(
        values=values,
        scale=scales.T.contiguous(),
        zero=torch.from_numpy(zeros.astype(np.int32)),
        bits=bits,
        group=group,
        groups=None if index is None else index.numpy(),
        bias=tensors.get("bias"),
    )


def write(stored: StoredWeight, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Write what `read` reads; both values and zero points fill whole words.

    Raises:
        SourceError: if there are no integer zero points, or they fill no whole words.
    """
    N, K = stored.shape
    if stored.zero is None:
        raise SourceError("GPTQ has integer zero points, and this weight has none.")
    if K * stored.bits % 32 or N * stored.bits % 32:
        raise SourceError(f"{N} rows of {K} at {stored.bits} bits fill no whole 32-bit words.")
    zeros = stored.zero.numpy().T
    if not _is_v2(config):
        zeros = (zeros - 1) & (2**stored.bits - 1)
    groups = np.arange(K) // stored.group if stored.groups is None else stored.groups
    arrays = {
        "qweight": to_words(stored.values, stored.bits).T,
        "qzeros": to_words(zeros, stored.bits),
        "g_idx": groups.astype(np.int32),
    }
    found = {name: torch.from_numpy(np.ascontiguousarray(x)) for name, x in arrays.items()}
    found["scales"] = stored.scale.T.contiguous()
    return found if stored.bias is None else {**found, "bias": stored.bias}


def _is_v2(config: Mapping[str, Any]) -> bool:
    return bool(config.get("checkpoint_format", METHOD) == V2)


def _sizes(words: Tensor, index: Tensor | None, config: Mapping[str, Any]) -> tuple[int, int]:
    """Bits and K; where g_idx tells K, layers may have bits of their own."""
    held = words.shape[0] * 32
    bits = int(config.get("bits", 0)) if index is None else held // max(len(index), 1)
    if bits not in BITS or (index is not None and held != bits * len(index)):
        raise SourceError(f"its qweight {list(words.shape)} does not hold 2, 3, 4 or 8 bits.")
    return bits, held // bits


def _group(size: Any, K: int, G: int) -> int:
    group = K if size in (-1, None) or int(size) > K else int(size)
    if group < 1 or -(-K // group) != G:
        raise SourceError(
            f"it has {G} groups for {K} inputs, but group_size is {size}. Correct config.json."
        )
    return group
