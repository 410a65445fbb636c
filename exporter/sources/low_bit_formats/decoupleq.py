"""decoupleQ's ``true_quant.pth``: signed codes, one to a byte, with additive offsets.

    weight int8 [N, K]   weight_qscale [N, G]   weight_qzero [N, G], absent if symmetric

W = qscale · weight + qzero.  No config tells of it, the names of the tensors do; the bits are the
fewest that hold the codes.  Source: Guo et al. 2024, arXiv:2404.12759, and the authors' llama.py.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.ops import BITS

from .stored import StoredWeight

METHOD = "decoupleq"
FILE = "true_quant.pth"  # the name under which its authors' program saves
MARK = "weight_qscale"
PARTS = ("weight", "weight_qscale", "weight_qzero")


def read(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> StoredWeight:  # noqa: ARG001
    """Read a projection of its tensors by their last names.

    Raises:
        SourceError: if the weight holds no codes, or scales and offsets do not fit it.
    """
    weight, scale, offset = (tensors.get(name) for name in PARTS)
    if weight is None or weight.dtype != torch.int8 or weight.dim() != 2 or scale is None:
        kind = "missing" if weight is None else f"{weight.dtype} {list(weight.shape)}"
        raise SourceError(f"its weight is {kind}; beside weight_qscale it should be int8 [N, K].")
    (N, K), G = weight.shape, scale.shape[-1]
    group = -(-K // max(G, 1))
    if (
        scale.shape != (N, G)
        or -(-K // group) != G
        or (offset is not None and offset.shape != (N, G))
    ):
        raise SourceError(
            f"its weight_qscale {list(scale.shape)} does not cut {N} rows of {K} codes into "
            "groups, or its weight_qzero is of another shape. Save it again."
        )
    codes = weight.numpy().astype(np.int16)
    bits = next(b for b in BITS if -(2 ** (b - 1)) <= codes.min() and codes.max() < 2 ** (b - 1))
    return StoredWeight(
        values=(codes + 2 ** (bits - 1)).astype(np.uint8),
        scale=scale,
        offset=offset,
        bits=bits,
        group=group,
        bias=tensors.get("bias"),
    )


def write(stored: StoredWeight, config: Mapping[str, Any]) -> dict[str, Tensor]:  # noqa: ARG001
    """Write what `read` reads.

    Raises:
        SourceError: if the weight has zero points, or columns out of order.
    """
    if stored.zero is not None or stored.groups is not None:
        raise SourceError("decoupleQ has additive offsets, and its inputs in order.")
    codes = stored.values.astype(np.int16) - 2 ** (stored.bits - 1)
    found = {"weight": torch.from_numpy(codes.astype(np.int8)), "weight_qscale": stored.scale}
    if stored.offset is not None:
        found["weight_qzero"] = stored.offset
    return found if stored.bias is None else {**found, "bias": stored.bias}
