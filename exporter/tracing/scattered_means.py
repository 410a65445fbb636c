"""Means of what goes to the same entry, by sums and counts; and rows by single entries.

The converter writes ``scatter_reduce`` with the mean as a sum, and has no ``index_reduce``.
"""

import torch
from torch import Tensor

from .small_matrices import AsItIsError


def scatter_reduce(
    input: Tensor,  # noqa: A002  the names are PyTorch's
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """Reduce what `index` sends to each entry of `input` along `dim`."""
    if reduce != "mean" or not input.dtype.is_floating_point:
        raise AsItIsError
    none = torch.zeros_like(input)
    total = none.scatter_add(dim, index, src)
    count = none.scatter_add(dim, index, torch.ones_like(src))
    if include_self:
        return (input + total) / (count + 1)
    return torch.where(count > 0, total / count.clamp_min(1), input)


def index_reduce(
    input: Tensor,  # noqa: A002
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Tensor:
    """Reduce whole slices of `source` into those of `input` that `index` names."""
    across = index.reshape([-1 if i == dim % source.dim() else 1 for i in range(source.dim())])
    across = across.expand_as(source)
    if reduce == "mean":
        return scatter_reduce(input, dim, across, source, reduce, include_self=include_self)
    return input.scatter_reduce(dim, across, source, reduce, include_self=include_self)
