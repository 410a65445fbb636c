"""Functions that choose or join entries, written out where a batch of `vmap` goes through them.

PyTorch's rules for a batch of `gather`, and so those of the derivatives of `sort`, `topk`, and of
`max` along an axis, make the size of the batch a number, so that what is recorded holds for it
alone, and so does the derivative of a slice.  Those of indexing and of padding do not: the same
entries are picked by indices, one for each axis, and a slice is what padding of less than nothing
leaves.  So is a join of tensors the sum of what padding made of each as long as all together.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.nn import functional as F


def is_batched(value: Any) -> bool:
    """Whether a tensor, or one of a list, has an axis that `vmap` hides, at any level."""
    if isinstance(value, list | tuple):
        return any(map(is_batched, value))
    while isinstance(value, Tensor) and _functorch.is_functorch_wrapped_tensor(value):
        if _functorch.is_batchedtensor(value):
            return True
        value = _functorch.get_unwrapped(value)
    return False


def _gather(value: Tensor, dim: int, index: Tensor, **_: Any) -> Tensor:
    axis, rank = dim % max(value.dim(), 1), value.dim()
    if not rank:
        return value.expand_as(index)
    places = [
        index
        if each == axis
        else torch.arange(index.shape[each], device=index.device).view(
            [-1 if other == each else 1 for other in range(rank)]
        )
        for each in range(rank)
    ]
    return value[tuple(places)]


def _take_along(value: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    if dim is None:
        return _gather(value.reshape(-1), 0, indices.reshape(-1))
    wide = [
        max(a, b) if axis != dim % value.dim() else None
        for axis, (a, b) in enumerate(zip(value.shape, indices.shape, strict=True))
    ]
    spread = [
        each.expand([each.shape[i] if size is None else size for i, size in enumerate(wide)])
        for each in (value, indices)
    ]
    return _gather(spread[0], dim, spread[1])


def _sort(value: Tensor, dim: int = -1, descending: bool = False, *, stable: bool = False) -> Any:
    order = torch.sort(value, dim=dim, descending=descending, stable=stable).indices
    return torch.return_types.sort((_gather(value, dim, order), order))


def _topk(
    value: Tensor,
    k: int,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,  # noqa: A002
) -> Any:
    order = torch.topk(value, k, dim, largest, sorted).indices
    return torch.return_types.topk((_gather(value, dim, order), order))


def _extreme(name: str) -> Callable[..., Any]:
    """Of `max` or `min` along an axis; of all entries and of two tensors as they are."""
    whole, kind = getattr(torch, name), getattr(torch.return_types, name)

    def extreme(value: Tensor, dim: Any = None, keepdim: bool = False, **others: Any) -> Any:
        if not isinstance(dim, int):
            return whole(value, *([] if dim is None else [dim]), **others)
        place = whole(value, dim, True).indices
        found = _gather(value, dim, place)
        return kind((found, place) if keepdim else (found.squeeze(dim), place.squeeze(dim)))

    return extreme


def _narrow(value: Tensor, dim: int, start: Any, length: int) -> Tensor:
    size = value.shape[dim]
    if not _sliceable(value) or isinstance(start, Tensor):
        return torch.narrow(value, dim, start, length)
    first = start % size if start < 0 else start
    behind = value.dim() - 1 - dim % value.dim()
    found: Tensor = F.pad(value, [*(0, 0) * behind, -first, first + length - size])
    return found


def _split(value: Tensor, split_size_or_sections: Any, dim: int = 0, **_: Any) -> list[Tensor]:
    lengths = split_size_or_sections
    if isinstance(lengths, int):
        size = value.shape[dim]
        lengths = [min(lengths, size - first) for first in range(0, size, lengths)]
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    return [_narrow(value, dim, *part) for part in zip(starts, lengths, strict=True)]


def _chunk(value: Tensor, chunks: int, dim: int = 0) -> list[Tensor]:
    return _split(value, -(-value.shape[dim] // chunks), dim)


def _getitem(value: Tensor, key: Any) -> Tensor:
    """Slices by padding; all else of a key as it is."""
    keys = list(key) if isinstance(key, tuple) else [key]
    plain = all(each is None or each is ... or isinstance(each, slice | int) for each in keys)
    if not plain or any(isinstance(each, bool) for each in keys) or not _sliceable(value):
        return value[key]
    taken = sum(isinstance(each, slice | int) for each in keys)
    place = keys.index(...) if ... in keys else len(keys)
    keys[place : place + 1] = [slice(None)] * (value.dim() - taken)
    axis = 0
    for index, each in enumerate(keys):
        if isinstance(each, slice):
            first, stop, step = each.indices(value.shape[axis])
            if step == 1 and stop - first != value.shape[axis]:
                value = _narrow(value, axis, first, max(stop - first, 0))
                keys[index] = slice(None)
        axis += each is not None
    return value[tuple(keys)]


def _cat(tensors: list[Tensor], dim: int = 0, **others: Any) -> Tensor:
    parts = list(tensors)
    rank = parts[0].dim() if parts else 0
    if others or not rank or any(part.dim() != rank for part in parts):
        return torch.cat(tensors, dim, **others)
    kind = functools.reduce(torch.promote_types, (part.dtype for part in parts))
    lengths = [part.shape[dim] for part in parts]
    behind = [0, 0] * (rank - 1 - dim % rank)
    spread = [
        F.pad(part.to(kind), [*behind, sum(lengths[:place]), sum(lengths[place + 1 :])])
        for place, part in enumerate(parts)
    ]
    return functools.reduce(torch.logical_or if kind is torch.bool else torch.add, spread)


def _stack(tensors: list[Tensor], dim: int = 0, **others: Any) -> Tensor:
    if others or not tensors:
        return torch.stack(tensors, dim, **others)
    place = dim % (tensors[0].dim() + 1)
    return _cat([part.unsqueeze(place) for part in tensors], place)


def _cross_entropy(
    value: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Of classes by their numbers: the entry of each is picked as `_gather` picks it."""
    others = (size_average, reduce, weight, label_smoothing or None)
    if target.is_floating_point() or any(each is not None for each in others):
        return F.cross_entropy(
            value, target, weight, size_average, ignore_index, reduce, reduction, label_smoothing
        )
    return _nll_loss(
        F.log_softmax(value, min(value.dim() - 1, 1)),
        target,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def _nll_loss(
    value: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: Any = None,
    ignore_index: int = -100,
    reduce: Any = None,
    reduction: str = "mean",
) -> Tensor:
    if any(each is not None for each in (weight, size_average, reduce)):
        return F.nll_loss(value, target, weight, size_average, ignore_index, reduce, reduction)
    axis, counts = min(value.dim() - 1, 1), target != ignore_index
    place = torch.where(counts, target, 0).unsqueeze(axis)
    loss = torch.where(counts, -_gather(value, axis, place).squeeze(axis), 0.0)
    if reduction == "none":
        return loss
    return loss.sum() / counts.sum() if reduction == "mean" else loss.sum()


def _sliceable(value: Tensor) -> bool:
    """Whether a slice may have a derivative, and its sizes are known."""
    return value.is_floating_point() and all(isinstance(size, int) for size in value.shape)


_KINDS: Mapping[str, Callable[..., Any]] = {
    "gather": _gather,
    "sort": _sort,
    "topk": _topk,
    "max": _extreme("max"),
    "min": _extreme("min"),
    "take_along_dim": _take_along,
    "narrow": _narrow,
    "split": _split,
    "chunk": _chunk,
}
_JOINS: Mapping[str, Callable[..., Any]] = {
    "cat": _cat,
    "concat": _cat,
    "concatenate": _cat,
    "stack": _stack,
}
CHOICES: Mapping[Any, Callable[..., Any]] = MappingProxyType(
    {getattr(owner, name): own for name, own in _KINDS.items() for owner in (torch, Tensor)}
    | {getattr(torch, name): own for name, own in _JOINS.items()}
    | {Tensor.__getitem__: _getitem, F.cross_entropy: _cross_entropy, F.nll_loss: _nll_loss}
)
"""What stands for a function where an argument is of a batch."""
