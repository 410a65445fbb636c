"""Mixture of memories: each token writes and reads a few of several states, chosen by a router.

A router picks `top_k` of the memories, w_m = softmax(W_r x) over those that it picked.  Each
memory m is a Gated DeltaNet over the tokens that were given to it, short convolutions included:

    S^m_t = e^{g^m_t} S^m_s + b^m_t k^m_t (v^m_t - e^{g^m_t} S^m_s^T k^m_t)^T
    o_t   = sum_m w_m q^m_t^T S^m_t / sqrt(d_k)

with s the token before t that m was given.  A shared memory is given all tokens, with weight 1.

Nothing here depends on who was picked but numbers: a memory that was not picked keeps its state,
as decay 1 and rate 0 do, and the inputs of its convolution stay in the slots of a ring.

Source: Du et al. 2025, arXiv:2502.13685.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.ops import linear_attention

from . import hybrid_linear_attention as hybrid
from .layout import Values, read_value, refuse
from .model import Model, token_ids
from .parts.fla_checkpoints import head_size, layout
from .parts.language_layers import LanguageModel, RMSNorm, by_head
from .parts.linear_mixers import Heads, unit
from .training import TrainingRecipe

ERASED = -80.0  # log decay of a slot that is written anew: e^-80 is nothing beside any number


@dataclass(frozen=True, kw_only=True)
class Config(hybrid.Config):
    """As hybrids of linear attention, with layers "mom" of `num_memories`, `top_k` for each token.

    With `single_projection` all memories share the keys, values and gates of the shared memory.
    """

    layers: tuple[str, ...] = ("mom", "mom", "mom", "attention")
    num_memories: int = 4
    top_k: int = 2
    shared_memory: bool = True
    single_projection: bool = False


TINY = Config(
    layers=("mom", "mom"),
    hidden_size=64,
    intermediate_size=112,
    num_heads=2,
    key_size=16,
    value_size=16,
)


class Projections(nn.ModuleList):
    """One projection for each memory."""

    def __init__(self, memories: int, size: int, out: int) -> None:
        super().__init__(nn.Linear(size, out, bias=False) for _ in range(memories))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, memories, out] of x [B, T, size]."""
        return torch.stack([project(x) for project in self], 2)


class Routed(nn.Module):
    """A depthwise convolution along the tokens that each memory was given, then SiLU."""

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, 1, size) * size**-0.5)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Convolve x [B, T, memories, channels] where mask [B, T, memories] is 1.

        The last inputs of a memory lie in a ring of slots, which is a linear attention: a slot is
        a key, writing erases what it held, and each tap asks for the slot so many places back.
        """
        size, memories = self.weight.shape[-1], mask.shape[-1]
        slots = torch.arange(size, device=x.device)
        here = mask.cumsum(1) % size
        written = (here[..., None] == slots) & (mask[..., None] > 0)
        wanted = (here[..., None, None] - slots[:, None]) % size == slots
        taps, _ = linear_attention(
            wanted.to(x.dtype).flatten(2),
            written.to(x.dtype).flatten(2),
            x.flatten(2),
            decay=written.to(x.dtype).flatten(2) * ERASED,
            update_rule="gated",
            q_num_heads=memories * size,
            kv_num_heads=memories,
            scale=1.0,
        )
        taps = taps.reshape(*x.shape[:3], size, -1)
        return F.silu((taps * self.weight[:, 0].flip(-1).T).sum(-2))


class MixtureOfMemories(nn.Module):
    """Memories that a router picks, beside one for all tokens."""

    def __init__(self, heads: Heads, config: Config) -> None:
        super().__init__()
        if config.top_k > config.num_memories:
            raise ValueError(f"top_k {config.top_k} is more than num_memories")
        if heads.conv_size is None:
            raise ValueError("conv_size is null, but memories need short convolutions")
        self.heads, self.top_k, self.memories = heads, config.top_k, config.num_memories
        self.shared, self.single = config.shared_memory, config.single_projection
        size, n = heads.hidden_size, heads.num_heads
        keys, values = n * heads.key_size, n * heads.value_size
        self.q_proj = nn.Linear(size, keys, bias=False)
        self.gate = nn.Linear(size, self.memories, bias=False)
        for name, out in (("k", keys), ("v", values), ("b", n), ("a", n)):
            if not self.single:
                self.add_module(f"{name}_proj", Projections(self.memories, size, out))
            if self.single or self.shared:
                self.add_module(f"shared_{name}", nn.Linear(size, out, bias=False))
        self.A_log = nn.Parameter(torch.linspace(1, 16, n).log())
        self.dt_bias = nn.Parameter(torch.linspace(-6.9, -2.3, n))
        self.q_conv1d = Routed(keys, heads.conv_size)
        self.k_conv1d = Routed(keys, heads.conv_size)
        self.v_conv1d = Routed(values, heads.conv_size)
        if heads.output_gate:
            self.g_proj = nn.Linear(size, values, bias=False)
        self.o_norm = RMSNorm(heads.value_size, heads.eps)
        self.o_proj = nn.Linear(values, size, bias=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Which memories x [B, T, hidden] is given to, 1 or 0, and their weights: [B, T, all]."""
        weights, picked = self.gate(x).softmax(-1).topk(self.top_k, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        chosen = picked[..., None] == torch.arange(self.memories, device=x.device)
        mask = chosen.any(-2).to(torch.int64)
        weight = (chosen.to(x.dtype) * weights[..., None]).sum(-2)
        if not self.shared:
            return mask, weight
        return (
            torch.cat([mask, torch.ones_like(mask[..., :1])], -1),
            torch.cat([weight, torch.ones_like(weight[..., :1])], -1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        h = self.heads
        mask, weight = self.route(x)
        memories = mask.shape[-1]
        q = self.q_proj(x)[:, :, None].expand(-1, -1, memories, -1)
        q, k, v = (
            conv(t, mask)
            for conv, t in (
                (self.q_conv1d, q),
                (self.k_conv1d, self._of_each("k", x)),
                (self.v_conv1d, self._of_each("v", x)),
            )
        )
        q, k = (unit(by_head(t, h.num_heads)).flatten(2) for t in (q, k))
        given = mask[..., None].to(x.dtype)
        decay = -self.A_log.exp() * F.softplus(self._of_each("a", x) + self.dt_bias)
        y, _ = linear_attention(
            q,
            k,
            v.flatten(2),
            decay=(decay * given).flatten(2),
            beta=(self._of_each("b", x).sigmoid() * given).flatten(2),
            update_rule="gated_delta",
            q_num_heads=memories * h.num_heads,
            kv_num_heads=memories * h.num_heads,
            scale=h.scale,
        )
        y = (by_head(y, memories) * weight[..., None]).sum(2)
        y = self.o_norm(by_head(y, h.num_heads)).flatten(-2)
        if h.output_gate:
            y = y * F.silu(self.g_proj(x))
        out: Tensor = self.o_proj(y)
        return out

    def _of_each(self, name: str, x: Tensor) -> Tensor:
        """The projection `name` of x for each memory, [B, T, memories, out]."""
        if self.single:
            one = self.get_submodule(f"shared_{name}")(x)[:, :, None]
            return torch.cat([one] * (self.memories + self.shared), 2)
        own: Tensor = self.get_submodule(f"{name}_proj")(x)
        if not self.shared:
            return own
        return torch.cat([own, self.get_submodule(f"shared_{name}")(x)[:, :, None]], 2)


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    return hybrid.assemble(
        config,
        {
            **hybrid.MIXERS,
            "mom": lambda config, *_: MixtureOfMemories(hybrid.heads_of(config, None), config),
        },
    )


def _fla(values: Values) -> dict[str, Any]:
    refuse(values, {"mom_backend": ("gated_deltanet",), "use_short_conv": (True,)})
    size = read_value(values, "head_dim", int, 256)
    expanded = size * read_value(values, "expand_v", float, 1.0)
    return {
        "layers": ["mom"],
        "num_heads": read_value(values, "num_heads", int, 4),
        "key_size": size,
        "value_size": head_size(values, expanded, 1, "expand_v"),
        "conv_size": read_value(values, "conv_size", int, 4),
        "output_gate": read_value(values, "use_output_gate", bool, True),
        "num_memories": read_value(values, "num_memories", int, 4),
        "top_k": read_value(values, "topk", int, 2),
        "shared_memory": read_value(values, "shared_mem", bool, True),
        "single_projection": read_value(values, "single_kv_proj", bool, False),
        "attention_bias": False,  # whatever attn says: it is not asked there
        "rope_theta": 10_000.0,
    }


OF_TRAINING = ("aux_loss_scale", "capacity", "use_layer_wise_balance")

MOM = Model(
    name="mom",
    summary="Mixture of memories: a router picks which recurrent states a token writes and reads.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(steps=200, time=128),
    source="arXiv:2502.13685",
    layouts=(layout({"mom": _fla}, build, OF_TRAINING),),
)
