"""Rounding a weight column by column, each error passed on to the columns that are still open.

GPTQ (Frantar et al. 2022, arXiv:2210.17323, algorithm 1) on a given grid, columns in order of
falling H_ii: with U the upper Cholesky factor of H^-1, column i is rounded and
w_j -= e_i U_ij / U_ii for all j after i.  Errors leave a block of columns in one product.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from intaglio.errors import PassError

from ._affine import Quantized, errors, groups_of, limits, spread

BLOCK = 128
TRIES = 6  # of ten times the damping each, until a Hessian can be factored


@dataclass(frozen=True, kw_only=True)
class CholeskyFactor:
    """The upper Cholesky factor of H^-1, its columns in `order`."""

    upper: Tensor
    order: Tensor


def damped(hessian: Tensor, damping: float) -> Tensor:
    """H + damping * mean(diag H) I: without it, few tokens are fitted at the cost of others."""
    added = damping * float(hessian.diagonal().mean()) or 1.0
    return hessian + added * torch.eye(len(hessian), dtype=hessian.dtype)


def factor(hessian: Tensor) -> CholeskyFactor:
    """Factor a damped H, damped more where it is not positive definite.

    Raises:
        PassError: the Hessian is not even nearly positive semidefinite.
    """
    order = torch.argsort(hessian.diagonal(), descending=True, stable=True)
    tried = hessian[order][:, order]
    for power in range(TRIES):
        lower, failed = torch.linalg.cholesky_ex(tried)
        if not failed:
            inverse = torch.cholesky_inverse(lower)
            upper, failed = torch.linalg.cholesky_ex(inverse, upper=True)
            if not failed:
                return CholeskyFactor(upper=upper, order=order)
        tried = damped(tried, 0.01 * 10**power)
    raise PassError(
        "the statistics of the calibration data cannot be factored: they are no sums of squares."
    )


def round_columns(
    weight: Tensor, scale: Tensor, offset: Tensor, bits: int, group: int, inverse: CholeskyFactor
) -> Quantized:
    """Codes of `weight` [N, K] on the grid [N, G], errors passed on by the factor of H^-1."""
    inputs = weight.shape[1]
    size, _ = groups_of(group, inputs)
    order = inverse.order
    steps = spread(scale, size, inputs)[:, order].T.contiguous()
    steps = torch.where(steps == 0, torch.finfo(steps.dtype).tiny, steps)
    zeros = spread(offset, size, inputs)[:, order].T.contiguous()
    left = weight[:, order].T.contiguous()  # [K, N]: columns are contiguous
    codes = torch.empty(inputs, weight.shape[0], dtype=torch.int8)
    for first in range(0, inputs, BLOCK):
        end = min(first + BLOCK, inputs)
        wrong = torch.empty(end - first, weight.shape[0], dtype=weight.dtype)
        for i in range(first, end):
            code = ((left[i] - zeros[i]) / steps[i]).round_().clamp_(*limits(bits))
            codes[i] = code.to(torch.int8)
            row = inverse.upper[i]
            wrong[i - first] = (left[i] - code * steps[i] - zeros[i]) / row[i]
            left[i:end] -= torch.outer(row[i:end], wrong[i - first])
        left[end:] -= inverse.upper[first:end, end:].T @ wrong
    restored = torch.empty_like(codes)
    restored[order] = codes
    return Quantized(
        codes=restored.T.contiguous(), scale=scale, offset=offset, bits=bits, group=size
    )


def descend(weight: Tensor, start: Quantized, hessian: Tensor) -> Quantized:
    """Set each code in turn to the best one while all others stay: no row's error rises.

    With G = (w' - w) H, the error along code i is a parabola with its least value at
    code_i - G_i / (scale_i H_ii); the nearest code to that is the best one.
    """
    inputs = weight.shape[1]
    steps = start.by_input(start.scale).T.contiguous()
    curvature = torch.where(steps == 0, torch.inf, steps) * hessian.diagonal()[:, None]
    curvature = torch.where(curvature == 0, torch.inf, curvature)
    codes = start.codes.T.to(weight.dtype)
    slope = hessian @ (start.dequantize() - weight).T  # [K, N]
    for first in range(0, inputs, BLOCK):
        end = min(first + BLOCK, inputs)
        moved = torch.empty(end - first, weight.shape[0], dtype=weight.dtype)
        block = slope[first:end].clone()
        for i in range(end - first):
            here = first + i
            code = (codes[here] - block[i] / curvature[here]).round_().clamp_(*limits(start.bits))
            moved[i] = (code - codes[here]) * steps[here]
            codes[here] = code
            block[i + 1 :] += torch.outer(hessian[here, here + 1 : end], moved[i])
        slope += hessian[:, first:end] @ moved
    return replace(start, codes=codes.T.to(torch.int8).contiguous())


def better(
    weight: Tensor, hessian: Tensor, best: Quantized, other: Quantized
) -> tuple[Quantized, Tensor]:
    """`best` with the rows of `other` that err less, and which these are (bool [N])."""
    other = other.as_stored()
    before, after = (errors(x.dequantize() - weight, hessian) for x in (best, other))
    improved = after < before
    return best.choose(improved, other), improved
