"""Mamba-2 as its library has it: one input projection, a convolution, a gated recurrence, a norm.

    [z | x B C | d] = W_in u,   (x B C) = silu(conv(x B C)),   step_t = softplus(d_t + bias),
    S_t = exp(-exp(A) step_t) S_{t-1} + B_t (step_t x_t)^T,   y_t = C_t^T S_t + D x_t,
    out = W_out (rms(y silu(z)) weight).

Heads share B and C in groups, mostly one of all; the norm is that of a group.  Names of parameters
are those of `mamba_ssm.Mamba2`.

Source: Dao & Gu 2024, arXiv:2405.21060.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

from .language_layers import RMSNorm, by_head
from .linear_mixers import spread

STEPS = (-3, -1)  # powers of ten, between which the lengths of steps start


class Mamba2(nn.Module):
    """A mixer of `size` channels, widened to `inner`, in heads of `head_size`."""

    def __init__(
        self,
        size: int,
        *,
        inner: int,
        head_size: int,
        state_size: int,
        conv_size: int,
        eps: float,
        groups: int = 1,
    ) -> None:
        super().__init__()
        heads, channels = inner // head_size, inner + 2 * groups * state_size
        self.sizes = (inner, channels, heads)
        self.shared, self.groups = groups * state_size, groups
        self.in_proj = nn.Linear(size, inner + channels + heads, bias=False)
        self.conv1d = nn.Conv1d(
            channels, channels, conv_size, groups=channels, padding=conv_size - 1
        )
        steps = torch.logspace(*STEPS, heads)
        self.dt_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))
        self.A_log = nn.Parameter(torch.linspace(1, 16, heads).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = RMSNorm(inner, eps)
        self.out_proj = nn.Linear(inner, size, bias=False)

    def forward(self, u: Tensor) -> Tensor:
        """Mix u [B, T, size] along T."""
        inner, _, heads = self.sizes
        z, mixed, d = torch.split(self.in_proj(u), [*self.sizes], dim=-1)
        mixed = F.silu(self.conv1d(mixed.mT)[..., : u.shape[1]].mT)
        x, b, c = torch.split(mixed, [inner, self.shared, self.shared], dim=-1)
        step = F.softplus(d + self.dt_bias)
        x = by_head(x, heads)
        y, _ = linear_attention(
            spread(c, self.groups, heads // self.groups),
            spread(b, self.groups, heads // self.groups),
            (x * step[..., None]).flatten(-2),
            decay=-self.A_log.exp() * step,
            update_rule="gated",
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
        )
        y = (by_head(y, heads) + self.D[:, None] * x).flatten(-2)
        out: Tensor = self.out_proj(self._normed(y * F.silu(z)))
        return out

    def _normed(self, y: Tensor) -> Tensor:
        """Divide y [B, T, inner] by the root mean square of its group."""
        if self.groups == 1:
            normed: Tensor = self.norm(y)
            return normed
        each = by_head(y, self.groups)
        each = each * torch.rsqrt(each.pow(2).mean(-1, keepdim=True) + self.norm.eps)
        return each.flatten(-2) * self.norm.weight
