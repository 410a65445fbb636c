"""Mixers with `intaglio.ops`: functions of the module, whose weights they take, and its input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from intaglio.ops import attention, diagonal_ssm, dplr_delta_rule, linear_attention, rnn

from .mixer import WIDTH

WIDE = (WIDTH,)


def decayed(log_decay: Any, value: Any, start: Any = None) -> Any:
    """States h = exp(log_decay) h + value, all of [batch, time, WIDTH]."""
    one = torch.ones(value.shape[-1], 1)
    given = (value, -one, one, one, -log_decay, start)
    return diagonal_ssm(*given, discretization="none", lti=True)[0]


def kept(log_decay: Tensor, value: Tensor) -> Any:
    """The same with a decay of [WIDTH] for all tokens."""
    one = torch.ones(value.shape[-1], 1)
    return diagonal_ssm(value, log_decay[:, None], one, one, lti=True)[0]


def earlier(x: Tensor, tokens: int = 1) -> Any:
    """What was some tokens before, zeros before the first."""
    return F.pad(x, (0, 0, tokens, 0))[:, : x.shape[1]]


def read(*given: Any, heads: int = 1, **rest: Any) -> Any:
    """Linear attention of queries, keys, values and perhaps decays, of [batch, time, heads * size].

    There is no scale, unless one is given.
    """
    q, k, v, decay = (*given, None)[:4]
    how: dict[str, Any] = {"scale": 1.0, "kv_num_heads": heads, "q_num_heads": heads}
    how |= {"update_rule": "linear" if decay is None else "gated"} | rest
    start, beta = how.pop("start", None), how.pop("beta", None)
    return linear_attention(q, k, v, start, decay, beta, **how)[0]


def normalised(q: Tensor, k: Tensor, v: Any, heads: int = 1, least: float = 0.0) -> Any:
    """The sum of values over the sum of weights, which a column of ones gives beside them."""
    each = v.unflatten(-1, (heads, -1))
    wide = torch.cat([each, torch.ones_like(each[..., :1])], -1).flatten(2)
    found = read(q, k, wide, heads=heads).unflatten(-1, (heads, -1))
    return (found[..., :-1] / (found[..., -1:] + least)).flatten(2)


def cell_layer(cell: Any, x: Tensor, mode: str) -> Any:
    """A cell of torch.nn over all tokens."""
    weights = (cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    return rnn(x, *weights, mode=mode)[0]


def of_cells(mode: str) -> Callable[..., Any]:
    def form(m: Any, x: Tensor) -> Any:
        for cell in m.cells if hasattr(m, "cells") else [m.cell]:
            x = cell_layer(cell, x, mode)
        return m.head(x) if hasattr(m, "head") else x

    return form


def rnn_layers(m: Any, x: Tensor) -> Any:
    for cell, norm in zip(m.cells, m.norms, strict=True):
        x = x + cell_layer(cell, norm(x), "RNN_TANH")
    return x


def language_model(m: Any, ids: Tensor) -> Any:
    x = m.embed(ids)
    for cell in m.cells:
        x = cell_layer(cell, x, "LSTM")
    return m.head(x)


def learned_start(m: Any, x: Tensor) -> Any:
    given = (m.w.weight, m.u.weight, m.w.bias, m.u.bias, m.h0[:, None].expand(x.shape[0], 1, WIDTH))
    return rnn(x, *given, mode="RNN_TANH")[0]


def gated(m: Any, x: Tensor) -> Any:
    gate = m.gate(x)
    return decayed(F.logsigmoid(gate), (1 - gate.sigmoid()) * m.write(x))


def delta_rule(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    beta = m.beta(x).sigmoid()
    return read(q, F.normalize(k, dim=-1), v, beta=beta, update_rule="delta")


def gated_delta(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    q, k = (F.normalize(y.unflatten(-1, (2, 4)), dim=-1).flatten(2) for y in (q, k))
    beta, rule = m.beta(x).sigmoid(), "gated_delta"
    return read(q, k, v, F.logsigmoid(m.g(x)), heads=2, beta=beta, update_rule=rule, scale=0.5)


def selective_scan(m: Any, x: Tensor) -> Any:
    found = diagonal_ssm(x, -torch.exp(m.a_log), m.b(x), m.c(x), F.softplus(m.dt(x)))[0]
    return found + x * m.skip


def min_gru(m: Any, x: Tensor) -> Any:
    z = m.z(x)
    return decayed(F.logsigmoid(-z), z.sigmoid() * m.h(x))


def rg_lru(m: Any, x: Tensor) -> Any:
    log_a = -8.0 * m.r(x).sigmoid() * F.softplus(m.a)
    scale = torch.sqrt(1 - log_a.exp() ** 2)
    scale = torch.where(torch.arange(x.shape[1])[:, None] == 0, 1, scale)
    return decayed(log_a, scale * m.i(x).sigmoid() * x)


def in_place_neighbour(m: Any, x: Tensor) -> Any:
    return kept(F.logsigmoid(m.a), m.w(x))


def token_before(m: Any, x: Tensor) -> Any:
    mu = m.mu.sigmoid()
    return kept(torch.full(WIDE, 0.9).log(), m.w(x * mu + earlier(x) * (1 - mu)))


def before_update(m: Any, x: Tensor) -> Any:
    return m.o(earlier(kept(torch.full(WIDE, 0.8).log(), m.w(x).tanh())))


def position(m: Any, x: Tensor) -> Any:
    time = x.shape[1]
    drive = m.w(x + m.table[:time]) * (torch.arange(time)[:, None] / 10)
    return kept(torch.full(WIDE, 0.7).log(), drive)


def linear_attention_loop(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    return m.o(normalised(F.elu(q) + 1, F.elu(k) + 1, v, 2, 1e-6))


def conv_window(m: Any, x: Tensor) -> Any:
    weight = m.w.weight.view(WIDTH, 3, WIDTH).transpose(1, 2)
    return F.conv1d(F.pad(x.mT, (2, 0)), weight, m.w.bias).mT


def clipped_window(m: Any, x: Tensor) -> Any:
    return m.a(x) + earlier(m.b(x)) + earlier(m.c(x), 2)


def mixed_stack(m: Any, x: Tensor) -> Any:
    x = x + attention(*(y[:, None] for y in m.qkv(x).chunk(3, -1)))[0][:, 0]
    x = x + m.conv(F.pad(x.mT, (2, 0))).mT
    return rnn(x, m.w.weight, torch.eye(WIDTH), m.w.bias, torch.zeros(WIDTH), mode="RNN_TANH")[0]


def linear_attention_pairs(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    return normalised(F.elu(q) + 1, F.elu(k) + 1, v)


def retention(m: Any, x: Tensor) -> Any:
    decay = torch.tensor([0.9, 0.97]).log().expand(*x.shape[:2], 2)
    return read(*m.qkv(x).chunk(3, -1), decay, heads=2)


def rotary_retention(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    angle = torch.arange(x.shape[1])[:, None, None] * torch.tensor([1.0, 0.1])
    cos, sin = angle.cos(), angle.sin()

    def turned(y: Any) -> Any:
        a, b = y.unflatten(-1, (2, 4)).chunk(2, -1)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).flatten(2)

    return read(turned(q), turned(k), v, -m.rate.exp().expand(*x.shape[:2], 2), heads=2)


def dual(m: Any, x: Tensor) -> Any:
    """Mamba-2's heads, which share keys and queries; `u` and `b`, `c` as the module has them."""
    dt = F.softplus(m.dt(x))
    u = (m.u(x) if hasattr(m, "u") else x).unflatten(-1, (2, 4)) * dt[..., None]
    b, c = m.bc(x).chunk(2, -1) if hasattr(m, "bc") else (m.b(x), m.c(x))
    return read(c.repeat(1, 1, 2), b.repeat(1, 1, 2), u.flatten(2), -m.a.exp() * dt, heads=2)


def taylor(m: Any, x: Tensor) -> Any:
    def features(y: Tensor) -> Any:
        square = (y[..., :, None] * y[..., None, :]).flatten(-2) / 4
        return torch.cat([torch.ones_like(y[..., :1]), y / 8**0.25, square], -1)

    q, k, v = m.qkv(x).chunk(3, -1)
    found = read(features(q), features(k), torch.cat([v, torch.ones_like(v[..., :1])], -1))
    return found[..., :-1] / found[..., -1:].clamp(min=1e-6)


def gated_pairs(m: Any, x: Tensor) -> Any:
    return read(*m.qkv(x).chunk(3, -1), F.logsigmoid(m.g(x)), heads=2)


def gated_inputs(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    forget, write = F.logsigmoid(m.g(x)).chunk(2, -1)
    k = (k.unflatten(-1, (2, 4)) * write.exp()[..., None]).flatten(2)
    return read(q, k, v, forget, heads=2, scale=0.5)


def divided_gates(m: Any, x: Tensor) -> Any:
    q, k, v, g = m.qkvg(x).chunk(4, -1)
    return read(q, k, v, F.logsigmoid(g) / 16, heads=2)


def shared_keys(m: Any, x: Tensor) -> Any:
    return read(m.q(x), *m.kv(x).chunk(2, -1), q_num_heads=2)


def led_log_space(m: Any, x: Tensor) -> Any:
    z, h = m.z(x), m.h(x)
    positive = torch.where(h >= 0, h.relu() + 0.5, h.sigmoid())
    start = m.start.exp().mT.expand(x.shape[0], WIDTH, 1)
    return decayed(-F.softplus(z), z.sigmoid() * positive, start)


def hgrn(m: Any, x: Tensor) -> Any:
    bound = m.bound.sigmoid()
    f = bound + (1 - bound) * m.f(x).sigmoid()
    return decayed(f.log(), (1 - f) * F.silu(m.i(x))) * m.g(x).sigmoid()


def min_lstm(m: Any, x: Tensor) -> Any:
    f, i = m.f(x).sigmoid(), m.i(x).sigmoid()
    return decayed((f / (f + i)).log(), i / (f + i) * m.h(x))


def sru(m: Any, x: Tensor) -> Any:
    f, r = m.f(x), m.r(x).sigmoid()
    return r * decayed(F.logsigmoid(f), (1 - f.sigmoid()) * m.w(x)) + (1 - r) * x


def qrnn(m: Any, x: Tensor) -> Any:
    z, f, o = m.conv(F.pad(x.mT, (1, 0))).mT.chunk(3, -1)
    return o.sigmoid() * decayed(F.logsigmoid(f), (1 - f.sigmoid()) * z.tanh())


def ema(m: Any, x: Tensor) -> Any:
    return m.w(kept(F.logsigmoid(-m.alpha), m.alpha.sigmoid() * x))


def s4d_step(m: Any, x: Tensor) -> Any:
    poles = -m.dt.exp()[:, None] * m.a.exp()
    return diagonal_ssm(x, poles, m.b, m.c, lti=True)[0] + m.skip * x


def gla(m: Any, x: Tensor) -> Any:
    return read(*m.qkv(x).chunk(3, -1), F.logsigmoid(m.g(x)) / 16)


def gsa(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).chunk(3, -1)
    f = m.f(x)
    add, keep = 1 - f.sigmoid(), F.logsigmoid(f)
    one = read(q.repeat(1, 1, 4), k.repeat(1, 1, 4), add, keep, heads=4)
    return read(one.softmax(-1), add, v, keep)


def rwkv7_step(m: Any, x: Tensor) -> Any:
    r, k, v = m.rkv(x).chunk(3, -1)
    kk = F.normalize(k, dim=-1)
    decay = -0.6 * m.w(x).sigmoid()
    return dplr_delta_rule(r, k, v, -kk, kk * m.a(x).sigmoid(), decay, num_heads=1)[0]


def merged_heads(m: Any, x: Tensor) -> Any:
    z = m.z(x)
    return decayed(F.logsigmoid(z), 1 - z.sigmoid())


def chunks(m: Any, x: Tensor) -> Any:
    return read(*m.qkv(x).chunk(3, -1))


def rwkv6(m: Any, x: Tensor) -> Any:
    r, k, v, w = m.rkvw(x + (earlier(x) - x) * m.mix).chunk(4, -1)
    before = read(r, earlier(k), earlier(v), earlier(-torch.exp(w)), heads=2)
    own = (r * k * m.bonus.flatten()).unflatten(-1, (2, 4)).sum(-1, keepdim=True)
    return before + (own * v.unflatten(-1, (2, 4))).flatten(2)


def ttt_linear(m: Any, x: Tensor) -> Any:
    start = m.start.expand(x.shape[0], 1, WIDTH, WIDTH)
    beta = 0.1 * m.rate(x).sigmoid()
    return read(*m.qkv(x).chunk(3, -1), start=start, beta=beta, update_rule="delta")


def differential(m: Any, x: Tensor) -> Any:
    q, k, v = m.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    halves = zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
    one, two = (attention(a, b, v, scale=1.0)[0] for a, b in halves)
    return (one - m.share.sigmoid() * two).transpose(1, 2).flatten(2)


def log_space_scan(m: Any, x: Tensor) -> Any:
    h, z = m.hz(x).chunk(2, -1)
    return decayed(-F.softplus(z), h.sigmoid())


def decayed_prefix_sum(m: Any, x: Tensor) -> Any:
    h, z = m.hz(x).chunk(2, -1)
    return decayed(-0.2 * F.softplus(z), h)
