"""How sharp attention is by the norm of its query: softmax, linear, and linear that knows the norm.

    python benchmarks/nalaformer.py [--quick] [--json]

Random keys are attended to by queries of random directions and of norms from 1/4 to 4.  Told is by
how much the entropy of the weights, their mean over queries, falls from the smallest norm to the
largest: softmax grows sharper with the norm, a linear attention divides it out, and norm-aware
linear attention (arXiv:2506.21137) makes it the exponent of the query's direction.
"""

import itertools

import torch
from evidence import Row, run
from torch import Tensor
from torch.nn import functional as F

from intaglio.models.parts.norm_aware_attention import key_features, query_features

SIZE, KEYS, QUERIES, QUICK_QUERIES = 32, 256, 2048, 64
NORMS = (0.25, 0.5, 1.0, 2.0, 4.0)
SAME = 1e-5  # nats that rounding may make of one entropy


def main() -> None:
    run(__doc__, measure)


def measure(quick: bool) -> list[Row]:
    """A row for each kind of attention."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(KEYS, SIZE, generator=generator)
    queries = torch.randn(QUICK_QUERIES if quick else QUERIES, SIZE, generator=generator)
    directions = F.normalize(queries, dim=-1)
    kinds = {"softmax": _softmax, "linear, of ReLU": _linear, "norm-aware linear": _norm_aware}
    rows = []
    for kind, weights in kinds.items():
        told = [_entropy(weights(norm * directions, keys)) for norm in NORMS]
        falls = all(b < a - SAME for a, b in itertools.pairwise(told))
        flat = max(told) - min(told) <= SAME
        rows.append(
            Row(
                name=f"{kind}: entropy at a norm of {NORMS[0]} - at {NORMS[-1]:g}",
                value=told[0] - told[-1],
                unit="nats",
                target="0" if weights is _linear else "falls with every norm",
                holds=flat if weights is _linear else falls,
                note=", ".join(f"{n:g}: {e:.3f}" for n, e in zip(NORMS, told, strict=True)),
            )
        )
    return rows


def _softmax(q: Tensor, k: Tensor) -> Tensor:
    weights: Tensor = (q @ k.T * SIZE**-0.5).softmax(-1)
    return weights


def _linear(q: Tensor, k: Tensor) -> Tensor:
    return _shares(q.relu() @ k.relu().T)


def _norm_aware(q: Tensor, k: Tensor) -> Tensor:
    return _shares(torch.cat(query_features(q), -1) @ torch.cat(key_features(k), -1).T)


def _shares(weights: Tensor) -> Tensor:
    return weights / weights.sum(-1, keepdim=True)


def _entropy(weights: Tensor) -> float:
    """The mean over queries of the entropy of their weights, in nats."""
    return float(torch.special.entr(weights.double()).sum(-1).mean())


if __name__ == "__main__":
    main()
