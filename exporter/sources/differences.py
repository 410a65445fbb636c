"""What a tuned model adds to its base, as an adapter: a few rows, a few columns, or a low rank.

What was trained sparsely differs in whole rows and columns of few weights (S2FT), and what a LoRA
was merged into by a product of small rank, up to the rounding of the sum.
"""

from collections.abc import Mapping

import numpy as np
import torch

from intaglio.errors import SourceError
from intaglio.runtime.adapters import Adapter
from intaglio.runtime.arrays import Array

from .source import Source

MOST = 0.5  # of the rows or columns of a weight that an adapter may change
MOST_RANK = 0.25  # of its smaller side
ROUNDING = 4 * float(np.finfo(np.float32).eps)  # of the largest weight: what a sum leaves


def adapter_of(base: Source, tuned: Mapping[str, Array]) -> Adapter:
    """The adapter that makes `tuned` of `base`.

    Args:
        base: the model before.
        tuned: the weights after, by the names of the base's parameters.

    Raises:
        SourceError: if they do not differ, or in what no adapter holds; it is named.
    """
    parts = {}
    for name, weight in parameters(base).items():
        changed = tuned[name] - weight
        if not changed.any():
            continue
        if weight.ndim != 2:
            raise SourceError(
                f"{name} was tuned as well, which has {weight.ndim} axes: adapters are for "
                "matrices. Export the tuned model by itself."
            )
        found = _sparse(changed)
        if found is None:
            found = _low(changed, weight)
        if found is None:
            raise SourceError(
                f"All of {name} was tuned: neither few rows or columns differ, nor is the "
                "difference of a low rank. Export the tuned model by itself."
            )
        parts[name] = found
    if not parts:
        raise SourceError("The tuned model has the weights of its base: there is nothing to adapt.")
    return Adapter(base=base.sha256, parts=parts)


def parameters(source: Source) -> dict[str, Array]:
    """The parameters of a source by name, as float32."""
    named = source.module.named_parameters()
    return {n: p.detach().to(torch.float32).cpu().numpy() for n, p in named}


def _sparse(changed: Array) -> dict[str, Array] | None:
    """The rows that differ in most of their entries, and the columns that differ beside them."""
    differs = changed != 0
    rows = np.flatnonzero(differs.mean(1) > MOST)
    beside = changed.copy()
    beside[rows] = 0
    columns = np.flatnonzero((beside != 0).any(0))
    if len(columns) > MOST * changed.shape[1]:
        rows, columns = np.flatnonzero(differs.any(1)), columns[:0]
    if len(rows) > MOST * changed.shape[0]:
        rows, columns = rows[:0], np.flatnonzero(differs.any(0))
    if len(columns) > MOST * changed.shape[1]:
        return None
    found: dict[str, Array] = {}
    if len(rows):
        found |= {"rows": rows, "row_delta": changed[rows]}
        changed = beside
    if len(columns):
        found |= {"columns": columns, "column_delta": np.ascontiguousarray(changed[:, columns])}
    return found


def _low(changed: Array, weight: Array) -> dict[str, Array] | None:
    """Two factors of `changed`, up to the rounding of its sum with `weight`."""
    u, s, v = np.linalg.svd(changed.astype(np.float64), full_matrices=False)
    # Rounding is independent from entry to entry: of all singular values the largest is near this.
    noise = ROUNDING * float(np.abs(weight).max()) * sum(size**0.5 for size in changed.shape)
    rank = int((s > noise).sum())
    if not rank or rank > MOST_RANK * min(changed.shape):
        return None
    root = np.sqrt(s[:rank])
    return {
        "down": (root[:, None] * v[:rank]).astype(np.float32),
        "up": (u[:, :rank] * root).astype(np.float32),
    }
