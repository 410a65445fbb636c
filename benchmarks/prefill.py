"""Prefill of recurrences that are written as loops over tokens, on one thread of ONNX Runtime.

    python benchmarks/prefill.py [--quick] [--json]

Two layers of width 32, each a residual around a loop as its paper's code has it, 512 tokens of one
row in one call.  The limit is 8 microseconds a token, or three times the time of two layers of
gated linear attention with states of the same size, whichever is more; both take turns.  A step of
one token is timed beside it.  Times are those of the thread that computes: on a machine that others
use as well, a call that lasts longer than a slice of the scheduler waits for them, a shorter one
does not.
"""

import math
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from evidence import Row, paired, run
from torch import Tensor, nn
from torch.nn import functional as F

import intaglio
from intaglio.ops import linear_attention
from intaglio.quiet import quiet
from intaglio.runtime import Session

WIDTH, TOKENS, STATES = 32, 512, 16
LIMIT, RATIO = 8.0, 3.0


def linear(out: int = WIDTH) -> nn.Linear:
    return nn.Linear(WIDTH, out)


class MinGru(nn.Module):
    """Feng et al. 2024, arXiv:2410.01201."""

    state = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.z, self.h = linear(), linear()

    def forward(self, x: Tensor) -> Tensor:
        z, wanted = self.z(x).sigmoid(), self.h(x)
        h, hs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = (1 - z[:, t]) * h + z[:, t] * wanted[:, t]
            hs.append(h)
        return torch.stack(hs, 1)


class Hgrn(nn.Module):
    """Qin et al. 2023, arXiv:2311.04823, with a lower bound of its forget gate."""

    state = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.f, self.i, self.g = linear(), linear(), linear()
        self.bound = nn.Parameter(torch.rand(WIDTH) / 2)

    def forward(self, x: Tensor) -> Tensor:
        bound = self.bound.sigmoid()
        f = bound + (1 - bound) * self.f(x).sigmoid()
        i = (1 - f) * F.silu(self.i(x))
        h, hs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + i[:, t]
            hs.append(h)
        out: Tensor = torch.stack(hs, 1) * self.g(x).sigmoid()
        return out


class Mamba(nn.Module):
    """Gu and Dao 2023, arXiv:2312.00752, as selective_scan_ref computes it."""

    state = WIDTH * STATES

    def __init__(self) -> None:
        super().__init__()
        self.dt, self.b, self.c = linear(), linear(STATES), linear(STATES)
        self.a_log = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(WIDTH, 1))
        self.skip = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        delta, b, c = F.softplus(self.dt(x)), self.b(x), self.c(x)
        kept = torch.exp(torch.einsum("bld,dn->bldn", delta, -torch.exp(self.a_log)))
        added = torch.einsum("bld,bln,bld->bldn", delta, b, x)
        h, ys = x.new_zeros(x.shape[0], WIDTH, STATES), []
        for t in range(x.shape[1]):
            h = kept[:, t] * h + added[:, t]
            ys.append(torch.einsum("bdn,bn->bd", h, c[:, t]))
        return torch.stack(ys, 1) + x * self.skip


class RgLru(nn.Module):
    """De et al. 2024, arXiv:2402.19427."""

    state = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.r, self.i = linear(), linear()
        self.a = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        a = torch.exp(-8.0 * self.r(x).sigmoid() * F.softplus(self.a))
        gated = torch.sqrt(1 - a**2) * self.i(x).sigmoid() * x
        h, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = a[:, t] * h + gated[:, t]
            ys[:, t] = h
        return ys


class Gla(nn.Module):
    """Gated linear attention of two heads through our operator, with `state` values carried."""

    def __init__(self, state: int) -> None:
        super().__init__()
        self.state, self.size = state, math.isqrt(state // 2)
        self.q, self.k, self.v, self.g = (linear(2 * self.size) for _ in range(4))
        self.o = nn.Linear(2 * self.size, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = linear_attention(
            self.q(x), self.k(x), self.v(x), None, F.logsigmoid(self.g(x)),
            update_rule="gated", q_num_heads=2, kv_num_heads=2,
        )[0]  # fmt: skip
        out: Tensor = self.o(y)
        return out


class Layers(nn.Module):
    """Two layers, each with a residual."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([make(), make()])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


def measure(quick: bool) -> list[Row]:
    """Rows for each recurrence: prefill, and a step."""
    rows: list[Row] = []
    kinds: list[Any] = [MinGru, Hgrn, Mamba, RgLru]
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds[:: 2 if quick else 1]:
            name, state = kind.__name__, int(kind.state)
            ours = _session(kind, Path(folder) / name)
            theirs = _session(partial(Gla, state), Path(folder) / f"{name}-gla")
            pairs = 20 if quick else 100
            prefill = _microseconds(ours, theirs, TOKENS, pairs)
            step = _microseconds(ours, theirs, 1, 10 * pairs)
            limit = max(LIMIT, RATIO * prefill[1])
            peer = f"gated linear attention with {state} values a layer"
            rows.append(
                Row(
                    name=f"{name}: prefill of {TOKENS} tokens",
                    value=prefill[0],
                    unit="us a token",
                    target=f"at most {limit:.3g}",
                    holds=prefill[0] <= limit,
                    against=peer,
                    note=f"the other takes {prefill[1]:.3g}",
                )
            )
            note = f"the other takes {step[1]:.3g}"
            rows.append(
                Row(name=f"{name}: a step", value=step[0], unit="us", against=peer, note=note)
            )
    return rows


def _session(make: Callable[[], nn.Module], out: Path) -> Session:
    torch.manual_seed(0)
    with quiet():
        inputs = {"x": torch.randn(1, 9, WIDTH)}
        intaglio.export(Layers(make).eval(), out, inputs=inputs, steps=40)
    return Session.load(out, threads=1)


def _microseconds(ours: Session, theirs: Session, tokens: int, pairs: int) -> list[float]:
    x = np.random.default_rng(0).normal(size=(1, tokens, WIDTH)).astype(np.float32)

    def call(session: Session) -> Callable[[], object]:
        return lambda: session.step({"x": x})

    times = paired(call(ours), call(theirs), pairs, clock=time.thread_time)
    return [1e6 * median(each) / tokens for each in times]


if __name__ == "__main__":
    run(__doc__, measure)
