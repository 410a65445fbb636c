"""A language model with norm-aware linear attention: the causal, streaming form of NaLaFormer.

    S_t = S_{t-1} + R_t(phi_k) v_t^T,   z_t = z_{t-1} + phi_k,
    o_t = R_t(phi_q)^T S_t / (phi_q^T z_t + t 1e-6),

with the features of `parts/norm_aware_attention.py`, R_t the rotation by position t and no decay:
its state is as large after any number of tokens.  Values pass a causal depthwise convolution beside
that, what is summed is normalised and gated.  The published code has the form for pictures alone
(`nalaformer`); this one follows from its equations, the mean over all places being one over those
before.

Source: Meng et al. 2025, arXiv:2506.21137.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

from .model import Model, token_ids
from .parts.language_layers import LanguageModel, by_head
from .parts.norm_aware_attention import EPS, frequencies, key_features, query_features, rotate
from .training import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the model; `conv_size` are the tokens that the convolution of values sees."""

    vocab_size: int = 256
    hidden_size: int = 64
    intermediate_size: int = 128
    num_layers: int = 2
    num_heads: int = 4
    conv_size: int = 4
    norm_eps: float = 1e-6
    tie_embeddings: bool = True


TINY = Config()


class NormAwareAttention(nn.Module):
    """Norm-aware linear attention that looks back."""

    angle: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_heads
        self.qkvg = nn.Linear(size, 4 * size)
        self.lepe = nn.Conv1d(
            size, size, config.conv_size, groups=size, padding=config.conv_size - 1
        )
        self.out_proj = nn.Linear(size, size)
        self.ln = nn.LayerNorm(size)
        self.register_buffer("angle", frequencies(size // self.heads // 2))

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        time = x.shape[1]
        q, k, v, gate = self.qkvg(x).chunk(4, dim=-1)
        near = self.lepe(v.mT)[..., :time].mT
        queries = query_features(by_head(q, self.heads))
        keys = key_features(by_head(k, self.heads))
        places = torch.arange(time, device=x.device)
        angles = (places[:, None] * self.angle)[:, None]
        sin, cos = angles.sin(), angles.cos()
        turned = [[rotate(x, sin, cos) for x in part] for part in (queries, keys)]
        above = self._sums(turned[0], turned[1], v)
        ones = torch.ones_like(v[..., : self.heads])
        below = self._sums(queries, keys, ones)
        below = below + EPS * (places + 1)[:, None]
        y = (by_head(above, self.heads) / below[..., None]).flatten(-2) + near
        out: Tensor = self.out_proj(self.ln(y) * F.silu(gate))
        return out

    def _sums(self, queries: Sequence[Tensor], keys: Sequence[Tensor], v: Tensor) -> Tensor:
        """q_t^T sum_{s <= t} k_s v_s^T [B, T, heads * d] of parts [B, T, heads, K / 2] of q, k."""
        q, k = (torch.cat(tuple(parts), dim=-1).flatten(-2) for parts in (queries, keys))
        heads = self.heads
        y, _ = linear_attention(
            q, k, v, update_rule="linear", q_num_heads=heads, kv_num_heads=heads, scale=1.0
        )
        return y


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: if heads are no whole number of pairs wide.
    """
    if config.hidden_size % (2 * config.num_heads):
        raise ValueError(
            f"hidden_size = {config.hidden_size} has to be a multiple of two for each of the "
            f"{config.num_heads} heads."
        )
    return LanguageModel([NormAwareAttention(config) for _ in range(config.num_layers)], config)


NALA = Model(
    name="nala",
    summary="Norm-aware linear attention, the causal form of NaLaFormer.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(steps=1200),
    source="arXiv:2506.21137",
)
