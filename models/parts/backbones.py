"""Image backbones as they are pretrained: ViT, Swin and ConvNeXt, with the names that timm gives.

Each block can scale and shift its feed-forward branch by a small network (`Recalibration`), which
is what partially shared recalibrating parameters add to a frozen backbone.

Sources: Dosovitskiy et al. 2021, arXiv:2010.11929; Liu et al. 2021, arXiv:2103.14030; Liu et al.
2022, arXiv:2201.03545; github.com/huggingface/pytorch-image-models.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FORBIDDEN = -100.0  # what Swin adds to scores between windows that a shift has joined


class Sizes(Protocol):
    """What a config says of a backbone; `depths` and `heads` have an entry for each stage."""

    @property
    def image_size(self) -> int: ...
    @property
    def image_channels(self) -> int: ...
    @property
    def patch_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    @property
    def depths(self) -> Sequence[int]: ...
    @property
    def heads(self) -> Sequence[int]: ...
    @property
    def window(self) -> int: ...
    @property
    def rank(self) -> int | None: ...


class Recalibration(nn.Module):
    """b + (1 + w) y, where w and b are maps of one small relu(down(x))."""

    def __init__(self, size: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, rank, bias=False)
        self.up_weight = nn.Linear(rank, size, bias=False)
        self.up_bias = nn.Linear(rank, size, bias=False)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Scale and shift y by x, both [..., size]."""
        small = self.down(x).relu()
        found: Tensor = self.up_bias(small) + (1 + self.up_weight(small)) * y
        return found


class Mlp(nn.Module):
    """fc2(gelu(fc1(x)))."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [..., size]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class Attention(nn.Module):
    """Multi-head attention among all tokens, with a bias of the scores where one is given."""

    def __init__(self, size: int, heads: int, *, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(size, 3 * size, bias=bias)
        self.proj = nn.Linear(size, size)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Mix x [B, L, size]; bias broadcasts to [B, heads, L, L]."""
        count, length, size = x.shape
        packed = self.qkv(x).view(count, length, 3, self.heads, size // self.heads)
        q, k, v = packed.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (size // self.heads) ** -0.5) @ k.transpose(-1, -2)
        shares = (scores if bias is None else scores + bias).softmax(-1)
        y: Tensor = self.proj((shares @ v).transpose(1, 2).flatten(2))
        return y


class TransformerBlock(nn.Module):
    """x + attention(norm1(x)), then x + mlp(norm2(x)), recalibrated by x where a rank is given."""

    def __init__(self, size: int, attention: nn.Module, eps: float, rank: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size, eps)
        self.attn = attention
        self.norm2 = nn.LayerNorm(size, eps)
        self.mlp = Mlp(size)
        self.psrp = None if rank is None else Recalibration(size, rank)

    def mix(self, x: Tensor) -> Tensor:
        """What attention adds to x [B, L, size]."""
        y: Tensor = self.attn(self.norm1(x))
        return y

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, L, size]."""
        x = x + self.mix(x)
        y: Tensor = self.mlp(self.norm2(x))
        return x + (y if self.psrp is None else self.psrp(x, y))


class Patches(nn.Module):
    """A vector for each square of a picture, row by row."""

    def __init__(self, channels: int, size: int, side: int, *, norm: bool) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, size, side, side)
        self.norm = nn.LayerNorm(size) if norm else nn.Identity()

    def forward(self, image: Tensor) -> Tensor:
        """[B, L, size] of image [B, channels, H, W]."""
        y: Tensor = self.norm(self.proj(image).flatten(2).transpose(1, 2))
        return y


class ViT(nn.Module):
    """Tokens of a picture and one of the class, after the last norm."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        size, count = sizes.hidden_size, (sizes.image_size // sizes.patch_size) ** 2
        self.patch_embed = Patches(sizes.image_channels, size, sizes.patch_size, norm=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size))
        self.pos_embed = nn.Parameter(torch.randn(1, count + 1, size) * 0.02)
        self.blocks = nn.Sequential(
            *(
                TransformerBlock(size, Attention(size, sizes.heads[0]), 1e-6, sizes.rank)
                for _ in range(sizes.depths[0])
            )
        )
        self.norm = nn.LayerNorm(size, 1e-6)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the picture [B, size], and its tokens [B, L, size]."""
        x = self.patch_embed(image)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), 1) + self.pos_embed
        x = self.norm(self.blocks(x))
        return x[:, 0], x[:, 1:]


class WindowAttention(Attention):
    """Attention within squares of tokens, with a learned bias for each offset."""

    relative_position_index: Tensor

    def __init__(self, size: int, heads: int, window: int) -> None:
        super().__init__(size, heads)
        self.window = window
        table = torch.zeros((2 * window - 1) ** 2, heads)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))
        places = torch.stack(torch.meshgrid(*2 * (torch.arange(window),), indexing="ij")).flatten(1)
        offsets = places[:, :, None] - places[:, None, :] + window - 1
        index = offsets[0] * (2 * window - 1) + offsets[1]
        self.register_buffer("relative_position_index", index)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix x [B * windows, L, size]; mask is [windows, L, L], of one picture."""
        length = self.window**2
        table = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = table.view(length, length, self.heads).permute(2, 0, 1)[None]
        if mask is None:
            return super().forward(x, bias)
        count, _, size = x.shape
        packed = self.qkv(x).view(-1, len(mask), length, 3, self.heads, size // self.heads)
        q, k, v = packed.permute(3, 0, 1, 4, 2, 5).unbind(0)
        scores = (q * (size // self.heads) ** -0.5) @ k.transpose(-1, -2)
        shares = (scores + bias + mask[:, None]).softmax(-1)
        y: Tensor = self.proj((shares @ v).transpose(2, 3).reshape(count, length, size))
        return y


class SwinBlock(TransformerBlock):
    """A block whose attention is within windows, shifted by half of one in every second block."""

    attn_mask: Tensor | None

    def __init__(
        self, size: int, side: int, heads: int, window: int, rank: int | None, *, shifted: bool
    ) -> None:
        self.side = side
        own = min(window, side)
        super().__init__(size, WindowAttention(size, heads, own), 1e-5, rank)
        self.window, self.shift = own, window // 2 if shifted and side > window else 0
        self.register_buffer("attn_mask", self._mask() if self.shift else None)

    def _mask(self) -> Tensor:
        """What forbids pairs [windows, L, L] that were not neighbours before the shift."""
        bounds = (self.side - self.window, self.side - self.shift)
        part = torch.bucketize(torch.arange(self.side), torch.tensor(bounds), right=True)
        kind = self._cut((3 * part[:, None] + part)[None, :, :, None].float())[..., 0]
        return torch.where(kind[:, :, None] == kind[:, None], 0.0, FORBIDDEN)

    def _cut(self, x: Tensor) -> Tensor:
        """[B * windows, L, size] of x [B, side, side, size]."""
        count, w = self.side // self.window, self.window
        x = x.view(-1, count, w, count, w, x.shape[-1])
        return x.transpose(2, 3).reshape(-1, w * w, x.shape[-1])

    def mix(self, x: Tensor) -> Tensor:
        """What attention adds to x [B, side * side, size]."""
        size, count, w = x.shape[-1], self.side // self.window, self.window
        y: Tensor = self.norm1(x).view(-1, self.side, self.side, size)
        if self.shift:
            y = y.roll((-self.shift, -self.shift), (1, 2))
        y = self.attn(self._cut(y), self.attn_mask)
        y = y.view(-1, count, count, w, w, size).transpose(2, 3)
        y = y.reshape(-1, self.side, self.side, size)
        if self.shift:
            y = y.roll((self.shift, self.shift), (1, 2))
        return y.flatten(1, 2)


class Merging(nn.Module):
    """One token of twice the size for each 2 x 2 tokens."""

    def __init__(self, size: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reduction = nn.Linear(4 * size, 2 * size, bias=False)
        self.norm = nn.LayerNorm(4 * size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, side * side, size]; columns of tokens stand before rows."""
        half = self.side // 2
        x = x.view(-1, half, 2, half, 2, x.shape[-1]).permute(0, 1, 3, 4, 2, 5)
        y: Tensor = self.reduction(self.norm(x.flatten(3).flatten(1, 2)))
        return y


class SwinStage(nn.Module):
    """Blocks at one resolution, and the step to half of it but after the last."""

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, L, size]."""
        for block in self.blocks:
            x = block(x)
        y: Tensor = x if self.downsample is None else self.downsample(x)
        return y


class Swin(nn.Module):
    """Tokens of a picture in windows, which halve its resolution stage by stage."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        size, side = sizes.hidden_size, sizes.image_size // sizes.patch_size
        self.patch_embed = Patches(sizes.image_channels, size, sizes.patch_size, norm=True)
        stages = []
        for i, depth in enumerate(sizes.depths):
            wide, own, heads = size * 2**i, side // 2**i, sizes.heads[i]
            blocks = [
                SwinBlock(wide, own, heads, sizes.window, sizes.rank, shifted=j % 2 == 1)
                for j in range(depth)
            ]
            last = i + 1 == len(sizes.depths)
            stages.append(SwinStage(blocks, None if last else Merging(wide, own)))
        self.layers = nn.Sequential(*stages)
        self.norm = nn.LayerNorm(size * 2 ** (len(sizes.depths) - 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """What stands for the picture [B, size], and its tokens [B, L, size]."""
        x = self.layers(self.patch_embed(image))
        # The released head takes the tokens before the norm, and without the first.
        return self.norm(x).mean(1), x[:, 1:]


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of pictures."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x [B, C, H, W]."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gamma mlp(norm(conv(x))), a depthwise convolution of 7 x 7."""

    def __init__(self, size: int, rank: int | None) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(size, size, 7, padding=3, groups=size)
        self.norm = nn.LayerNorm(size, 1e-6)
        self.mlp = Mlp(size)
        self.gamma = nn.Parameter(torch.full((size,), 1e-6))
        self.psrp = None if rank is None else Recalibration(size, rank)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        y: Tensor = self.mlp(self.norm(self.conv_dw(x).permute(0, 2, 3, 1)))
        if self.psrp is not None:
            y = self.psrp(y, y)  # by the branch itself, not by what enters it
        return x + (y * self.gamma).permute(0, 3, 1, 2)


class Halving(nn.Module):
    """A norm, and a convolution whose squares do not overlap."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.norm = LayerNorm2d(size, 1e-6)
        self.proj = nn.Conv2d(size, out, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        y: Tensor = self.proj(self.norm(x))
        return y


class Stem(nn.Module):
    """Squares of a picture, and a norm."""

    def __init__(self, channels: int, size: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, size, side, side)
        self.norm = LayerNorm2d(size, 1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, channels, H, W]."""
        y: Tensor = self.norm(self.proj(x))
        return y


class ConvNeXtStage(nn.Module):
    """The step to half the resolution but before the first, then blocks."""

    def __init__(self, size: int, depth: int, rank: int | None, *, first: bool) -> None:
        super().__init__()
        self.downsample = nn.Identity() if first else Halving(size // 2, size)
        self.blocks = nn.Sequential(*(ConvNeXtBlock(size, rank) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, channels, H, W]."""
        y: Tensor = self.blocks(self.downsample(x))
        return y


class ConvNeXt(nn.Module):
    """Features of a picture [B, size * 2^(stages - 1), H', W']."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        size = sizes.hidden_size
        self.stem = Stem(sizes.image_channels, size, sizes.patch_size)
        self.stages = nn.Sequential(
            *(
                ConvNeXtStage(size * 2**i, depth, sizes.rank, first=not i)
                for i, depth in enumerate(sizes.depths)
            )
        )

    def forward(self, image: Tensor) -> Tensor:
        """Map image [B, channels, H, W]."""
        y: Tensor = self.stages(self.stem(image))
        return y
