"""Gated DeltaNet with short convolutions, and one full-attention layer in four.

S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T,  o_t = q_t^T S_t / sqrt(d_k),
g_t = -exp(A) softplus(W_a x_t + b),  beta_t = sigmoid(W_b x_t); q, k, v pass a causal convolution
of 4 tokens and SiLU, q and k are normalised to length one.

Source: Yang et al. 2024, arXiv:2412.06464 (the layer and the hybrids); the attention is Llama's.
"""

from dataclasses import dataclass

from torch import nn

from . import llama
from .model import Model, token_ids
from .parts.language_layers import LanguageModel
from .parts.linear_mixers import GatedDeltaNet, Heads
from .training import TrainingRecipe


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


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    attention = llama.Config(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        rope_theta=config.rope_theta,
    )
    mixers: list[nn.Module] = [
        llama.Attention(attention) if (layer + 1) % config.attention_every == 0 else mixer(config)
        for layer in range(config.num_layers)
    ]
    return LanguageModel(mixers, config)


def mixer(config: Config) -> GatedDeltaNet:
    """One of its recurrent layers."""
    heads = Heads(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        key_size=config.head_size,
        value_size=config.head_size,
        conv_size=config.conv_size,
        eps=config.norm_eps,
    )
    return GatedDeltaNet(heads)


GATED_DELTANET = Model(
    name="gated-deltanet",
    summary="Gated DeltaNet with short convolutions and one attention layer in four.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(),
    source="arXiv:2412.06464",
)
