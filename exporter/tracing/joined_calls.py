"""Joins of tensors under other names, and with nothing among them, as plain ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .small_matrices import AsItIsError


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """``torch.cat`` without what has no entries, as a past of no tokens has none."""
    kept = [x for x in tensors if not _is_empty(x, dim)]
    if not kept or len(kept) == len(tensors) or len({x.dtype for x in tensors}) > 1:
        raise AsItIsError
    return torch.cat(kept, dim) if len(kept) > 1 else kept[0].clone()


def _is_empty(x: Tensor, dim: int) -> bool:
    """Whether `x` has no entries along `dim`; of one axis it is left out by PyTorch at any."""
    size = x.shape[dim] if -x.dim() <= dim < x.dim() else x.shape[0] if x.dim() == 1 else 1
    return isinstance(size, int) and size == 0


def _stacked(axis: int, least: Callable[..., Any]) -> Callable[..., Tensor]:
    """What joins along `axis`, of tensors that have `least` so many axes."""

    def spelled(tensors: Sequence[Tensor]) -> Tensor:
        given = [least(x) for x in tensors]
        along = axis if given[0].dim() > axis else 0
        try:
            return cat(given, along)
        except AsItIsError:
            return torch.cat(given, along)

    return spelled


def _column(x: Tensor) -> Tensor:
    return x.reshape(-1, 1) if x.dim() < 2 else x


SPELLED: Mapping[Any, Callable[..., Tensor]] = {
    torch.cat: cat,
    torch.concat: cat,
    torch.concatenate: cat,
    torch.hstack: _stacked(1, torch.atleast_1d),
    torch.vstack: _stacked(0, torch.atleast_2d),
    torch.row_stack: _stacked(0, torch.atleast_2d),
    torch.dstack: _stacked(2, torch.atleast_3d),
    torch.column_stack: _stacked(1, _column),
}
