"""Layers that every language model here has: norm, feed-forward, the residual stream."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis (Zhang & Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [..., size]."""
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, hidden, bias=False)
        self.up_proj = nn.Linear(size, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class Block(nn.Module):
    """Pre-norm residual block: x + mixer(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, mixer: nn.Module, size: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(size, eps)
        self.mixer = mixer
        self.post_attention_layernorm = RMSNorm(size, eps)
        self.mlp = SwiGLU(size, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, size]."""
        mixed: Tensor = x + self.mixer(self.input_layernorm(x))
        y: Tensor = mixed + self.mlp(self.post_attention_layernorm(mixed))
        return y


class Sizes(Protocol):
    """What the config of every language model says of all but its mixers."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def norm_eps(self) -> float: ...
    @property
    def tie_embeddings(self) -> bool: ...


class LanguageModel(nn.Module):
    """Token embedding, blocks around the given mixers, a norm and the logits.

    `hidden` has the channels of each layer's feed-forward, where they are not all alike.
    """

    def __init__(
        self, mixers: Sequence[nn.Module], sizes: Sizes, hidden: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(sizes.vocab_size, sizes.hidden_size)
        channels = hidden or [sizes.intermediate_size] * len(mixers)
        self.layers = nn.ModuleList(
            Block(mixer, sizes.hidden_size, size, sizes.norm_eps)
            for mixer, size in zip(mixers, channels, strict=True)
        )
        self.norm = RMSNorm(sizes.hidden_size, sizes.norm_eps)
        self.lm_head = nn.Linear(sizes.hidden_size, sizes.vocab_size, bias=False)
        self.apply(_initialise)
        if sizes.tie_embeddings:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocab] of the token after each of input_ids [B, T]."""
        return self.decode(self.embed_tokens(input_ids))

    def decode(self, x: Tensor) -> Tensor:
        """Logits [B, T, vocab] of the embedded tokens x [B, T, hidden]."""
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits


def by_head(x: Tensor, heads: int) -> Tensor:
    """Cut the last axis of x [..., heads * size] into [..., heads, size]."""
    return x.reshape(*x.shape[:-1], heads, -1)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
