"""Gated Linear Attention: a matrix state per head that decays per key, by a learned gate.

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = q_t^T S_t / sqrt(d_k),
g_t = logsigmoid(W_2 W_1 x_t) / 16.  output is normalised per head and gated by silu(W_r x_t).

Source: Yang et al. 2023, arXiv:2312.06635, section 4.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

from ._layers import LanguageModel, RMSNorm, by_head
from .model import Model, token_ids
from .training import Recipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """`gate_rank` is the width of the gate's bottleneck, `gate_divisor` the temperature 16."""

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 240
    num_layers: int = 4
    num_heads: int = 4
    key_size: int = 64
    gate_rank: int = 16
    gate_divisor: float = 16.0
    norm_eps: float = 1e-6
    tie_embeddings: bool = False


TINY = Config()


class GatedLinearAttention(nn.Module):
    """Linear attention with a data-dependent decay for each key."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.q_proj = nn.Linear(size, config.key_size, bias=False)
        self.k_proj = nn.Linear(size, config.key_size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.gk_proj = nn.Sequential(
            nn.Linear(size, config.gate_rank, bias=False),
            nn.Linear(config.gate_rank, config.key_size),
        )
        self.g_proj = nn.Linear(size, size, bias=False)
        self.g_norm = RMSNorm(size // config.num_heads, config.norm_eps)
        self.o_proj = nn.Linear(size, size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        heads = self.config.num_heads
        decay = F.logsigmoid(self.gk_proj(x)) / self.config.gate_divisor
        y, _ = linear_attention(
            self.q_proj(x),
            self.k_proj(x),
            self.v_proj(x),
            decay=decay,
            update_rule="gated",
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=(self.config.key_size // heads) ** -0.5,
        )
        y = self.g_norm(by_head(y, heads)).flatten(-2)
        out: Tensor = self.o_proj(y * F.silu(self.g_proj(x)))
        return out


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    return LanguageModel([GatedLinearAttention(config) for _ in range(config.num_layers)], config)


GLA = Model(
    name="gla",
    summary="Gated Linear Attention: a matrix state with a learned decay per key.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=Recipe(),
    source="arXiv:2312.06635",
)
