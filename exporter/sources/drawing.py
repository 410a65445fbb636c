"""Random values like an example's: within its range, of its sign, of its kind.

What a model takes is known from an example alone, so nothing is drawn that the example does not
show to be possible: powers stay positive, probabilities within 0 and 1, codes among the codes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which PyTorch only keeps
ENOUGH = 2  # values of a column from which its own range is known
MIXED = 0.5  # share of values that lie between two of the example's


def like(example: Tensor, shape: Sequence[int], fixed: bool, generator: torch.Generator) -> Tensor:
    """Draw a tensor of `shape` like `example`.

    Args:
        example: what is known of the values.
        shape: as many dimensions as the example has.
        fixed: whether the last axis always has the example's size: each of its entries is a
            column with a range of its own.
        generator: of the random numbers.
    """
    if example.dtype in UNSIGNED:
        return like(example.long(), shape, fixed, generator).to(example.dtype)
    if example.numel() == 1:
        return example.expand(shape).clone()
    if is_mask(example):
        return stretched(example, shape, generator)
    columns = fixed and example.ndim > 1 and example[..., 0].numel() >= ENOUGH
    pool = example.reshape(-1, example.shape[-1]) if columns else example.reshape(-1, 1)
    if example.dtype.is_floating_point and _differ(pool):
        return _between(pool, shape, generator, columns=columns).to(example.dtype)
    values = _picked(pool, shape, generator, columns=columns)
    if not example.dtype.is_floating_point or bool((example == example.round()).all()):
        return values
    others = _picked(pool, shape, generator, columns=columns)
    part = torch.rand(shape, generator=generator, dtype=torch.float64)
    part = torch.where(part < MIXED, part / MIXED, 0.0)
    return (values + part * (others.double() - values.double())).to(example.dtype)


def is_mask(example: Tensor) -> bool:
    """Whether values mark places: flags, zeros and ones, or what closes off with infinity."""
    if example.dtype is torch.bool:
        return True
    if example.dtype.is_floating_point and not bool(example.isfinite().all()):
        return True
    return bool(((example == 0) | (example == 1)).all()) and bool((example == 1).any())


def stretched(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """The example drawn out to `shape`, its rows in any order: runs of equal values stay runs."""
    drawn = example
    for axis, size in enumerate(shape):
        old = example.shape[axis]
        if axis == 0 and example.ndim > 1:
            index = torch.randint(old, (size,), generator=generator)
        else:
            index = torch.arange(size) * old // max(size, 1)
        drawn = drawn.index_select(axis, index)
    if example.ndim == 1:
        return drawn[torch.randperm(len(drawn), generator=generator)]
    return drawn


def tiled(example: Tensor, shape: Sequence[int]) -> Tensor:
    """The example repeated, or cut, to `shape`: every value is one that the model takes."""
    for axis, size in enumerate(shape):
        if size == example.shape[axis]:
            continue
        example = example.index_select(axis, torch.arange(size) % example.shape[axis])
    return example


def below(
    bound: int | Tensor, shape: Sequence[int], dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """Draw integers from 0 to below `bound`, or below its entry for each column."""
    limits = torch.as_tensor(bound).double().clamp(min=1)
    drawn = (torch.rand(shape, generator=generator, dtype=torch.float64) * limits).long()
    return drawn.to(dtype)


def _differ(pool: Tensor) -> bool:
    """Whether no value comes twice in any column, and not all are whole numbers."""
    ordered = pool.sort(0).values
    return not bool((ordered[1:] == ordered[:-1]).any() or (pool == pool.round()).all())


def _between(
    pool: Tensor, shape: Sequence[int], generator: torch.Generator, *, columns: bool
) -> Tensor:
    """Values between neighbours of a column's: of its distribution, and none of them twice.

    What orders values would order equal ones as it likes.
    """
    ordered = pool.double().sort(0).values
    at = torch.rand(shape, generator=generator, dtype=torch.float64) * (len(ordered) - 1)
    index = at.long().clamp(max=max(len(ordered) - 2, 0))
    part = at - index
    if not columns:
        low, high = ordered[:, 0][index], ordered[:, 0][index + 1]
    else:
        flat = index.reshape(-1, ordered.shape[1])
        low, high = (ordered.gather(0, flat + i).reshape(list(shape)) for i in (0, 1))
    return low + part * (high - low)


def _picked(
    pool: Tensor, shape: Sequence[int], generator: torch.Generator, *, columns: bool
) -> Tensor:
    """Values of `pool` [samples, columns], or of its one column."""
    index = torch.randint(len(pool), list(shape), generator=generator)
    if not columns:
        return pool[:, 0][index]
    return pool.gather(0, index.reshape(-1, pool.shape[1])).reshape(list(shape))
