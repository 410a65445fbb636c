"""Inverses, solutions, factors and determinants of small matrices in operators that ONNX has.

ONNX has none of them but `Det`.  Matrices of a known number of rows, as those of a filter's state,
are eliminated row by row, with the largest pivot of each column as LAPACK does it (Golub and Van
Loan, Matrix Computations, 4th ed., 3.4 and 4.2).  What a singular matrix raises in PyTorch is inf
or NaN here, as everywhere in a graph.
"""

import math
from typing import Any

import torch
from torch import SymInt, Tensor

MOST_ROWS = 128  # of a triangular matrix, which takes a product a row
MOST_PIVOTED = 16  # of any other, which takes some ten nodes a row
_ITERATED = (
    "ONNX has no eigenvalues and no singular values, which take as many iterations as the data ask "
    "for: compute them before the call, and take them as an input."
)
INSTEAD = {
    "linalg_qr": (
        "Of at most 16 columns that are independent, write `r = torch.linalg.cholesky(a.mT @ a).mT"
        "` and `q = torch.linalg.solve_triangular(r, a, upper=True, left=False)`, which have the "
        "signs that make the diagonal of r positive."
    ),
    "linalg_pinv": (
        "Of at most 16 columns that are independent, write `torch.linalg.solve(a.mT @ a, a.mT)`."
    ),
    "linalg_lstsq": (
        "Of at most 16 columns that are independent, write `torch.linalg.solve(a.mT @ a, a.mT @ b)`"
        "; a ridge, `a.mT @ a + 1e-6 * torch.eye(columns)`, steadies those that nearly are not."
    ),
    "linalg_eig": _ITERATED,
    "linalg_svd": _ITERATED,
}
"""By parts of names of operations that are not written out: what a user can write."""


def instead(said: str) -> str | None:
    """What to write in the place of an operation that `said` names."""
    return next((line for name, line in INSTEAD.items() if name in said), None)


class AsItIsError(Exception):
    """A call is of no form that is known here: it runs as it is."""


def _rows(a: Tensor, most: int) -> int:
    """How many rows the matrices [..., N, N] have, if they are few and known."""
    size: Any = a.shape[-1]
    if isinstance(size, SymInt) or size > most or not a.is_floating_point():
        raise AsItIsError
    return int(size)


def solve_triangular(
    a: Tensor,
    b: Tensor,
    *,
    upper: bool,
    left: bool = True,
    unitriangular: bool = False,
    out: Any = None,
) -> Tensor:
    """Forward substitution, row by row, of a matrix of a known size: chunks of the delta rule."""
    size = _rows(a, MOST_ROWS)
    if out is not None:
        raise AsItIsError
    if not left:  # X A = B is Aᵀ Xᵀ = Bᵀ
        turned = solve_triangular(a.mT, b.mT, upper=not upper, unitriangular=unitriangular)
        return turned.mT
    if upper:
        a, b = a.flip(-2, -1), b.flip(-2)
    rows: list[Tensor] = []
    for i in range(size):
        row = b[..., i : i + 1, :]
        if rows:
            row = row - a[..., i : i + 1, :i] @ torch.cat(rows, -2)
        rows.append(row if unitriangular else row / a[..., i : i + 1, i : i + 1])
    like = sum(rows[1:], rows[0])  # as its sizes are those of all
    found = torch.cat([row.expand_as(like) for row in rows], -2)
    return found.flip(-2) if upper else found


def cholesky(a: Tensor, *, upper: bool = False, out: Any = None) -> Tensor:
    """The lower factor of positive definite matrices [..., N, N], column by column."""
    size = _rows(a, MOST_PIVOTED)
    if out is not None:
        raise AsItIsError
    columns: list[Tensor] = []
    for j in range(size):
        rest = a[..., j:, j : j + 1]
        if columns:
            done = torch.cat(columns, -1)
            rest = rest - done[..., j:, :] @ done[..., j : j + 1, :].mT
        column = rest / rest[..., :1, :].sqrt()
        columns.append(torch.cat([torch.zeros_like(a[..., :j, :1]), column], -2))
    lower = torch.cat(columns, -1)
    return lower.mT if upper else lower


def cholesky_solve(b: Tensor, factor: Tensor, upper: bool = False, *, out: Any = None) -> Tensor:
    """The solution of A X = B by the factor of A."""
    if out is not None:
        raise AsItIsError
    lower = factor.mT if upper else factor
    half = solve_triangular(lower, b, upper=False)
    return solve_triangular(lower.mT, half, upper=True)


def solve(a: Tensor, b: Tensor, *, left: bool = True, out: Any = None) -> Tensor:
    """The solution of A X = B, or of A x = b: [..., N, N] and [..., N, M] or [..., N]."""
    if out is not None or not left:
        raise AsItIsError
    vector = b.dim() == 1 or (b.dim() == a.dim() - 1 and b.shape == a.shape[:-1])
    found = _eliminated(a, b.unsqueeze(-1) if vector else b)[0]
    return found.squeeze(-1) if vector else found


def inverse(a: Tensor, *, out: Any = None) -> Tensor:
    """The inverse of [..., N, N]."""
    if out is not None:
        raise AsItIsError
    one = torch.eye(_rows(a, MOST_PIVOTED), dtype=a.dtype, device=a.device)
    return _eliminated(a, one.expand_as(a))[0]


def det(a: Tensor, *, out: Any = None) -> Tensor:
    """The determinant of [..., N, N]: the product of pivots, with the sign of their order."""
    if out is not None:
        raise AsItIsError
    _, pivots, sign = _eliminated(a, a[..., :0])
    return math.prod(pivots[1:], start=pivots[0]) * sign


def slogdet(a: Tensor, *, out: Any = None) -> tuple[Tensor, Tensor]:
    """Sign and logarithm of the determinant of [..., N, N]."""
    if out is not None:
        raise AsItIsError
    _, pivots, sign = _eliminated(a, a[..., :0])
    sign = math.prod((pivot.sign() for pivot in pivots), start=sign)
    return sign, sum(pivot.abs().log() for pivot in pivots)  # type: ignore[return-value]


def logdet(a: Tensor) -> Tensor:
    """The logarithm of the determinant of [..., N, N], NaN where it is negative."""
    sign, size = slogdet(a)
    return torch.where(sign < 0, torch.nan, size)


def _eliminated(a: Tensor, b: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """The solution of A X = B, the pivots, each [...], and the sign of the order of rows.

    Gauss and Jordan's elimination: the row of the pivot is picked by a sum, not by its place.
    """
    size = _rows(a, MOST_PIVOTED)
    place = torch.arange(size, device=a.device)[:, None]
    if a.shape[:-1] != b.shape[:-1]:  # one matrix for several sides, or the other way round
        a, b = a + torch.zeros_like(b[..., :1]), b + torch.zeros_like(a[..., :1])
    whole = torch.cat([a, b], -1)
    pivots: list[Tensor] = []
    sign = torch.ones_like(a[..., 0, 0])
    for k in range(size):
        height = torch.where(place >= k, whole[..., k : k + 1].abs(), -1.0)
        largest = height == height.amax(-2, keepdim=True)
        first = torch.where(largest, place, size).amin(-2, keepdim=True)
        picked = place == first
        top = torch.where(picked, whole, 0.0).sum(-2, keepdim=True)
        whole = torch.where(picked, whole[..., k : k + 1, :], whole)
        pivot = top[..., k : k + 1]
        pivots.append(pivot[..., 0, 0])
        sign = torch.where(first[..., 0, 0] == k, sign, -sign)
        top = top / pivot
        whole = torch.where(place == k, top, whole - whole[..., k : k + 1] * top)
    return whole[..., size:], pivots, sign
