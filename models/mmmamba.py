"""mmMamba: a decoder over tokens and pixels whose attention was distilled into Mamba-2 mixers.

Pictures are cut into patches, neighbours of which are shuffled together and projected; the k-th
token of a row that stands for a picture takes the k-th of these features.  A mixer inherits q, k, v
of the attention in whose place it stands, as C, B and x of a state space of H heads:

    q_t, k_t, v_t = silu(conv(W x)_t),  a causal depthwise convolution of 2 tokens, with bias
    S_t = exp(-delta_t exp(A)) S_{t-1} + delta_t k_t v_t^T,  delta_t = softplus(W_dt x_t + b)
    y_t = W_o (rmsnorm(S_t^T q_t) silu(W_g x_t)),  k and v shared by groups of heads, norm per head

Source: Liao et al. 2025, arXiv:2502.13145; github hustvl/mmMamba @ 85143d0.  The transformer that
it is distilled from is HoVLE, Tao et al. 2024, arXiv:2412.16158.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.ops import linear_attention

from . import llama
from .layout import CheckpointLayout
from .model import Model
from .parts import mmmamba_checkpoints
from .parts.distillation import Distillation, Distilled
from .parts.language_layers import LanguageModel, RMSNorm, by_head

LEAST, MOST = 1e-3, 1e-1  # steps that a fresh mixer's bias is drawn from


@dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
    """`attention_layers` are those that stay softmax attention, as ``"0,4"``; none of them: "".

    Pictures are `image_size` pixels wide and high, in patches of `patch_size`; `shuffle` by
    `shuffle` patches are one token, projected (`project`) or as they are, whose id in `input_ids`
    is `image_token`.  `norm_eps` is that of the stream, `gate_norm_eps` that of the mixers.
    """

    vocab_size: int = 64
    hidden_size: int = 48
    intermediate_size: int = 96
    attention_layers: str = ""
    conv_size: int = 2
    image_size: int = 16
    patch_size: int = 2
    channels: int = 3
    shuffle: int = 2
    project: bool = True
    image_token: int = 63
    gate_norm_eps: float = 1e-5

    @property
    def image_tokens(self) -> int:
        """Tokens of one picture."""
        return (self.image_size // self.patch_size // self.shuffle) ** 2


TEACHER = Config(attention_layers="0,1,2,3")
LINEAR = Config()
HYBRID = Config(attention_layers="0")


class Mamba2Attention(nn.Module):
    """A Mamba-2 mixer with the projections of the attention that it stands for."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, heads = config.hidden_size, config.num_heads
        kv_size = config.num_kv_heads * config.head_size
        self.v_proj = nn.Linear(size, kv_size, bias=False)
        self.k_proj = nn.Linear(size, kv_size, bias=False)
        self.q_proj = nn.Linear(size, size, bias=False)
        self.g_proj = nn.Linear(size, size, bias=False)
        self.dt_proj = nn.Linear(size, heads, bias=False)
        channels = size + 2 * kv_size
        self.conv1d = nn.Conv1d(
            channels, channels, config.conv_size, groups=channels, padding=config.conv_size - 1
        )
        self.A_log = nn.Parameter(torch.ones(heads))
        self.dt_bias = nn.Parameter(torch.empty(heads))
        self.g_norm = RMSNorm(config.head_size, config.gate_norm_eps)
        self.o_proj = nn.Linear(size, size, bias=False)
        self.mimic()

    @torch.no_grad()
    def mimic(self) -> None:
        """Start what attention does not have: a convolution that passes on, steps of any length.

        The paper's mimic initialisation: the convolution is the identity, the step does not depend
        on the token, and lengths of steps are spread evenly over a logarithmic scale.
        """
        nn.init.zeros_(self.conv1d.weight)
        self.conv1d.weight[:, 0, -1] = 1
        if self.conv1d.bias is not None:
            nn.init.zeros_(self.conv1d.bias)
        nn.init.zeros_(self.dt_proj.weight)
        nn.init.ones_(self.A_log)
        nn.init.xavier_uniform_(self.g_proj.weight, gain=2**-2.5)
        steps = torch.empty_like(self.dt_bias).uniform_(math.log(LEAST), math.log(MOST)).exp()
        self.dt_bias.copy_(steps + torch.log(-torch.expm1(-steps)))

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        heads, kv_heads = self.config.num_heads, self.config.num_kv_heads
        mixed = torch.cat((self.v_proj(x), self.k_proj(x), self.q_proj(x)), -1).transpose(1, 2)
        mixed = F.silu(self.conv1d(mixed)[..., : x.shape[1]]).transpose(1, 2)
        kv_size = kv_heads * self.config.head_size
        v, k, q = torch.split(mixed, [kv_size, kv_size, mixed.shape[-1] - 2 * kv_size], -1)
        k, v = (by_head(y, kv_heads).repeat_interleave(heads // kv_heads, -2) for y in (k, v))
        step = F.softplus(self.dt_proj(x) + self.dt_bias)
        y, _ = linear_attention(
            q,
            k.flatten(-2),
            (v * step[..., None]).flatten(-2),
            decay=-self.A_log.exp() * step,
            update_rule="gated",
            q_num_heads=heads,
            kv_num_heads=heads,
            scale=1.0,
        )
        y = self.g_norm(by_head(y, heads)).flatten(-2)
        out: Tensor = self.o_proj(y * F.silu(self.g_proj(x)))
        return out


class Patches(nn.Module):
    """Pictures as tokens: patches with positions, shuffled together, projected."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        size, side = config.hidden_size, config.image_size // config.patch_size
        self.patch_embedding = nn.Conv2d(
            config.channels, size, config.patch_size, stride=config.patch_size
        )
        self.position_embedding = nn.Parameter(0.02 * torch.randn(1, side**2, size))
        self.proj: nn.Module = nn.Identity()
        if config.project:
            joined = nn.Linear(size * config.shuffle**2, size)
            self.proj = nn.Sequential(joined, nn.GELU(), nn.Linear(size, size))

    def forward(self, pixels: Tensor) -> Tensor:
        """Features [B, tiles * image_tokens, hidden] of pixels [B, tiles, channels, size, size]."""
        batch = pixels.shape[0]
        x = self.patch_embedding(pixels.flatten(0, 1)).flatten(2).transpose(1, 2)
        x = x + self.position_embedding
        shuffle = self.config.shuffle
        side = self.config.image_size // self.config.patch_size // shuffle
        x = x.unflatten(1, (side, shuffle, side, shuffle)).permute(0, 1, 3, 2, 4, 5)
        features: Tensor = self.proj(x.flatten(3).flatten(1, 2))
        return features.reshape(batch, pixels.shape[1] * side**2, features.shape[-1])


class MMMamba(Distilled):
    """Text and pictures in one stream through mixers and attention."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        chosen = attention_layers(config)
        mixers: list[nn.Module] = [
            llama.Attention(config) if layer in chosen else Mamba2Attention(config)
            for layer in range(config.num_layers)
        ]
        self.config = config
        self.vision = Patches(config)
        self.text = LanguageModel(mixers, config)
        for mixer in self.fresh().values():
            assert isinstance(mixer, Mamba2Attention)
            mixer.mimic()

    def mixers(self) -> list[nn.Module]:
        """What mixes tokens, layer by layer."""
        return [layer.get_submodule("mixer") for layer in self.text.layers]

    def fresh(self) -> dict[int, nn.Module]:
        """The mixers that stand for attention, by layer."""
        pairs = enumerate(self.mixers())
        return {layer: mixer for layer, mixer in pairs if isinstance(mixer, Mamba2Attention)}

    def forward(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """Logits [B, T, vocab] of the token after each of input_ids [B, T].

        pixel_values [B, tiles, channels, image_size, image_size]: the row's pictures, in the order
        in which its tokens name them.  Tokens of pictures beyond these take the last feature.
        """
        return self.text.decode(self.embed(input_ids, pixel_values))

    def embed(self, input_ids: Tensor, pixel_values: Tensor) -> Tensor:
        """The stream [B, T, hidden] that enters the first layer."""
        x: Tensor = self.text.embed_tokens(input_ids)
        features = self.vision(pixel_values)
        named = input_ids == self.config.image_token
        which = (named.long().cumsum(1) - 1).clamp(0, features.shape[1] - 1)
        seen = features.gather(1, which[..., None].expand(-1, -1, features.shape[-1]))
        return torch.where(named[..., None], seen, x)


def attention_layers(config: Config) -> frozenset[int]:
    """Indices of the layers that are attention.

    Raises:
        SourceError: the config names none that there are.
    """
    parts = [part.strip() for part in config.attention_layers.split(",") if part.strip()]
    if not all(part.isdecimal() and int(part) < config.num_layers for part in parts):
        raise SourceError(
            "The config of the model 'mmmamba' has attention_layers = "
            f"{config.attention_layers!r}; it should be numbers of layers from 0 to "
            f'{config.num_layers - 1}, as "0,4".'
        )
    return frozenset(map(int, parts))


def inputs(config: Config, batch: int, time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Rows that begin with the tokens of one picture, as far as they are that long, then text."""
    ids = torch.randint(config.image_token, (batch, time), generator=generator)
    ids[:, : config.image_tokens] = config.image_token
    size = config.image_size
    pixels = torch.rand(batch, 1, config.channels, size, size, generator=generator)
    return {"input_ids": ids, "pixel_values": pixels}


def axes(config: Config) -> Mapping[str, str]:
    """Pictures have no time: they are given once, any number of tiles."""
    size = config.image_size
    return {
        "input_ids": "batchxtime",
        "pixel_values": f"batchxtilesx{config.channels}x{size}x{size}",
    }


def build(config: Config) -> MMMamba:
    """The module of `config`, freshly initialised.

    Raises:
        SourceError: sizes of the config do not go together.
    """
    token = config.patch_size * config.shuffle
    wrong = {
        f"image_size = {config.image_size} is no multiple of patch_size * shuffle = {token}": (
            config.image_size % token
        ),
        f"shuffle = {config.shuffle} needs project = true": (
            config.shuffle > 1 and not config.project
        ),
        f"image_token = {config.image_token} is not below vocab_size = {config.vocab_size}": (
            config.image_token >= config.vocab_size
        ),
        f"num_heads = {config.num_heads} is no multiple of num_kv_heads = {config.num_kv_heads}": (
            config.num_heads % config.num_kv_heads
        ),
    }
    for said, holds in wrong.items():
        if holds:
            raise SourceError(f"The config of the model 'mmmamba' does not fit: {said}.")
    return MMMamba(config)


PUBLISHED = CheckpointLayout(
    name="hustvl",
    source="github hustvl/mmMamba @ 85143d0, hovle/ and src/model/linear_attention/mamba2.py",
    fits=mmmamba_checkpoints.fits,
    configure=mmmamba_checkpoints.configure,
    weights=mmmamba_checkpoints.weights,
    immaterial=mmmamba_checkpoints.IMMATERIAL,
)

MMMAMBA = Model(
    name="mmmamba",
    summary="Tokens and pixels through Mamba-2 mixers seeded from attention, pure or hybrid.",
    config=Config,
    build=build,
    inputs=inputs,
    presets={"teacher": TEACHER, "linear": LINEAR, "hybrid": HYBRID},
    recipe=Distillation(),
    source="arXiv:2502.13145",
    axes=axes,
    layouts=(PUBLISHED,),
)
