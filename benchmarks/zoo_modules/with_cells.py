"""Mixers as step cells: one token and the states before it give its result and those after it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .mixer import WIDTH

WIDE, SQUARE = (WIDTH,), (WIDTH, WIDTH)
States = tuple[Tensor, ...]
Start = Callable[[Any], Tensor] | float


@dataclass(frozen=True)
class Cell:
    """One token: `call(m, x, *states)` gives its result and the states after it.

    Fields:
        call: of the module, whose weights it takes, `x` of [batch, WIDTH], and the states.
        states: their shapes behind the rows.
        starts: what they start from, a function of the module or a number each; zeros if none.
    """

    call: Callable[..., tuple[Tensor, States]]
    states: Sequence[Sequence[int]] = (WIDE,)
    starts: Sequence[Start] = ()

    def started(self, module: nn.Module, rows: int, dtype: torch.dtype) -> States:
        """The states before the first token."""
        starts = self.starts or [0.0] * len(self.states)
        values = [each(module) if callable(each) else torch.tensor(each) for each in starts]
        return tuple(
            value.detach().to(dtype).expand(rows, *shape)
            for value, shape in zip(values, self.states, strict=True)
        )


def none_at_first(m: Any, x: Tensor, h: Tensor, seen: Tensor) -> tuple[Tensor, States]:
    h = torch.where(seen == 0, m.w(x), torch.tanh(m.w(x) + m.u(h)))
    return m.o(h), (h, torch.ones_like(seen))


def only_later(m: Any, x: Tensor, y: Tensor, seen: Tensor) -> tuple[Tensor, States]:
    y = (m.w(x) + seen * m.u(y)).tanh()
    return y, (y, torch.ones_like(seen))


def two_back(m: Any, x: Tensor, h1: Tensor, h2: Tensor) -> tuple[Tensor, States]:
    h = 0.5 * h1 - 0.3 * h2 + m.w(x)
    return h, (h, h1)


def wkv(m: Any, x: Tensor, num: Tensor, den: Tensor, top: Tensor) -> tuple[Tensor, States]:
    k, v, w = m.k(x), m.v(x), -torch.exp(m.w)
    best = torch.maximum(top, k + m.u)
    e1, e2 = torch.exp(top - best), torch.exp(k + m.u - best)
    y = (e1 * num + e2 * v) / (e1 * den + e2) * m.r(x).sigmoid()
    best = torch.maximum(top + w, k)
    e1, e2 = torch.exp(top + w - best), torch.exp(k - best)
    return y, (e1 * num + e2 * v, e1 * den + e2, best)


def start_of_first(m: Any, x: Tensor, h: Tensor, seen: Tensor) -> tuple[Tensor, States]:
    h = torch.where(seen == 0, m.init(x).tanh(), h)
    h = torch.tanh(m.w(x) + m.u(h))
    return h, (h, torch.ones_like(seen))


def running_mean(m: Any, x: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, States]:
    total, count = total + m.w(x), count + 1
    return total / count, (total, count)


def welford(m: Any, x: Tensor, mean: Tensor, square: Tensor, count: Tensor) -> Any:
    count = count + 1
    delta = x - mean
    mean = mean + delta / count
    square = square + delta * (x - mean)
    return m.w((x - mean) / torch.sqrt(square / count + 1e-2)), (mean, square, count)


def two_loops(m: Any, x: Tensor, h: Tensor, s: Tensor) -> tuple[Tensor, States]:
    g = m.g(x).sigmoid()
    h = g * h + (1 - g) * x
    s = torch.tanh(s + m.mid(h).relu())
    return s, (h, s)


def grown(m: Any, x: Tensor, h: Tensor) -> tuple[Tensor, States]:
    h = torch.tanh(m.w(x) + h)
    return h, (h,)


def m_lstm(m: Any, x: Tensor, c: Tensor, n: Tensor, top: Tensor) -> tuple[Tensor, States]:
    q, k, v = m.qkv(x).chunk(3, -1)
    k, log_f, write = k / WIDTH**0.5, F.logsigmoid(m.f(x)), m.i(x)
    new = torch.maximum(log_f + top, write)
    f, i = torch.exp(log_f + top - new), torch.exp(write - new)
    c = f[..., None] * c + i[..., None] * (v[:, :, None] * k[:, None, :])
    n = f * n + i * k
    den = (n * q).sum(-1, keepdim=True).abs()
    return (c @ q[..., None]).squeeze(-1) / torch.maximum(den, torch.exp(-new)), (c, n, new)


def m_lstm_heads(m: Any, x: Tensor, c: Tensor, n: Tensor, top: Tensor) -> tuple[Tensor, States]:
    q, k, v = m.qkv(x).unflatten(-1, (3, 2, -1)).unbind(1)
    write, forget = m.g(x)[..., None].chunk(2, 1)
    log_f = F.logsigmoid(forget)
    new = torch.maximum(log_f + top, write)
    f, i = torch.exp(log_f + top - new), torch.exp(write - new)
    c = f[..., None] * c + (i * k)[..., None] * v[..., None, :]
    n = f * n + i * k
    q = q / 2
    norm = torch.maximum((q * n).sum(-1, keepdim=True).abs(), (-new).exp()) + 1e-6
    return ((q[..., None, :] @ c).squeeze(-2) / norm).flatten(1), (c, n, new)


def leaky(m: Any, x: Tensor, potential: Tensor) -> tuple[Tensor, States]:
    potential = 0.9 * potential + m.w(x)
    spike = (potential > 0.5).to(x.dtype)
    potential = potential - 0.5 * spike
    return spike * potential, (potential,)


def lmu(m: Any, x: Tensor, memory: Tensor, h: Tensor) -> tuple[Tensor, States]:
    memory = memory @ m.a.T * 0.3 + (m.e(x) + m.eh(h)) @ m.b.T
    h = torch.tanh(m.w(x) + m.r(h) + m.k(memory))
    return h, (memory, h)


def liquid(m: Any, x: Tensor, h: Tensor) -> tuple[Tensor, States]:
    for _ in range(3):
        f = torch.tanh(m.w(torch.cat([x, h], -1)))
        h = (h + 0.1 * f * m.a) / (1 + 0.1 * (0.5 + f.abs()))
    return h, (h,)


def first_kept(m: Any, x: Tensor, h: Tensor, first: Tensor, seen: Tensor) -> tuple[Tensor, States]:
    first = torch.where(seen == 0, m.w(x), first)
    h = 0.5 * h + x * first
    return h, (h, first, torch.ones_like(seen))


def sru_peephole(m: Any, x: Tensor, c: Tensor) -> tuple[Tensor, States]:
    keep, read = torch.sigmoid(m.f(x) + m.vf * c), torch.sigmoid(m.r(x) + m.vr * c)
    c = keep * c + (1 - keep) * m.w(x)
    return read * c + (1 - read) * x, (c,)


def ind_rnn(m: Any, x: Tensor, h: Tensor) -> tuple[Tensor, States]:
    h = F.relu(m.w(x) + m.u * h)
    return h, (h,)


def antisymmetric(m: Any, x: Tensor, h: Tensor) -> tuple[Tensor, States]:
    h = h + 0.1 * torch.tanh(h @ (m.v - m.v.T - 0.1 * torch.eye(WIDTH)) + m.w(x))
    return h, (h,)


def unicornn(m: Any, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, States]:
    step = 0.2 * m.c.sigmoid()
    z = z - step * (torch.tanh(m.a * y + m.v(x)) + 0.5 * y)
    y = y + step * z
    return y, (y, z)


def fast_weights(m: Any, x: Tensor, a: Tensor, h: Tensor) -> tuple[Tensor, States]:
    a, drive = 0.9 * a + 0.1 * h[:, :, None] * h[:, None, :], m.w(x)
    seen = torch.tanh(drive + m.u(h))
    h = torch.tanh(drive + (a @ seen[..., None]).squeeze(-1))
    return h, (a, h)


def lru(m: Any, x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, States]:
    size = torch.exp(-m.nu.exp())
    re, im = size * torch.cos(m.theta), size * torch.sin(m.theta)
    u, v = m.b(x).chunk(2, -1)
    p, q = re * p - im * q + u, im * p + re * q + v
    return m.c(torch.cat([p, q], -1)), (p, q)


def s5(m: Any, x: Tensor, p: Tensor, q: Tensor) -> tuple[Tensor, States]:
    step = torch.exp(m.poles * m.rate.exp())
    b = ((step - 1) / m.poles)[:, None] * m.b
    re, im, real, imaginary = step.real, step.imag, x @ b.real.T, x @ b.imag.T
    p, q = re * p - im * q + real, im * p + re * q + imaginary
    return 2 * (p @ m.c.real.T - q @ m.c.imag.T) + m.d * x, (p, q)


def titans_linear(m: Any, x: Tensor, memory: Tensor, surprise: Tensor) -> tuple[Tensor, States]:
    q, k, v = m.qkv(x).chunk(3, -1)
    k, (keep, speed, rate) = F.normalize(k, dim=-1), m.rates(x).sigmoid()[..., None, None].unbind(1)
    error = (k[:, None] @ memory).squeeze(1) - v
    surprise = speed * surprise - rate * k[:, :, None] * error[:, None, :]
    memory = keep * memory + surprise
    return (q[:, None] @ memory).squeeze(1), (memory, surprise)


def s_lstm(m: Any, x: Tensor, c: Tensor, n: Tensor, h: Tensor, top: Tensor) -> Any:
    z, i, f, o = (m.w(x) + m.r(h)).chunk(4, -1)
    kept = F.logsigmoid(f) + top
    new = torch.maximum(kept, i)
    i, f = torch.exp(i - new), torch.exp(kept - new)
    c, n = f * c + i * z.tanh(), f * n + i
    h = o.sigmoid() * c / torch.clamp(n, min=1e-6)
    return h, (c, n, h, new)


def memory_slots(m: Any, x: Tensor, h: Tensor, read: Tensor, memory: Tensor) -> Any:
    h = m.cell(torch.cat([x, read], -1), h)
    near = F.cosine_similarity(memory, m.key(h)[:, None], dim=-1)
    w = (3 * near).softmax(-1)[..., None]
    memory = memory * (1 - w * m.erase(h).sigmoid()[:, None]) + w * m.add(h)[:, None]
    read = (w * memory).sum(1)
    return read, (h, read, memory)


def clockwork(m: Any, x: Tensor, h: Tensor, count: Tensor) -> tuple[Tensor, States]:
    due = count % torch.tensor([1, 1, 2, 2, 4, 4, 8, 8]) == 0
    h = torch.where(due, torch.tanh(m.i(x) + m.h(h)), h)
    return h, (h, count + 1)


def _parts(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """A decay's logarithm and what is added, of the sums over all tokens so far."""
    h, z = m.hz(x).chunk(2, -1)
    return -F.softplus(z), h


def log_cumulative_sum(m: Any, x: Tensor, total: Tensor) -> tuple[Tensor, States]:
    decay, h = _parts(m, x)
    total = torch.logaddexp(total, decay + h)
    return total, (total,)


def cumulative_maximum(m: Any, x: Tensor, most: Tensor) -> tuple[Tensor, States]:
    most = torch.maximum(most, _parts(m, x)[1])
    return most, (most,)


def cumulative_product(m: Any, x: Tensor, product: Tensor) -> tuple[Tensor, States]:
    decay, h = _parts(m, x)
    product = product * (0.1 * decay).exp()
    return product * h, (product,)


def cumulative_mean(m: Any, x: Tensor, total: Tensor, count: Tensor) -> tuple[Tensor, States]:
    total, count = total + _parts(m, x)[1], count + 1
    return total / count, (total, count)


def cumulative_norm(m: Any, x: Tensor, total: Tensor, power: Tensor, count: Tensor) -> Any:
    del m
    total, count = total + x.sum(1, keepdim=True), count + WIDTH
    power = power + x.square().sum(1, keepdim=True)
    mean = total / count
    return (x - mean) * torch.rsqrt(power / count - mean.square() + 1e-5), (total, power, count)
