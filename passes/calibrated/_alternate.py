"""The layer stage of decoupleQ: integers, and scales with offsets, as unknowns of one problem.

Guo et al. 2024, arXiv:2404.12759: minimise (s q + z - w) H (s q + z - w)^T over integers q and
real s, z.  With q fixed it is least squares in the 2 G unknowns of a row, solved exactly, groups
coupled through H; with s, z fixed the integers are rounded column by column, as GPTQ does, and then
set one by one to what is best while the others stay.  Rounding is a heuristic, so a row takes a
change only where its error falls; it never rises.
"""

import torch
from torch import Tensor

from ._affine import Quantized, by_group, grid, search_grid
from ._columns import CholeskyFactor, better, descend, round_columns

LEAST = 1e-4  # of the rows have to improve for another round
ROWS = 256  # solved at once: bounds the memory of the normal equations
RIDGE = 1e-9  # of their mean diagonal: a group whose codes are all equal has no unique solution


def fit_grid(weight: Tensor, codes: Quantized, hessian: Tensor) -> Quantized:
    """The scales and offsets that err least for these codes."""
    parts = [
        _fit(weight[first : first + ROWS], codes.codes[first : first + ROWS], codes.group, hessian)
        for first in range(0, weight.shape[0], ROWS)
    ]
    scale, offset = (torch.cat(both) for both in zip(*parts, strict=True))
    return Quantized(
        codes=codes.codes, scale=scale, offset=offset, bits=codes.bits, group=codes.group
    )


def _fit(weight: Tensor, codes: Tensor, group: int, hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Solve (B H B^T) theta = B H w for each row; B's rows are the codes and ones, by group."""
    q = codes.to(weight.dtype)
    cut = by_group(q, group)  # [N, G, g]
    rows = by_group(hessian, group)  # [K, G, g]: H with its second axis cut
    seen = weight @ hessian
    ones = by_group(rows.sum(-1).T, group).sum(-1).T  # [G, G]: sums of H over both groups
    count = cut.shape[1]
    normal = weight.new_empty(len(weight), 2 * count, 2 * count)
    for index in range(count):
        first, end = index * group, min((index + 1) * group, q.shape[1])
        through = q[:, first:end] @ hessian[first:end]  # [N, K]: q of this group through H
        both = by_group(through, group)
        normal[:, index, :count] = (both * cut).sum(-1)
        normal[:, index, count:] = both.sum(-1)
    normal[:, count:, :count] = normal[:, :count, count:].transpose(1, 2)
    normal[:, count:, count:] = ones
    right = torch.cat([(by_group(seen, group) * cut).sum(-1), by_group(seen, group).sum(-1)], 1)
    diagonal = normal.diagonal(dim1=1, dim2=2)
    diagonal += RIDGE * diagonal.mean(1, keepdim=True) + torch.finfo(weight.dtype).tiny
    solution = torch.linalg.solve(normal, right)
    return solution[:, :count], solution[:, count:]


def alternate(
    weight: Tensor, hessian: Tensor, inverse: CholeskyFactor, start: Quantized, rounds: int
) -> Quantized:
    """Quantize `weight` [N, K], no row worse than that of `start`.

    `hessian` is damped, `inverse` the factor of its inverse.
    """
    bits, group = start.bits, start.group
    searched = search_grid(weight, hessian, *grid(weight, bits, group), bits, group)
    clipped = round_columns(weight, *searched, bits, group, inverse)
    best, _ = better(weight, hessian, start.as_stored(), clipped)
    best, _ = better(weight, hessian, best, fit_grid(weight, best, hessian))
    for _ in range(rounds):
        moved = round_columns(weight, best.scale, best.offset, bits, group, inverse)
        best, rounded = better(weight, hessian, best, fit_grid(weight, moved, hessian))
        settled = descend(weight, best, hessian)
        best, descended = better(weight, hessian, best, fit_grid(weight, settled, hessian))
        if (rounded | descended).double().mean() < LEAST:
            break
    return best
