"""Recurrences as they are trained: with weights of all pairs of tokens, or in log space."""

from typing import Any

import torch
from loop_modules import D, Loop, linear, weight
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import Mixer

HEADS = 2


def _heads(x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], HEADS, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)


def _earlier(x: Tensor) -> Tensor:
    """Which token is at or after which."""
    return torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()


def linear_attention() -> nn.Module:
    """Linear attention without a decay (Katharopoulos et al. 2020), normalised by its weights."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        weights = ((F.elu(q) + 1) @ (F.elu(k) + 1).mT).tril()
        return weights @ v / weights.sum(-1, keepdim=True)

    return Loop(run, qkv=linear(3 * D))


def retention() -> nn.Module:
    """RetNet's parallel form (Sun et al. 2023): powers of the distance below the diagonal."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = map(_heads, m.qkv(x).chunk(3, -1))
        n = torch.arange(x.shape[1])
        distance = n[:, None] - n
        decay = torch.tensor([0.9, 0.97])[:, None, None] ** distance * (distance >= 0).float()
        decay[decay.isnan()] = 0
        return _joined((q @ k.mT * decay) @ v)

    return Loop(run, qkv=linear(3 * D))


def rotary_retention() -> nn.Module:
    """The same with rotated queries and keys, its decay an exponential."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = map(_heads, m.qkv(x).chunk(3, -1))
        n = torch.arange(x.shape[1])
        angle = n[:, None] * torch.tensor([1.0, 0.1])

        def turned(y: Tensor) -> Tensor:
            a, b = y.chunk(2, -1)
            return torch.cat(
                [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1
            )

        far = (n[:, None] - n).clamp(min=0)
        decay = torch.exp(-far * m.rate.exp()[:, None, None]) * _earlier(x)
        return _joined((turned(q) @ turned(k).mT * decay) @ v)

    return Loop(run, qkv=linear(3 * D), rate=weight(HEADS))


def state_space_dual() -> nn.Module:
    """Mamba-2's dual form (Dao and Gu 2024), with segment sums over pairs."""

    def run(m: Loop, x: Tensor) -> Any:
        batch, time, _ = x.shape
        dt = F.softplus(m.dt(x))
        gates = (-m.a.exp() * dt).transpose(1, 2)
        wide = gates[..., None].expand(-1, -1, -1, time).masked_fill(~_earlier(x).tril(-1), 0)
        exponents = wide.cumsum(-2).masked_fill(~_earlier(x), -torch.inf)
        u = x.view(batch, time, HEADS, -1) * dt[..., None]
        b, c = (y[:, :, None].expand(-1, -1, HEADS, -1) for y in m.bc(x).chunk(2, -1))
        y = torch.einsum("blhn,bshn,bhls,bshp->blhp", c, b, exponents.exp(), u)
        return y.flatten(2)

    return Loop(run, dt=linear(HEADS), a=weight(HEADS), bc=linear(6))


def one_group() -> nn.Module:
    """The same whose heads share keys and queries, its exponents differences of sums."""

    def run(m: Loop, x: Tensor) -> Any:
        dt = F.softplus(m.dt(x))
        total = (-m.a.exp() * dt).transpose(1, 2).cumsum(-1)
        between = total[..., :, None] - total[..., None, :]
        decay = between.masked_fill(~_earlier(x), -torch.inf).exp()
        u = m.u(x).unflatten(-1, (HEADS, -1)) * dt[..., None]
        b, c = m.bc(x).chunk(2, -1)
        return torch.einsum("btn,bsn,bhts,bshp->bthp", c, b, decay, u).flatten(2)

    return Loop(run, dt=linear(HEADS), a=weight(HEADS), bc=linear(6), u=linear())


def taylor() -> nn.Module:
    """Based (Arora et al. 2024, arXiv:2402.18668): features of an exponential's series."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)

        def features(y: Tensor) -> Tensor:
            square = (y[..., :, None] * y[..., None, :]).flatten(-2) / 4
            return torch.cat([torch.ones_like(y[..., :1]), y / 8**0.25, square], -1)

        weights = (features(q) @ features(k).mT).tril()
        return weights @ v / weights.sum(-1, keepdim=True).clamp(min=1e-6)

    return Loop(run, qkv=linear(3 * D))


def gated_pairs() -> nn.Module:
    """A scalar gate for each head (simple GLA), as differences of cumulative sums."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = map(_heads, m.qkv(x).chunk(3, -1))
        total = F.logsigmoid(m.g(x)).cumsum(1).transpose(1, 2)
        between = total[..., :, None] - total[..., None, :]
        decay = between.masked_fill(~_earlier(x), -torch.inf).exp()
        return _joined((q @ k.mT * decay) @ v)

    return Loop(run, qkv=linear(3 * D), g=linear(HEADS))


def gated_inputs() -> nn.Module:
    """The same with a gate of each input in the exponent."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = map(_heads, m.qkv(x).chunk(3, -1))
        forget, write = (F.logsigmoid(y).transpose(1, 2) for y in m.g(x).chunk(2, -1))
        total = forget.cumsum(-1)
        between = total[..., :, None] - total[..., None, :] + write[..., None, :]
        decay = torch.where(_earlier(x), between, -torch.inf).exp()
        return _joined((decay * (q @ k.mT) / 2) @ v)

    return Loop(run, qkv=linear(3 * D), g=linear(2 * HEADS))


def divided_gates() -> nn.Module:
    """GLA for all tokens at once (Yang et al. 2024, equation 4): gates divided out of the keys."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v, g = map(_heads, m.qkvg(x).chunk(4, -1))
        total = (F.logsigmoid(g) / 16).cumsum(2)
        weights = ((q * total.exp()) @ (k * (-total).exp()).mT).tril()
        return _joined(weights @ v)

    return Loop(run, qkvg=linear(4 * D))


def shared_keys() -> nn.Module:
    """Heads of queries that share keys and values."""

    def run(m: Loop, x: Tensor) -> Any:
        q = _heads(m.q(x))
        k, v = (y[:, None] for y in m.kv(x).chunk(2, -1))
        return _joined((q @ k.mT).tril() @ v)

    return Loop(run, q=linear(), kv=linear(D))


def led_log_space() -> nn.Module:
    """MinGRU in log space from a state of its own (Feng et al. 2024, appendix B.2)."""

    def run(m: Loop, x: Tensor) -> Any:
        z, h = m.z(x), m.h(x)
        positive = torch.where(h >= 0, (h.relu() + 0.5).log(), -F.softplus(-h))
        total = F.pad((-F.softplus(z)).cumsum(1), (0, 0, 1, 0))
        start = m.start.expand(x.shape[0], 1, D)
        values = torch.cat([start, -F.softplus(-z) + positive], 1)
        return (total + torch.logcumsumexp(values - total, 1)).exp()[:, 1:]

    return Loop(run, z=linear(), h=linear(), start=weight(1, 1, D))


MIXERS = tuple(
    Mixer(make=make)
    for make in (
        linear_attention,
        retention,
        rotary_retention,
        state_space_dual,
        one_group,
        taylor,
        gated_pairs,
        gated_inputs,
        divided_gates,
        shared_keys,
        led_log_space,
    )
)
