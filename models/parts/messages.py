"""Layers that pass messages along the edges of graphs, with features of the edges.

Nodes are x [N, size]; edge_index [2, E] holds the nodes that each edge comes from and goes to, and
e [E, size] what is known of it.  Each layer returns new nodes and new edges.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .language_layers import by_head


def segment_sum(values: Tensor, targets: Tensor, like: Tensor) -> Tensor:
    """The sum of the rows of values [E, ...] that go to each row of `like` [N, ...]."""
    shape = (like.shape[0], *values.shape[1:])
    return values.new_zeros(shape).index_add(0, targets, values)


class GINE(nn.Module):
    """nn((1 + eps) x_i + sum_j relu(x_j + e_ji)) (Hu et al. 2020, arXiv:1905.12265)."""

    eps: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.nn = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, size))
        self.register_buffer("eps", torch.zeros(1))

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to x, and the edges as they were."""
        messages = segment_sum((x[edge_index[0]] + e).relu(), edge_index[1], x)
        return self.nn(messages + (1 + self.eps) * x), e


class GatedGCN(nn.Module):
    """x_i + relu(bn(A x_i + sum_j s_ji B x_j / sum_j s_ji)), s = sigmoid(D x_i + E x_j + C e).

    The edges become e + relu(bn(D x_i + E x_j + C e)) (Bresson & Laurent 2017, arXiv:1711.07553).
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.A, self.B, self.C, self.D, self.E = (nn.Linear(size, size) for _ in range(5))
        self.bn_node_x = nn.BatchNorm1d(size)
        self.bn_edge_e = nn.BatchNorm1d(size)

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to x: all but x itself; and the new edges."""
        source, target = edge_index[0], edge_index[1]
        gates = self.D(x)[target] + self.E(x)[source] + self.C(e)
        # A sigmoid of its own is right to 1e-7 of one, and what is divided by may be far less.
        share = F.logsigmoid(gates).exp()
        total = segment_sum(share * self.B(x)[source], target, x)
        mean = total / (segment_sum(share, target, x) + 1e-6)
        return self.bn_node_x(self.A(x) + mean).relu(), e + self.bn_edge_e(gates).relu()


class GraphAttention(nn.Module):
    """Softmax over the edges into a node of leaky_relu(a_s.x_j + a_t.x_i + a_e.e_ji), per head.

    Every node has one edge to itself, with the mean of the features of those that go to it
    (Velickovic et al. 2018, arXiv:1710.10903; edges as in PyTorch Geometric's GATConv).
    """

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, width = heads, size // heads
        self.lin_src = nn.Linear(size, size, bias=False)
        self.lin_edge = nn.Linear(size, size, bias=False)
        self.att_src, self.att_dst, self.att_edge = (
            nn.Parameter(nn.init.xavier_uniform_(torch.empty(1, heads, width))) for _ in range(3)
        )
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor, edge_index: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """What to add to x, and the edges as they were."""
        source, target = edge_index[0], edge_index[1]
        other = (source != target).to(x.dtype)[:, None]
        h = by_head(self.lin_src(x), self.heads)
        own = (h * self.att_dst).sum(-1)
        theirs = (h * self.att_src).sum(-1)
        count = segment_sum(other, target, x).clamp_min(1.0)
        mean = segment_sum(e * other, target, x) / count
        loop = F.leaky_relu(theirs + own + self._of_edges(mean), 0.2)
        score = F.leaky_relu(theirs[source] + own[target] + self._of_edges(e), 0.2)
        index = target[:, None].expand_as(score)
        most = loop.scatter_reduce(0, index, score, "amax", include_self=True)
        weight = (score - most[target]).exp() * other
        alone = (loop - most).exp()
        norm = segment_sum(weight, target, x) + alone + 1e-16
        total = segment_sum(weight[..., None] * h[source], target, x) + alone[..., None] * h
        return (total / norm[..., None]).flatten(1) + self.bias, e

    def _of_edges(self, e: Tensor) -> Tensor:
        score: Tensor = (by_head(self.lin_edge(e), self.heads) * self.att_edge).sum(-1)
        return score
