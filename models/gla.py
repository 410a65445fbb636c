"""Gated Linear Attention: a matrix state per head that decays per key, by a learned gate.

S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T,  o_t = q_t^T S_t / sqrt(d_k),
g_t = logsigmoid(W_2 W_1 x_t) / 16.  output is normalised per head and gated by silu(W_r x_t).

Source: Yang et al. 2023, arXiv:2312.06635, section 4.
"""

from dataclasses import dataclass

from .model import Model, token_ids
from .parts.language_layers import LanguageModel
from .parts.linear_mixers import GatedLinearAttention, Heads
from .training import TrainingRecipe


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


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    return LanguageModel([mixer(config) for _ in range(config.num_layers)], config)


def mixer(config: Config) -> GatedLinearAttention:
    """One of its layers."""
    heads = Heads(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        key_size=config.key_size // config.num_heads,
        value_size=config.hidden_size // config.num_heads,
        eps=config.norm_eps,
    )
    return GatedLinearAttention(heads, rank=config.gate_rank, divisor=config.gate_divisor)


GLA = Model(
    name="gla",
    summary="Gated Linear Attention: a matrix state with a learned decay per key.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(),
    source="arXiv:2312.06635",
)
