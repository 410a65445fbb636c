"""Gated DeltaNet with short convolutions, and one full-attention layer in four.

S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T,  o_t = q_t^T S_t / sqrt(d_k),
g_t = -exp(A) softplus(W_a x_t + b),  beta_t = sigmoid(W_b x_t); q, k, v pass a causal convolution
of 4 tokens and SiLU, q and k are normalised to length one.

Source: Yang et al. 2024, arXiv:2412.06464 (the layer and the hybrids); the attention is Llama's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

from . import llama
from ._layers import LanguageModel, RMSNorm, by_head
from .model import Model, token_ids
from .training import Recipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """Layers `attention_every`, 2 * `attention_every`, ... are attention, the others recurrent."""

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 224
    num_layers: int = 4
    num_heads: int = 4
    head_size: int = 32
    conv_size: int = 4
    attention_every: int = 4
    num_kv_heads: int = 2
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False


TINY = Config()


class GatedDeltaNet(nn.Module):
    """The gated delta rule behind short causal convolutions."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, inner = config.hidden_size, config.num_heads * config.head_size
        self.q_proj = nn.Linear(size, inner, bias=False)
        self.k_proj = nn.Linear(size, inner, bias=False)
        self.v_proj = nn.Linear(size, inner, bias=False)
        self.q_conv1d = _short_convolution(inner, config.conv_size)
        self.k_conv1d = _short_convolution(inner, config.conv_size)
        self.v_conv1d = _short_convolution(inner, config.conv_size)
        self.a_proj = nn.Linear(size, config.num_heads, bias=False)
        self.b_proj = nn.Linear(size, config.num_heads, bias=False)
        self.A_log = nn.Parameter(torch.linspace(1, 16, config.num_heads).log())
        self.dt_bias = nn.Parameter(torch.linspace(-6.9, -2.3, config.num_heads))
        self.g_proj = nn.Linear(size, inner, bias=False)
        self.o_norm = RMSNorm(config.head_size, config.norm_eps)
        self.o_proj = nn.Linear(inner, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        c = self.config
        time = x.shape[1]
        q, k, v = (
            F.silu(conv(proj(x).transpose(1, 2))[..., :time]).transpose(1, 2)
            for proj, conv in (
                (self.q_proj, self.q_conv1d),
                (self.k_proj, self.k_conv1d),
                (self.v_proj, self.v_conv1d),
            )
        )
        q, k = (_unit(by_head(t, c.num_heads)).flatten(-2) for t in (q, k))
        decay = -self.A_log.exp() * F.softplus(self.a_proj(x) + self.dt_bias)
        y, _ = linear_attention(
            q,
            k,
            v,
            decay=decay,
            beta=self.b_proj(x).sigmoid(),
            update_rule="gated_delta",
            q_num_heads=c.num_heads,
            kv_num_heads=c.num_heads,
            scale=c.head_size**-0.5,
        )
        y = self.o_norm(by_head(y, c.num_heads)).flatten(-2)
        out: Tensor = self.o_proj(y * F.silu(self.g_proj(x)))
        return out


def _short_convolution(channels: int, size: int) -> nn.Conv1d:
    """A depthwise convolution that is causal once its output is cut to the input's length."""
    return nn.Conv1d(channels, channels, size, groups=channels, padding=size - 1, bias=False)


def _unit(x: Tensor) -> Tensor:
    """Scale the last axis to length one."""
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    attention = llama.Config(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        rope_theta=config.rope_theta,
    )
    mixers: list[nn.Module] = [
        llama.Attention(attention)
        if (layer + 1) % config.attention_every == 0
        else GatedDeltaNet(config)
        for layer in range(config.num_layers)
    ]
    return LanguageModel(mixers, config)


GATED_DELTANET = Model(
    name="gated-deltanet",
    summary="Gated DeltaNet with short convolutions and one attention layer in four.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=Recipe(),
    source="arXiv:2412.06464",
)
