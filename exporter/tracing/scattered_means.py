"""Means of what goes to the same entry, by sums and counts; rows by single entries; and counts.

The converter writes ``scatter_reduce`` with the mean as a sum, and has neither
``index_reduce`` nor ``bincount``.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import SymInt, Tensor

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


def in_place(reduced: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The form that writes what `reduced` gives into its input."""

    def write(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        return input.copy_(reduced(input, *args, **kwargs))

    return write


def bincount(input: Tensor, weights: Tensor | None = None, minlength: Any = 0) -> Tensor:  # noqa: A002
    """How often each number below `minlength` is there, where that is the size of an axis.

    Larger numbers, which make PyTorch's result longer, a graph refuses when it runs.
    """
    if not isinstance(minlength, SymInt):
        raise AsItIsError
    counted = torch.ones_like(input) if weights is None else weights
    return counted.new_zeros(minlength).scatter_add(0, input.to(torch.int64), counted)
