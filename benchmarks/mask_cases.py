"""Masks and biases as people write them, and attention written out, by name.

A mask is a function of the queries' positions i [T, 1], the keys' j [1, T] and the token ids
[batch, T]; boolean, or added to the scores [batch, 2, T, T].  Token 2 starts a document, token 0 is
padding.  `LEAKS` let some token see a later one, and have to be refused.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Mask = Callable[[Tensor, Tensor, Tensor], Tensor]
Attend = Callable[["Model", Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

INF, LOW = float("-inf"), torch.finfo(torch.float32).min
VOCABULARY, WIDTH, HEADS, LONG = 64, 32, 2, 2048

SLOPES = torch.tensor([0.25, 0.0625])[:, None, None]
WIDTHS = torch.tensor([300, 7])[:, None, None]
LOWER = torch.ones(LONG, LONG).tril()
BAND = LOWER.bool() & ~LOWER.tril(-300).bool()
BLOCKS = torch.arange(LONG) // 37
DISTANCES = torch.randn(2 * LONG - 1, generator=torch.Generator().manual_seed(0))
BUCKETS = torch.randn(HEADS, 32, generator=torch.Generator().manual_seed(1))


def _low(allowed: Tensor, fill: float = INF) -> Tensor:
    return torch.where(allowed, 0.0, fill)


def _documents(ids: Tensor) -> Tensor:
    return (ids == 2).long().cumsum(1)


def _same(values: Tensor) -> Tensor:
    return values[:, None, :, None] == values[:, None, None, :]


def _bucket(i: Tensor, j: Tensor) -> Tensor:
    """Distances in buckets as T5 has them, half of them logarithmic."""
    distance = (i - j).clamp(min=0)
    far = 16 + (torch.log(distance.float().clamp(min=1) / 16) / math.log(8) * 16).long()
    return torch.where(distance < 16, distance, far.clamp(max=31))


MASKS: dict[str, Mask] = {
    "causal": lambda i, j, _: j <= i,
    "causal, -inf": lambda i, j, _: _low(j <= i),
    "causal, lowest": lambda i, j, _: _low(j <= i, LOW),
    "causal, -10000": lambda i, j, _: _low(j <= i, -1e4),
    "causal, triangle": lambda i, *_: torch.full((i.shape[0], i.shape[0]), INF).triu(1),
    "causal, table": lambda i, *_: LOWER[: i.shape[0], : i.shape[0]] > 0,
    "causal, product of halves": lambda i, j, _: ((j <= i).float() * (i >= j).float()) > 0,
    "window of 1": lambda i, j, _: i == j,
    "window of 2": lambda i, j, _: (j <= i) & (j > i - 2),
    "window of 299": lambda i, j, _: (j <= i) & (i - j < 299),
    "window of 300": lambda i, j, _: (j <= i) & (i - j < 300),
    "window of 301": lambda i, j, _: (j <= i) & (i - j <= 300),
    "window of 300, table": lambda i, *_: BAND[: i.shape[0], : i.shape[0]],
    "window in floats": lambda i, j, _: (j <= i) & ((i - j).float() < 299.5),
    "window in seconds": lambda i, j, _: (j <= i) & ((i - j) * 0.002 <= 1.2),
    "window in fractions": lambda i, j, _: (j <= i) & ((i - j) / 7 < 41.3),
    "window for each head": lambda i, j, _: (j <= i) & (i - j < WIDTHS),
    "window that widens": lambda i, j, _: (j <= i) & (i - j <= i // 2),
    "window of -10000 beyond 300": lambda i, j, _: _low(j <= i) + _low(i - j < 300, -1e4),
    "sinks and window": lambda i, j, _: (j <= i) & ((i - j < 600) | (j < 4)),
    "dilated": lambda i, j, _: (j <= i) & ((i - j) % 3 == 0),
    "strided and local": lambda i, j, _: (j <= i) & ((i - j < 16) | (j % 16 == 15)),
    "chunks": lambda i, j, _: (j <= i) & (i // 600 == j // 600),
    "chunks by floor": lambda i, j, _: (
        (j <= i) & (torch.floor(i * (1 / 600)) == torch.floor(j * (1 / 600)))
    ),
    "chunks from a table": lambda i, j, _: (j <= i) & (BLOCKS[i] == BLOCKS[j]),
    "prefix that all see": lambda i, j, _: (j <= i) & ((j < 5) | (i - j < 9) | (j % 50 == 0)),
    "off by one at 300": lambda i, j, _: (j <= i) & ~((i == 300) & (j == 17)),
    "one pair beyond 1000": lambda i, j, _: (j <= i) & ~((i - j == 1000) & (j == 3)),
    "later than 1500 differs": lambda i, j, _: (j <= i) & ((i < 1500) | (i - j < 5)),
    "odd tokens see odd ones": lambda i, j, _: (j <= i) & (i % 2 == j % 2),
    "exclusive but for the first": lambda i, j, _: (j < i) | ((i == 0) & (j == 0)),
    "ALiBi": lambda i, j, _: torch.where(j <= i, -(i - j) * SLOPES, INF),
    "ALiBi, not negative": lambda i, j, _: _low(j <= i) + j * SLOPES,
    "bias by distance": lambda i, j, _: _low(j <= i) + DISTANCES[j - i + LONG - 1],
    "buckets of T5": lambda i, j, _: BUCKETS[:, _bucket(i, j)] + _low(j <= i, LOW),
    "decay": lambda i, j, _: torch.where(j <= i, torch.log(0.9 ** (i - j).clamp(0, 60)), INF),
    "a bias of -10000 far away": lambda i, j, _: _low(j <= i) - 1e4 * (i - j >= 700).float(),
    "sine of distance": lambda i, j, _: _low(j <= i) + torch.sin((i - j) * 0.1),
    "documents": lambda i, j, ids: (j <= i) & _same(_documents(ids)),
    "documents, added": lambda i, j, ids: _low(j <= i) + _low(_same(_documents(ids)), LOW),
    "padding": lambda i, j, ids: (j <= i) & ((ids != 0)[:, None, None, :] | (i == j)),
    "speakers": lambda i, j, ids: (j <= i) & (_same(ids % 4) | (i - j < 3)),
    "tokens that all see": lambda i, j, ids: (
        (j <= i) & ((ids == 5)[:, None, None, :] | (i - j < 8))
    ),
    "a bias for each token": lambda i, j, ids: _low(j <= i) + (ids * 0.01)[:, None, None, :],
    "a bias of the query": lambda i, j, ids: _low(j <= i) + (ids * 0.01)[:, None, :, None] * j,
}

LEAKS: dict[str, Mask] = {
    "everything": lambda i, j, _: i - j < 10_000,
    "one ahead": lambda i, j, _: j <= i + 1,
    "one ahead beyond 300": lambda i, j, _: (j <= i) | ((i > 300) & (j == i + 1)),
    "bidirectional prefix": lambda i, j, _: (j <= i) | (j < 5),
    "bidirectional chunks": lambda i, j, _: i // 37 >= j // 37,
    "bidirectional window": lambda i, j, _: (i - j).abs() < 9,
    "later tokens weigh less": lambda i, j, _: _low(j <= i, -5.0),
    "a token that all see": lambda i, j, ids: (j <= i) | (ids == 5)[:, None, None, :],
    "table with a hole": lambda i, j, _: (
        (LOWER[: i.shape[0], : i.shape[0]] > 0) | ((i == 9) & (j == 11))
    ),
}


def _capped(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    return ((q @ k.mT / 12).tanh() * 3 + _low(j <= i, LOW)).softmax(-1) @ v


def _sinks(model: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    scores = q @ k.mT / 4 + _low(j <= i, LOW)
    sink = model.sinks.reshape(1, -1, 1, 1).expand(q.shape[0], -1, q.shape[2], -1)
    scores = torch.cat((scores, sink), -1)
    scores = scores - scores.max(-1, keepdim=True).values
    return scores.softmax(-1)[..., :-1] @ v


def _times_mask(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    seen = (j <= i).float()
    return (q @ k.mT * seen - 1e4 * (1 - seen)).softmax(-1) @ v


def _decayed(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    base = torch.tensor([0.9, 0.97])[:, None, None]
    return (q @ k.mT * torch.where(j <= i, base ** (i - j).clamp(min=0), 0.0)) @ v


def _exponentials(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    scores = (q @ k.mT / 4).masked_fill(j > i, INF)
    weights = torch.exp(scores - scores.amax(-1, keepdim=True))
    return (weights / weights.sum(-1, keepdim=True)) @ v


def _forgetting(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    past = F.logsigmoid(q.mean(-1) + 3).cumsum(-1)
    scores = q @ k.mT / 4 + past[..., :, None] - past[..., None, :]
    return scores.masked_fill(j > i, INF).softmax(-1) @ v


def _shared_keys(_: "Model", q: Tensor, k: Tensor, v: Tensor, i: Tensor, j: Tensor) -> Tensor:
    del i, j
    return F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], is_causal=True)


WRITTEN_OUT: dict[str, Attend] = {
    "soft cap": _capped,
    "learned sinks": _sinks,
    "scores times a mask": _times_mask,
    "decay in place of a softmax": _decayed,
    "exponentials and their sum": _exponentials,
    "gates that forget": _forgetting,
    "one head of keys": _shared_keys,
}


class Model(nn.Module):
    """One layer of attention, by a mask or written out."""

    def __init__(self, mask: Mask | None = None, attend: Attend | None = None) -> None:
        super().__init__()
        self.mask, self.attend = mask, attend
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, VOCABULARY)
        self.sinks = nn.Parameter(torch.randn(HEADS))

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] of tokens [batch, time]."""
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x in self.qkv(self.embed(input_ids)).chunk(3, -1)
        )
        i = torch.arange(input_ids.shape[1])
        if self.attend is not None:
            y = self.attend(self, q, k, v, i[:, None], i[None])
        else:
            assert self.mask is not None
            mask = self.mask(i[:, None], i[None], input_ids)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        logits: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return logits
