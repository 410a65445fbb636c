"""Deep model assembling: a ViT in stages that are trained apart, around one small model.

A *meta model* has the width of the large one and a block in each stage.  A stage of the large one
is trained in its place among the others of the meta model, from random weights and by the loss of
the whole; then the large stages are put in a row and trained on for a while.

Source: Ni et al. 2022, arXiv:2212.04129 (Deep Model Assembling, later Deep Incubation);
github.com/LeapLabTHU/Deep-Incubation.
"""

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.graphs import Graph

from .layout import CheckpointLayout, Shapes, Values, read_value
from .model import Model, Staged
from .parts.backbones import Attention, Patches, TransformerBlock
from .parts.drawn_shapes import Shapes as Pictures
from .training import Report

EPS = 1e-6  # of all norms
HEADS = {1280: 16}  # of the published ViT-H; in the others a head has 64 channels
OF_STAGE = re.compile(r"stages\.(\d{1,4})\.(.+)")
FIRST = ("patch_embed.", "cls_token", "pos_embed")
LAST = ("norm.", "head.")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`depths` has an entry for each stage; `separate` gives a bundle a graph for each, too."""

    image_size: int = 224
    image_channels: int = 3
    patch_size: int = 16
    hidden_size: int = 768
    heads: int = 12
    depths: tuple[int, ...] = (3, 3, 3, 3)
    qkv_bias: bool = True
    classes: int = 1000
    separate: bool = False


SIZES: dict[str, Any] = {
    "image_size": 24,
    "patch_size": 6,
    "hidden_size": 32,
    "heads": 2,
    "classes": 8,
}
TINY = Config(**SIZES, depths=(2, 2, 2))
META = Config(**SIZES, depths=(1, 1, 1))
HYBRIDS = {
    f"hybrid{place}": Config(**SIZES, depths=tuple(2 if k == place else 1 for k in range(3)))
    for place in range(3)
}


class Stage(nn.Module):
    """Blocks in a row; the last stage gives logits of what stands for the picture."""

    def __init__(self, config: Config, place: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(
                    size, Attention(size, config.heads, bias=config.qkv_bias), EPS, None
                )
                for _ in range(config.depths[place])
            )
        )
        self.last = place + 1 == len(config.depths)
        if self.last:
            self.norm = nn.LayerNorm(size, EPS)
            self.head = nn.Linear(size, config.classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens [B, L, size]; to logits [B, classes] in the last stage."""
        x: Tensor = self.blocks(tokens)
        if self.last:
            x = self.head(self.norm(x)[:, 0])
        return x


class FirstStage(Stage):
    """The stage that begins with a picture."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, 0)
        size, count = config.hidden_size, (config.image_size // config.patch_size) ** 2
        self.patch_embed = Patches(config.image_channels, size, config.patch_size, norm=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, size) * 0.02)

    def forward(self, image: Tensor) -> Tensor:
        """What the stage makes of image [B, channels, H, W]."""
        x = self.patch_embed(image)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        return super().forward(x)


class Assembled(nn.Module):
    """Stages in a row."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        later = (Stage(config, place) for place in range(1, len(config.depths)))
        self.stages = nn.ModuleList([FirstStage(config), *later])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of image [B, channels, H, W]."""
        x = image
        for stage in self.stages:
            x = stage(x)
        return x


def build(config: Config) -> Assembled:
    """The module of `config`, freshly initialised.

    Raises:
        SourceError: if sizes of the config do not fit each other.
    """
    wrong = ""
    if not config.depths:
        wrong = "depths = []; it should have an entry for each stage, one at least"
    elif config.image_size % config.patch_size:
        wrong = f"image_size = {config.image_size}; it should be a multiple of {config.patch_size}"
    elif config.hidden_size % config.heads:
        wrong = f"heads = {config.heads}; they should divide hidden_size, {config.hidden_size}"
    if wrong:
        raise SourceError(f"The config of the model 'assembling' has {wrong}.")
    return Assembled(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random pictures [batch, channels, size, size]."""
    del time  # there is none
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return {"image": torch.randn(shape, generator=generator)}


def axes(config: Config) -> dict[str, str]:
    """Pictures of one size."""
    return {"image": f"batchx{config.image_channels}x{config.image_size}x{config.image_size}"}


def graphs(config: Config) -> dict[str, Graph]:
    """Where they are to be separate, the whole, and each stage by itself."""
    if not config.separate:
        return {}
    generator = torch.Generator().manual_seed(0)
    image = inputs(config, 2, 1, generator)
    length = (config.image_size // config.patch_size) ** 2 + 1
    tokens = {"tokens": torch.randn(2, length, config.hidden_size, generator=generator)}
    row = {"tokens": f"batchx{length}x{config.hidden_size}"}
    return {
        "main": Graph(inputs=image, axes=axes(config)),
        "stage0": Graph("stages.0", inputs=image, axes=axes(config)),
        **{
            f"stage{place}": Graph(f"stages.{place}", inputs=tokens, axes=row)
            for place in range(1, len(config.depths))
        },
    }


@dataclass(frozen=True, kw_only=True)
class Incubation:
    """Trains the meta model, a stage in its place there, or all stages together, on pictures.

    Without a start, all is trained from random weights.  Stages that are as those of the start are
    taken from it: if all are, all are trained on; otherwise the others are trained alone.
    """

    steps: int = 600
    seed: int = 0

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says.

        Raises:
            SourceError: if there is nothing in the start that could be taken.
        """
        stages = list(module.get_submodule("stages").children())
        new = [] if start is None else take_stages(stages, start)
        for place, stage in enumerate(stages):
            stage.requires_grad_(requires_grad=not new or place in new)
        pictures = Pictures(steps=self.steps, side=TINY.image_size, seed=self.seed)
        said = pictures.train(module, report, None)
        module.requires_grad_(requires_grad=True)
        return said


def take_stages(stages: Sequence[nn.Module], start: Path) -> list[int]:
    """Take the stages that a checkpoint of this model has alike; the places of the others.

    Raises:
        SourceError: if it is none, or has no stage alike.
    """
    held = torch.load(start, map_location="cpu", weights_only=True)
    if not isinstance(held, Mapping) or held.get("model") != "assembling":
        raise SourceError(f"{start} is no checkpoint of the model 'assembling'.")
    given = by_stage(held["state_dict"])
    new = []
    for place, stage in enumerate(stages):
        own = {name: tensor.shape for name, tensor in stage.state_dict().items()}
        if place < len(given) and own == {name: x.shape for name, x in given[place].items()}:
            stage.load_state_dict(given[place])
        else:
            new.append(place)
    if len(new) == len(stages):
        raise SourceError(f"{start} has no stage of the sizes that this model's have.")
    return new


def by_stage(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What stands under names of stages, by the names within each."""
    found: dict[int, dict[str, Any]] = {}
    for name, value in values.items():
        if match := OF_STAGE.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return [found[place] for place in range(len(found)) if place in found]


def depth(shapes: Shapes) -> int:
    """How many blocks a stage of these shapes has."""
    found = (re.match(r"blocks\.(\d+)\.", name) for name in shapes)
    return len({match[1] for match in found if match})


def resize(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """A table of positions for another number of patches, bicubic; None for other tensors.

    Raises:
        SourceError: if it is not that of a square.
    """
    if name != "pos_embed" or tensor.ndim != 3 or tensor.shape[::2] != (1, shape[2]):
        return None
    sides = [math.isqrt(count - 1) for count in (tensor.shape[1], shape[1])]
    if sides[0] == 0 or sides[0] ** 2 + 1 != tensor.shape[1]:
        raise SourceError(
            f"pos_embed has {tensor.shape[1]} places, which are not those of a square of patches "
            "and one of the class"
        )
    table = tensor[:, 1:].float().transpose(1, 2).reshape(1, -1, sides[0], sides[0])
    places = F.interpolate(table, (sides[1], sides[1]), mode="bicubic").flatten(2).transpose(1, 2)
    return torch.cat((tensor[:, :1], places.to(tensor.dtype)), 1)


def configure(values: Values, stages: Sequence[Shapes]) -> dict[str, Any]:
    """The config of the shapes of all stages, and of what no shape tells."""
    size, channels, patch, _ = stages[0]["patch_embed.proj.weight"]
    side = math.isqrt(stages[0]["pos_embed"][1] - 1)
    return {
        "image_size": read_value(values, "image_size", int, side * patch),
        "image_channels": channels,
        "patch_size": patch,
        "hidden_size": size,
        "heads": read_value(values, "heads", int, HEADS.get(size, max(1, size // 64))),
        "depths": [depth(shapes) for shapes in stages],
        "qkv_bias": "blocks.0.attn.qkv.bias" in stages[0],
        "classes": stages[-1]["head.weight"][0],
        "separate": read_value(values, "separate", bool, False),
    }


def _is_published(_: Values, keys: Collection[str]) -> bool:
    return "stages.0.pos_embed" in keys and "blocks.0.norm1.weight" in keys


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors of the stages, each of which stands there twice, and must be the same.

    Raises:
        SourceError: if one is not.
    """
    found = {}
    for name in tensors:
        if not (match := OF_STAGE.fullmatch(name)):
            continue
        twin = _of_whole(int(match[1]), match[2], config.depths)
        if not torch.equal(tensors[name], tensors[twin]):
            raise SourceError(f"{name!r} and {twin!r} should be the same, and have other values")
        found[name] = tensors[name]
    count = (config.image_size // config.patch_size) ** 2 + 1
    table = found["stages.0.pos_embed"]
    if table.shape[1] != count:
        resized = resize("pos_embed", table, (1, count, config.hidden_size))
        found["stages.0.pos_embed"] = table if resized is None else resized
    return found


def _of_whole(place: int, name: str, depths: Sequence[int]) -> str:
    """What a tensor of a stage is called where blocks are counted through all stages."""
    if match := re.match(r"blocks\.(\d+)\.", name):
        return f"blocks.{sum(depths[:place]) + int(match[1])}.{name[match.end() :]}"
    return name


ASSEMBLING = Model(
    name="assembling",
    summary="Deep model assembling: a ViT of stages that were trained apart.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    graphs=graphs,
    presets={"tiny": TINY, "meta": META, **HYBRIDS},
    recipe=Incubation(),
    layouts=(
        CheckpointLayout(
            name="deep-incubation",
            source="github LeapLabTHU/Deep-Incubation @ 9a7061ba398e5bf22f5b0cfdc4a86a6108828b35, "
            "timm/models/vision_transformer.py, main.py, utils.py",
            fits=_is_published,
            configure=lambda values, shapes: configure(values, by_stage(shapes)),
            weights=_weights,
        ),
    ),
    staged=Staged(
        listed="model_stages",
        first=FIRST,
        last=LAST,
        unseen=("heads",),
        depth=depth,
        configure=configure,
        resize=resize,
    ),
    source="arXiv:2212.04129",
)
