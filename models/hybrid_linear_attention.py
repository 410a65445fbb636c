"""Language models of any linear mixers and softmax attention, layer by layer.

`layers` names the mixer of each layer: ``["gla", "gla", "gla", "attention"]`` is three to one.

Source: Wang et al. 2025, arXiv:2507.06457 (a study of such mixes); the mixers are those of
`parts.linear_mixers`, attention is Llama's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from . import llama
from .layout import Values, read_value, refuse
from .model import Model, token_ids
from .parts.fla_checkpoints import head_size, layout
from .parts.language_layers import LanguageModel
from .parts.linear_mixers import (
    HGRN,
    HGRN2,
    DeltaNet,
    GatedDeltaNet,
    GatedLinearAttention,
    Heads,
    Retention,
)
from .training import TrainingRecipe


@dataclass(frozen=True, kw_only=True)
class Config:
    """What decides the layers, their sizes, and those of attention.

    `layers` are named retnet, hgrn, hgrn2, gla, deltanet, gated-deltanet, attention, or window:
    attention to the last `window` tokens.  `key_size` and `value_size` are those of one head.
    `num_kv_heads` are the heads of keys and values in retnet and gla, `num_value_heads` those of
    values in gated-deltanet; None: `num_heads`.  `conv_size` is the width of short convolutions,
    null for none; retnet has none.  `reflecting` lets the rate of delta rules reach 2,
    `lower_bounds` bounds the forget gates of hgrn and hgrn2, `gate_floor` the log decay of gla.
    """

    layers: tuple[str, ...] = ("gated-deltanet", "hgrn2", "gla", "attention")
    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 224
    num_heads: int = 4
    num_kv_heads: int | None = None
    num_value_heads: int | None = None
    key_size: int = 32
    value_size: int = 32
    conv_size: int | None = 4
    output_gate: bool = True
    reflecting: bool = False
    lower_bounds: bool = True
    gate_rank: int = 16
    gate_floor: float | None = None
    attention_heads: int = 4
    attention_kv_heads: int = 2
    attention_bias: bool = False
    rope_theta: float = 10_000.0
    window: int = 64
    norm_eps: float = 1e-6
    tie_embeddings: bool = False


TINY = Config(hidden_size=64, intermediate_size=112, key_size=16, value_size=16)


def build(config: Config) -> LanguageModel:
    """The module of `config`, freshly initialised.

    Raises:
        ValueError: a layer is of no kind that is known, or heads do not share evenly.
    """
    return assemble(config, MIXERS)


def assemble(config: Config, mixers: Mapping[str, "Build"]) -> LanguageModel:
    """As `build`, of `mixers` by the names that `layers` has."""
    unknown = [name for name in config.layers if name not in mixers]
    if unknown:
        raise ValueError(f"layers has {unknown[0]!r}, which is none of {', '.join(mixers)}")
    if not config.layers:
        raise ValueError("layers is empty")
    gated = {"hgrn": config.value_size, "hgrn2": config.key_size}
    widths = {size * config.num_heads for name, size in gated.items() if name in config.layers}
    if len(widths) > 1 and config.lower_bounds:
        raise ValueError("hgrn and hgrn2 share lower_bounds, so key_size has to be value_size")
    bounds = (
        nn.Parameter(torch.zeros(len(config.layers), widths.pop()))
        if widths and config.lower_bounds
        else None
    )
    return LanguageModel(
        [mixers[name](config, layer, bounds) for layer, name in enumerate(config.layers)], config
    )


def heads_of(config: Config, kv_heads: int | None, *, conv: bool = True) -> Heads:
    """Sizes of a mixer with so many heads of keys or values, None for `num_heads`."""
    heads = kv_heads or config.num_heads
    most, least = max(heads, config.num_heads), min(heads, config.num_heads)
    if most % least:
        raise ValueError(f"{most} heads cannot share {least}")
    return Heads(
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        num_kv_heads=heads,
        key_size=config.key_size,
        value_size=config.value_size,
        conv_size=config.conv_size if conv else None,
        output_gate=config.output_gate,
        eps=config.norm_eps,
    )


def _attention(config: Config, window: int | None) -> nn.Module:
    heads = config.attention_heads
    if config.hidden_size % (2 * heads) or heads % config.attention_kv_heads:
        raise ValueError(
            f"attention_heads {heads} has to divide half of hidden_size {config.hidden_size}, and "
            f"attention_kv_heads {config.attention_kv_heads} to divide it"
        )
    sizes = llama.Config(
        hidden_size=config.hidden_size,
        num_heads=heads,
        num_kv_heads=config.attention_kv_heads,
        rope_theta=config.rope_theta,
        window=window,
    )
    return llama.Attention(sizes, bias=config.attention_bias)


def _retention(config: Config) -> nn.Module:
    if config.key_size % 2:
        raise ValueError(f"key_size {config.key_size} has to be even to be rotated")
    heads = heads_of(config, config.num_kv_heads, conv=False)
    if heads.num_kv_heads > heads.num_heads:
        raise ValueError("num_kv_heads is larger than num_heads")
    return Retention(heads)


def _gla(config: Config) -> nn.Module:
    heads = heads_of(config, config.num_kv_heads)
    if heads.num_kv_heads > heads.num_heads:
        raise ValueError("num_kv_heads is larger than num_heads")
    return GatedLinearAttention(heads, rank=config.gate_rank, floor=config.gate_floor)


def _gated_deltanet(config: Config) -> nn.Module:
    heads = heads_of(config, config.num_value_heads)
    if heads.num_kv_heads < heads.num_heads:
        raise ValueError("num_value_heads is smaller than num_heads")
    return GatedDeltaNet(heads, reflecting=config.reflecting)


Build = Callable[[Any, int, nn.Parameter | None], nn.Module]  # of config, layer, lower bounds

MIXERS: dict[str, Build] = {
    "retnet": lambda config, *_: _retention(config),
    "hgrn": lambda config, layer, bounds: HGRN(heads_of(config, None), layer, bounds),
    "hgrn2": lambda config, layer, bounds: HGRN2(heads_of(config, None), layer, bounds),
    "gla": lambda config, *_: _gla(config),
    "deltanet": lambda config, *_: DeltaNet(heads_of(config, None), reflecting=config.reflecting),
    "gated-deltanet": lambda config, *_: _gated_deltanet(config),
    "attention": lambda config, *_: _attention(config, None),
    "window": lambda config, *_: _attention(config, config.window),
}


def _by_expansion(values: Values, expand_k: float, expand_v: float, heads: int) -> dict[str, Any]:
    """Heads, of the width of the model times expand_k and expand_v."""
    hidden = read_value(values, "hidden_size", int)
    count = read_value(values, "num_heads", int, heads)
    k, v = (
        read_value(values, name, float, default)
        for name, default in (("expand_k", expand_k), ("expand_v", expand_v))
    )
    return {
        "num_heads": count,
        "key_size": head_size(values, hidden * k, count, "expand_k"),
        "value_size": head_size(values, hidden * v, count, "expand_v"),
    }


def _fla_conv(values: Values, *, default: bool) -> dict[str, Any]:
    used = read_value(values, "use_short_conv", bool, default)
    return {"conv_size": read_value(values, "conv_size", int, 4) if used else None}


def _fla_retnet(values: Values) -> dict[str, Any]:
    refuse(values, {"feature_map": (None,)})
    return {
        "layers": ["retnet"],
        "num_kv_heads": read_value(values, "num_kv_heads", int | None, None),
        "output_gate": read_value(values, "use_output_gate", bool, True),
        **_by_expansion(values, 1.0, 2.0, 8),
    }


def _fla_gla(values: Values) -> dict[str, Any]:
    refuse(values, {"feature_map": (None,)})
    return {
        "layers": ["gla"],
        "num_kv_heads": read_value(values, "num_kv_heads", int | None, None),
        "output_gate": read_value(values, "use_output_gate", bool, True),
        "gate_floor": read_value(values, "clamp_min", float | None, None),
        **_by_expansion(values, 0.5, 1.0, 4),
        **_fla_conv(values, default=False),
    }


def _fla_hgrn(values: Values) -> dict[str, Any]:
    refuse(values, {"expand_ratio": (1,)})
    size = read_value(values, "hidden_size", int)
    return {
        "layers": ["hgrn"],
        "num_heads": 1,
        "key_size": size,
        "value_size": size,
        "lower_bounds": read_value(values, "use_lower_bound", bool, True),
        **_fla_conv(values, default=False),
    }


def _fla_hgrn2(values: Values) -> dict[str, Any]:
    hidden = read_value(values, "hidden_size", int)
    size = read_value(values, "expand_ratio", int | None, 128)
    if size is None:
        size = head_size(values, hidden, read_value(values, "num_heads", int), "num_heads")
    heads = head_size(values, hidden, size, "expand_ratio")
    return {
        "layers": ["hgrn2"],
        "num_heads": heads,
        "key_size": size,
        "value_size": size,
        "lower_bounds": read_value(values, "use_lower_bound", bool, True),
        **_fla_conv(values, default=False),
    }


def _fla_deltanet(values: Values) -> dict[str, Any]:
    refuse(values, {"use_beta": (True,), "qk_norm": ("l2",), "qk_activation": ("silu",)})
    return {
        "layers": ["deltanet"],
        "output_gate": read_value(values, "use_gate", bool, False),
        "reflecting": read_value(values, "allow_neg_eigval", bool, False),
        **_by_expansion(values, 1.0, 1.0, 16),
        **_fla_conv(values, default=True),
    }


def _fla_gated_deltanet(values: Values) -> dict[str, Any]:
    size = read_value(values, "head_dim", int, 256)
    expanded = size * read_value(values, "expand_v", float, 2.0)
    return {
        "layers": ["gated-deltanet"],
        "num_heads": read_value(values, "num_heads", int, 6),
        "num_value_heads": read_value(values, "num_v_heads", int | None, None),
        "key_size": size,
        "value_size": head_size(values, expanded, 1, "expand_v"),
        "output_gate": read_value(values, "use_gate", bool, True),
        "reflecting": read_value(values, "allow_neg_eigval", bool, False),
        **_fla_conv(values, default=True),
    }


FLA = {
    "retnet": _fla_retnet,
    "hgrn": _fla_hgrn,
    "hgrn2": _fla_hgrn2,
    "gla": _fla_gla,
    "delta_net": _fla_deltanet,
    "gated_deltanet": _fla_gated_deltanet,
}
# values that its own modules never read, of gla, of delta_net, of retnet, and of hgrn2, whose
# expand_ratio goes before
UNREAD_BY_FLA = ("use_gk", "use_gv", "use_output_norm", "use_short_conv", "num_heads")


HYBRID_LINEAR_ATTENTION = Model(
    name="hybrid-linear-attention",
    summary="RetNet, HGRN, HGRN2, GLA, DeltaNet, Gated DeltaNet, pure or mixed with attention.",
    config=Config,
    build=build,
    inputs=token_ids,
    presets={"tiny": TINY},
    recipe=TrainingRecipe(steps=300, time=128),
    source="arXiv:2507.06457",
    layouts=(layout(FLA, build, UNREAD_BY_FLA),),
)
