"""Recurrences of the literature in loops over tokens, beyond those of `loop_modules.py`."""

from typing import Any

import torch
from loop_modules import D, Loop, linear, weight
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import Mixer


def zeros(x: Tensor, *shape: int) -> Tensor:
    return x.new_zeros(x.shape[0], *(shape or (D,)))


def hgrn() -> nn.Module:
    """HGRN with a lower bound of its forget gate (Qin et al. 2023)."""

    def run(m: Loop, x: Tensor) -> Any:
        bound = m.bound.sigmoid()
        f = bound + (1 - bound) * m.f(x).sigmoid()
        i = (1 - f) * F.silu(m.i(x))
        h, out = zeros(x), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + i[:, t]
            out.append(h)
        return torch.stack(out, 1) * m.g(x).sigmoid()

    return Loop(run, f=linear(), i=linear(), g=linear(), bound=weight(D))


def min_lstm() -> nn.Module:
    """MinLSTM with normalised gates (Feng et al. 2024)."""

    def run(m: Loop, x: Tensor) -> Any:
        f, i, wanted = m.f(x).sigmoid(), m.i(x).sigmoid(), m.h(x)
        f, i = f / (f + i), i / (f + i)
        h, out = zeros(x), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + i[:, t] * wanted[:, t]
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, f=linear(), i=linear(), h=linear())


def sru() -> nn.Module:
    """SRU with its highway (Lei et al. 2018), without state in its gates."""

    def run(m: Loop, x: Tensor) -> Any:
        w, f, r = m.w(x), m.f(x).sigmoid(), m.r(x).sigmoid()
        c, out = zeros(x), []
        for t in range(x.shape[1]):
            c = f[:, t] * c + (1 - f[:, t]) * w[:, t]
            out.append(r[:, t] * c + (1 - r[:, t]) * x[:, t])
        return torch.stack(out, 1)

    return Loop(run, w=linear(), f=linear(), r=linear())


def sru_peephole() -> nn.Module:
    """SRU whose gates see the state (Lei et al. 2018, equations 1 to 4)."""

    def run(m: Loop, x: Tensor) -> Any:
        w, f, r = m.w(x), m.f(x), m.r(x)
        c, out = zeros(x), []
        for t in range(x.shape[1]):
            keep = torch.sigmoid(f[:, t] + m.vf * c)
            read = torch.sigmoid(r[:, t] + m.vr * c)
            c = keep * c + (1 - keep) * w[:, t]
            out.append(read * c + (1 - read) * x[:, t])
        return torch.stack(out, 1)

    return Loop(run, w=linear(), f=linear(), r=linear(), vf=weight(D), vr=weight(D))


def qrnn() -> nn.Module:
    """QRNN's fo-pooling behind a convolution of two tokens (Bradbury et al. 2016)."""

    def run(m: Loop, x: Tensor) -> Any:
        z, f, o = m.conv(F.pad(x.mT, (1, 0))).mT.chunk(3, -1)
        z, f, o = z.tanh(), f.sigmoid(), o.sigmoid()
        c, out = zeros(x), []
        for t in range(x.shape[1]):
            c = f[:, t] * c + (1 - f[:, t]) * z[:, t]
            out.append(o[:, t] * c)
        return torch.stack(out, 1)

    return Loop(run, conv=nn.Conv1d(D, 3 * D, 2))


def ind_rnn() -> nn.Module:
    """IndRNN (Li et al. 2018): each unit sees itself alone."""

    def run(m: Loop, x: Tensor) -> Any:
        drive = m.w(x)
        h, out = zeros(x), []
        for t in range(x.shape[1]):
            h = F.relu(drive[:, t] + m.u * h)
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear(), u=weight(D))


def antisymmetric() -> nn.Module:
    """AntisymmetricRNN (Chang et al. 2019)."""

    def run(m: Loop, x: Tensor) -> Any:
        matrix = m.v - m.v.T - 0.1 * torch.eye(D)
        h, out = zeros(x), []
        for t in range(x.shape[1]):
            h = h + 0.1 * torch.tanh(h @ matrix + m.w(x[:, t]))
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, v=weight(D, D), w=linear())


def unicornn() -> nn.Module:
    """UnICORNN (Rusch and Mishra 2021): coupled oscillators, two states."""

    def run(m: Loop, x: Tensor) -> Any:
        step, out = 0.2 * m.c.sigmoid(), []
        y = z = zeros(x)
        for t in range(x.shape[1]):
            z = z - step * (torch.tanh(m.a * y + m.v(x[:, t])) + 0.5 * y)
            y = y + step * z
            out.append(y)
        return torch.stack(out, 1)

    return Loop(run, c=weight(D), a=weight(D), v=linear())


def fast_weights() -> nn.Module:
    """Fast weights that decay (Ba et al. 2016), one inner step."""

    def run(m: Loop, x: Tensor) -> Any:
        a, h, out = zeros(x, D, D), zeros(x), []
        for t in range(x.shape[1]):
            a = 0.9 * a + 0.1 * h[:, :, None] * h[:, None, :]
            seen = torch.tanh(m.w(x[:, t]) + m.u(h))
            h = torch.tanh(m.w(x[:, t]) + (a @ seen[..., None]).squeeze(-1))
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear(), u=linear())


def ema() -> nn.Module:
    """An exponential moving average with a learned rate, as Mega's without its expansion."""

    def run(m: Loop, x: Tensor) -> Any:
        rate = m.alpha.sigmoid()
        h, out = zeros(x), []
        for token in x.unbind(1):
            h = h + rate * (token - h)
            out.append(h)
        return m.w(torch.stack(out, 1))

    return Loop(run, alpha=weight(D), w=linear())


def s4d_step() -> nn.Module:
    """S4D stepped with real poles, several states a channel (Gu et al. 2022)."""

    def run(m: Loop, x: Tensor) -> Any:
        a = torch.exp(-m.dt.exp()[:, None] * m.a.exp())
        h, out = zeros(x, D, 4), []
        for t in range(x.shape[1]):
            h = a * h + m.b * x[:, t, :, None]
            out.append((h * m.c).sum(-1) + m.skip * x[:, t])
        return torch.stack(out, 1)

    shapes = {name: weight(D, 4) for name in "abc"}
    return Loop(run, **shapes, dt=weight(D), skip=weight(D))


def lru_complex() -> nn.Module:
    """LRU (Orvieto et al. 2023) with complex poles as pairs of real numbers."""

    def run(m: Loop, x: Tensor) -> Any:
        size = torch.exp(-m.nu.exp())
        re, im = size * torch.cos(m.theta), size * torch.sin(m.theta)
        u, v = m.b(x).chunk(2, -1)
        p = q = zeros(x)
        out = []
        for t in range(x.shape[1]):
            p, q = re * p - im * q + u[:, t], im * p + re * q + v[:, t]
            out.append(m.c(torch.cat([p, q], -1)))
        return torch.stack(out, 1)

    return Loop(run, nu=weight(D), theta=weight(D), b=linear(2 * D), c=linear(D, 2 * D))


def retention() -> nn.Module:
    """RetNet's recurrent form (Sun et al. 2023), a decay for each head."""

    def run(m: Loop, x: Tensor) -> Any:
        b, time, _ = x.shape
        q, k, v = (y.view(b, time, 2, 4) for y in m.qkv(x).chunk(3, -1))
        gamma = torch.tensor([0.9, 0.97])[:, None, None]
        s, out = zeros(x, 2, 4, 4), []
        for t in range(time):
            s = gamma * s + k[:, t, :, :, None] * v[:, t, :, None, :]
            out.append(torch.einsum("bhk,bhkv->bhv", q[:, t], s).flatten(1))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D))


def gla() -> nn.Module:
    """Gated linear attention with a decay for each key (Yang et al. 2024)."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        decay = F.logsigmoid(m.g(x)) / 16
        s, out = zeros(x, D, D), []
        for t in range(x.shape[1]):
            s = s * decay[:, t].exp()[:, :, None] + k[:, t, :, None] * v[:, t, None, :]
            out.append((q[:, t, :, None] * s).sum(1))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D), g=linear())


def mamba2_step() -> nn.Module:
    """Mamba-2's recurrence (Dao and Gu 2024): a scalar decay for each head."""

    def run(m: Loop, x: Tensor) -> Any:
        b, time, _ = x.shape
        u = x.view(b, time, 2, 4)
        dt = F.softplus(m.dt(x))
        decay, key, query = torch.exp(-dt * m.a.exp()), m.b(x), m.c(x)
        h, out = zeros(x, 2, 4, 3), []
        for t in range(time):
            write = torch.einsum("bh,bhp,bn->bhpn", dt[:, t], u[:, t], key[:, t])
            h = h * decay[:, t, :, None, None] + write
            out.append(torch.einsum("bhpn,bn->bhp", h, query[:, t]).reshape(b, -1))
        return torch.stack(out, 1)

    return Loop(run, dt=linear(2), a=weight(2), b=linear(3), c=linear(3))


def gsa() -> nn.Module:
    """Gated slot attention (Zhang et al. 2024): two states, a softmax over slots between."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        f = m.f(x).sigmoid()
        ks, vs, out = zeros(x, 4, D), zeros(x, 4, D), []
        for t in range(x.shape[1]):
            keep, add = f[:, t, :, None], 1 - f[:, t, :, None]
            ks = keep * ks + add * k[:, t, None, :]
            vs = keep * vs + add * v[:, t, None, :]
            slots = torch.einsum("bmd,bd->bm", ks, q[:, t]).softmax(-1)
            out.append(torch.einsum("bm,bmd->bd", slots, vs))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D), f=linear(4))


def rwkv7_step() -> nn.Module:
    """RWKV-7's generalised delta rule (Peng et al. 2025)."""

    def run(m: Loop, x: Tensor) -> Any:
        r, k, v = m.rkv(x).chunk(3, -1)
        w, a = torch.exp(-0.6 * m.w(x).sigmoid()), m.a(x).sigmoid()
        kk = F.normalize(k, dim=-1)
        s, out = zeros(x, D, D), []
        for t in range(x.shape[1]):
            seen = s @ kk[:, t, :, None]
            s = s * w[:, t, None, :] - seen @ (kk[:, t] * a[:, t])[:, None, :]
            s = s + v[:, t, :, None] @ k[:, t, None, :]
            out.append((s @ r[:, t, :, None])[..., 0])
        return torch.stack(out, 1)

    return Loop(run, rkv=linear(3 * D), w=linear(), a=linear())


def titans_linear() -> nn.Module:
    """A linear memory learned at test time with momentum (Behrouz et al. 2025)."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        k, rates = F.normalize(k, dim=-1), m.rates(x).sigmoid()
        memory, surprise, out = zeros(x, D, D), zeros(x, D, D), []
        for t in range(x.shape[1]):
            keep, speed, rate = rates[:, t, :, None, None].unbind(1)
            error = torch.einsum("bkv,bk->bv", memory, k[:, t]) - v[:, t]
            surprise = speed * surprise - rate * k[:, t, :, None] * error[:, None, :]
            memory = keep * memory + surprise
            out.append(torch.einsum("bkv,bk->bv", memory, q[:, t]))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D), rates=linear(3))


def s_lstm() -> nn.Module:
    """SLSTM with its normaliser and stabiliser (Beck et al. 2024)."""

    def run(m: Loop, x: Tensor) -> Any:
        c = n = h = zeros(x)
        top, out = zeros(x), []
        for t in range(x.shape[1]):
            z, i, f, o = (m.w(x[:, t]) + m.r(h)).chunk(4, -1)
            kept = F.logsigmoid(f) + top
            new = torch.maximum(kept, i)
            i, f, top = torch.exp(i - new), torch.exp(kept - new), new
            c, n = f * c + i * z.tanh(), f * n + i
            h = o.sigmoid() * c / torch.clamp(n, min=1e-6)
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear(4 * D), r=linear(4 * D))


def merged_heads() -> nn.Module:
    """Heads are merged with the batch before the loop."""

    def run(m: Loop, x: Tensor) -> Any:
        b, time, _ = x.shape
        z = m.z(x).sigmoid().view(b, time, 2, 4).transpose(1, 2).reshape(2 * b, time, 4)
        h, out = x.new_zeros(2 * b, 4), []
        for t in range(time):
            h = z[:, t] * h + (1 - z[:, t])
            out.append(h)
        return torch.stack(out, 1).view(b, 2, time, 4).transpose(1, 2).reshape(b, time, -1)

    return Loop(run, z=linear())


def chunks() -> nn.Module:
    """Linear attention in chunks of four tokens, padded to whole chunks."""

    def run(m: Loop, x: Tensor) -> Any:
        time = x.shape[1]
        q, k, v = m.qkv(F.pad(x, (0, 0, 0, -time % 4))).chunk(3, -1)
        state, out = zeros(x, D, D), []
        for start in range(0, q.shape[1], 4):
            here = slice(start, start + 4)
            within = (q[:, here] @ k[:, here].mT).tril() @ v[:, here]
            out.append(within + q[:, here] @ state)
            state = state + k[:, here].mT @ v[:, here]
        return torch.cat(out, 1)[:, :time]

    return Loop(run, qkv=linear(3 * D))


def s5() -> nn.Module:
    """S5 with complex weights (Smith et al. 2023), stepped in a loop."""

    def run(m: Loop, x: Tensor) -> Any:
        step = torch.exp(m.poles * m.rate.exp())
        u = x.to(torch.complex64) @ (((step - 1) / m.poles)[:, None] * m.b).T
        h, out = torch.zeros_like(u[:, 0]), []
        for t in range(x.shape[1]):
            h = step * h + u[:, t]
            out.append(h)
        return 2 * (torch.stack(out, 1) @ m.c.T).real + m.d * x

    poles = nn.Parameter(torch.complex(-torch.rand(6) - 0.1, torch.randn(6)))
    b = nn.Parameter(torch.randn(6, D, dtype=torch.complex64))
    c = nn.Parameter(torch.randn(D, 6, dtype=torch.complex64))
    return Loop(run, poles=poles, b=b, c=c, d=weight(D), rate=weight(6))


def rwkv6() -> nn.Module:
    """RWKV-6 (Peng et al. 2024): a token shift, decays of data, and the state before the update."""

    def run(m: Loop, x: Tensor) -> Any:
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        mixed = x + (before - x) * m.mix
        r, k, v, w = (y.view(*x.shape[:2], 2, 4) for y in m.rkvw(mixed).chunk(4, -1))
        decay = torch.exp(-torch.exp(w))
        state, out = zeros(x, 2, 4, 4), []
        for t in range(x.shape[1]):
            write = k[:, t, :, :, None] * v[:, t, :, None]
            out.append((r[:, t, :, :, None] * (state + m.bonus * write)).sum(2))
            state = decay[:, t, :, :, None] * state + write
        return torch.stack(out, 1).flatten(2)

    return Loop(run, rkvw=linear(4 * D), mix=weight(D), bonus=weight(2, 4, 1))


def ttt_linear() -> nn.Module:
    """Test-time training of a linear map (Sun et al. 2024), one token a step."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        rate = m.rate(x).sigmoid()
        w, out = m.start.expand(x.shape[0], D, D), []
        for t in range(x.shape[1]):
            error = torch.einsum("bi,bij->bj", k[:, t], w) - v[:, t]
            w = w - 0.1 * rate[:, t, :, None] * torch.einsum("bi,bj->bij", k[:, t], error)
            out.append(torch.einsum("bi,bij->bj", q[:, t], w))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D), rate=linear(1), start=weight(D, D))


def memory_slots() -> nn.Module:
    """A memory that is addressed by content, read and written (Graves et al. 2014)."""

    def run(m: Loop, x: Tensor) -> Any:
        h, read, out = zeros(x), zeros(x), []
        memory = m.memory.expand(x.shape[0], 5, D)
        for t in range(x.shape[1]):
            h = m.cell(torch.cat([x[:, t], read], -1), h)
            near = F.cosine_similarity(memory, m.key(h)[:, None], dim=-1)
            w = (3 * near).softmax(-1)[..., None]
            memory = memory * (1 - w * m.erase(h).sigmoid()[:, None]) + w * m.add(h)[:, None]
            read = (w * memory).sum(1)
            out.append(read)
        return torch.stack(out, 1)

    cell = nn.GRUCell(2 * D, D)
    return Loop(run, cell=cell, key=linear(), erase=linear(), add=linear(), memory=weight(5, D))


def clockwork() -> nn.Module:
    """A clockwork RNN (Koutnik et al. 2014): units that change every so many tokens."""

    def run(m: Loop, x: Tensor) -> Any:
        period = torch.tensor([1, 1, 2, 2, 4, 4, 8, 8])
        h, out = zeros(x), []
        for t in range(x.shape[1]):
            h = torch.where(t % period == 0, torch.tanh(m.i(x[:, t]) + m.h(h)), h)
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, i=linear(), h=linear())


MIXERS = tuple(
    Mixer(make=make)
    for make in (
        hgrn,
        min_lstm,
        sru,
        sru_peephole,
        qrnn,
        ind_rnn,
        antisymmetric,
        unicornn,
        fast_weights,
        ema,
        s4d_step,
        lru_complex,
        retention,
        gla,
        mamba2_step,
        gsa,
        rwkv7_step,
        titans_linear,
        s_lstm,
        merged_heads,
        chunks,
        s5,
        rwkv6,
        ttt_linear,
        memory_slots,
        clockwork,
    )
)
