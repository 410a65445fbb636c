"""LongMem: a frozen language model, a side network that reads its states, and a bank of its past.

The backbone (ALiBi, attention and MLP side by side) reads a segment.  Keys and values of one of its
layers go into a bank in chunks; keys do not grow stale, since it is frozen.  The side network has a
layer for every two of the backbone, and adds what these two did:

    x_0 = H_0,   x_{i+1} = Attn(LN x_i) + MLP(LN x_i) + x_i + (H_{2i+2} - H_{2i})

One of its layers reads the bank as well.  Per head and token, the chunks whose mean key has the
largest product with the query are fetched; A is attention within the segment, M over the fetched
tokens, and g the sigmoid of a number of each head: (1 - g) A + g M, or A where the bank is empty.
A segment enters the bank after it was read.

A call is one segment, and the bank a state: keys, values and mean keys of `capacity` tokens, the
newest last, of each row by itself.

Source: Wang et al. 2023, arXiv:2306.07174, section 2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError

from .layout import CheckpointLayout, Shapes, Values, read_value, renamed
from .model import Model
from .parts.language_layers import by_head
from .parts.recalled_pairs import BANK, KEYS, PAIRS, SEGMENTS, Recall


@dataclass(frozen=True, kw_only=True)
class Config:
    """`segment` is how many tokens a call takes, `capacity` how many the bank keeps.

    `retrieval_layer` is the layer of the backbone whose keys and values are kept, counted from 0;
    the layer of the side network at half of that reads `retrieved` tokens in chunks of `chunk`.
    """

    vocab_size: int = 64
    hidden_size: int = 32
    num_heads: int = 4
    num_layers: int = 4
    retrieval_layer: int = 3
    segment: int = 16
    capacity: int = 128
    chunk: int = 4
    retrieved: int = 16

    def __post_init__(self) -> None:
        if self.num_layers % 2 or self.retrieval_layer >= self.num_layers:
            raise ValueError("num_layers should be even, and retrieval_layer below it")
        for name in ("segment", "capacity", "retrieved"):
            if getattr(self, name) % self.chunk:
                raise ValueError(f"{name} should be a multiple of chunk, {self.chunk}")
        if self.segment > self.capacity or self.retrieved > self.capacity:
            raise ValueError("capacity should hold a segment, and what is retrieved")

    @property
    def head_size(self) -> int:
        """Entries of one head."""
        return self.hidden_size // self.num_heads

    @property
    def chunks(self) -> int:
        """Chunks that the bank keeps."""
        return self.capacity // self.chunk


TINY = Config()
RECALL = Config(
    vocab_size=2 * KEYS,
    hidden_size=64,
    num_layers=2,
    retrieval_layer=1,
    segment=2 * PAIRS,
    capacity=2 * PAIRS * SEGMENTS,
    chunk=2,
)


class Attention(nn.Module):
    """Causal attention with ALiBi, which may read a bank beside the segment."""

    def __init__(self, config: Config, *, memory: bool = False) -> None:
        super().__init__()
        self.config = config
        size = config.hidden_size
        self.q_proj, self.k_proj = (
            nn.Linear(size, size, bias=False),
            nn.Linear(size, size, bias=False),
        )
        self.v_proj, self.out_proj = (
            nn.Linear(size, size, bias=False),
            nn.Linear(size, size, bias=False),
        )
        self.memory_bias = nn.Parameter(torch.zeros(config.num_heads)) if memory else None

    def forward(self, x: Tensor, bank: tuple[Tensor, ...] | None = None) -> Tensor:
        """Mix x [B, T, hidden] along T, and with what of `bank` is retrieved."""
        heads = self.config.num_heads
        parts = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (by_head(part(x), heads).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v, alibi(x.shape[1], heads, x))
        if bank is not None and self.memory_bias is not None:
            gate = self.memory_bias.sigmoid()[:, None, None]
            joint = (1 - gate) * y + gate * self.read(q, bank)
            y = torch.where((bank[3] > 0)[:, None, None, None], joint, y)
        out: Tensor = self.out_proj(y.transpose(1, 2).flatten(-2))
        return out

    def read(self, q: Tensor, bank: tuple[Tensor, ...]) -> Tensor:
        """Attention of q [B, H, T, d] over the chunks whose mean keys are nearest, each its own."""
        keys, values, means, filled = bank
        rows, heads, _, size = q.shape
        chunks, count = means.shape[2], self.config.retrieved // self.config.chunk
        held = torch.arange(chunks, device=q.device) >= chunks - filled[:, None]
        scores = (q @ means.mT).masked_fill(~held[:, None, None], -torch.inf)
        found, index = scores.topk(count, dim=-1)
        first = torch.arange(rows * heads, device=q.device).view(rows, heads, 1, 1) * chunks
        place = index + first
        k, v = (x.flatten(0, 2)[place].flatten(3, 4) for x in (keys, values))
        products = (q[..., None, :] @ k.mT)[..., 0, :] / math.sqrt(size)
        missing = (found == -torch.inf)[..., None].expand(*found.shape, self.config.chunk)
        weights = products.masked_fill(missing.flatten(3), torch.finfo(q.dtype).min).softmax(-1)
        return (weights[..., None, :] @ v)[..., 0, :]


def alibi(time: int, heads: int, like: Tensor) -> Tensor:
    """The bias [H, T, T] of each pair: a slope of the head by how far back; -inf ahead.

    Source: Press et al. 2021, arXiv:2108.12409.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * n / power) for n in range(1, power + 1)]
    slopes += [2 ** (-4 * n / power) for n in range(1, 2 * (heads - power), 2)]
    i = torch.arange(time, device=like.device)
    behind = i[:, None] - i
    steep = like.new_tensor(slopes)[:, None, None]
    return (-steep * behind).masked_fill(behind < 0, -torch.inf)


class Feed(nn.Module):
    """The MLP of a block of the backbone."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.fc_in, self.fc_out = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, hidden]."""
        y: Tensor = self.fc_out(F.gelu(self.fc_in(x), approximate="tanh"))
        return y


class Block(nn.Module):
    """A layer of the backbone: attention and MLP of the same norm, added to the stream."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, 1e-6)
        self.attn, self.mlp = Attention(config), Feed(config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, hidden]."""
        normal = self.ln_1(x)
        y: Tensor = self.attn(normal) + self.mlp(normal) + x
        return y


class Backbone(nn.Module):
    """The frozen language model."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.h = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, 1e-6)

    def forward(self, input_ids: Tensor) -> list[Tensor]:
        """The stream [B, T, hidden] before each layer, and after the last one and its norm."""
        streams = [self.wte(input_ids)]
        for block in self.h:
            streams.append(block(streams[-1]))
        return [*streams[:-1], self.ln_f(streams[-1])]


class Side(nn.Module):
    """A layer of the side network."""

    def __init__(self, config: Config, *, memory: bool) -> None:
        super().__init__()
        size = config.hidden_size
        self.self_attn = Attention(config, memory=memory)
        self.ln_1 = nn.LayerNorm(size)
        self.fc1, self.fc2 = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, x: Tensor, bank: tuple[Tensor, ...]) -> Tensor:
        """Map x [B, T, hidden]."""
        normal = self.ln_1(x)
        y: Tensor = self.fc2(F.gelu(self.fc1(normal))) + self.self_attn(normal, bank) + x
        return y


class LongMem(nn.Module):
    """One segment for each row, read beside the bank of those before it."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        reading = config.retrieval_layer // 2
        self.layers = nn.ModuleList(
            Side(config, memory=index == reading) for index in range(config.num_layers // 2)
        )
        self.layer_norm = nn.LayerNorm(config.hidden_size)

    @torch.no_grad()
    def begin(self) -> None:
        """Freeze the backbone, and give side layer i the weights of its layer 2i + 1."""
        self.backbone.requires_grad_(requires_grad=False)
        self.lm_head.requires_grad_(requires_grad=False)
        names = {"self_attn": "attn", "ln_1": "ln_1", "fc1": "mlp.fc_in", "fc2": "mlp.fc_out"}
        for index, layer in enumerate(self.layers):
            block = self.backbone.h[2 * index + 1]
            for mine, other in names.items():
                weights = block.get_submodule(other).state_dict()
                layer.get_submodule(mine).load_state_dict(weights, strict=False)
        self.layer_norm.load_state_dict(self.backbone.ln_f.state_dict())

    def empty_bank(self, batch: int) -> dict[str, Tensor]:
        """As the function of that name, of its config."""
        return empty_bank(self.config, batch)

    def forward(
        self,
        input_ids: Tensor,
        memory_keys: Tensor,
        memory_values: Tensor,
        memory_means: Tensor,
        memory_filled: Tensor,
    ) -> dict[str, Tensor]:
        """Logits [B, T, vocab] of input_ids [B, T], and the bank with this segment in it.

        Args:
            input_ids: one segment.
            memory_keys: [B, heads, chunks, chunk, d].
            memory_values: as `memory_keys`.
            memory_means: [B, heads, chunks, d].
            memory_filled: [B], how many of the chunks, the last ones, hold something.
        """
        bank = (memory_keys, memory_values, memory_means, memory_filled)
        streams = self.backbone(input_ids)
        x = streams[0]
        for index, layer in enumerate(self.layers):
            x = layer(x, bank) + (streams[2 * index + 2] - streams[2 * index])
        logits = F.linear(self.layer_norm(x), self.lm_head.weight)
        kept = self.kept(streams[self.config.retrieval_layer], bank)
        return {"logits": logits, **dict(zip(BANK, kept, strict=True))}

    def kept(self, stream: Tensor, bank: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The bank after a segment, whose oldest chunks make way."""
        block = self.backbone.h[self.config.retrieval_layer]
        normal = block.get_submodule("ln_1")(stream)
        attention = block.get_submodule("attn")
        heads, chunk = self.config.num_heads, self.config.chunk
        k, v = (
            by_head(attention.get_submodule(name)(normal), heads).transpose(1, 2)
            for name in ("k_proj", "v_proj")
        )
        k, v = (x.reshape(*x.shape[:2], -1, chunk, x.shape[-1]) for x in (k, v))
        fresh = k.shape[2]
        keys, values, means, filled = bank
        return (
            torch.cat((keys[:, :, fresh:], k), 2),
            torch.cat((values[:, :, fresh:], v), 2),
            torch.cat((means[:, :, fresh:], k.mean(-2)), 2),
            (filled + fresh).clamp_max(self.config.chunks),
        )


def build(config: Config) -> LongMem:
    """The module of `config`, freshly initialised."""
    return LongMem(config)


def empty_bank(config: Config, batch: int) -> dict[str, Tensor]:
    """The bank of `batch` rows that have read nothing."""
    each = (batch, config.num_heads, config.chunks)
    tokens = torch.zeros(*each, config.chunk, config.head_size)
    states = (tokens, tokens.clone(), torch.zeros(*each, config.head_size))
    return dict(zip(BANK, (*states, torch.zeros(batch, dtype=torch.int64)), strict=True))


def inputs(config: Config, batch: int, _time: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A segment of random tokens, and an empty bank."""
    ids = torch.randint(config.vocab_size, (batch, config.segment), generator=generator)
    return {"input_ids": ids, **empty_bank(config, batch)}


def axes(config: Config) -> dict[str, str]:
    """Rows alone are free."""
    shapes = {name: value.shape[1:] for name, value in empty_bank(config, 1).items()}
    bank = {name: "x".join(["batch", *map(str, shape)]) for name, shape in shapes.items()}
    return {"input_ids": f"batchx{config.segment}", **bank}


PRETRAINED = "decoder.pretrained_model.decoder.model."
SIDE = "decoder.layers."


def _configure(values: Values, shapes: Shapes) -> dict[str, Any]:
    """Sizes of a checkpoint, which its shapes tell; what they do not tell, ``--config`` may."""
    reading = [name for name in shapes if name.endswith(".self_attn.memory_bias")]
    if len(reading) != 1:
        raise SourceError(f"it has {len(reading)} layers with a memory_bias, and should have one")
    layer = int(reading[0].removeprefix(SIDE).partition(".")[0])
    vocab, hidden = shapes[f"{PRETRAINED}transformer.wte.weight"]
    blocks = {
        name.split(".")[6] for name in shapes if name.startswith(f"{PRETRAINED}transformer.h.")
    }
    found = {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "num_heads": shapes[reading[0]][0],
        "num_layers": len(blocks),
        "retrieval_layer": 2 * layer + 1,
    }
    asked = {"segment": 1024, "capacity": 65536, "chunk": 4, "retrieved": 64}
    return {**found, **{name: read_value(values, name, int, size) for name, size in asked.items()}}


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The tensors of a checkpoint by our names; copies of tied ones have to be copies."""
    names = {name: _official(name) for name in build_outline(config)}
    found = renamed(tensors, names)
    tied = {"decoder.embed_tokens.weight": "backbone.wte.weight"}
    tied["decoder.output_projection.weight"] = "lm_head.weight"
    for copy, name in tied.items():
        twin = tensors[copy] if copy in tensors else found[name]
        if not twin.is_meta and not torch.equal(twin, found[name]):
            raise SourceError(f"its {copy} is not the frozen one, {names[name]}, and should be")
    if "decoder.version" in tensors:
        _ = tensors["decoder.version"]
    return found


def build_outline(config: Config) -> list[str]:
    """Names of the tensors of a model of `config`."""
    with torch.device("meta"):
        return list(build(config).state_dict())


def _official(name: str) -> str:
    if name.startswith("backbone."):
        return f"{PRETRAINED}transformer.{name.removeprefix('backbone.')}"
    return f"{PRETRAINED}{name}" if name.startswith("lm_head.") else f"decoder.{name}"


FAIRSEQ = CheckpointLayout(
    name="fairseq",
    source="Victorwz/LongMem @ b7f3c6b, fairseq/fairseq/models/sidenet",
    fits=lambda _values, keys: any(
        key.startswith(SIDE) and key.endswith("memory_bias") for key in keys
    ),
    configure=_configure,
    weights=_weights,
)

LONGMEM = Model(
    name="longmem",
    summary="A frozen language model, a side network, and a bank of its past keys and values.",
    config=Config,
    build=build,
    inputs=inputs,
    axes=axes,
    presets={"tiny": TINY, "recall": RECALL},
    recipe=Recall(),
    layouts=(FAIRSEQ,),
    source="arXiv:2306.07174",
)
