"""Checkpoints of Flash Linear Attention: names of tensors, and what its config.json says.

A directory holds ``config.json`` with a model_type and ``model.safetensors``.  Options that change
what is computed and are not known here are refused by name.

Source: github.com/fla-org/flash-linear-attention at `COMMIT`, fla/models and fla/layers.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed

COMMIT = "bc3b101dcb713ddc5bd8924b66754eb68b5ccf89"
SOURCE = f"github.com/fla-org/flash-linear-attention @ {COMMIT}, fla/models"
NAMES = (  # ours, theirs
    (r"^embed_tokens\.", "model.embeddings."),
    (r"^norm\.", "model.norm."),
    (r"^layers\.(\d+)\.input_layernorm\.", r"model.layers.\1.attn_norm."),
    (r"^layers\.(\d+)\.post_attention_layernorm\.", r"model.layers.\1.mlp_norm."),
    (r"^layers\.(\d+)\.mixer\.lower_bounds$", "model.lower_bounds"),
    (r"^layers\.(\d+)\.mixer\.", r"model.layers.\1.attn."),
    (r"^layers\.", "model.layers."),
)
BOUNDS = "model.lower_bounds"
# kernels, losses, first weights, sizes that others decide, and of older versions share_conv_kernel,
# with which a convolution that is there had another name
IMMATERIAL = frozenset(
    {
        *("attn_mode", "conv_size", "fuse_cross_entropy", "fuse_linear_cross_entropy"),
        *("fuse_norm", "fuse_swiglu", "hidden_ratio", "use_l2warp", "share_conv_kernel"),
    }
)
OF_ATTENTION = ("layers", "num_heads", "num_kv_heads", "qkv_bias", "rope_theta", "window_size")
MOST_LAYERS = 10_000  # whatever a config asks for
Specific = Callable[[Values], dict[str, Any]]


def layout(
    kinds: Mapping[str, Specific], build: Callable[[Any], Any], immaterial: Collection[str] = ()
) -> CheckpointLayout:
    """The layout of these values of model_type, each with what of its config is its own.

    Args:
        kinds: of model_type, a function of config.json to values of our config, `layers` among
            them: the name of the mixer in the layers that are not attention, once.
        build: the module of a config.
        immaterial: values of these config.json alone that change nothing.
    """

    def fits(values: Values, _: Collection[str]) -> bool:
        return any(values.get("model_type") == kind for kind in kinds)

    def configure(values: Values, _: Shapes) -> dict[str, Any]:
        own = kinds[values["model_type"]](values)
        (mixer,) = own.pop("layers")
        count = read_value(values, "num_hidden_layers", int)
        if count > MOST_LAYERS:
            raise SourceError(f"its config has num_hidden_layers = {count}, above {MOST_LAYERS}")
        return {**_common(values), **_attention(values, [mixer] * count), **own}

    def weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        with torch.device("meta"):
            ours = build(config).state_dict()
        return _weights(tensors, ours)

    return CheckpointLayout(
        name="fla",
        source=SOURCE,
        fits=fits,
        configure=configure,
        weights=weights,
        immaterial=IMMATERIAL.union(immaterial),
    )


def _weights(tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    names = {name: official_name(name, tensors) for name in ours}
    if "lm_head.weight" not in tensors and "embed_tokens.weight" in names:
        names.pop("lm_head.weight", None)  # tied
    # the first layer has no bounds, and no version read the D that files until March 2025 have
    unread = {BOUNDS, *(name[: -len("A_log")] + "D" for name in names.values() if "A_log" in name)}
    for name in unread.difference(names.values()).intersection(tensors):
        tensors[name]
    halves = _halves(tensors, ours, names)
    return renamed(tensors, {n: x for n, x in names.items() if n not in halves}) | halves


def _halves(
    tensors: Mapping[str, Tensor], ours: Mapping[str, Tensor], names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Gates and what they gate, of files until February 2025, which have both in one matrix."""
    found: dict[str, Tensor] = {}
    for gate in (name for name in names if name.endswith(".mlp.gate_proj.weight")):
        up = gate.replace("gate_proj", "up_proj")
        if names[gate] in tensors and names[up] not in tensors:
            both = tensors[names[gate]]
            if len(both) == 2 * len(ours[gate]):
                found[gate], found[up] = both.chunk(2)
    return found


def official_name(name: str, tensors: Collection[str]) -> str:
    """What a tensor of ours is called in a file that has `tensors`."""
    for pattern, becomes in NAMES:
        renamed_, count = re.subn(pattern, becomes, name)
        if count:
            fused = renamed_.replace(".attn.g_norm.", ".attn.g_norm_swish_gate.")
            return fused if fused in tensors else renamed_
    return name


def _common(values: Values) -> dict[str, Any]:
    """What all models share: sizes, norms, the feed-forward layer."""
    eps = read_value(values, "norm_eps", float, 1e-6)
    refuse(
        values,
        {
            "hidden_act": ("swish",),
            "attnres_block_size": (None,),
            "elementwise_affine": (True,),
            "norm_first": (False,),
            "quantization_config": (None,),
            "rms_norm_eps": (eps,),  # its name in older versions, that is not read any more
        },
    )
    hidden = read_value(values, "hidden_size", int)
    inner = read_value(values, "intermediate_size", int | None, None)
    if inner is None:
        ratio = read_value(values, "hidden_ratio", int | float | None, None) or 4
        inner = 256 * ((int(hidden * ratio * 2 / 3) + 255) // 256)
    return {
        "vocab_size": read_value(values, "vocab_size", int),
        "hidden_size": hidden,
        "intermediate_size": inner,
        "norm_eps": eps,
        "tie_embeddings": read_value(values, "tie_word_embeddings", bool, False),
    }


def _attention(values: Values, layers: list[str]) -> dict[str, Any]:
    """The layers, some of which `attn` makes attention, and how these attend."""
    given = values.get("attn")
    if given is None:
        return {"layers": layers}
    specs = given if isinstance(given, list) else [given]
    found: dict[str, Any] = {}
    taken: set[int] = set()
    for spec in specs:
        if not isinstance(spec, dict) or not isinstance(spec.get("layers"), list):
            raise SourceError(f"its config has attn = {given!r}, without a list of layers")
        said = {f"attn.{name}": value for name, value in spec.items()}
        refuse(said, {name: (None,) for name in said if name[5:] not in OF_ATTENTION})
        heads = read_value(said, "attn.num_heads", int)
        window = read_value(said, "attn.window_size", int | None, None)
        own = {
            "attention_heads": heads,
            "attention_kv_heads": read_value(said, "attn.num_kv_heads", int | None, None) or heads,
            "attention_bias": read_value(said, "attn.qkv_bias", bool, False),
            "rope_theta": read_value(said, "attn.rope_theta", float, 10_000.0),
            **({} if window is None else {"window": window}),
        }
        for layer in spec["layers"]:
            if type(layer) is not int or not 0 <= layer < len(layers) or layer in taken:
                raise SourceError(
                    f"its config has attn.layers = {spec['layers']!r}: {layer!r} is no layer "
                    f"below {len(layers)}, or is named twice"
                )
            taken.add(layer)
            layers[layer] = "attention" if window is None else "window"
        for name, value in own.items():
            if found.setdefault(name, value) != value:
                raise SourceError(f"its config has attn with two values of {name}")
    return {"layers": layers, **found}


def head_size(values: Values, total: float, heads: int, name: str) -> int:
    """Entries of one of `heads` heads, of the whole that `name` decides.

    Raises:
        SourceError: if they do not divide it.
    """
    size, rest = divmod(int(total), heads)
    if rest or not size:
        raise SourceError(
            f"its config has {name} = {values.get(name)!r}: {int(total)} entries cannot be cut "
            f"into {heads} heads"
        )
    return size
