"""NaLaFormer: a hierarchical vision transformer whose first stages attend in linear time.

Each block: x += conv3(x); x += g_1 attention(norm(x)); x += conv3(x); x += g_2 ffn(norm(x)), with
depthwise convolutions.  Attention of the kind 'l' is norm-aware linear attention over
all N = height * width places, rotated by row and column,

    num = R(phi_q)^T (sum R(phi_k) v^T) / N,   den = phi_q^T (sum phi_k) / N + 1e-6,

of the kind 'v' softmax attention; both add a depthwise 5x5 convolution of the values, and gate
what is normalised.  Names of parameters are those of the published code.

Source: Meng et al. 2025, arXiv:2506.21137, and its code (the released variants use 'l' in the
first two stages).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .model import Model
from .parts.drawn_shapes import Shapes
from .parts.language_layers import by_head
from .parts.norm_aware_attention import EPS, frequencies, key_features, query_features, rotate

LINEAR, SOFTMAX = "l", "v"


@dataclass(frozen=True, kw_only=True)
class Config:
    """A value for each stage where there are several; `kinds` are 'l' or 'v', of attention."""

    num_classes: int = 1000
    embed_dims: tuple[int, ...] = (32, 64, 128, 384)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (1, 2, 4, 12)
    mlp_ratios: tuple[float, ...] = (3.5, 3.5, 3.5, 3.5)
    kinds: tuple[str, ...] = (LINEAR, LINEAR, SOFTMAX, SOFTMAX)
    projection: int = 1024
    layer_scale: bool = True


XT = Config()
TINY = Config(
    num_classes=8,
    embed_dims=(16, 16, 32, 32),
    depths=(1, 1, 1, 1),
    num_heads=(2, 2, 2, 2),
    mlp_ratios=(2.0, 2.0, 2.0, 2.0),
    projection=48,
)


class LinearAttention(nn.Module):
    """Norm-aware linear attention over the places of a picture."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkvg = nn.Linear(size, 4 * size)
        self.lepe = _depthwise(size, 5)
        self.out_proj = nn.Linear(size, size)
        self.ln = nn.LayerNorm(size)

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Mix x [B, size, H, W]; sin and cos [H * W, size / heads]."""
        tokens = x.flatten(2).mT
        q, k, v, gate = self.qkvg(tokens).chunk(4, dim=-1)
        near = self.lepe(_as_picture(v, x)).flatten(2).mT
        q, k, v = (_by_head(t, self.heads) for t in (q, k, v))
        y = self.mix(q, k, v, sin, cos).transpose(1, 2).flatten(2) + near
        return _as_picture(self.out_proj(self.ln(y) * F.silu(gate)), x)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Results [B, heads, N, d] of q, k, v of that shape."""
        queries, keys = query_features(q), key_features(k)
        mean = torch.cat(keys, dim=-1).mean(dim=-2, keepdim=True)
        total = torch.cat(queries, dim=-1) @ mean.mT + EPS
        query, key = (
            torch.cat([rotate(t, sin, cos) for t in part], -1) for part in (queries, keys)
        )
        y: Tensor = query @ (key.mT @ v / v.shape[-2]) / total
        return y


class SoftmaxAttention(LinearAttention):
    """Softmax attention of rotated queries and keys, with the same parameters."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Results [B, heads, N, d] of q, k, v of that shape."""
        return F.scaled_dot_product_attention(rotate(q, sin, cos), rotate(k, sin, cos), v)


class FeedForward(nn.Module):
    """fc1, GELU, a depthwise convolution beside the identity, fc2."""

    def __init__(self, size: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, hidden), nn.Linear(hidden, size)
        self.dwconv = _depthwise(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        y = _as_picture(F.gelu(self.fc1(x.flatten(2).mT)), x)
        y = y + self.dwconv(y)
        return _as_picture(self.fc2(y.flatten(2).mT), x)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of [B, size, H, W]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(size, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x."""
        y: Tensor = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return y


class Block(nn.Module):
    """Attention and feed-forward, each behind a depthwise convolution of positions."""

    def __init__(self, kind: str, size: int, heads: int, hidden: int, *, scaled: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = ChannelNorm(size), ChannelNorm(size)
        attention = LinearAttention if kind == LINEAR else SoftmaxAttention
        self.attn = attention(size, heads)
        self.ffn = FeedForward(size, hidden)
        self.cpe1, self.cpe2 = _depthwise(size, 3), _depthwise(size, 3)
        self.scaled = scaled
        if scaled:
            self.gamma_1 = nn.Parameter(torch.ones(1, size, 1, 1))
            self.gamma_2 = nn.Parameter(torch.ones(1, size, 1, 1))

    def forward(self, x: Tensor, sin: Tensor, cos: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        x = x + self.cpe1(x)
        mixed: Tensor = self.attn(self.norm1(x), sin, cos)
        x = x + (self.gamma_1 * mixed if self.scaled else mixed)
        x = x + self.cpe2(x)
        y: Tensor = self.ffn(self.norm2(x))
        return x + (self.gamma_2 * y if self.scaled else y)


class Rotation(nn.Module):
    """Angles of all places: the first half of the channels turns by row, the second by column."""

    angle: Tensor

    def __init__(self, head: int) -> None:
        super().__init__()
        self.register_buffer("angle", frequencies(head // 4))

    def forward(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Sines and cosines [height * width, head]."""
        rows, columns = (torch.arange(n, device=self.angle.device) for n in (height, width))
        by_row = (rows[:, None] * self.angle)[:, None].expand(-1, width, -1)
        by_column = (columns[:, None] * self.angle)[None].expand(height, -1, -1)
        angles = torch.cat([by_row, by_column], dim=-1).flatten(0, 1)
        return angles.sin(), angles.cos()


class Merging(nn.Module):
    """A strided convolution to half the height and width."""

    def __init__(self, size: int, following: int) -> None:
        super().__init__()
        self.reduction = nn.Conv2d(size, following, 3, 2, 1)
        self.norm = nn.BatchNorm2d(following)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        y: Tensor = self.norm(self.reduction(x))
        return y


class Stem(nn.Module):
    """Four convolutions to a quarter of height and width."""

    def __init__(self, size: int) -> None:
        super().__init__()
        half = size // 2
        layers: list[nn.Module] = []
        for given, made, stride in (
            (3, half, 2),
            (half, half, 1),
            (half, half, 1),
            (half, size, 2),
        ):
            layers += [nn.Conv2d(given, made, 3, stride, 1), nn.BatchNorm2d(made), nn.GELU()]
        self.proj = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """Map pictures x [B, 3, height, width]."""
        y: Tensor = self.proj(x)
        return y


class Stage(nn.Module):
    """Blocks of one size, and a convolution to the next, at half the height and width."""

    def __init__(self, blocks: list[Block], size: int, heads: int, following: int | None) -> None:
        super().__init__()
        self.RoPE = Rotation(size // heads)
        self.blocks = nn.ModuleList(blocks)
        self.downsample = None if following is None else Merging(size, following)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, size, H, W]."""
        sin, cos = self.RoPE(*x.shape[2:])
        for block in self.blocks:
            x = block(x, sin, cos)
        if self.downsample is not None:
            x = self.downsample(x)
        return x


class NaLaFormer(nn.Module):
    """Patches of 4x4, the stages, a projection, and the mean over all places."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.patch_embed = Stem(config.embed_dims[0])
        following = (*config.embed_dims[1:], None)
        self.layers = nn.ModuleList(
            Stage([_block(config, stage) for _ in range(depth)], size, heads, after)
            for stage, (depth, size, heads, after) in enumerate(
                zip(config.depths, config.embed_dims, config.num_heads, following, strict=True)
            )
        )
        self.proj = nn.Linear(config.embed_dims[-1], config.projection)
        self.norm = nn.BatchNorm2d(config.projection)
        self.head = nn.Conv2d(config.projection, config.num_classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [B, classes] of image [B, 3, height, width]."""
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        y = _as_picture(self.proj(x.flatten(2).mT), x)
        y = F.silu(self.norm(y)).mean(dim=(2, 3), keepdim=True)
        scores: Tensor = self.head(y).flatten(1)
        return scores


def _block(config: Config, stage: int) -> Block:
    size = config.embed_dims[stage]
    hidden = int(config.mlp_ratios[stage] * size)
    scaled = config.layer_scale
    return Block(config.kinds[stage], size, config.num_heads[stage], hidden, scaled=scaled)


def _depthwise(size: int, width: int) -> nn.Conv2d:
    return nn.Conv2d(size, size, width, padding=width // 2, groups=size)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """[B, N, heads * d] as [B, heads, N, d]."""
    return by_head(x, heads).transpose(1, 2)


def _as_picture(tokens: Tensor, like: Tensor) -> Tensor:
    """[B, H * W, size] as [B, size, H, W], `like` having that height and width."""
    batch, _, size = tokens.shape
    return tokens.mT.reshape(batch, size, *like.shape[2:])


def build(config: Config) -> NaLaFormer:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: if values of the config do not fit each other.
    """
    stages = len(config.embed_dims)
    for name in ("depths", "num_heads", "mlp_ratios", "kinds"):
        if len(getattr(config, name)) != stages:
            raise ValueError(f"{name} has to have a value for each of the {stages} stages.")
    if not set(config.kinds) <= {LINEAR, SOFTMAX}:
        raise ValueError(f"kinds holds {config.kinds}; each is {LINEAR!r} or {SOFTMAX!r}.")
    for size, heads in zip(config.embed_dims, config.num_heads, strict=True):
        if size % (4 * heads):
            raise ValueError(f"a width of {size} has to be a multiple of 4 for {heads} heads.")
    return NaLaFormer(config)


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Random pictures of odd sizes."""
    del config, time
    return {"image": torch.randn(batch, 3, 40, 56, generator=generator)}


NALAFORMER = Model(
    name="nalaformer",
    summary="Hierarchical vision transformer with norm-aware linear attention.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=lambda _: {"image": "batchx3xheightxwidth"},
    presets={"tiny": TINY},
    recipe=Shapes(),
    source="arXiv:2506.21137",
)
