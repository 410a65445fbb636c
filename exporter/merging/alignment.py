"""How near two models are: distance of their weights, and whether leading directions agree.

    R = sum over layers and i, j of (u_i . u'_j)(v_i . v'_j), by the number of pairs that could be

with the singular vectors whose value is at least `share` of the layer's largest.  Matching turns
the leading directions towards each other, while distances fall little (Ito et al. 2025,
arXiv:2402.04051).
"""

from collections.abc import Mapping

import numpy as np

from intaglio.runtime.arrays import Array

LEADING = 0.3  # of the largest singular value
Tensors = Mapping[str, Array]
Factors = tuple[Array, Array, Array]


def distance(first: Tensors, second: Tensors) -> float:
    """The Euclidean distance of all weights of floats together."""
    squares = (
        float(np.square(array.astype(np.float64) - second[name]).sum())
        for name, array in first.items()
        if array.dtype.kind == "f"
    )
    return float(np.sqrt(sum(squares)))


def alignment(first: Tensors, second: Tensors, share: float = LEADING) -> float:
    """R of the matrices that two models have by the same names; 1 where they are equal.

    Args:
        first: weights by name; those of more than two axes count as [n, rest].
        second: of the same shapes.
        share: of the largest singular value, from which directions count; 0 for all.
    """
    total, count = 0.0, 0.0
    for name, array in first.items():
        if array.dtype.kind != "f" or array.ndim < 2 or min(array.shape) < 2:
            continue
        (u, left, v), (x, right, y) = (_factors(each[name], share) for each in (first, second))
        total += float(((u.T @ x) * (v @ y.T)).sum())
        count += (len(left) + len(right)) / 2
    return total / count if count else 1.0


def _factors(array: Array, share: float) -> Factors:
    u, s, v = np.linalg.svd(array.reshape(len(array), -1).astype(np.float64), full_matrices=False)
    kept = s >= share * s[:1]
    return u[:, kept], s[kept], v[kept]
