"""Moment probing: a classifier of first and second moments of the tokens of a frozen backbone.

Tokens x, projected and cut into heads of LayerNorm(u_i), give covariances of neighbouring heads,
C_i = u_i^T u_{i+1} / L with unit columns, as channels of a picture; two convolutions make it small.
The classifier is linear over the class token, or the mean, and what is left of the covariances:
the mean of one classifier each, as one product.  MP+ adds recalibrated feed-forward branches.

Source: Gao et al. 2023, arXiv:2307.11342; github.com/mingzeG/Moment-Probing.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, read_value
from .model import Model
from .parts.backbones import ConvNeXt, LayerNorm2d, Swin, ViT
from .parts.drawn_shapes import draw
from .parts.language_layers import by_head
from .training import Drawn

BACKBONES = ("vit", "swin", "convnext")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`backbone` is vit, swin or convnext; `depths` and `heads` have an entry for each stage.

    A ViT has one stage, and a ConvNeXt no heads.  `hidden_size` is that of the first stage, and
    doubles with each; `window` is Swin's.  `rank` is that of recalibrated branches, null without.
    `moment_size` is the width of the projection, in `moment_heads` heads.
    """

    backbone: str = "vit"
    image_size: int = 224
    image_channels: int = 3
    patch_size: int = 16
    hidden_size: int = 768
    depths: tuple[int, ...] = (12,)
    heads: tuple[int, ...] = (12,)
    window: int = 7
    rank: int | None = None
    classes: int = 1000
    moment_size: int = 512
    moment_heads: int = 4


TINY = Config(
    image_size=24,
    patch_size=6,
    hidden_size=32,
    depths=(2,),
    heads=(2,),
    rank=4,
    classes=8,
    moment_size=64,
)


class Moments(nn.Module):
    """Multi-head convolutional cross-covariance (MHC^3): second moments of tokens, made small."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads, pairs = heads, heads - 1
        self.ln = nn.LayerNorm(size // heads)
        self.downblocks = nn.Sequential(
            nn.Conv2d(pairs, pairs, 3, 2, bias=False),
            nn.GELU(),
            nn.Conv2d(pairs, pairs, 3, 2, bias=False),
        )

    def forward(self, u: Tensor) -> Tensor:
        """[B, entries] of heads u [heads, B, L, size / heads]."""
        u = self.ln(u)
        # One mean over tokens and channels of a head, as in the released code.
        u = u - u.mean((-2, -1), keepdim=True)
        covariance = u[:-1].transpose(-1, -2) @ u[1:] / u.shape[-2]
        covariance = F.normalize(covariance.transpose(0, 1), dim=-2)
        y: Tensor = self.downblocks(covariance)
        return y.flatten(1)


def entries(config: Config) -> int:
    """How many entries are left of the covariances."""
    side = config.moment_size // config.moment_heads
    for _ in range(2):
        side = (side - 3) // 2 + 1
    return (config.moment_heads - 1) * side**2


class TokenHead(nn.Module):
    """Moments of tokens, heads of neighbouring channels."""

    def __init__(self, config: Config, size: int) -> None:
        super().__init__()
        self.proj = nn.Linear(size, config.moment_size)
        self.moments = Moments(config.moment_size, config.moment_heads)
        self.classifier = nn.Linear(size + entries(config), config.classes)

    def forward(self, one: Tensor, tokens: Tensor) -> Tensor:
        """Logits of what stands for a picture [B, size] and its tokens [B, L, size]."""
        u = by_head(self.proj(tokens), self.moments.heads).permute(2, 0, 1, 3)
        y: Tensor = self.classifier(torch.cat((one, self.moments(u)), 1))
        return y


class PlaneHead(nn.Module):
    """Moments of a plane of features, whose heads take every so-manieth channel."""

    def __init__(self, config: Config, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(size, config.moment_size, 1)
        self.norm = LayerNorm2d(size, 1e-6)
        self.moments = Moments(config.moment_size, config.moment_heads)
        self.classifier = nn.Linear(size + entries(config), config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of features x [B, size, H, W]."""
        one = self.norm(x.mean((-2, -1), keepdim=True)).flatten(1)
        heads = self.moments.heads
        u = self.proj(x).flatten(2)
        u = u.view(u.shape[0], -1, heads, u.shape[-1]).permute(2, 0, 3, 1)
        y: Tensor = self.classifier(torch.cat((one, self.moments(u)), 1))
        return y


class OfTokens(nn.Module):
    """A backbone of tokens and its head."""

    def __init__(self, backbone: ViT | Swin, head: TokenHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of image [B, channels, H, W]."""
        y: Tensor = self.head(*self.backbone(image))
        return y


class OfPlanes(nn.Module):
    """A backbone of planes and its head."""

    def __init__(self, backbone: ConvNeXt, head: PlaneHead) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of image [B, channels, H, W]."""
        y: Tensor = self.head(self.backbone(image))
        return y


def build(config: Config) -> OfTokens | OfPlanes:
    """The module of `config`, freshly initialised.

    Raises:
        SourceError: the backbone is none that there is, or sizes do not fit each other.
    """
    _check(config)
    last = config.hidden_size * 2 ** (len(config.depths) - 1)
    if config.backbone == "convnext":
        return OfPlanes(ConvNeXt(config), PlaneHead(config, last))
    backbone = ViT(config) if config.backbone == "vit" else Swin(config)
    return OfTokens(backbone, TokenHead(config, last))


def _check(config: Config) -> None:
    """Refuse what cannot be, in words of the config."""
    c, stages = config, len(config.depths)
    side = c.image_size // c.patch_size
    wrong = ""
    if c.backbone not in BACKBONES:
        wrong = f"backbone = {c.backbone!r}; it should be one of: {', '.join(BACKBONES)}"
    elif not stages or (c.backbone == "vit" and stages != 1):
        wrong = f"depths = {list(c.depths)}; a vit has one stage, and others one at least"
    elif c.backbone != "convnext" and len(c.heads) != stages:
        wrong = f"heads = {list(c.heads)}; it should have an entry for each of {stages} stages"
    elif c.image_size % c.patch_size:
        wrong = f"image_size = {c.image_size}; it should be a multiple of {c.patch_size}"
    elif c.backbone == "swin" and side % (2 ** (stages - 1) * min(c.window, side >> (stages - 1))):
        wrong = f"window = {c.window}; {side} patches a side do not fall into such windows"
    elif c.moment_heads < 2 or c.moment_size % c.moment_heads:
        wrong = f"moment_heads = {c.moment_heads}; it should be 2 or more that {c.moment_size} has"
    elif c.moment_size // c.moment_heads < 7:
        wrong = f"moment_size = {c.moment_size}; a head should have 7 channels at least"
    if wrong:
        raise SourceError(f"The config of the model 'moment-probing' has {wrong}.")


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random pictures [batch, channels, size, size]."""
    del time  # there is none
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return {"image": torch.randn(shape, generator=generator)}


def _count(shapes: Mapping[str, Any], pattern: str) -> int:
    """How many numbers stand in the place of the group of a pattern."""
    found = (re.match(pattern, name) for name in shapes)
    return len({match[1] for match in found if match})


def _configure(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of the shapes; heads of a ViT have 64 channels where it is not said otherwise."""
    s = shapes
    made: dict[str, Any] = {
        "classes": s["head.classifier2.weight"][0],
        "moment_size": s["head.proj.weight"][0],
        "moment_heads": s["head.proj.weight"][0] // s["head.ln.weight"][0],
    }
    rank = next((shape[0] for name, shape in s.items() if name.endswith("psrp.down.weight")), None)
    made["rank"] = rank
    if "cls_token" in s:
        size, channels, patch, _ = s["patch_embed.proj.weight"]
        heads = read_value(values, "num_heads", int, max(1, size // 64))
        side = round((s["pos_embed"][1] - 1) ** 0.5)
        depth = _count(s, r"blocks\.(\d+)\.")
        made |= {"backbone": "vit", "depths": [depth], "heads": [heads], "image_size": side * patch}
    elif "stem.proj.weight" in s:
        size, channels, patch, _ = s["stem.proj.weight"]
        stages = range(_count(s, r"stages\.(\d+)\."))
        depths = [_count(s, rf"stages\.{i}\.blocks\.(\d+)\.") for i in stages]
        image = read_value(values, "image_size", int, 224)
        made |= {"backbone": "convnext", "depths": depths, "heads": [], "image_size": image}
    else:
        size, channels, patch, _ = s["patch_embed.proj.weight"]
        stages = range(_count(s, r"layers\.(\d+)\."))
        tables = [s[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in stages]
        window = (round(tables[0][0] ** 0.5) + 1) // 2
        windows = s["layers.0.blocks.1.attn_mask"][0]
        made |= {
            "backbone": "swin",
            "depths": [_count(s, rf"layers\.{i}\.blocks\.(\d+)\.") for i in stages],
            "heads": [table[1] for table in tables],
            "window": window,
            "image_size": round(windows**0.5) * window * patch,
        }
    return {**made, "hidden_size": size, "image_channels": channels, "patch_size": patch}


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors by our names: both classifiers become one, of half their sum."""
    plane = config.backbone == "convnext"
    first = "head.cls_head.fc" if plane else "head.classifier1"
    pairs = [(tensors[f"{n}.weight"], tensors[f"{n}.bias"]) for n in (first, "head.classifier2")]
    renames = {"head.ln.": "head.moments.ln.", "head.downblocks.0.": "head.moments.downblocks."}
    renames |= {"head.cls_head.norm.": "head.norm."} if plane else {}
    found = {
        "head.classifier.weight": torch.cat([weight for weight, _ in pairs], 1) / 2,
        "head.classifier.bias": (pairs[0][1] + pairs[1][1]) / 2,
    }
    for name in tensors:
        if name.startswith((f"{first}.", "head.classifier2.")):
            continue
        start = next((start for start in renames if name.startswith(start)), None)
        ours = f"backbone.{name}" if not name.startswith("head.") else name
        found[ours if start is None else name.replace(start, renames[start], 1)] = tensors[name]
    return found


TIMM = CheckpointLayout(
    name="timm",
    source="github mingzeG/Moment-Probing @ 0ddc0400e7f5210939f27b4d0ab14cfb5baec795, "
    "models/vision_transformer.py, swin_transformer.py, convnext.py, representation/",
    fits=lambda _, keys: "head.downblocks.0.0.weight" in keys,
    configure=_configure,
    weights=_weights,
)


def _told(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
    """Of shapes, which are told apart."""
    images, labels = draw(batch, TINY.image_size, generator)
    return F.cross_entropy(module(images), labels)


MOMENT_PROBING = Model(
    name="moment-probing",
    summary="Moment probing: first and second moments of a frozen backbone's tokens.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=lambda c: {"image": f"batchx{c.image_channels}x{c.image_size}x{c.image_size}"},
    presets={"tiny": TINY},
    recipe=Drawn(loss=_told, unit="nats per picture", steps=500, rate=2e-3),
    layouts=(TIMM,),
    source="arXiv:2307.11342",
)
