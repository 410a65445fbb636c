"""Recurrences as their papers' code and their users write them: loops over tokens in Python.

Each function returns a module that takes `x` of [batch, time, 8] unless it says otherwise, with
random weights.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

D = 8


class Loop(nn.Module):
    """Layers by name, and a function of the module and its input as `forward`."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """A layer by its name."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the function."""
        result: Tensor = self.run(self, x)
        return result


def linear(out: int = D, given: int = D) -> nn.Linear:
    return nn.Linear(given, out)


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(0.5 * torch.randn(*shape))


def gated() -> nn.Module:
    """A gated recurrence, states collected in a list."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            g = m.gate(x[:, t]).sigmoid()
            h = g * h + (1 - g) * m.write(x[:, t])
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, gate=linear(), write=linear())


def lstm_cells() -> nn.Module:
    """An LSTM cell, results written into a buffer."""

    def run(m: Loop, x: Tensor) -> Any:
        h = c = x.new_zeros(x.shape[0], 16)
        y = torch.empty_like(x)
        for t in range(x.size(1)):
            h, c = m.cell(x[:, t], (h, c))
            y[:, t] = m.head(h)
        return y

    return Loop(run, cell=nn.LSTMCell(D, 16), head=linear(D, 16))


def gru_cells() -> nn.Module:
    """Three GRU cells in each iteration, states in a list that is changed in place."""

    def run(m: Loop, x: Tensor) -> Any:
        hs = [torch.zeros(x.shape[0], D) for _ in m.cells]
        out = []
        for token in x.unbind(1):
            h = token
            for i, cell in enumerate(m.cells):
                hs[i] = h = cell(h, hs[i])
            out.append(h[:, None])
        return torch.cat(out, dim=1)

    return Loop(run, cells=nn.ModuleList(nn.GRUCell(D, D) for _ in range(3)))


def rnn_layers() -> nn.Module:
    """A loop over time inside a loop over layers, each with a residual."""

    def run(m: Loop, x: Tensor) -> Any:
        for cell, norm in zip(m.cells, m.norms, strict=True):
            h, out = torch.zeros(x.shape[0], D), []
            for u in norm(x).transpose(0, 1):
                h = cell(u, h)
                out.append(h)
            x = x + torch.stack(out, dim=1)
        return x

    cells = nn.ModuleList(nn.RNNCell(D, D) for _ in range(2))
    return Loop(run, cells=cells, norms=nn.ModuleList(nn.LayerNorm(D) for _ in range(2)))


def lstm_tuples() -> nn.Module:
    """Two LSTM cells, states as a list of tuples in a dict."""

    def run(m: Loop, x: Tensor) -> Any:
        zero = torch.zeros(x.shape[0], D)
        state = {"layers": [(zero, zero), (zero, zero)]}
        out = []
        for t, token in enumerate(x.unbind(dim=1)):
            h = token
            for i, cell in enumerate(m.cells):
                state["layers"][i] = cell(h, state["layers"][i])
                h = state["layers"][i][0]
            out += [h]
            assert len(out) == t + 1
        return torch.stack(out, dim=1)

    return Loop(run, cells=nn.ModuleList(nn.LSTMCell(D, D) for _ in range(2)))


def delta_rule() -> nn.Module:
    """The delta rule (Schlag et al. 2021), token by token."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        k, beta = F.normalize(k, dim=-1), m.beta(x).sigmoid()
        state, out = x.new_zeros(x.shape[0], D, D), []
        for t in range(x.shape[1]):
            error = v[:, t] - torch.einsum("bkv,bk->bv", state, k[:, t])
            state = state + torch.einsum("bk,bv->bkv", k[:, t], beta[:, t] * error)
            out.append(torch.einsum("bkv,bk->bv", state, q[:, t]))
        return torch.stack(out, 1)

    return Loop(run, qkv=linear(3 * D), beta=linear(1))


def gated_delta() -> nn.Module:
    """Gated DeltaNet as transformers' torch_recurrent_gated_delta_rule has it, with heads."""

    def run(m: Loop, x: Tensor) -> Any:
        b, time, _ = x.shape
        q, k, v = (y.view(b, time, 2, 4).transpose(1, 2) for y in m.qkv(x).chunk(3, -1))
        g, beta = F.logsigmoid(m.g(x)).transpose(1, 2), m.beta(x).sigmoid().transpose(1, 2)
        q, k = F.normalize(q, dim=-1) / 2, F.normalize(k, dim=-1)
        out = torch.zeros(b, 2, time, 4).to(v)
        state = torch.zeros(b, 2, 4, 4).to(v)
        for i in range(time):
            k_t, v_t = k[:, :, i], v[:, :, i]
            state = state * g[:, :, i].exp().unsqueeze(-1).unsqueeze(-1)
            memory = (state * k_t.unsqueeze(-1)).sum(dim=-2)
            delta = (v_t - memory) * beta[:, :, i].unsqueeze(-1)
            state = state + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
            out[:, :, i] = (state * q[:, :, i].unsqueeze(-1)).sum(dim=-2)
        return out.transpose(1, 2).reshape(b, time, -1)

    return Loop(run, qkv=linear(3 * D), g=linear(2), beta=linear(2))


def selective_scan() -> nn.Module:
    """Mamba's selective_scan_ref (Gu and Dao 2023), channels before time."""

    def run(m: Loop, x: Tensor) -> Any:
        u = x.transpose(1, 2)
        delta = F.softplus(m.dt(x)).transpose(1, 2)
        a, bs, cs = -torch.exp(m.a_log), m.b(x).transpose(1, 2), m.c(x).transpose(1, 2)
        batch, dim, dstate = u.shape[0], m.a_log.shape[0], m.a_log.shape[1]
        h = a.new_zeros((batch, dim, dstate))
        ys = []
        delta_a = torch.exp(torch.einsum("bdl,dn->bdln", delta, a))
        delta_bu = torch.einsum("bdl,bnl,bdl->bdln", delta, bs, u)
        for i in range(u.shape[2]):
            h = delta_a[:, :, i] * h + delta_bu[:, :, i]
            ys.append(torch.einsum("bdn,bn->bd", h, cs[:, :, i]))
        y = torch.stack(ys, dim=2)
        return (y + u * m.skip[:, None]).transpose(1, 2)

    return Loop(run, dt=linear(), b=linear(4), c=linear(4), a_log=weight(D, 4), skip=weight(D))


def min_gru() -> nn.Module:
    """MinGRU (Feng et al. 2024), one token after the other."""

    def run(m: Loop, x: Tensor) -> Any:
        z, h_tilde = m.z(x).sigmoid(), m.h(x)
        h, hs = torch.zeros(x.size(0), 1, D), []
        for t in range(x.size(1)):
            h = (1 - z[:, t : t + 1]) * h + z[:, t : t + 1] * h_tilde[:, t : t + 1]
            hs.append(h)
        return torch.cat(hs, 1)

    return Loop(run, z=linear(), h=linear())


def rg_lru() -> nn.Module:
    """RG-LRU of Griffin (De et al. 2024), whose first token is not scaled."""

    def run(m: Loop, x: Tensor) -> Any:
        r, i = m.r(x).sigmoid(), m.i(x).sigmoid()
        log_a = -8.0 * r * F.softplus(m.a)
        a, gated = log_a.exp(), i * x
        h, y = None, torch.zeros_like(x)
        for t in range(x.shape[1]):
            scale = 1 if t == 0 else torch.sqrt(1 - a[:, t] ** 2)
            h = scale * gated[:, t] if h is None else a[:, t] * h + scale * gated[:, t]
            y[:, t, :] = h
        return y

    return Loop(run, r=linear(), i=linear(), a=weight(D))


def none_at_first() -> nn.Module:
    """The state is None before the first token."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = None, []
        for u in x.unbind(1):
            h = m.w(u) if h is None else torch.tanh(m.w(u) + m.u(h))
            out.append(m.o(h))
        return torch.stack(out, 1)

    return Loop(run, w=linear(), u=linear(), o=linear())


def only_later() -> nn.Module:
    """The recurrent term is added from the second token on."""

    def run(m: Loop, x: Tensor) -> Any:
        out: list[Tensor] = []
        for t in range(x.shape[1]):
            y = m.w(x[:, t])
            if t > 0:
                y = y + m.u(out[-1])
            out.append(y.tanh())
        return torch.stack(out, 1)

    return Loop(run, w=linear(), u=linear())


def in_place_neighbour() -> nn.Module:
    """Each entry of a buffer is computed from the one before it."""

    def run(m: Loop, x: Tensor) -> Any:
        y = m.w(x).clone()
        for t in range(1, x.shape[1]):
            y[:, t] = y[:, t] + m.a.sigmoid() * y[:, t - 1]
        return y

    return Loop(run, w=linear(), a=weight(D))


def two_back() -> nn.Module:
    """A recurrence of second order."""

    def run(m: Loop, x: Tensor) -> Any:
        h1 = h2 = torch.zeros(x.shape[0], D)
        out = []
        for t in range(x.shape[1]):
            h = 0.5 * h1 - 0.3 * h2 + m.w(x[:, t])
            h1, h2 = h, h1
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear())


def token_before() -> nn.Module:
    """The token before takes part, zeros before the first; as RWKV's time mixing does."""

    def run(m: Loop, x: Tensor) -> Any:
        prev, h, out = torch.zeros_like(x[:, 0]), torch.zeros(D), []
        for t in range(x.shape[1]):
            mixed = x[:, t] * m.mu.sigmoid() + prev * (1 - m.mu.sigmoid())
            h = 0.9 * h + m.w(mixed)
            prev = x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, mu=weight(D), w=linear())


def wkv() -> nn.Module:
    """RWKV-4's time mixing with its running maximum (Peng et al. 2023), -1e38 at the start."""

    def run(m: Loop, x: Tensor) -> Any:
        k, v = m.k(x), m.v(x)
        num, den, top = torch.zeros(x.shape[0], D), torch.zeros(x.shape[0], D), None
        top = torch.full((x.shape[0], D), -1e38)
        w, out = -torch.exp(m.w), torch.zeros_like(x)
        for t in range(x.shape[1]):
            k_t, v_t = k[:, t].float(), v[:, t]
            best = torch.maximum(top, k_t + m.u)
            e1, e2 = torch.exp(top - best), torch.exp(k_t + m.u - best)
            out[:, t] = (e1 * num + e2 * v_t) / (e1 * den + e2)
            best = torch.maximum(top + w, k_t)
            e1, e2 = torch.exp(top + w - best), torch.exp(k_t - best)
            num, den, top = e1 * num + e2 * v_t, e1 * den + e2, best
        return out * m.r(x).sigmoid()

    return Loop(run, k=linear(), v=linear(), r=linear(), w=weight(D), u=weight(D))


def before_update() -> nn.Module:
    """The result reads the state before it is updated."""

    def run(m: Loop, x: Tensor) -> Any:
        s, out = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            out.append(m.o(s))
            s = 0.8 * s + m.w(x[:, t]).tanh()
        return torch.stack(out, 1)

    return Loop(run, o=linear(), w=linear())


def learned_start() -> nn.Module:
    """The initial state is a parameter."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = m.h0.expand(x.shape[0], -1), []
        for t in range(x.shape[1]):
            h = torch.tanh(m.w(x[:, t]) + m.u(h))
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, h0=weight(1, D), w=linear(), u=linear())


def start_of_first() -> nn.Module:
    """The initial state is computed from the first token."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = m.init(x[:, 0]).tanh(), []
        for t in range(x.shape[1]):
            h = torch.tanh(m.w(x[:, t]) + m.u(h))
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, init=linear(), w=linear(), u=linear())


def position() -> nn.Module:
    """The position is a number, and an index of a table."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            h = 0.7 * h + m.w(x[:, t] + m.table[t]) * (t / 10)
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, table=weight(2048, D), w=linear())


def running_mean() -> nn.Module:
    """A mean of all tokens so far, divided by how many there are."""

    def run(m: Loop, x: Tensor) -> Any:
        total, out = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            total = total + m.w(x[:, t])
            out.append(total / (t + 1))
        return torch.stack(out, 1)

    return Loop(run, w=linear())


def welford() -> nn.Module:
    """A running mean and variance, one over the count."""

    def run(m: Loop, x: Tensor) -> Any:
        mean = torch.zeros(x.shape[0], D)
        square, out = torch.zeros(x.shape[0], D), []
        for t, u in enumerate(x.unbind(1)):
            delta = u - mean
            mean = mean + delta * (1 / (t + 1))
            square = square + delta * (u - mean)
            out.append((u - mean) / torch.sqrt(square / (t + 1) + 1e-2))
        return m.w(torch.stack(out, 1))

    return Loop(run, w=linear())


def two_loops() -> nn.Module:
    """Gates of all tokens in one loop, the recurrence in another, a third over its result."""

    def run(m: Loop, x: Tensor) -> Any:
        gates = [m.g(x[:, t]).sigmoid() for t in range(x.shape[1])]
        h, hs = torch.zeros(x.shape[0], D), []
        for g, u in zip(gates, x.unbind(1), strict=True):
            h = g * h + (1 - g) * u
            hs.append(h)
        y = m.mid(torch.stack(hs, 1)).relu()
        s, out = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            s = torch.tanh(s + y[:, t])
            out.append(s)
        return torch.stack(out, 1)

    return Loop(run, g=linear(), mid=linear())


def grown() -> nn.Module:
    """The result is joined token by token."""

    def run(m: Loop, x: Tensor) -> Any:
        h = torch.zeros(x.shape[0], D)
        y = torch.empty(x.shape[0], 0, D)
        for t in range(x.shape[1]):
            h = torch.tanh(m.w(x[:, t]) + h)
            y = torch.cat([y, h.unsqueeze(1)], dim=1)
        return y

    return Loop(run, w=linear())


def linear_attention() -> nn.Module:
    """Normalised linear attention with heads (Katharopoulos et al. 2020), sums in place."""

    def run(m: Loop, x: Tensor) -> Any:
        b, time, _ = x.shape
        q, k, v = (y.view(b, time, 2, 4) for y in m.qkv(x).chunk(3, -1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        s, z = torch.zeros(b, 2, 4, 4), torch.zeros(b, 2, 4)
        out = torch.zeros_like(v)
        for t in range(time):
            s += k[:, t, :, :, None] * v[:, t, :, None, :]
            z += k[:, t]
            top = torch.einsum("bhk,bhkv->bhv", q[:, t], s)
            out[:, t] = top / ((q[:, t] * z).sum(-1, keepdim=True) + 1e-6)
        return m.o(out.flatten(2))

    return Loop(run, qkv=linear(3 * D), o=linear())


def m_lstm() -> nn.Module:
    """MLSTM with its stabiliser (Beck et al. 2024)."""

    def run(m: Loop, x: Tensor) -> Any:
        q, k, v = m.qkv(x).chunk(3, -1)
        k = k / math.sqrt(D)
        i_pre, f_pre = m.i(x), m.f(x)
        b = x.shape[0]
        c, n, top = torch.zeros(b, D, D), torch.zeros(b, D), torch.zeros(b, 1)
        hs = []
        for t in range(x.shape[1]):
            log_f = F.logsigmoid(f_pre[:, t])
            new = torch.maximum(log_f + top, i_pre[:, t])
            f, i = torch.exp(log_f + top - new), torch.exp(i_pre[:, t] - new)
            top = new
            c = f[..., None] * c + i[..., None] * (v[:, t, :, None] * k[:, t, None, :])
            n = f * n + i * k[:, t]
            den = (n * q[:, t]).sum(-1, keepdim=True).abs()
            hs.append((c @ q[:, t, :, None]).squeeze(-1) / torch.maximum(den, torch.exp(-top)))
        return torch.stack(hs, 1)

    return Loop(run, qkv=linear(3 * D), i=linear(1), f=linear(1))


def indrnn_leaky() -> nn.Module:
    """A leaky integrate-and-fire layer with reset, as spiking networks have it."""

    def run(m: Loop, x: Tensor) -> Any:
        drive = m.w(x)
        potential, spikes = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            potential = 0.9 * potential + drive[:, t]
            spike = (potential > 0.5).float()
            potential = potential - 0.5 * spike
            spikes.append(spike * potential)
        return torch.stack(spikes, 1)

    return Loop(run, w=linear())


def lmu() -> nn.Module:
    """A Legendre memory unit (Voelker et al. 2019): a linear memory in front of a cell."""

    def run(m: Loop, x: Tensor) -> Any:
        memory, h, out = torch.zeros(x.shape[0], 6), torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            u = m.e(x[:, t]) + m.eh(h)
            memory = memory @ m.a.T * 0.3 + u @ m.b.T
            h = torch.tanh(m.w(x[:, t]) + m.r(h) + m.k(memory))
            out.append(h)
        return torch.stack(out, 1)

    layers = {"e": linear(1), "eh": linear(1), "w": linear(), "r": linear(), "k": linear(D, 6)}
    return Loop(run, a=weight(6, 6), b=weight(6, 1), **layers)


def liquid() -> nn.Module:
    """A closed-form continuous-time cell, its solver's inner steps in a loop of their own."""

    def run(m: Loop, x: Tensor) -> Any:
        h, out = torch.zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            for _ in range(3):
                f = torch.tanh(m.w(torch.cat([x[:, t], h], -1)))
                h = (h + 0.1 * f * m.a) / (1 + 0.1 * (0.5 + f.abs()))
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear(D, 2 * D), a=weight(D))


def conv_window() -> nn.Module:
    """A causal convolution as a loop over windows of a padded sequence."""

    def run(m: Loop, x: Tensor) -> Any:
        padded = F.pad(x, (0, 0, 2, 0))
        out = [m.w(padded[:, t : t + 3].flatten(1)) for t in range(x.shape[1])]
        return torch.stack(out, 1)

    return Loop(run, w=linear(D, 3 * D))


def clipped_window() -> nn.Module:
    """The two tokens before, where there are any."""

    def run(m: Loop, x: Tensor) -> Any:
        out = []
        for t in range(x.shape[1]):
            y = m.a(x[:, t])
            if t >= 1:
                y = y + m.b(x[:, t - 1])
            if t >= 2:
                y = y + m.c(x[:, t - 2])
            out.append(y)
        return torch.stack(out, 1)

    return Loop(run, a=linear(), b=linear(), c=linear())


def first_kept() -> nn.Module:
    """Every token sees the first one."""

    def run(m: Loop, x: Tensor) -> Any:
        first, out, h = m.w(x[:, 0]), [], torch.zeros(x.shape[0], D)
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t] * first
            out.append(h)
        return torch.stack(out, 1)

    return Loop(run, w=linear())


def language_model() -> nn.Module:
    """Token ids in, logits out: `x` is int64 [batch, time]."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, D), nn.Linear(D, 11)
            self.cells = nn.ModuleList(nn.LSTMCell(D, D) for _ in range(2))

        def forward(self, input_ids: Tensor) -> Tensor:
            states: list[Any] = [None, None]
            logits = []
            for ids in input_ids.T:
                h = self.embed(ids)
                for i, cell in enumerate(self.cells):
                    states[i] = cell(h, states[i])
                    h = states[i][0]
                logits.append(self.head(h))
            return torch.stack(logits, dim=1)

    return Model()


def mixed_stack() -> nn.Module:
    """Attention and a convolution around a loop."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.conv, self.w = linear(3 * D), nn.Conv1d(D, D, 3), linear()

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (y[:, None] for y in self.qkv(x).chunk(3, -1))
            x = x + F.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
            x = x + self.conv(F.pad(x.mT, (2, 0))).mT
            h, out = torch.zeros(x.shape[0], D), []
            for t in range(x.shape[1]):
                h = torch.tanh(self.w(x[:, t]) + h)
                out.append(h)
            return torch.stack(out, 1)

    return Model()


MODULES: tuple[Callable[[], nn.Module], ...] = (
    gated,
    lstm_cells,
    gru_cells,
    rnn_layers,
    lstm_tuples,
    delta_rule,
    gated_delta,
    selective_scan,
    min_gru,
    rg_lru,
    none_at_first,
    only_later,
    in_place_neighbour,
    two_back,
    token_before,
    wkv,
    before_update,
    learned_start,
    start_of_first,
    position,
    running_mean,
    welford,
    two_loops,
    grown,
    linear_attention,
    m_lstm,
    indrnn_leaky,
    lmu,
    liquid,
    conv_window,
    clipped_window,
    first_kept,
    language_model,
    mixed_stack,
)
