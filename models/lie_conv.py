"""Convolutions over R^2 and a matrix group H, GL+(2) or SL(2), by its polar decomposition.

A kernel is a network of sines over coordinates of the group: k(g^-1 u) lifts a picture, and
k(g^-1 u, log(g^-1 h)) maps features over (h, u) to features over (g, u).  The logarithm of an
element is that of its parts, log P + log R of g = P R with P positive definite and R a rotation.
The integral over H is a sum over samples of it, which are weights here: an engine has the samples
that its source has, and whatever precedes a convolution is a constant of both.

Source: Mironenco & Forre 2024, arXiv:2310.11366; github.com/mirceamironenco/rgenn.
"""

import math
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
from .parts import drawn_shapes
from .parts.language_layers import by_head
from .parts.lie_groups import GROUPS, coordinates, draw
from .training import Drawn


@dataclass(frozen=True, kw_only=True)
class Config:
    """`group` is gl or sl, `samples` the elements that stand for it, `alpha` scales its metric.

    `spread` is the variance of the symmetric part of a sample, `kernel_size` that of convolutions,
    and `kernel_width`, `kernel_layers` and `frequency` those of the networks of sines.
    `num_layers` counts the lift and the residual blocks.
    """

    group: str = "sl"
    samples: int = 10
    image_size: int = 40
    image_channels: int = 1
    channels: int = 40
    num_layers: int = 2
    kernel_size: int = 5
    kernel_width: int = 60
    kernel_layers: int = 2
    frequency: float = 10.0
    head_width: int = 256
    classes: int = 10
    alpha: float = 1.0
    spread: float = 0.1


TINY = Config(samples=6, image_size=16, channels=6, kernel_width=24, kernel_layers=1, head_width=32)


class Sine(nn.Module):
    """sin(a x), where a is no parameter that learns."""

    def __init__(self, frequency: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.full((1,), frequency), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """Of every entry."""
        return (self.a * x).sin()


class SineLayer(nn.Module):
    """A linear map and a sine (Sitzmann et al. 2020, arXiv:2006.09661)."""

    def __init__(self, size: int, width: int, frequency: float, *, first: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)
        self.act_layer = Sine(frequency)
        bound = 1 / size if first else math.sqrt(6 / size) / frequency
        nn.init.uniform_(self.linear.weight, -bound, bound)
        if not first:
            nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = self.act_layer(self.linear(x))
        return y


class KernelNet(nn.Module):
    """Layers of sines."""

    def __init__(self, size: int, config: Config) -> None:
        super().__init__()
        width = config.kernel_width
        self.net = nn.Sequential(
            *(
                SineLayer(width if i else size, width, config.frequency, first=not i)
                for i in range(config.kernel_layers + 1)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = self.net(x)
        return y


class Kernel(nn.Module):
    """The entries of a kernel, for each pair of channels, at coordinates."""

    def __init__(self, size: int, taken: int, given: int, config: Config) -> None:
        super().__init__()
        self.kernel_net = KernelNet(size, config)
        self.final_linear = nn.Linear(config.kernel_width, taken * given)
        bound = math.sqrt(6 / config.kernel_width / (taken * config.kernel_size**2))
        nn.init.uniform_(self.final_linear.weight, -bound, bound)
        nn.init.zeros_(self.final_linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., given * taken] of coordinates x [..., size]."""
        y: Tensor = self.final_linear(self.kernel_net(x))
        return y


class Convolution(nn.Module):
    """What lifts and convolutions over the group share: samples, and a plane of coordinates."""

    grid: Tensor
    g_inv: Tensor
    g_tilde: Tensor

    def __init__(self, taken: int, given: int, config: Config, size: int, padding: int) -> None:
        super().__init__()
        self.config, self.taken, self.given, self.padding = config, taken, given, padding
        self.inr = Kernel(size, taken, given, config)
        k = config.kernel_size
        line = (torch.arange(k) * 2 + 1.0) / k - 1
        self.register_buffer("grid", torch.stack(torch.meshgrid(line, line, indexing="ij")))
        whole = torch.eye(2).repeat(config.samples, 1, 1)
        self.register_buffer("g_tilde", whole.clone())
        self.register_buffer("g_inv", whole.clone())

    def plane(self) -> Tensor:
        """g^-1 u of each sample g and each u of the kernel [samples, rows, columns, 2]."""
        return torch.einsum("gij,jwh->ghwi", self.g_inv, self.grid)

    def kernel(self) -> Tensor:
        """The weight of the convolution in the plane."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, taken, samples or nothing, H, W] to [B, given, samples, H', W']."""
        if x.ndim == 5:
            x = x.flatten(1, 2)
        y = F.conv2d(x, self.kernel(), padding=self.padding)
        return y.view(y.shape[0], self.given, self.config.samples, *y.shape[-2:])


class Lift(Convolution):
    """From a picture to features over the group: k(g^-1 u)."""

    def __init__(self, taken: int, given: int, config: Config) -> None:
        super().__init__(taken, given, config, 2, 0)

    def kernel(self) -> Tensor:
        """[given * samples, taken, k, k]."""
        where = self.plane()
        k: Tensor = self.inr(where) * _window(where, where, self.config.group)
        k = by_head(k, self.given).permute(3, 0, 4, 1, 2)
        if self.config.group == "gl":
            k = k * torch.det(self.g_inv).abs()[:, None, None, None]
        return k.flatten(0, 1)


class GroupConvolution(Convolution):
    """From features over (h, u) to features over (g, u): k(g^-1 u, log(g^-1 h))."""

    def __init__(self, taken: int, given: int, config: Config) -> None:
        super().__init__(taken, given, config, 2 + GROUPS[config.group], config.kernel_size // 2)

    def kernel(self) -> Tensor:
        """[given * samples, taken * samples, k, k]."""
        group, size, count = self.config.group, self.config.kernel_size, len(self.g_inv)
        between = self.g_inv[:, None] @ self.g_tilde
        logs = coordinates(between, group, self.config.alpha)
        plane = self.plane()[:, None].expand(-1, count, -1, -1, -1)
        logs = logs[:, :, None, None].expand(-1, -1, size, size, -1)
        where = torch.cat((plane, logs), -1)
        k: Tensor = self.inr(where) * _window(plane, where, group)
        k = by_head(k, self.given).permute(4, 0, 5, 1, 2, 3)
        if group == "gl":
            # The released code divides along the samples of the output.
            k = k / torch.det(self.g_tilde).abs()[:, None, None, None, None]
        return k.flatten(0, 1).flatten(1, 2)


def _window(plane: Tensor, where: Tensor, group: str) -> Tensor:
    """What a kernel is multiplied with [..., 1]: a disc, or a smooth one over all coordinates."""
    length: Tensor = torch.linalg.vector_norm(
        plane if group == "sl" else where, dim=-1, keepdim=True
    )
    return (length <= 1).to(length.dtype) if group == "sl" else (2 * (1 - length)).sigmoid()


class Norm(nn.Module):
    """Over channels, samples and places together, with nothing to learn."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, G, H, W]."""
        return F.layer_norm(x, x.shape[1:])


class Pool(nn.Module):
    """The maximum of each 2 x 2 places."""

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, G, H, W]."""
        y = F.max_pool2d(x.flatten(1, 2), 2)
        return y.view(*x.shape[:3], *y.shape[-2:])


class Block(nn.Module):
    """Two convolutions over the same samples, around which x is added."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.conv1 = GroupConvolution(config.channels, config.channels, config)
        self.conv2 = GroupConvolution(config.channels, config.channels, config)
        self.norm = Norm()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, C, G, H, W]."""
        y = F.gelu(self.norm(self.conv1(x)))
        y = F.gelu(self.norm(self.conv2(y)))
        return F.gelu(x + y)


class LieConv(nn.Module):
    """A lift, residual blocks, a convolution, the maximum over group and plane, a classifier."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        lift = Lift(config.image_channels, channels, config)
        self.stem = nn.Sequential(lift, Norm(), nn.GELU())
        steps: list[nn.Module] = []
        for _ in range(config.num_layers - 1):
            steps += [Block(config), Norm(), Pool(), nn.GELU()]
        steps += [GroupConvolution(channels, channels, config), Norm(), nn.GELU()]
        self.blocks = nn.Sequential(*steps)
        self.fc = nn.Sequential(
            nn.Linear(channels, config.head_width, bias=False),
            nn.LayerNorm(config.head_width),
            nn.GELU(),
            nn.Dropout(0.3),
            nn.Linear(config.head_width, config.classes),
        )
        if not lift.grid.is_meta:
            self.sample()

    @torch.no_grad()
    def sample(self, generator: torch.Generator | None = None) -> None:
        """Draw the elements of the group anew: those of the lift, and those of the last layer.

        Blocks keep the samples of their input, which the next layer takes as its own input's.
        """
        c = self.config
        g, inverse = draw(c.group, c.samples, c.alpha, c.spread, generator)
        layers = [layer for layer in self.modules() if isinstance(layer, Convolution)]
        for layer in layers:
            layer.g_inv.copy_(inverse)
        for layer in layers[1:]:
            layer.g_tilde.copy_(g)
        layers[-1].g_inv.copy_(draw(c.group, c.samples, c.alpha, c.spread, generator)[1])

    def forward(self, image: Tensor) -> Tensor:
        """Logits [B, classes] of image [B, channels, H, W]."""
        y: Tensor = self.fc(self.blocks(self.stem(image)).amax((-3, -2, -1)))
        return y


def build(config: Config) -> LieConv:
    """The module of `config`, with samples that are drawn.

    Raises:
        SourceError: the group is none that there is.
    """
    if config.group not in GROUPS:
        raise SourceError(
            f"The config of the model 'lie-conv' has group = {config.group!r}; it should be one "
            f"of: {', '.join(GROUPS)}."
        )
    return LieConv(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random pictures [batch, channels, size, size]."""
    del time  # there is none
    shape = (batch, config.image_channels, config.image_size, config.image_size)
    return {"image": torch.randn(shape, generator=generator)}


def _of_group(name: str) -> bool:
    """Whether a tensor of an official file says what the group is, which the config does here."""
    return "group" in name.split(".")


def _configure(values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The config of the shapes; sizes of pictures, alpha and spread are no shapes."""
    s = {name.removeprefix("model."): shape for name, shape in shapes.items()}
    first = s["blocks.0.conv1.inr.kernel_net.net.0.linear.weight"]
    group = next((name for name, size in GROUPS.items() if first[1] == 2 + size), None)
    if group is None:
        raise SourceError(f"a kernel takes {first[1]} coordinates, which no group here has")
    channels, width = s["fc.0.weight"][1], s["fc.0.weight"][0]
    blocks = len([name for name in s if name.endswith(".conv1.grid")])
    depth = len(
        [n for n in s if re.fullmatch(r"stem\.0\.inr\.kernel_net\.net\.\d+\.act_layer\.a", n)]
    )
    return {
        "group": group,
        "samples": s["stem.0.g_inv"][0],
        "image_size": read_value(values, "image_size", int, Config().image_size),
        "image_channels": s["stem.0.inr.final_linear.weight"][0] // channels,
        "channels": channels,
        "num_layers": blocks + 1,
        "kernel_size": s["stem.0.grid"][1],
        "kernel_width": first[0],
        "kernel_layers": depth - 1,
        "head_width": width,
        "classes": s["fc.4.weight"][0],
        "alpha": read_value(values, "metric_alpha", float, 1.0),
    }


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors by our names, once the group is known to have the metric of the config.

    Raises:
        SourceError: if it has another one.
    """
    for name in filter(_of_group, tensors):
        basis = tensors[name]
        off = 1 / math.sqrt(2 * config.alpha)
        if name.endswith("orthogonal.basis_matrix") and abs(float(basis[0, 1, 0]) - off) > 1e-5:
            alpha = 1 / (2 * float(basis[0, 1, 0]) ** 2)
            raise SourceError(f"{name} is of metric_alpha = {alpha:.6g}, not {config.alpha:g}")
    return {n.removeprefix("model."): tensors[n] for n in tensors if not _of_group(n)}


RGENN = CheckpointLayout(
    name="rgenn",
    source="github mirceamironenco/rgenn @ df54466a12d50f723ff1d03951aaa755d7a58f8d, "
    "rgenn/models.py, layers.py, inr.py, groups.py",
    fits=lambda _, keys: "model.stem.0.inr.final_linear.weight" in keys,
    configure=_configure,
    weights=_weights,
)


def _told(module: nn.Module, batch: int, generator: torch.Generator) -> Tensor:
    """Of shapes in grey, which are told apart."""
    images, labels = drawn_shapes.draw(batch, TINY.image_size, generator)
    return F.cross_entropy(module(images.mean(1, keepdim=True)), labels)


LIE_CONV = Model(
    name="lie-conv",
    summary="Lie group CNN: convolutions over affine maps, folded into plain ones.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=lambda c: {"image": f"batchx{c.image_channels}x{c.image_size}x{c.image_size}"},
    presets={"tiny": TINY},
    recipe=Drawn(loss=_told, unit="nats per picture", steps=400, rate=4e-3),
    layouts=(RGENN,),
    source="arXiv:2310.11366",
)
