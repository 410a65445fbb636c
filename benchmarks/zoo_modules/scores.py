"""Scores and weights of pairs of tokens that keep keys and values of all tokens, which grow."""

from collections.abc import Callable
from typing import Any

import torch
from loop_modules import D, Loop, linear, weight
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import Mixer

HEADS, TABLE, NEAR = 2, 2048, 4
Weigh = Callable[[Loop, Tensor, Tensor, Tensor], Any]


def _attention(weigh: Weigh, **layers: nn.Module | nn.Parameter) -> nn.Module:
    """What `weigh` makes of queries, keys and values of [batch, heads, time, size]."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return weigh(m, q, k, v).transpose(1, 2).flatten(2)

    return Loop(run, qkv=linear(3 * D), **layers)


def _masked(scores: Tensor) -> Tensor:
    later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(later, -torch.inf)


def _distance(q: Tensor) -> Tensor:
    place = torch.arange(q.shape[-2])
    return (place[:, None] - place).clamp(-NEAR, NEAR) + NEAR


def _shifted(scores: Tensor) -> Tensor:
    """Rows of scores by distance, each moved to its own columns."""
    batch, heads, time, _ = scores.shape
    return F.pad(scores, (1, 0)).view(batch, heads, time + 1, time)[:, :, 1:]


def relative_keys_and_values() -> nn.Module:
    """Shaw et al. 2018, arXiv:1803.02155."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        far = _distance(q)
        scores = q @ k.mT + torch.einsum("bhid,ijd->bhij", q, m.near(far))
        weights = _masked(scores / 2).softmax(-1)
        return weights @ v + torch.einsum("bhij,ijd->bhid", weights, m.seen(far))

    size, rows = D // HEADS, 2 * NEAR + 1
    return _attention(weigh, near=nn.Embedding(rows, size), seen=nn.Embedding(rows, size))


def transformer_xl() -> nn.Module:
    """Dai et al. 2019, arXiv:1901.02860: scores by distance from waves, shifted."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        place = torch.arange(q.shape[2] - 1, -1, -1.0)
        angle = place[:, None] * 10000 ** -(torch.arange(0.0, D, 2) / D)
        far = m.far(torch.cat([angle.sin(), angle.cos()], -1)).unflatten(-1, (HEADS, -1))
        by_distance = _shifted((q + m.v) @ far.permute(1, 2, 0))
        return _masked(((q + m.u) @ k.mT + by_distance) / 2).softmax(-1) @ v

    each = (HEADS, 1, D // HEADS)
    return _attention(weigh, far=linear(), u=weight(*each), v=weight(*each))


def music_transformer() -> nn.Module:
    """Huang et al. 2018, arXiv:1809.04281: the last rows of a table of distances, shifted."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        by_distance = _shifted(q @ m.table[:, -q.shape[2] :].mT)
        return _masked((q @ k.mT + by_distance) / 2).softmax(-1) @ v

    return _attention(weigh, table=weight(HEADS, TABLE, D // HEADS))


def disentangled() -> nn.Module:
    """DeBERTa's scores (He et al. 2020, arXiv:2006.03654), gathered by distance."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        far = _distance(q).expand(*q.shape[:2], -1, -1)
        to_place = torch.gather(q @ m.near.mT, -1, far)
        from_place = torch.gather(k @ m.seen.mT, -1, far).mT
        return _masked((q @ k.mT + to_place + from_place) / 3).softmax(-1) @ v

    each = (2 * NEAR + 1, D // HEADS)
    return _attention(weigh, near=weight(*each), seen=weight(*each))


def buckets() -> nn.Module:
    """T5's bias, by buckets of distances that widen (Raffel et al. 2019, arXiv:1910.10683)."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        place = torch.arange(q.shape[2])
        far = (place[:, None] - place).clamp(min=0)
        wide = 8 + (far.clamp(min=1).float() / 8).log().mul(3.0).long().clamp(max=7)
        bias = m.bias[torch.where(far < 8, far, wide)].permute(2, 0, 1)
        return _masked(q @ k.mT / 2 + bias).softmax(-1) @ v

    return _attention(weigh, bias=weight(16, HEADS))


def talking_heads() -> nn.Module:
    """Shazeer et al. 2020, arXiv:2003.02436."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        scores = torch.einsum("bgij,gh->bhij", q @ k.mT, m.before)
        return torch.einsum("bgij,gh->bhij", _masked(scores).softmax(-1), m.after) @ v

    return _attention(weigh, before=weight(HEADS, HEADS), after=weight(HEADS, HEADS))


def stick_breaking() -> nn.Module:
    """Tan et al. 2024, arXiv:2410.17980."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        del m
        left = F.logsigmoid(-(q @ k.mT)).tril(-1)
        rest = left.flip(-1).cumsum(-1).flip(-1) - left
        return (F.logsigmoid(q @ k.mT) + rest).exp().tril(-1) @ v

    return _attention(weigh)


def contextual_positions() -> nn.Module:
    """A bias by how much was passed since (Golovneva et al. 2024, arXiv:2405.18719)."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        passed = (q @ k.mT).sigmoid().tril().flip(-1).cumsum(-1).flip(-1)
        return _masked(q @ k.mT - m.rate.exp() * passed).softmax(-1) @ v

    return _attention(weigh, rate=weight(1))


def differential() -> nn.Module:
    """Ye et al. 2024, arXiv:2410.05258: a difference of two softmaxes."""

    def weigh(m: Loop, q: Tensor, k: Tensor, v: Tensor) -> Any:
        halves = zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        one, two = (_masked(a @ b.mT).softmax(-1) for a, b in halves)
        return (one - m.share.sigmoid() * two) @ v

    return _attention(weigh, share=weight(1))


def attention_free() -> nn.Module:
    """AFT with a bias for each pair (Zhai et al. 2021, arXiv:2105.14103)."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        time = x.shape[1]
        pairs = _masked(m.pairs[:time, :time]).exp()
        above = torch.einsum("ij,bjd->bid", pairs, k.exp() * v)
        return q.sigmoid() * above / torch.einsum("ij,bjd->bid", pairs, k.exp())

    return Loop(run, qkv=linear(3 * D), pairs=weight(TABLE, TABLE))


def m_lstm_parallel() -> nn.Module:
    """The stabilised parallel form of mLSTM (Beck et al. 2024, arXiv:2405.04517)."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        write, forget = (g.mT[..., None] for g in m.g(x).chunk(2, -1))
        total = F.pad(F.logsigmoid(forget).cumsum(-2), (0, 0, 1, 0))
        wide = total.repeat(1, 1, 1, x.shape[1] + 1)
        exponents = _masked((wide - wide.mT)[:, :, 1:, 1:]) + write.mT
        largest = exponents.max(-1, keepdim=True)[0]
        weights = (q @ k.mT / 2) * (exponents - largest).exp()
        norm = torch.maximum(weights.sum(-1, keepdim=True).abs(), (-largest).exp())
        return (weights / (norm + 1e-6) @ v).transpose(1, 2).flatten(2)

    return Loop(run, qkv=linear(3 * D), g=linear(2 * HEADS))


MIXERS = tuple(
    Mixer(make=make, constant=False)
    for make in (
        relative_keys_and_values,
        transformer_xl,
        music_transformer,
        disentangled,
        buckets,
        talking_heads,
        stick_breaking,
        contextual_positions,
        differential,
        attention_free,
        m_lstm_parallel,
    )
)
