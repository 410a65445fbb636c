"""Pictures as codes of several scales: the decoder, the codebook, and what a scale adds.

A picture of features f [C, H, H] is the sum of what each scale i of p_i x p_i codes adds to it,
phi_i(up(h)), up being bicubic; phi_i(h) = (h + conv3(h)) / 2 is one of a few that the scales share.
The next scale starts from f, averaged over areas down to its size.  Sizes are fixed, so that both
changes of size are matrices, a row for each code.

Names of parameters are those of the published code of VAR (Tian et al. 2024, arXiv:2404.02905).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHARE = 0.5  # of the convolution in phi


class Quantizer(nn.Module):
    """Codebook and the sums of scales of `sides`, over features of `channels`."""

    up: Tensor
    down: Tensor
    shared: Tensor

    def __init__(self, codes: int, channels: int, sides: Sequence[int], phis: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)
        convolutions = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(phis)]
        self.quant_resi = nn.ModuleDict({"qresi_ls": nn.ModuleList(convolutions)})
        self.side = sides[-1]
        up, down = zip(*(_matrices(side, self.side) for side in sides), strict=True)
        self.register_buffer("up", torch.cat(up), persistent=False)
        self.register_buffer("down", torch.cat(down), persistent=False)
        which = zip(sides, _shared(sides, phis), strict=True)
        own = [torch.full((side**2,), phi) for side, phi in which]
        self.register_buffer("shared", torch.cat(own), persistent=False)

    def add(self, codes: Tensor, at: Tensor, picture: Tensor) -> Tensor:
        """Features picture [B, C, H, H] with those of codes [B, N] of one scale, at places [N]."""
        large = (self.embedding(codes).mT @ self.up[at]).unflatten(-1, (self.side, self.side))
        convolutions: Any = self.quant_resi["qresi_ls"]
        phis = torch.cat([conv(large)[:, None] for conv in convolutions], dim=1)
        mixed = phis[:, self.shared[at[0]]]
        added: Tensor = (1 - SHARE) * large + SHARE * mixed
        return picture + added

    def at_places(self, picture: Tensor, places: Tensor) -> Tensor:
        """Features [B, N, C] of picture [B, C, H, H], averaged to the scales of places [N]."""
        return self.down[places] @ picture.flatten(2).mT


def _matrices(side: int, largest: int) -> tuple[Tensor, Tensor]:
    """What makes `largest` rows and columns of `side`, and back: [side^2, largest^2] each."""
    few, many = side**2, largest**2
    if side == largest:
        return torch.eye(few), torch.eye(few)
    size = (largest, largest)
    small = torch.eye(few).reshape(few, 1, side, side)
    large = torch.eye(many).reshape(many, 1, *size)
    up = F.interpolate(small, size=size, mode="bicubic").reshape(few, many)
    down = F.interpolate(large, size=(side, side), mode="area").reshape(many, few)
    return up, down.T.contiguous()


def _shared(sides: Sequence[int], phis: int) -> list[int]:
    """Which phi each scale takes: the one whose tick is nearest to its place between 0 and 1."""
    edge = 1 / (3 if phis == 4 else 2) / phis
    ticks = torch.linspace(edge, 1 - edge, phis, dtype=torch.float64, device="cpu")
    last = max(len(sides) - 1, 1)
    return [int((ticks - scale / last).abs().argmin()) for scale in range(len(sides))]


class ResnetBlock(nn.Module):
    """Two convolutions behind group norms, beside the identity or a projection."""

    def __init__(self, given: int, made: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(given, groups), _norm(made, groups)
        self.conv1 = nn.Conv2d(given, made, 3, padding=1)
        self.conv2 = nn.Conv2d(made, made, 3, padding=1)
        self.nin_shortcut = nn.Identity() if given == made else nn.Conv2d(given, made, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, given, H, W]."""
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        out: Tensor = self.nin_shortcut(x) + y
        return out


class AttnBlock(nn.Module):
    """Attention of one head over all places."""

    def __init__(self, size: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(size, groups)
        self.qkv = nn.Conv2d(size, 3 * size, 1)
        self.proj_out = nn.Conv2d(size, size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).mT[:, None].chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(x.shape)
        out: Tensor = x + self.proj_out(y)
        return out


class Upsample(nn.Module):
    """Each place four times, then a convolution."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(size, size, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        out: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class Level(nn.Module):
    """Blocks of one resolution of the decoder, then twice the resolution."""

    def __init__(self, given: int, made: int, groups: int, *, attends: bool, grows: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResnetBlock(given if at == 0 else made, made, groups) for at in range(3)
        )
        self.attn = nn.ModuleList(AttnBlock(made, groups) for _ in range(3 * attends))
        self.upsample = Upsample(made) if grows else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, given, H, W]."""
        for at, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[at](x)
        out: Tensor = self.upsample(x)
        return out


class Decoder(nn.Module):
    """From features to a picture, by a factor of two for each multiplier but the first."""

    def __init__(self, channels: int, base: int, multipliers: Sequence[int], groups: int) -> None:
        super().__init__()
        size = base * multipliers[-1]
        self.conv_in = nn.Conv2d(channels, size, 3, padding=1)
        self.mid = nn.ModuleDict(
            {
                "block_1": ResnetBlock(size, size, groups),
                "attn_1": AttnBlock(size, groups),
                "block_2": ResnetBlock(size, size, groups),
            }
        )
        sizes = [base * m for m in multipliers]
        last = len(sizes) - 1
        self.up = nn.ModuleList(
            Level(sizes[min(at + 1, last)], made, groups, attends=at == last, grows=at > 0)
            for at, made in enumerate(sizes)
        )
        self.norm_out = _norm(sizes[0], groups)
        self.conv_out = nn.Conv2d(sizes[0], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures of features x [B, channels, H, W]."""
        x = self.conv_in(x)
        for part in self.mid.values():
            x = part(x)
        for level in reversed(list(self.up)):
            x = level(x)
        out: Tensor = self.conv_out(F.silu(self.norm_out(x)))
        return out


def _norm(size: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, size, eps=1e-6)
