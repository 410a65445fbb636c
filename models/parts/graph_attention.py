"""Attention among the nodes of each of several graphs, which stand in rows of one graph each.

Source of the linear one: Choromanski et al. 2020, arXiv:2009.14794.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .language_layers import by_head

FAR = -1e9  # a score that no softmax sees, and that leaves a row without nodes finite


class SoftmaxAttention(nn.Module):
    """Multi-head attention among the nodes of each graph."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * size, size))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * size))
        self.out_proj = nn.Linear(size, size)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix x [G, C, size] over the slots C that mask [G, C] has."""
        packed = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = (_heads(part, self.heads) for part in packed.chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores = scores.masked_fill(~mask[:, None, None, :], FAR)
        y: Tensor = self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return y


class RandomFeatures(nn.Module):
    """exp(q.k / sqrt(h)) as a product of positive random features of q and of k."""

    projection_matrix: Tensor

    def __init__(self, count: int, size: int) -> None:
        super().__init__()
        blocks = [torch.linalg.qr(torch.randn(size, size))[0].T for _ in range(-(-count // size))]
        lengths = torch.randn(count, size).norm(dim=1, keepdim=True)
        self.register_buffer("projection_matrix", torch.cat(blocks)[:count] * lengths)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Attention of q, k, v [G, heads, C, size] over the slots that mask [G, C] has."""
        there = mask[:, None, :, None]
        queries, size = self._exponents(q)
        queries = (queries - size - queries.amax(-1, keepdim=True)).exp() + 1e-4
        keys, size = self._exponents(k)
        most = keys.masked_fill(~there, FAR).amax((-1, -2), keepdim=True)
        keys = ((keys - size - most).exp() + 1e-4).masked_fill(~there, 0.0)
        norm = (queries @ keys.sum(-2).unsqueeze(-1)).clamp_min(torch.finfo(q.dtype).tiny)
        return queries @ (keys.transpose(-1, -2) @ v) / norm

    def _exponents(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * x.shape[-1] ** -0.25
        return x @ self.projection_matrix.T, x.square().sum(-1, keepdim=True) / 2


class LinearAttention(nn.Module):
    """Performer's attention among the nodes of each graph, at a cost linear in them."""

    def __init__(self, size: int, heads: int, head_size: int, count: int | None) -> None:
        super().__init__()
        self.heads = heads
        self.fast_attention = RandomFeatures(
            count or int(head_size * math.log(head_size)), head_size
        )
        self.to_q = nn.Linear(size, heads * head_size, bias=False)
        self.to_k = nn.Linear(size, heads * head_size, bias=False)
        self.to_v = nn.Linear(size, heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Mix x [G, C, size] over the slots C that mask [G, C] has."""
        q, k, v = (_heads(to(x), self.heads) for to in (self.to_q, self.to_k, self.to_v))
        y: Tensor = self.to_out(self.fast_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return y


def _heads(x: Tensor, heads: int) -> Tensor:
    return by_head(x, heads).transpose(1, 2)
