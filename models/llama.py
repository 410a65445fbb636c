"""A Llama-type transformer: RoPE, grouped queries, RMSNorm, SwiGLU, optionally a sliding window.

Source: Touvron et al. 2023, arXiv:2302.13971 (Llama); Su et al. 2021, arXiv:2104.09864 (RoPE);
Ainslie et al. 2023, arXiv:2305.13245 (grouped queries); Jiang et al. 2023, arXiv:2310.06825
(sliding window).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import Model, token_ids
from .parts.language_layers import LanguageModel, by_head
from .training import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """`window`: each token sees itself and the `window - 1` tokens before it; None: all."""

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 288
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    window: int | None = None
    tie_embeddings: bool = False

    @property
    def head_size(self) -> int:
        """Entries of one head."""
        return self.hidden_size // self.num_heads


TINY = Config()
WINDOW = Config(window=64)
SMALL = Config(hidden_size=64, intermediate_size=144, num_layers=3, num_kv_heads=1)


class Attention(nn.Module):
    """Causal attention with rotary positions and shared key-value heads."""

    def __init__(self, config: Config, *, bias: bool = False) -> None:
        super().__init__()
        self.config = config
        kv_size = config.num_kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=bias)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        out: Tensor = self.o_proj(
            attend(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.config)
        )
        return out


def attend(query: Tensor, key: Tensor, value: Tensor, config: Config) -> Tensor:
    """Causal softmax attention of rotated queries and keys.

    Args:
        query: [B, T, num_heads * head_size].
        key: [B, T, num_kv_heads * head_size].
        value: as `key`.
        config: numbers of heads, base of the rotation, window.

    Returns:
        [B, T, num_heads * head_size].
    """
    time, heads, kv_heads = query.shape[1], config.num_heads, config.num_kv_heads
    q = by_head(query, heads).transpose(1, 2)
    k, v = (by_head(x, kv_heads).transpose(1, 2) for x in (key, value))
    cos, sin = rotary(time, config.head_size, config.rope_theta, q)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    mask = None if config.window is None else sliding_window(time, config.window, q.device)
    y = F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=mask is None, enable_gqa=heads != kv_heads
    )
    return y.transpose(1, 2).flatten(-2)


def rotary(time: int, size: int, theta: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, size / 2] of the rotation of each position, in the dtype of `like`."""
    even = torch.arange(0, size, 2, dtype=torch.float32, device=like.device)
    positions = torch.arange(time, dtype=torch.float32, device=like.device)
    angles = positions[:, None] * theta ** (-even / size)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of x [B, H, T, size] against each other."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def sliding_window(time: int, window: int, device: torch.device) -> Tensor:
    """Boolean [T, T]: whom each token sees."""
    i = torch.arange(time, device=device)
    behind = i[:, None] - i[None, :]
    return (behind >= 0) & (behind < window)


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    return LanguageModel([Attention(config) for _ in range(config.num_layers)], config)


LLAMA = Model(
    name="llama",
    summary="Transformer with RoPE, grouped queries and an optional sliding window.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY, "window": WINDOW, "small": SMALL},
    recipe=TrainingRecipe(),
    recipes={"small": TrainingRecipe(steps=300, time=128)},
    source="arXiv:2302.13971, arXiv:2310.06825",
)
