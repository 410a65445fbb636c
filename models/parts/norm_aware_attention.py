"""Norm-aware linear attention: the feature maps and rotations that both of its forms share.

Softmax attention grows sharper with the norm of a query; linear attention divides that norm out
again.  Here it is the exponent of the query's direction, and positive and negative parts are kept
apart, so that products are never negative:

    p = 3 (1/2 + tanh |q|),   phi_q = [relu(q/|q|)^p; relu(-q/|q|)^p],
    phi_k = [relu(k)^3; relu(-k)^3].

Source: the code published with NaLaFormer (arXiv:2506.21137), `NALA.py`.  A query of zeros, for
which that code divides by zero, has features of zeros here.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

POWER = 3
EPS = 1e-6  # beside the mean of the weights
SMALLEST = 1e-12


def query_features(q: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative features, each of the shape of q [..., size]."""
    norm = q.norm(dim=-1, keepdim=True)
    power = POWER * (0.5 + torch.tanh(norm))
    direction = q / norm.clamp_min(SMALLEST)
    return F.relu(direction) ** power, F.relu(-direction) ** power


def key_features(k: Tensor) -> tuple[Tensor, Tensor]:
    """Positive and negative features, each of the shape of k [..., size]."""
    return F.relu(k) ** POWER, F.relu(-k) ** POWER


def rotate(x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
    """Rotate neighbouring pairs of x [..., size] by angles of these sines and cosines."""
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return x * cos + turned * sin


def frequencies(count: int) -> Tensor:
    """`count` frequencies from 1 down to 1/10000, each twice, for the two of a pair."""
    found: Tensor = (1.0 / 10_000 ** torch.linspace(0, 1, count)).repeat_interleave(2)
    return found
