"""M-VAR: pictures generated scale by scale, attention within a scale and Mamba-2 across scales.

A picture is codes of several scales (`parts.vqvae`), from 1x1 to the largest.  Of each block, with
vectors g, s, b made of the class,

    x += g_1 attention(norm(x) (1 + s_1) + b_1),   the tokens of one scale seeing each other;
    x += g_2 mamba2(norm(x) (1 + s_2) + b_2),      over the tokens of all scales so far;
    x += g_3 ffn(norm(x) (1 + s_3) + b_3).

The module is in training form, over the tokens of all scales at once; a step takes whole scales.
Three graphs make a picture: `main` scores the codes of a scale, `advance` adds drawn codes to the
features and makes the tokens of the next scale of them, `decode` makes the picture.

Source: Ren et al. 2024, arXiv:2411.10433, and its code; `shared_aln` of that code does not run.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.graphs import Generation, Graph

from .layout import CheckpointLayout
from .model import Model
from .parts.language_layers import by_head
from .parts.mamba2 import Mamba2
from .parts.scale_training import Scales
from .parts.vqvae import Decoder, Quantizer

LARGEST_SCALE = 100.0  # of normalised queries


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the transformer, then those of the codes and their decoder.

    `sides` are those of the scales; the class after the last one stands for none.
    """

    depth: int = 16
    hidden_size: int = 1024
    num_heads: int = 16
    num_classes: int = 1000
    normalized_attention: bool = False
    state_size: int = 64
    head_size: int = 64
    conv_size: int = 4
    sides: tuple[int, ...] = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    codes: int = 4096
    channels: int = 32
    phis: int = 4
    decoder_size: int = 160
    multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    groups: int = 32


D16 = Config()
TINY = Config(
    depth=2,
    hidden_size=64,
    num_heads=2,
    num_classes=8,
    state_size=16,
    head_size=32,
    sides=(1, 2, 3, 4, 6, 8),
    codes=128,
    channels=8,
    phis=2,
    decoder_size=16,
    multipliers=(1, 2, 2),
    groups=8,
)


class ScaleAttention(nn.Module):
    """Attention among the tokens of one scale."""

    zero_k_bias: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads = config.num_heads
        self.normalized = config.normalized_attention
        self.mat_qkv = nn.Linear(size, 3 * size, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(size)) for _ in range(2))
        self.register_buffer("zero_k_bias", torch.zeros(size), persistent=False)
        if self.normalized:
            self.scale_mul_1H11 = nn.Parameter(torch.full((1, self.heads, 1, 1), 4.0).log())
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """Mix x [B, T, size] where seen [T, T]."""
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        mixed = F.linear(x, self.mat_qkv.weight, bias).chunk(3, dim=-1)
        q, k, v = (by_head(part, self.heads).transpose(1, 2) for part in mixed)
        scale = 0.25 / q.shape[-1] ** 0.5
        if self.normalized:
            most = self.scale_mul_1H11.clamp_max(math.log(LARGEST_SCALE)).exp()
            q = F.normalize(q, dim=-1) * most
            k, scale = F.normalize(k, dim=-1), 1.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class FeedForward(nn.Module):
    """Two layers around a GELU, approximated by tanh."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """Attention, Mamba-2 and feed-forward, scaled and shifted by the class."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.hidden_size
        self.attn = ScaleAttention(config)
        self.mamba = Mamba2(
            size,
            inner=2 * size,
            head_size=config.head_size,
            state_size=config.state_size,
            conv_size=config.conv_size,
            eps=1e-5,
        )
        self.ffn = FeedForward(size)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(size, 9 * size))

    def forward(self, x: Tensor, condition: Tensor, seen: Tensor) -> Tensor:
        """Map x [B, T, size]; condition [B, size]."""
        g1, g2, g3, s1, s2, s3, b1, b2, b3 = self.ada_lin(condition)[:, None].chunk(9, dim=-1)
        x = x + g1 * self.attn(_norm(x) * (1 + s1) + b1, seen)
        x = x + g2 * self.mamba(_norm(x) * (1 + s2) + b2)
        out: Tensor = x + g3 * self.ffn(_norm(x) * (1 + s3) + b3)
        return out


class HeadNorm(nn.Module):
    """A norm that the class scales and shifts."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(size, 2 * size))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Normalise x [B, T, size]; condition [B, size]."""
        scale, shift = self.ada_lin(condition)[:, None].chunk(2, dim=-1)
        out: Tensor = _norm(x) * (1 + scale) + shift
        return out


class Autoencoder(nn.Module):
    """What of the picture's autoencoder generates: the codebook and the decoder."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        self.quantize = Quantizer(config.codes, channels, config.sides, config.phis)
        self.post_quant_conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.decoder = Decoder(channels, config.decoder_size, config.multipliers, config.groups)

    def forward(self, picture: Tensor) -> Tensor:
        """Pictures [B, 3, height, width] from 0 to 1 of features [B, channels, H, H]."""
        image: Tensor = self.decoder(self.post_quant_conv(picture)).clamp(-1, 1)
        return (image + 1) / 2


class MVAR(nn.Module):
    """The transformer over all scales, and the autoencoder that its codes are of."""

    level: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        size, first = config.hidden_size, config.sides[0] ** 2
        tokens = sum(side**2 for side in config.sides)
        self.first = first
        self.word_embed = nn.Linear(config.channels, size)
        self.class_emb = nn.Embedding(config.num_classes + 1, size)
        self.pos_start = nn.Parameter(torch.empty(1, first, size))
        self.pos_1LC = nn.Parameter(torch.empty(1, tokens, size))
        self.lvl_embed = nn.Embedding(len(config.sides), size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(size)
        self.head = nn.Linear(size, config.codes)
        self.vae = Autoencoder(config)
        own = [torch.full((side**2,), scale) for scale, side in enumerate(config.sides)]
        self.register_buffer("level", torch.cat(own), persistent=False)
        for value in (self.pos_start, self.pos_1LC, self.class_emb.weight, self.lvl_embed.weight):
            nn.init.normal_(value, std=(1 / size / 3) ** 0.5)

    def forward(self, tokens: Tensor, label: Tensor) -> Tensor:
        """Scores [B, T, codes] of tokens [B, T, channels] of scales, label [B] being the class.

        The tokens of the first scale are made of the class; what is given for them is not read.
        """
        time, condition = tokens.shape[1], self.class_emb(label)
        level = self.level[:time]
        start = condition[:, None] + F.pad(self.pos_start, (0, 0, 0, len(self.level)))[:, :time]
        first = (torch.arange(time, device=tokens.device) < self.first)[:, None]
        x = torch.where(first, start, self.word_embed(tokens))
        x = x + (self.lvl_embed(self.level) + self.pos_1LC)[:, :time]
        seen = level[:, None] == level
        for block in self.blocks:
            x = block(x, condition, seen)
        logits: Tensor = self.head(self.head_nm(x, condition))
        return logits

    def advance(
        self, codes: Tensor, at: Tensor, then: Tensor, picture: Tensor
    ) -> dict[str, Tensor]:
        """Add codes [B, N] of one scale, of places at [N], to features picture [B, C, H, H].

        Also the tokens [B, M, C] of the places then [M].
        """
        picture = self.vae.quantize.add(codes, at, picture)
        return {"tokens": self.vae.quantize.at_places(picture, then), "added": picture}

    def decode(self, picture: Tensor) -> dict[str, Tensor]:
        """The image [B, 3, height, width], from 0 to 1, of features picture [B, C, H, H]."""
        return {"image": self.vae(picture)}


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def build(config: Config) -> MVAR:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: if values of the config do not fit each other.
    """
    if list(config.sides) != sorted(set(config.sides)):
        raise ValueError(f"sides holds {config.sides}; each scale has to be larger than the last.")
    for name, size, parts in (
        ("hidden_size", config.hidden_size, config.num_heads),
        ("2 * hidden_size", 2 * config.hidden_size, config.head_size),
        ("decoder_size", config.decoder_size, config.groups),
    ):
        if size % parts:
            raise ValueError(f"{name} = {size} has to be a multiple of {parts}.")
    return MVAR(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random tokens, and classes."""
    shape = (batch, time, config.channels)
    return {
        "tokens": torch.randn(shape, generator=generator),
        "label": torch.randint(config.num_classes + 1, (batch,), generator=generator),
    }


def axes(config: Config) -> Mapping[str, str]:
    """The class holds for a whole picture."""
    return {"tokens": f"batchxtimex{config.channels}", "label": "batch"}


def graphs(config: Config) -> Mapping[str, Graph]:
    """Scores of a scale, what its codes add, and the picture; the last class stands for none."""
    side, places = config.sides[-1], sum(side**2 for side in config.sides)
    generator = torch.Generator().manual_seed(0)
    picture = torch.randn(2, config.channels, side, side, generator=generator)
    none = {"label": config.num_classes}
    features = f"batchx{config.channels}x{side}x{side}"
    drawn = {
        "codes": torch.randint(config.codes, (2, 4), generator=generator),
        "at": torch.arange(1, 5) % places,
        "then": torch.arange(5, 14) % places,
        "picture": picture,
    }
    return {
        "main": Graph(
            inputs=inputs(config, 2, 7, generator),
            axes=axes(config),
            generates=Generation(carried={"picture": "added"}, unconditional=none),
        ),
        "advance": Graph(
            "advance",
            inputs=drawn,
            axes={
                "codes": f"batchxdrawn<{config.codes}",
                "at": f"drawn<{places}",
                "then": f"following<{places}",
                "picture": features,
            },
        ),
        "decode": Graph("decode", inputs={"picture": picture}, axes={"picture": features}),
    }


def _is_published(values: Mapping[str, Any], keys: Collection[str]) -> bool:
    del values
    return "pos_1LC" in keys and any(".mamba.in_proj." in key for key in keys)


def _configure(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config that follows from shapes; `sides` and `multipliers` may be given."""
    if any("ada_gss" in name or name.startswith("shared_ada_lin") for name in shapes):
        raise SourceError(
            "it was made with shared_aln=True, of which the published code cuts six vectors into "
            "nine: no model has been trained so"
        )
    if not any(name.startswith(VAE) for name in shapes):
        raise SourceError(
            "it holds no autoencoder, whose decoder makes the picture: put its weights beside the "
            'others, under names that begin with "vae.", as {**mvar, **{f"vae.{name}": value for '
            "name, value in vae.items()}}"
        )
    size = shapes["word_embed.weight"][0]
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    inner = shapes["blocks.0.mamba.norm.weight"][0]
    heads = shapes["blocks.0.mamba.A_log"][0]
    channels, _, conv_size = shapes["blocks.0.mamba.conv1d.weight"]
    scale = shapes.get("blocks.0.attn.scale_mul_1H11")
    phis = [name for name in shapes if ".qresi_ls." in name and name.endswith(".weight")]
    found = {
        "depth": depth,
        "hidden_size": size,
        "num_heads": scale[1] if scale else size // 64,
        "num_classes": shapes["class_emb.weight"][0] - 1,
        "normalized_attention": scale is not None,
        "state_size": (channels - inner) // 2,
        "head_size": inner // heads,
        "conv_size": conv_size,
        "codes": shapes["head.weight"][0],
        "channels": shapes["word_embed.weight"][1],
        "phis": len(phis),
        "decoder_size": shapes["vae.decoder.conv_out.weight"][1],
    }
    return {**found, **values}


VAE = "vae."
LEFT_OUT = ("vae.encoder.", "vae.quant_conv.", "vae.quantize.ema_vocab_hit_SV")


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """All but what trains alone, and but buffers that follow from the config, which are held to it.

    Raises:
        SourceError: if the scales are others than the config's.
    """
    found = {name: x for name, x in tensors.items() if not name.startswith(LEFT_OUT)}
    found.pop("lvl_1L", None)
    found.pop("attn_bias_for_masking", None)
    places = torch.tensor([side**2 for side in config.sides])
    for layer in range(config.depth):
        own = found.pop(f"blocks.{layer}.attn.patch_nums", places)
        bias = found.pop(f"blocks.{layer}.attn.zero_k_bias", None)
        if own.tolist() != places.tolist():
            raise SourceError(
                f"its scales have {own.tolist()} codes, and the config has sides = "
                f"{list(config.sides)}; give their roots as sides in --config"
            )
        if bias is not None and bias.any():
            raise SourceError(f"blocks.{layer}.attn.zero_k_bias is not zero")
    return found


M_VAR = Model(
    name="mvar",
    summary="Pictures scale by scale: attention within a scale, Mamba-2 across scales.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    graphs=graphs,
    presets={"tiny": TINY},
    recipe=Scales(),
    source="arXiv:2411.10433",
    layouts=(
        CheckpointLayout(
            name="mvar",
            source="github OliverRensu/MVAR @ 80768a1 and FoundationVision/VAR @ 78b9539",
            fits=_is_published,
            configure=_configure,
            weights=_weights,
        ),
    ),
)
