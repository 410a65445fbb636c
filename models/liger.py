"""Liger: a softmax transformer made recurrent without new parameters.

The gate of a linear recurrence is read off the key projection, and its output is averaged with
softmax attention over a window.  Of a Llama's own q, k, v (heads of q share those of k and v):

    gla    S_t = diag(exp(g_t)) S_{t-1} + softmax(k_t) v_t^T,  o_t = softmax(q_t)^T S_t,
           g_t = logsigmoid(k_t) / 16
    hgrn2  the same with 1 - sigmoid(k_t) in the place of softmax(k_t), and g_t = logsigmoid(k_t)
    gsa    K_t = K_{t-1} diag(exp(g_t)) + k_t s_t^T,  V_t = diag(exp(g_t)) V_{t-1} + s_t v_t^T,
           o_t = V_t^T softmax(K_t^T q_t),  g_t = logsigmoid(pool(k_t)) / 16,  s_t = 1 - exp(g_t)

    y_t = W_o (o_t + window_t) / 2

Source: Lan et al. 2025, arXiv:2503.01496; github OpenSparseLLMs/Linearization @ 0b364eb.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from intaglio.errors import SourceError
from intaglio.ops import linear_attention

from . import llama
from .layout import CheckpointLayout, Shapes, Values, read_value, renamed
from .model import Model, token_ids
from .parts import low_rank_update, pretrained_llama
from .parts.language_layers import LanguageModel, by_head
from .training import Report, TrainingRecipe, train

GATINGS = ("gla", "hgrn2", "gsa")
GATING_OF = {f"liger_{gating}": gating for gating in GATINGS}  # by model_type
GATE_DIVISOR = 16.0
POOL_SIZE = 64  # of the published code where its config says none
TUNED = ("q_proj", "k_proj", "v_proj")


@dataclass(frozen=True, kw_only=True)
class Config(llama.Config):
    """Sizes of the transformer that is linearized, and how its gate is made.

    `gating` is gla, hgrn2 or gsa; `slots` the memory slots of each head, for gsa alone.  `window`
    counts the token itself: the 64 of the paper's code lets a token see 64 before it as well.
    """

    window: int | None = 65
    gating: str = "gla"
    slots: int = 32


TINY = Config()
SMALL = Config(hidden_size=64, intermediate_size=144, num_layers=3, num_kv_heads=1)
HGRN2 = Config(gating="hgrn2")
GSA = Config(gating="gsa")


class LigerAttention(nn.Module):
    """The mean of a gated recurrence and of softmax attention over a window."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        kv_size = config.num_kv_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Mix x [B, T, hidden] along T."""
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        recurrent = (_slots if self.config.gating == "gsa" else _keys)(q, k, v, self.config)
        out: Tensor = self.o_proj((recurrent + llama.attend(q, k, v, self.config)) / 2)
        return out


def _keys(query: Tensor, key: Tensor, value: Tensor, config: Config) -> Tensor:
    """The recurrences gla and hgrn2, one state for each key-value head: [B, T, hidden]."""
    decay = F.logsigmoid(key)
    if config.gating == "gla":
        decay = decay / GATE_DIVISOR
        key = by_head(key, config.num_kv_heads).softmax(-1).flatten(-2)
    else:
        key = torch.sigmoid(-key)
    return _recurrence(
        by_head(query, config.num_heads).softmax(-1).flatten(-2),
        key,
        value,
        decay,
        (config.num_heads, config.num_kv_heads),
    )


def _slots(query: Tensor, key: Tensor, value: Tensor, config: Config) -> Tensor:
    """The recurrence gsa, in two passes over the slots: [B, T, hidden].

    A decay of each value is that of a head that has this value alone, so in the first pass every
    slot is a head.
    """
    heads, groups, slots = config.num_heads, config.num_kv_heads, config.slots
    pooled = F.adaptive_avg_pool1d(key, groups * slots)
    decay = F.logsigmoid(pooled) / GATE_DIVISOR
    weight = -torch.expm1(decay)
    q = torch.unflatten(by_head(query, groups), -1, (heads // groups, -1))
    k = by_head(key, groups)
    scores = _recurrence(
        q[:, :, :, None].expand(-1, -1, -1, slots, -1, -1).flatten(2),
        k[:, :, :, None].expand(-1, -1, -1, slots, -1).flatten(2),
        weight,
        decay,
        (heads * slots, groups * slots),
    )
    shares = torch.unflatten(by_head(scores, groups), -1, (slots, -1)).transpose(-1, -2).softmax(-1)
    return _recurrence(shares.flatten(2), weight, value, decay, (heads, groups))


def _recurrence(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, heads: tuple[int, int]) -> Tensor:
    y, _ = linear_attention(
        q,
        k,
        v,
        decay=decay,
        update_rule="gated",
        q_num_heads=heads[0],
        kv_num_heads=heads[1],
        scale=1.0,
    )
    return y


@dataclass(frozen=True, kw_only=True)
class Linearization:
    """The trained weights as they are, then low-rank updates of q, k and v, merged in the end."""

    tuning: TrainingRecipe = field(
        default_factory=lambda: TrainingRecipe(steps=200, rate=1e-2, weight_decay=0.0)
    )
    rank: int = 8
    alpha: float = 8.0

    @property
    def seed(self) -> int:
        """That of the updates, and of what they are tuned on."""
        return self.tuning.seed

    def train(self, module: nn.Module, report: Report | None, start: Path | None) -> str:
        """As `Training` says, from a trained transformer.

        Raises:
            SourceError: there is none to begin from, or it is of another kind.
        """
        if start is None:
            raise SourceError(
                "Liger is made of a trained transformer: name its checkpoint or the directory of "
                "a Llama, as --from models/checkpoints/llama.pt."
            )
        pretrained = pretrained_llama.read(start)
        module.load_state_dict(dict(pretrained.tensors))
        numbers = low_rank_update.attach(module, TUNED, self.rank, self.alpha)
        loss = train(module, self.tuning, report, pretrained.tokens)
        low_rank_update.merge(module)
        module.requires_grad_()
        return f"held-out loss {loss:.4f} nats per token after {numbers} numbers were tuned"


def adopt(config: Config, start: Path) -> Config:
    """The sizes of the transformer at `start`, with the gating and the window of `config`."""
    sizes = {**pretrained_llama.read_config(start), "window": config.window}
    adopted: Config = LIGER.configure({**sizes, "gating": config.gating, "slots": config.slots})
    return adopted


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised; its parameters are those of a Llama.

    Raises:
        SourceError: there is no such gating.
    """
    if config.gating not in GATINGS:
        raise SourceError(
            f"The config of the model 'liger' has gating = {config.gating!r}; "
            f"it should be one of {', '.join(GATINGS)}."
        )
    return LanguageModel([LigerAttention(config) for _ in range(config.num_layers)], config)


IMMATERIAL = (  # of a Llama in training, and of other mixers, which its modules never read
    *("attention_dropout", "expand_k", "expand_v", "hidden_ratio", "pretraining_tp"),
)


def _configure(values: Values, _: Shapes) -> dict[str, Any]:
    gating = GATING_OF[values["model_type"]]
    slots = read_value(values, "pool_size", int, POOL_SIZE)
    return {**pretrained_llama.llama_values(values), "gating": gating, "slots": slots}


def _weights(tensors: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    names = pretrained_llama.llama_names(config.num_layers, tied=config.tie_embeddings)
    return renamed(tensors, names)


LINEARIZATION = CheckpointLayout(
    name="linearization",
    source="github OpenSparseLLMs/Linearization @ 0b364eb, liger/models",
    fits=lambda values, _: isinstance(name := values.get("model_type"), str) and name in GATING_OF,
    configure=_configure,
    weights=_weights,
    immaterial=IMMATERIAL,
)

LIGER = Model(
    name="liger",
    summary="A softmax transformer made recurrent without new parameters, beside a window.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY, "small": SMALL, "hgrn2": HGRN2, "gsa": GSA},
    recipe=Linearization(),
    source="arXiv:2503.01496",
    layouts=(LINEARIZATION,),
    adopt=adopt,
)
