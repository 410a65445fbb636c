"""RWKV-7 "Goose": a recurrence whose transition is diagonal plus low rank, and a squared ReLU.

Each projection sees a token x mixed with the one before it, x + mu (x_{t-1} - x).  Of these

    r = W_r x_r,   k = W_k x_k,   v = W_v x_v,
    log w = -e^{-1/2} sigmoid(w_0 + tanh(x_w w_1) w_2),   a = sigmoid(a_0 + x_a a_1 a_2),
    v <- v + (v of the first layer - v) sigmoid(v_0 + x_v v_1 v_2)      in later layers,
    h = k * k_k / |k * k_k|,   k <- k (1 + (a - 1) k_a),
    S_t = S_{t-1} (diag(w) - h (a * h)^T) + v k^T,   y = norm(S_t r) + (sum r k r_k) v,
    out = W_o (y * sigmoid(x_g g_1) g_2),

for each head; the norm is that of a head.  Feed-forward: W_v relu(W_k x_k)^2.

Source: Peng et al. 2025, arXiv:2503.14456, section 4; parameters as in BlinkDL/RWKV-LM,
`RWKV-v7/rwkv_v7_demo.py`, but for vectors, which have one axis here.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.ops import dplr_delta_rule

from .layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed
from .model import Model, token_ids
from .parts.fla_checkpoints import IMMATERIAL as FLA_IMMATERIAL
from .parts.fla_checkpoints import MOST_LAYERS, head_size
from .parts.fla_checkpoints import SOURCE as FLA_SOURCE
from .parts.language_layers import by_head
from .training import TrainingRecipe

SLOWEST = -math.exp(-0.5)  # log decay of a gate that is open
FLA_FLOOR = 1e-6  # in its fused norm


@dataclass(frozen=True, kw_only=True)
class Config:
    """`*_rank` are those of the gates of decay, rate (a), value residual and output.

    `key_floor` is added to the square of the length by which h is divided; 0: it is at least 1e-12.
    """

    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 512
    num_layers: int = 4
    head_size: int = 64
    decay_rank: int = 16
    rate_rank: int = 16
    value_rank: int = 16
    gate_rank: int = 32
    norm_eps: float = 1e-5
    key_floor: float = 0.0


TINY = Config(
    hidden_size=64,
    intermediate_size=224,
    num_layers=3,
    head_size=16,
    decay_rank=8,
    rate_rank=8,
    value_rank=8,
    gate_rank=16,
)


def before(x: Tensor) -> Tensor:
    """The token before each of x [B, T, size], zeros before the first."""
    return F.pad(x, (0, 0, 1, -1))


class TimeMix(nn.Module):
    """Mix tokens by a state of each head; parameters bear the names of the paper's code."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.hidden_size // config.head_size
        self.heads, self.layer = heads, layer
        self.key_floor, self.eps = config.key_floor, config.norm_eps * config.head_size
        for name in "rwkvag":
            self.register_parameter(f"x_{name}", nn.Parameter(torch.empty(size)))
        ranks = {"w": config.decay_rank, "a": config.rate_rank}
        ranks |= {"v": config.value_rank} if layer else {}
        for name, rank in ranks.items():
            self.register_parameter(f"{name}0", nn.Parameter(torch.zeros(size)))
            self.register_parameter(f"{name}1", nn.Parameter(0.02 * torch.randn(size, rank)))
            self.register_parameter(f"{name}2", nn.Parameter(torch.empty(rank, size)))
        self.g1 = nn.Parameter(0.02 * torch.randn(size, config.gate_rank))
        self.g2 = nn.Parameter(torch.empty(config.gate_rank, size))
        self.k_k = nn.Parameter(torch.full((size,), 0.71))
        self.k_a = nn.Parameter(torch.full((size,), 1.02))
        self.r_k = nn.Parameter(torch.full((heads, config.head_size), -0.04))
        self.receptance, self.key, self.value, self.output = (
            nn.Linear(size, size, bias=False) for _ in range(4)
        )
        self.ln_x = nn.GroupNorm(heads, size, eps=self.eps)
        self._initialise(layer, config.num_layers)

    def _initialise(self, layer: int, layers: int) -> None:
        """As the code of the paper, slow and fast channels beside each other; no weight is 0."""
        size = self.k_k.shape[0]
        at, share = torch.arange(size) / size, 1 - layer / layers
        powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
        depth = layer / max(layers - 1, 1)
        with torch.no_grad():
            for name, power in powers.items():
                getattr(self, f"x_{name}").copy_(1 - at ** (power * share))
            steep = 1 + depth**0.3
            self.get_parameter("w0").copy_(-5.5 + 6 * (at * size / max(size - 1, 1)) ** steep)
            for name in ("w2", "a2", "g2", *(["v2"] if layer else [])):
                nn.init.orthogonal_(self.get_parameter(name), gain=0.1)
            if layer:
                self.get_parameter("v0").fill_(0.73)
            self.ln_x.weight.fill_(((1 + layer) / layers) ** 0.7)
            for linear, gain in ((self.receptance, 1.0), (self.key, 0.1), (self.value, 1.0)):
                nn.init.orthogonal_(linear.weight, gain=gain)
            nn.init.normal_(self.output.weight, std=0.02)

    def _gate(self, name: str, x: Tensor) -> Tensor:
        """A gate of low rank of x [B, T, size], for each channel."""
        inner = x @ self.get_parameter(f"{name}1")
        inner = inner.tanh() if name == "w" else inner
        return torch.sigmoid(
            self.get_parameter(f"{name}0") + inner @ self.get_parameter(f"{name}2")
        )

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mix x [B, T, size] along T; the values of the first layer are handed on."""
        moved = before(x) - x
        xr, xw, xk, xv, xa, xg = (x + moved * self.get_parameter(f"x_{name}") for name in "rwkvag")
        r, k, v = self.receptance(xr), self.key(xk), self.value(xv)
        if first is None:
            first = v
        else:
            v = v + (first - v) * self._gate("v", xv)
        rate, decay = self._gate("a", xa), SLOWEST * self._gate("w", xw)
        seen = by_head(k * self.k_k, self.heads)
        if self.key_floor:
            seen = seen * torch.rsqrt(seen.square().sum(-1, keepdim=True) + self.key_floor)
        else:
            seen = F.normalize(seen, dim=-1)
        seen = seen.flatten(-2)
        k = k * (1 + (rate - 1) * self.k_a)
        y, _ = dplr_delta_rule(r, k, v, -seen, seen * rate, decay, num_heads=self.heads)
        normed = F.layer_norm(by_head(y, self.heads), self.r_k.shape[1:], eps=self.eps).flatten(-2)
        y = normed * self.ln_x.weight + self.ln_x.bias
        r, k, v = (by_head(each, self.heads) for each in (r, k, v))
        y = y + ((r * k * self.r_k).sum(-1, keepdim=True) * v).flatten(-2)
        out: Tensor = self.output(y * (torch.sigmoid(xg @ self.g1) @ self.g2))
        return out, first


class ChannelMix(nn.Module):
    """A feed-forward layer with squared rectifiers, of a token and the one before it."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        power = (1 - layer / config.num_layers) ** 4
        self.x_k = nn.Parameter(1 - (torch.arange(size) / size) ** power)
        self.key = nn.Linear(size, config.intermediate_size, bias=False)
        self.value = nn.Linear(config.intermediate_size, size, bias=False)
        nn.init.orthogonal_(self.key.weight)
        nn.init.normal_(self.value.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Map x [B, T, size]."""
        k = self.key(x + (before(x) - x) * self.x_k)
        y: Tensor = self.value(k.relu().square())
        return y


class Block(nn.Module):
    """Both, each behind a norm; the first block has one more."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.norm_eps
        self.ln0 = nn.LayerNorm(size, eps) if layer == 0 else None
        self.ln1, self.ln2 = (nn.LayerNorm(size, eps) for _ in range(2))
        self.att, self.ffn = TimeMix(config, layer), ChannelMix(config, layer)

    def forward(self, x: Tensor, first: Tensor | None) -> tuple[Tensor, Tensor]:
        """Map x [B, T, size]."""
        x = x if self.ln0 is None else self.ln0(x)
        mixed, first = self.att(self.ln1(x), first)
        x = x + mixed
        return x + self.ffn(self.ln2(x)), first


class RWKV7Model(nn.Module):
    """Token embedding, blocks, a norm and the logits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.emb = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.num_layers))
        self.ln_out = nn.LayerNorm(config.hidden_size, config.norm_eps)
        self.head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        nn.init.uniform_(self.emb.weight, -1e-4, 1e-4)
        nn.init.orthogonal_(self.head.weight, gain=0.5)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits [B, T, vocab] of the token after each of input_ids [B, T]."""
        x, first = self.emb(input_ids), None
        for block in self.blocks:
            x, first = block(x, first)
        logits: Tensor = self.head(self.ln_out(x))
        return logits


def build(config: Config) -> RWKV7Model:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: heads do not share the channels evenly, or there is no layer.
    """
    if config.hidden_size % config.head_size:
        raise ValueError(
            f"head_size {config.head_size} does not divide hidden_size {config.hidden_size}"
        )
    if config.num_layers < 1:
        raise ValueError("num_layers is less than 1")
    return RWKV7Model(config)


def _files_configure(_: Values, shapes: Shapes) -> dict[str, Any]:
    """A file of weights alone: every size is that of a tensor."""
    vocabulary, size = shapes["emb.weight"]
    layers = {int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")}
    inner = "blocks.0."
    last = f"blocks.{max(layers)}.att.v1"  # the first layer's are in some files and are not used
    return {
        "vocab_size": vocabulary,
        "hidden_size": size,
        "intermediate_size": shapes[f"{inner}ffn.key.weight"][0],
        "num_layers": len(layers),
        "head_size": shapes[f"{inner}att.r_k"][1],
        "decay_rank": shapes[f"{inner}att.w1"][1],
        "rate_rank": shapes[f"{inner}att.a1"][1],
        "value_rank": shapes[last][1] if last in shapes else 1,
        "gate_rank": shapes[f"{inner}att.g1"][1],
    }


def _files_weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Vectors have three axes there, two of them of one entry."""
    for part in ("v0", "v1", "v2"):
        unused = f"blocks.0.att.{part}"
        if unused in tensors:
            tensors[unused]
    found = renamed(tensors, {name: name for name in _ours(config)})
    return {n: x.flatten() if x.dim() == 3 else x for n, x in found.items()}


def _ours(config: Config) -> Collection[str]:
    with torch.device("meta"):
        return build(config).state_dict().keys()


def _fla_configure(values: Values, _: Shapes) -> dict[str, Any]:
    hidden = read_value(values, "hidden_size", int)
    layers = read_value(values, "num_hidden_layers", int)
    if layers > MOST_LAYERS:
        raise SourceError(f"its config has num_hidden_layers = {layers}, above {MOST_LAYERS}")
    refuse(
        values,
        {
            "attn": (None,),
            "hidden_act": ("sqrelu",),
            "norm_bias": (True,),
            "norm_first": (True,),
            "quantization_config": (None,),
            "tie_word_embeddings": (False,),
            "value_dim": (None, hidden, [hidden] * layers),
        },
    )
    heads = read_value(values, "num_heads", int | None, None)
    size = read_value(values, "head_dim", int | None, 64)
    if size is None and heads is not None:
        size = head_size(values, hidden, heads, "num_heads")
    inner = read_value(values, "intermediate_size", int | None, None)
    if inner is None:
        ratio = read_value(values, "hidden_ratio", int | float | None, None) or 4
        inner = 32 * ((int(hidden * ratio) + 31) // 32)
    return {
        "vocab_size": read_value(values, "vocab_size", int),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_layers": layers,
        "head_size": size,
        "decay_rank": read_value(values, "decay_low_rank_dim", int, 64),
        "rate_rank": read_value(values, "a_low_rank_dim", int, 64),
        "value_rank": read_value(values, "v_low_rank_dim", int, 16),
        "gate_rank": read_value(values, "gate_low_rank_dim", int, 128),
        "norm_eps": read_value(values, "norm_eps", float, 1e-5),
        "key_floor": FLA_FLOOR if read_value(values, "fuse_norm", bool, True) else 0.0,
    }


FLA_PARTS = {  # ours, theirs
    "receptance": "r_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "ln_x": "g_norm",
}
FLA_BLOCK = {"ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm", "att": "attn", "ffn": "ffn"}
FLA_OUTER = {"emb": "model.embeddings", "ln_out": "model.norm", "head": "lm_head"}
FLA_LOW_RANK = {"0": "lora.2.bias", "1": "lora.0.weight", "2": "lora.2.weight"}


def _fla_name(name: str) -> str:
    """What a tensor of ours is called there."""
    outer, *rest = name.split(".")
    if outer != "blocks":
        return ".".join((FLA_OUTER[outer], *rest))
    number, block, part, *kind = rest
    if block == "att" and part[0] in "wavg" and part[1:] in FLA_LOW_RANK:
        inner = [f"{part[0]}_lora", FLA_LOW_RANK[part[1:]]]
    else:
        inner = [FLA_PARTS.get(part, part) if block == "att" else part, *kind]
    return ".".join(("model.layers", number, FLA_BLOCK[block], *inner))


def _fla_weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Matrices of low rank lie the other way round there, and vectors have three axes or one."""
    found = renamed(tensors, {name: _fla_name(name) for name in _ours(config)})
    return {
        name: x.mT if name[-1] in "12" and x.dim() == 2 else x.flatten() if x.dim() == 3 else x
        for name, x in found.items()
    }


EARLIER = {  # a tensor by which a file of a version is told, the latest first
    "rwkv6": "blocks.0.att.time_maa_x",
    "rwkv5": "blocks.0.att.time_faaaa",
    "rwkv4": "blocks.0.att.time_first",
}


def _earlier(values: Values, keys: Collection[str]) -> bool:
    return values.get("model_type") in list(EARLIER) or any(n in keys for n in EARLIER.values())


def _refuse_earlier(values: Values, shapes: Shapes) -> dict[str, Any]:
    told = [values.get("model_type"), *(v for v, name in EARLIER.items() if name in shapes)]
    version = next(name for name in told if name in list(EARLIER))[-1]
    raise SourceError(
        f"these are weights of RWKV-{version}, whose recurrence has no model here; RWKV-7 has one"
    )


RWKV7 = Model(
    name="rwkv7",
    summary="RWKV-7: a recurrence whose transition is diagonal plus low rank.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(steps=1200, time=128),
    source="arXiv:2503.14456",
    layouts=(
        CheckpointLayout(
            name="rwkv-lm",
            source="github.com/BlinkDL/RWKV-LM @ 524481d5099b38d9bc8ef1e89209161b86c8011b, "
            "RWKV-v7/rwkv_v7_demo.py",
            fits=lambda _, keys: "blocks.0.att.r_k" in keys,
            configure=_files_configure,
            weights=_files_weights,
            immaterial=(),
        ),
        CheckpointLayout(
            name="fla",
            source=FLA_SOURCE,
            fits=lambda values, _: values.get("model_type") == "rwkv7",
            configure=_fla_configure,
            weights=_fla_weights,
            immaterial=FLA_IMMATERIAL,
        ),
        CheckpointLayout(
            name="earlier",
            source="github.com/BlinkDL/RWKV-LM @ 524481d5099b38d9bc8ef1e89209161b86c8011b, RWKV-v4 "
            "to RWKV-v6; " + FLA_SOURCE,
            fits=_earlier,
            configure=_refuse_earlier,
            weights=lambda tensors, _: dict(tensors),
        ),
    ),
)
