"""Mixers with a recurrent state: retention, HGRN, HGRN2, GLA, DeltaNet and Gated DeltaNet.

Each maps [B, T, hidden] to the same.  Per head, with a state S of [key_size, value_size]:

    S_t = D_t S_{t-1} + k_t v_t^T,                    o_t = q_t^T S_t / sqrt(key_size)
    S_t = D_t S_{t-1} + b_t k_t (v_t - D_t S_{t-1}^T k_t)^T    (delta rules)

    RetNet          D_t = 1 - 2^{-5-h} for head h; q and k are rotated       arXiv:2307.08621
    HGRN            elementwise: h_t = f_t h_{t-1} + (1 - f_t) silu(i_t)     arXiv:2311.04823
    HGRN2           D_t = diag(f_t), k_t = 1 - f_t, q_t = silu(W x_t)        arXiv:2404.07904
    GLA             D_t = diag(exp(logsigmoid(W_2 W_1 x_t) / 16))            arXiv:2312.06635
    DeltaNet        D_t = 1; q and k of length one                           arXiv:2406.06484
    Gated DeltaNet  D_t = exp(-exp(A) softplus(W_a x_t + b)), else DeltaNet  arXiv:2412.06464

A forget gate f is sigmoid(W_f x_t), above a learned lower bound in all layers but the first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.models.llama import rotary, rotate
from intaglio.ops import diagonal_ssm, linear_attention

from .language_layers import RMSNorm, by_head

RETENTION_THETA = 10_000.0
HGRN2_EPS = 1e-5  # whatever eps the other norms of its models have


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Sizes of a mixer: `key_size` and `value_size` are those of one head.

    `num_kv_heads` are shared by the queries in groups; `conv_size` is the number of tokens that
    short convolutions see, None for none; `output_gate` gates the normed output by silu(W x).
    """

    hidden_size: int
    num_heads: int
    key_size: int
    value_size: int
    num_kv_heads: int
    conv_size: int | None = None
    output_gate: bool = True
    eps: float = 1e-6

    @property
    def scale(self) -> float:
        """Factor of the output."""
        return float(self.key_size**-0.5)


class ShortConvolution(nn.Conv1d):
    """A causal depthwise convolution over [B, T, channels], and SiLU where `silu`."""

    def __init__(self, channels: int, size: int, *, silu: bool = True) -> None:
        super().__init__(channels, channels, size, groups=channels, padding=size - 1, bias=False)
        self.silu = silu

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  as Conv1d calls it
        """Convolve along T."""
        y = super().forward(input.transpose(1, 2))[..., : input.shape[1]].transpose(1, 2)
        return F.silu(y) if self.silu else y


def convolution(channels: int, size: int | None, *, silu: bool = True) -> nn.Module:
    """A short convolution, or nothing."""
    return nn.Identity() if size is None else ShortConvolution(channels, size, silu=silu)


def unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one."""
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def spread(x: Tensor, heads: int, groups: int) -> Tensor:
    """Repeat each of `heads` heads in x [B, T, heads * size] for the `groups` that share it."""
    return x if groups == 1 else by_head(x, heads).repeat_interleave(groups, 2).flatten(-2)


class Projected(nn.Module):
    """What the mixers with queries, keys and values share: projections in, gated norm out."""

    def __init__(self, heads: Heads, *, key_heads: int, value_heads: int, norm: str) -> None:
        super().__init__()
        self.heads = heads
        self._norm = norm
        size = heads.hidden_size
        self.q_proj = nn.Linear(size, heads.num_heads * heads.key_size, bias=False)
        self.k_proj = nn.Linear(size, key_heads * heads.key_size, bias=False)
        self.v_proj = nn.Linear(size, value_heads * heads.value_size, bias=False)
        self.q_conv1d = convolution(self.q_proj.out_features, heads.conv_size)
        self.k_conv1d = convolution(self.k_proj.out_features, heads.conv_size)
        self.v_conv1d = convolution(self.v_proj.out_features, heads.conv_size)

    def _outwards(self, heads: int) -> None:
        """Add the layers of `output`, for so many heads of values."""
        h = self.heads
        inner = heads * h.value_size
        if h.output_gate:
            self.g_proj = nn.Linear(h.hidden_size, inner, bias=False)
        self.add_module(self._norm, RMSNorm(h.value_size, h.eps))
        self.o_proj = nn.Linear(inner, h.hidden_size, bias=False)

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B, T, hidden]."""
        q: Tensor = self.q_conv1d(self.q_proj(x))
        k: Tensor = self.k_conv1d(self.k_proj(x))
        v: Tensor = self.v_conv1d(self.v_proj(x))
        return q, k, v

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """What y [B, T, heads * value_size] becomes, normed per head and gated by x."""
        normed: Tensor = self.get_submodule(self._norm)(
            by_head(y, y.shape[-1] // self.heads.value_size)
        )
        gated = normed.flatten(-2)
        if self.heads.output_gate:
            gated = gated * F.silu(self.g_proj(x))
        out: Tensor = self.o_proj(gated)
        return out


class Retention(Projected):
    """A decay that is fixed for each head, with rotated queries and keys."""

    def __init__(self, heads: Heads) -> None:
        kv = heads.num_kv_heads
        super().__init__(heads, key_heads=kv, value_heads=kv, norm="g_norm")
        self._outwards(heads.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        q, k, v = self.projected(x)
        cos, sin = rotary(x.shape[1], h.key_size, RETENTION_THETA, x)
        q, k = (
            rotate(by_head(t, n).transpose(1, 2), cos, sin).transpose(1, 2).flatten(-2)
            for t, n in ((q, h.num_heads), (k, h.num_kv_heads))
        )
        k, v = (spread(t, h.num_kv_heads, h.num_heads // h.num_kv_heads) for t in (k, v))
        head = torch.arange(h.num_heads, dtype=torch.float64, device=x.device)
        decay = torch.log1p(-(2.0 ** (-5 - head))).to(x.dtype)
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=decay.expand(*x.shape[:2], -1),
            update_rule="gated",
            q_num_heads=h.num_heads,
            kv_num_heads=h.num_heads,
            scale=h.scale,
        )
        return self.output(y, x)


class GatedLinearAttention(Projected):
    """A decay for each key, by a gate of low rank; at least `floor` in log space."""

    g_norm: RMSNorm

    def __init__(
        self, heads: Heads, *, rank: int = 16, divisor: float = 16.0, floor: float | None = None
    ) -> None:
        kv = heads.num_kv_heads
        super().__init__(heads, key_heads=kv, value_heads=kv, norm="g_norm")
        self.divisor, self.floor = divisor, floor
        self.gk_proj = nn.Sequential(
            nn.Linear(heads.hidden_size, rank, bias=False), nn.Linear(rank, kv * heads.key_size)
        )
        self._outwards(heads.num_heads)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        decay = F.logsigmoid(self.gk_proj(x)) / self.divisor
        y, _ = linear_attention(
            *self.projected(x),
            decay=decay if self.floor is None else decay.clamp_min(self.floor),
            update_rule="gated",
            q_num_heads=h.num_heads,
            kv_num_heads=h.num_kv_heads,
            scale=h.scale,
        )
        return self.output(y, x)


class UnitKeys(Projected):
    """Projected with queries and keys of length one, all through SiLU."""

    def projected(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x [B, T, hidden]."""
        q, k, v = super().projected(x)
        if self.heads.conv_size is None:
            q, k, v = F.silu(q), F.silu(k), F.silu(v)
        q, k = (unit(by_head(t, self.heads.num_heads)).flatten(-2) for t in (q, k))
        return q, k, v


class DeltaNet(UnitKeys):
    """The delta rule: a key's old value is replaced; `reflecting` lets the rate reach two."""

    def __init__(self, heads: Heads, *, reflecting: bool = False) -> None:
        n = heads.num_heads
        super().__init__(heads, key_heads=n, value_heads=n, norm="o_norm")
        self.rate = 2.0 if reflecting else 1.0
        self.b_proj = nn.Linear(heads.hidden_size, n, bias=False)
        self._outwards(n)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        y, _ = linear_attention(
            *self.projected(x),
            beta=self.b_proj(x).sigmoid() * self.rate,
            update_rule="delta",
            q_num_heads=h.num_heads,
            kv_num_heads=h.num_heads,
            scale=h.scale,
        )
        return self.output(y, x)


class GatedDeltaNet(UnitKeys):
    """The delta rule with a decay for each head; `num_kv_heads` values share keys in groups."""

    def __init__(self, heads: Heads, *, reflecting: bool = False) -> None:
        values = heads.num_kv_heads
        super().__init__(heads, key_heads=heads.num_heads, value_heads=values, norm="o_norm")
        self.rate = 2.0 if reflecting else 1.0
        self.a_proj = nn.Linear(heads.hidden_size, values, bias=False)
        self.b_proj = nn.Linear(heads.hidden_size, values, bias=False)
        self.A_log = nn.Parameter(torch.linspace(1, 16, values).log())
        self.dt_bias = nn.Parameter(torch.linspace(-6.9, -2.3, values))
        self._outwards(values)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        q, k, v = self.projected(x)
        q, k = (spread(t, h.num_heads, h.num_kv_heads // h.num_heads) for t in (q, k))
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=-self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias),
            beta=self.b_proj(x).sigmoid() * self.rate,
            update_rule="gated_delta",
            q_num_heads=h.num_kv_heads,
            kv_num_heads=h.num_kv_heads,
            scale=h.scale,
        )
        return self.output(y, x)


def forget_gate(f: Tensor, bounds: Tensor | None, layer: int) -> tuple[Tensor, Tensor]:
    """Logarithm of the forget gate of logits f [B, T, D], and one minus the gate.

    Args:
        f: logits.
        bounds: [layers, D], from which the lower bound of each layer grows; None for none.
        layer: which layer, counted from 0; that one has no bound.
    """
    if bounds is None or layer == 0:
        return F.logsigmoid(f), torch.sigmoid(-f)
    shares = bounds.softmax(0)
    bound = (shares.cumsum(0) - shares[0])[layer]
    written = (1 - bound) * torch.sigmoid(-f)
    # where almost nothing is kept, rounding would keep nothing at all
    return torch.maximum(torch.log1p(-written), bound.clamp_min(1e-30).log()), written


class HGRN(nn.Module):
    """A gated recurrence of each entry by itself."""

    def __init__(self, heads: Heads, layer: int, bounds: nn.Parameter | None) -> None:
        super().__init__()
        size, inner = heads.hidden_size, heads.num_heads * heads.value_size
        self.layer = layer
        self.lower_bounds = bounds if layer > 0 else None
        self.i_proj = nn.Linear(size, inner, bias=False)
        self.f_proj = nn.Linear(size, inner, bias=False)
        self.g_proj = nn.Linear(size, inner, bias=False)
        self.i_conv1d = convolution(inner, heads.conv_size, silu=False)
        self.f_conv1d = convolution(inner, heads.conv_size, silu=False)
        self.g_norm = RMSNorm(inner, heads.eps)
        self.o_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        log_gate, written = forget_gate(
            self.f_conv1d(self.f_proj(x)), self.lower_bounds, self.layer
        )
        ones = torch.ones_like(log_gate[0, 0], dtype=_state_dtype(x))[:, None]
        y, _ = diagonal_ssm(
            F.silu(self.i_conv1d(self.i_proj(x))) * written,
            -ones,
            ones.to(x.dtype),
            ones.to(x.dtype),
            -log_gate,
            discretization="none",
            lti=True,
        )
        out: Tensor = self.o_proj(self.g_norm(y) * F.silu(self.g_proj(x)))
        return out


class HGRN2(nn.Module):
    """Linear attention whose keys are what its forget gates let go."""

    def __init__(self, heads: Heads, layer: int, bounds: nn.Parameter | None) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.lower_bounds = bounds if layer > 0 else None
        size = heads.hidden_size
        keys, values = heads.num_heads * heads.key_size, heads.num_heads * heads.value_size
        self.q_proj = nn.Linear(size, keys, bias=False)
        self.f_proj = nn.Linear(size, keys, bias=False)
        self.i_proj = nn.Linear(size, values, bias=False)
        self.q_conv1d = convolution(keys, heads.conv_size, silu=False)
        self.f_conv1d = convolution(keys, heads.conv_size, silu=False)
        self.i_conv1d = convolution(values, heads.conv_size, silu=False)
        self.g_norm = RMSNorm(values, HGRN2_EPS)
        self.o_proj = nn.Linear(values, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        log_gate, written = forget_gate(
            self.f_conv1d(self.f_proj(x)), self.lower_bounds, self.layer
        )
        y, _ = linear_attention(
            F.silu(self.q_conv1d(self.q_proj(x))),
            written,
            self.i_conv1d(self.i_proj(x)),
            decay=log_gate,
            update_rule="gated",
            q_num_heads=h.num_heads,
            kv_num_heads=h.num_heads,
            scale=h.scale,
        )
        out: Tensor = self.o_proj(self.g_norm(y))
        return out


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32
