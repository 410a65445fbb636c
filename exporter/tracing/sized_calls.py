"""Functions to which a tracer gives numbers where sizes are free, in other words.

One of as many classes as an axis has entries, diagonals of matrices, entries that are repeated,
rolled or cut into parts by a size, places in a grid, grids of affine maps, and pools that give a
fixed number of entries whatever there are: each by indices that count the axes, so that all sizes
stay free.  Where sizes are numbers PyTorch's own is kept.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import SymFloat, SymInt, Tensor
from torch.nn import functional as F

from .small_matrices import AsItIsError


def _free(*sizes: Any) -> None:
    """Leave a call as it is where no size is free."""
    if not any(isinstance(size, SymInt) for size in sizes):
        raise AsItIsError


def _count(size: Any) -> Tensor:
    return torch.arange(size)


def one_hot(x: Tensor, num_classes: Any = -1) -> Tensor:
    """Integers [...] -> [..., num_classes], one where an entry is that of its class."""
    _free(num_classes)
    return (x.unsqueeze(-1) == _count(num_classes)).to(torch.int64)


def fill_diagonal(x: Tensor, value: float, wrap: bool = False) -> Tensor:
    """Write `value` on the diagonal of a matrix."""
    _free(*x.shape)
    if x.dim() != 2 or wrap:
        raise AsItIsError
    row, column = map(_count, x.shape)
    return x.masked_fill_(row[:, None] == column, value)


def repeat_interleave(
    x: Tensor, repeats: Any, dim: int | None = None, *, output_size: Any = None
) -> Tensor:
    """Each entry along `dim`, or of all, as many times in a row."""
    _free(repeats)
    if output_size is not None:
        raise AsItIsError
    x, dim = (x.flatten(), 0) if dim is None else (x, dim % x.dim())
    wide = [*x.shape[: dim + 1], repeats, *x.shape[dim + 1 :]]
    return x.unsqueeze(dim + 1).expand(wide).flatten(dim, dim + 1)


def isin(elements: Tensor, test_elements: Tensor, **options: Any) -> Tensor:
    """Whether each of `elements` is among others."""
    if not isinstance(elements, Tensor) or not isinstance(test_elements, Tensor) or options:
        raise AsItIsError
    _free(*elements.shape, *test_elements.shape)
    return (elements.unsqueeze(-1) == test_elements.flatten()).any(-1)


def roll(x: Tensor, shifts: Any, dims: Any = None) -> Tensor:
    """Entries moved on by a number that follows from sizes."""
    pairs = _pairs(shifts, dims)
    _free(*(shift for shift, _ in pairs))
    for shift, dim in pairs:
        size: Any = x.shape[dim]
        x = x.index_select(dim, (_count(size) - shift) % size)
    return x


def _pairs(shifts: Any, dims: Any) -> list[tuple[Any, int]]:
    if dims is None:
        raise AsItIsError
    many = isinstance(shifts, tuple | list), isinstance(dims, tuple | list)
    if many[0] != many[1]:
        raise AsItIsError
    return list(zip(shifts, dims, strict=True)) if many[0] else [(shifts, dims)]


def unravel_index(indices: Tensor, shape: Any) -> tuple[Tensor, ...]:
    """Places in an array of `shape`, given those in a row of its entries."""
    sizes = list(shape) if isinstance(shape, tuple | list) else [shape]
    _free(*sizes)
    found = []
    for size in reversed(sizes):
        above = torch.div(indices, size, rounding_mode="floor")
        found.append(indices - above * size)
        indices = above
    return tuple(reversed(found))


def tensor_split(x: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """As many parts, the first of them longer by one where they cannot be alike."""
    parts, size = indices_or_sections, x.shape[dim]
    _free(size)
    if not isinstance(parts, int) or parts < 1:
        raise AsItIsError
    found, start = [], 0
    for place in range(parts):
        length = (size + parts - 1 - place) // parts
        found.append(x.narrow(dim, start, length))
        start = start + length
    return tuple(found)


def linspace(start: Any, end: Any, steps: Any, **others: Any) -> Tensor:
    """From each end to the middle, as PyTorch counts; `start` alone where it is the only one."""
    dtype: Any = others.pop("dtype", None) or torch.get_default_dtype()
    plain = all(isinstance(end, int | float | SymInt | SymFloat) for end in (start, end))
    sized = isinstance(steps, SymInt) or any(isinstance(e, SymInt | SymFloat) for e in (start, end))
    if not plain or not sized or not dtype.is_floating_point or others:
        raise AsItIsError
    places = _count(steps).to(dtype)
    last = places[-1:]
    by = (end - start) / last.clamp_min(1)
    early = (2 * places < last) | (last == 0)
    return torch.where(early, start + places * by, end - (last - places) * by)


def affine_grid(theta: Tensor, size: Any, align_corners: bool | None = None) -> Tensor:
    """Maps [N, 2, 3] of the square from -1 to 1 -> where [N, H, W] places of a picture go."""
    _free(*size)
    if len(size) != 4:
        raise AsItIsError
    height, width = (_centred(each, theta.dtype, corners=bool(align_corners)) for each in size[2:])
    x: Tensor = theta[:, None, None, :, 0] * width[None, None, :, None]
    y: Tensor = theta[:, None, None, :, 1] * height[None, :, None, None]
    return x + y + theta[:, None, None, :, 2]


def _centred(size: Any, dtype: torch.dtype, *, corners: bool) -> Tensor:
    """The middles of `size` parts of the line from -1 to 1, or its ends and what is between."""
    place = 2 * _count(size).to(dtype)
    if not corners:
        middle: Tensor = (place + 1) / size - 1
        return middle
    last = place[-1:]
    return torch.where(last > 0, 2 * place / last.clamp_min(1) - 1, 0.0)


def _pooled(axes: int, reduce: Callable[[Tensor, Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """Pools with a given number of windows: the i-th of n is from iS // n to ceil((i + 1)S / n)."""

    def pool(x: Tensor, output_size: Any, return_indices: bool = False) -> Tensor:
        asked = output_size if isinstance(output_size, tuple | list) else [output_size] * axes
        sizes = list(x.shape[-axes:])
        _free(*(size for size, n in zip(sizes, asked, strict=True) if n is not None))
        if return_indices or all(n == 1 for n in asked):
            raise AsItIsError
        for axis, (size, n) in enumerate(zip(sizes, asked, strict=True)):
            if n is not None:
                place, first = _count(size), (torch.arange(n) * size)[:, None]
                within = (place >= first // n) & (place < (first + size + n - 1) // n)
                x = reduce(x.movedim(axis - axes, -1), within, axis - axes)
        return x

    return pool


def _mean(along: Tensor, within: Tensor, axis: int) -> Tensor:
    share = within.to(along.dtype) / within.sum(-1, keepdim=True)
    return (along @ share.mT).movedim(-1, axis)


def _largest(along: Tensor, within: Tensor, axis: int) -> Tensor:
    return torch.where(within, along.unsqueeze(-2), -math.inf).amax(-1).movedim(-1, axis)


SPELLED: Mapping[Any, Callable[..., Any]] = {
    F.one_hot: one_hot,
    Tensor.fill_diagonal_: fill_diagonal,
    torch.repeat_interleave: repeat_interleave,
    Tensor.repeat_interleave: repeat_interleave,
    torch.isin: isin,
    torch.roll: roll,
    Tensor.roll: roll,
    torch.unravel_index: unravel_index,
    torch.tensor_split: tensor_split,
    Tensor.tensor_split: tensor_split,
    torch.linspace: linspace,
    F.affine_grid: affine_grid,
    **{
        getattr(F, f"adaptive_{kind}_pool{axes}d"): _pooled(axes, reduce)
        for kind, reduce in (("avg", _mean), ("max", _largest))
        for axes in (1, 2, 3)
    },
    torch.adaptive_avg_pool1d: _pooled(1, _mean),
}
"""What stands for a function while a module is captured."""
