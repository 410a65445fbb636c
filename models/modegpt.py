"""What MoDeGPT left of a Llama or a Qwen3: layers with widths of their own.

Checkpoints of another compressor are read here; `--pass modegpt` makes the like of a whole model.
Of a layer whose heads of queries and keys keep r entries m of d:

    q' = rotate(q, theta[m mod d/2]),  k' alike,  scores = q' k'^T / sqrt(r)

Angles are those that each pair had, others for each head of keys.  Scores are divided by the root
of the entries that are left: so do those checkpoints, where the dense model divides by the root of
d.  ``"modegpt_scale": "original"`` in their config.json divides as the dense model did.  Norms of
queries and keys (Qwen3) take the mean over the entries that are left, with the weights that
these had.

Source: Lin et al. 2024, arXiv:2408.09632; github cbacary/MoDeGPT @ 2a76ae8, src/patchers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed
from .model import Model, token_ids
from .parts import pretrained_llama
from .parts.language_layers import LanguageModel, by_head

RANKS = ("q_ranks", "k_ranks", "v_ranks", "o_ranks", "gate_ranks")
SCALE = "modegpt_scale"
MASKS = "mask_path"
KINDS = {"llama": False, "qwen3": True}  # by model_type: whether queries and keys have norms


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the dense model, and of each layer the entries of a head and the channels left.

    `head_size` is that of the dense model; `scale` is compressed or original: of which the root
    divides scores.
    """

    vocab_size: int = 256
    hidden_size: int = 64
    head_size: int = 16
    num_heads: int = 4
    num_kv_heads: int = 2
    key_sizes: tuple[int, ...] = (12, 8)
    value_sizes: tuple[int, ...] = (12, 6)
    mlp_sizes: tuple[int, ...] = (96, 80)
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    head_norms: bool = False
    scale: str = "compressed"
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit each other."""
        if not len(self.key_sizes) == len(self.value_sizes) == len(self.mlp_sizes):
            raise ValueError("key_sizes, value_sizes and mlp_sizes should have an entry per layer")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_heads} heads do not share {self.num_kv_heads} of keys")
        if any(size % 2 or not 0 < size <= self.head_size for size in self.key_sizes):
            raise ValueError(f"key_sizes should be even, up to {self.head_size}")
        if self.scale not in {"compressed", "original"}:
            raise ValueError(f"scale should be compressed or original, not {self.scale!r}")

    @property
    def intermediate_size(self) -> int:
        """Channels of the widest feed-forward."""
        return max(self.mlp_sizes)

    @property
    def num_layers(self) -> int:
        """Blocks of the model."""
        return len(self.key_sizes)


TINY = Config()


class NarrowAttention(nn.Module):
    """Causal attention whose keys and values have widths of their own.

    `entries` [num_kv_heads, key size / 2] are the pairs of the dense head that are left.
    """

    entries: Tensor

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.config = config
        key, value = config.key_sizes[layer], config.value_sizes[layer]
        heads, groups = config.num_heads, config.num_kv_heads
        self.scale = (key if config.scale == "compressed" else config.head_size) ** -0.5
        self.q_proj = nn.Linear(config.hidden_size, heads * key, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, groups * key, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, groups * value, bias=False)
        self.o_proj = nn.Linear(heads * value, config.hidden_size, bias=False)
        self.register_buffer("entries", torch.arange(key // 2).repeat(groups, 1))
        if config.head_norms:
            self.q_norm = nn.Parameter(torch.ones(groups, key))
            self.k_norm = nn.Parameter(torch.ones(groups, key))

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        config = self.config
        share = config.num_heads // config.num_kv_heads
        q = by_head(self.q_proj(x), config.num_heads)
        k, v = (by_head(p(x), config.num_kv_heads) for p in (self.k_proj, self.v_proj))
        if config.head_norms:
            q = self._normed(q, self.q_norm.repeat_interleave(share, 0))
            k = self._normed(k, self.k_norm)
        even = 2 * self.entries.to(torch.float32)  # [groups, key / 2]
        angles = config.rope_theta ** (-even / config.head_size)
        q = _rotate(q.transpose(1, 2), angles.repeat_interleave(share, 0))
        k = _rotate(k.transpose(1, 2), angles)
        y = F.scaled_dot_product_attention(
            q, k, v.transpose(1, 2), is_causal=True, scale=self.scale, enable_gqa=share > 1
        )
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(-2))
        return out

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.config.norm_eps) * weight


def _rotate(x: Tensor, rates: Tensor) -> Tensor:
    """Turn the halves of x [B, H, T, size] against each other, by the `rates` [H, size / 2]."""
    positions = torch.arange(x.shape[2], dtype=torch.float32, device=x.device)
    angles = positions[:, None] * rates[:, None]  # [H, T, size / 2]
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised."""
    mixers = [NarrowAttention(config, layer) for layer in range(config.num_layers)]
    return LanguageModel(mixers, config, config.mlp_sizes)


def _fits(values: Values, _: Any) -> bool:
    return all(name in values for name in RANKS)


def _configure(values: Values, _: Shapes) -> dict[str, Any]:
    refuse({"model_type": None, **values}, {"model_type": tuple(KINDS)})
    refuse(values, {SCALE: ("compressed", "original")})
    hidden, heads = (read_value(values, n, int) for n in ("hidden_size", "num_attention_heads"))
    head = read_value(values, "head_dim", int | None, None) or hidden // heads
    sizes = pretrained_llama.llama_values({**values, "head_dim": None})
    layers, groups = sizes.pop("num_layers"), sizes["num_kv_heads"]
    del sizes["intermediate_size"]  # of the dense model
    ranks = {name: read_value(values, name, tuple[int, ...]) for name in RANKS}
    for name, found in ranks.items():
        if len(found) != layers:
            raise SourceError(f"its {name} has {len(found)} entries for {layers} layers")
    return {
        **sizes,
        "key_sizes": _each(ranks, "q_ranks", heads, "k_ranks", groups),
        "value_sizes": _each(ranks, "o_ranks", heads, "v_ranks", groups),
        "mlp_sizes": tuple(ranks["gate_ranks"]),
        "head_size": head,
        "head_norms": KINDS[values["model_type"]],
        "scale": values.get(SCALE, "compressed"),
    }


def _each(
    ranks: Mapping[str, Sequence[int]], first: str, heads: int, second: str, groups: int
) -> tuple[int, ...]:
    """Entries of a head, from the widths of all heads and of all that they share."""
    found = []
    for layer, (wide, shared) in enumerate(zip(ranks[first], ranks[second], strict=True)):
        if wide % heads or shared % groups or wide // heads != shared // groups:
            raise SourceError(
                f"its {first} and {second} have {wide} and {shared} for layer {layer}, which are "
                f"not as many for each of {heads} heads and of {groups} that they share"
            )
        found.append(wide // heads)
    return tuple(found)


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    names = pretrained_llama.llama_names(config.num_layers, tied=config.tie_embeddings)
    found = renamed(tensors, names)
    for layer, size in enumerate(config.key_sizes):
        pairs = _pairs(tensors, layer, size, config)
        found[f"layers.{layer}.mixer.entries"] = pairs
        if config.head_norms:
            entries = torch.cat((pairs, pairs + config.head_size // 2), dim=1)
            for name in ("q_norm", "k_norm"):
                weight = tensors[f"model.layers.{layer}.self_attn.{name}.weight"]
                found[f"layers.{layer}.mixer.{name}"] = weight[entries]
    return found


def _pairs(tensors: Mapping[str, Tensor], layer: int, size: int, config: Config) -> Tensor:
    """The pairs [groups, size / 2] that a mask keeps: which of the dense head's, by each group."""
    half = config.head_size // 2
    name = f"{MASKS}.{layer}"
    if name not in tensors and size == config.head_size:  # nothing was cut, nothing is in a mask
        return torch.arange(half).repeat(config.num_kv_heads, 1)
    if name not in tensors:
        raise SourceError(
            f"its layer {layer} keeps {size} of {config.head_size} entries of a head, and no file "
            f"says which: {MASKS} of its config.json names no list of them"
        )
    mask = tensors[name]
    shape = (config.num_kv_heads, size)
    if tuple(mask.shape) != shape or mask.dtype != torch.int64:
        raise SourceError(
            f"its mask of layer {layer} is {mask.dtype} {list(mask.shape)}; by its config it "
            f"should be torch.int64 {list(shape)}"
        )
    first, second = mask.chunk(2, dim=1)
    if not (torch.equal(second, first + half) and ((first >= 0) & (first < half)).all()):
        raise SourceError(
            f"its mask of layer {layer} does not keep whole pairs i and i + {half}, which "
            "positions turn against each other"
        )
    return first


CBACARY = CheckpointLayout(
    name="cbacary",
    source="github cbacary/MoDeGPT @ 2a76ae8, src/patchers and src/model_utils.py",
    fits=_fits,
    configure=_configure,
    weights=_weights,
    beside=(MASKS,),
)

MODEGPT = Model(
    name="modegpt",
    summary="A Llama or Qwen3 whose layers lost channels, as MoDeGPT's checkpoints have it.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=None,
    source="arXiv:2408.09632",
    layouts=(CBACARY,),
)
