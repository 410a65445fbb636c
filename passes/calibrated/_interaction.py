"""The equations of the interaction basis, on second moments alone; all in float64.

Bushnaq et al. 2024, arXiv:2405.10927 and, of the local form, 2405.10928.  With G = E[x x^T] of the
vectors x that a layer reads and M' = E[J^T J] of the derivatives of what it leads to:

    G = U D U^T,  R = U D^-1/2,  R+ = D^1/2 U^T
    R+ M' R+^T = V Lam V^T
    C = R V Lam^1/2,  C+ = Lam^-1/2 V^T R+

In coordinates x C the Gram is Lam and that of derivatives I: a direction counts for as much as
its eigenvalue.  What a linear layer loses by the directions that go is the sum of theirs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Basis:
    """C [K, k], C+ [k, K] and the eigenvalues Lam [k], largest first; `span`: the rank of G.

    `fold`: the further row of C and column of C+, [k] each, of a constant 1 behind x.
    """

    C: Array
    inverse: Array
    spectrum: Array
    span: int
    fold: tuple[Array, Array] | None = None


def interaction_basis(gram: Array, jacobian: Array, threshold: float) -> Basis:
    """The basis for G and M' [K, K], without the directions that count for nothing.

    Args:
        gram: G.
        jacobian: M'.
        threshold: the part of the largest eigenvalue, of G and of Lam, below which one is nothing.
    """
    values, vectors = _eigen(gram, threshold)
    whiten, back = vectors / np.sqrt(values), np.sqrt(values)[:, None] * vectors.T
    spectrum, turns = _eigen(back @ jacobian @ back.T, threshold)
    root = np.sqrt(spectrum)
    return Basis(
        C=whiten @ turns * root,
        inverse=turns.T @ back / root[:, None],
        spectrum=spectrum,
        span=len(values),
    )


def output_metric(metric: Array, moment: Array) -> Array:
    """E[diag(d) S diag(d)], S being the same for each of the m parts of d."""
    count = len(moment) // len(metric)
    found: Array = np.tile(metric, (count, count)) * moment
    return found


def rank_of(matrix: Array, threshold: float) -> int:
    """The eigenvalues that are not below that part of the largest, none of a matrix of zeros."""
    return len(_eigen(matrix, threshold)[0])


def _eigen(matrix: Array, threshold: float) -> tuple[Array, Array]:
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values, vectors = values[::-1], vectors[:, ::-1]
    top = float(values[0]) if len(values) else 0.0
    kept = values > max(top * threshold, np.finfo(np.float64).tiny)
    return values[kept], vectors[:, kept]
