"""Mamba and Mamba-2 in directories of Flash Linear Attention.

Names and model_type are those of transformers' own, but the config says `norm_eps`, and options
that transformers passes over: where the norm stands, how many groups it has, bounds of steps.

Source: github.com/fla-org/flash-linear-attention at `COMMIT`, fla/models/mamba, mamba2 and
fla/layers of the same names.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from intaglio.errors import SourceError
from intaglio.models.layout import CheckpointLayout, Shapes, Values, read_value, refuse, renamed

from .fla_checkpoints import IMMATERIAL, MOST_LAYERS, SOURCE, head_size

KINDS = ("mamba", "mamba2")
OF_TRAINING = (  # first weights, and how sums are taken
    *("A_init_range", "chunk_size", "conv_init", "dt_init_floor", "dt_init_scheme", "dt_max"),
    *("dt_min", "dt_scale", "rescale_prenorm_residual", "residual_in_fp32"),
)
AS_IT_IS = {
    "D_has_hdim": (False,),
    "dt_limit": (None, [0.0, math.inf]),
    "hidden_act": ("silu",),
    "norm_before_gate": (False,),
    "quantization_config": (None,),
    "rmsnorm": (True,),
    "use_bias": (False,),
    "use_conv_bias": (True,),
}


def layout(build: Callable[[Any], Any]) -> CheckpointLayout:
    """The layout of both, of the module of a config of ours."""

    def weights(tensors: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
        with torch.device("meta"):
            names = {name: _theirs(name) for name in build(config).state_dict()}
        if config.tie_embeddings and "lm_head.weight" not in tensors:
            del names["lm_head.weight"]
        return renamed(tensors, names)

    return CheckpointLayout(
        name="fla",
        source=SOURCE,
        fits=lambda values, _: values.get("model_type") in list(KINDS) and "norm_eps" in values,
        configure=_configure,
        weights=weights,
        immaterial=IMMATERIAL.union(OF_TRAINING),
    )


def _theirs(name: str) -> str:
    return name.replace("backbone.embedding.", "backbone.embeddings.")


def _configure(values: Values, _: Shapes) -> dict[str, Any]:
    refuse(values, AS_IT_IS)
    kind = values["model_type"]
    hidden = read_value(values, "hidden_size", int)
    layers = read_value(values, "num_hidden_layers", int)
    if layers > MOST_LAYERS:
        raise SourceError(f"its config has num_hidden_layers = {layers}, above {MOST_LAYERS}")
    inner = int(read_value(values, "expand", int | float, 2) * hidden)
    found = {
        "kind": kind,
        "vocab_size": read_value(values, "vocab_size", int),
        "hidden_size": hidden,
        "inner_size": inner,
        "num_layers": layers,
        "conv_size": read_value(values, "conv_kernel", int, 4),
        "norm_eps": read_value(values, "norm_eps", float),
        "tie_embeddings": read_value(values, "tie_word_embeddings", bool, False),
    }
    if kind == "mamba":
        refuse(values, {"intermediate_size": (inner,)})
        rank = values.get("dt_rank", "auto")
        return found | {
            "state_size": read_value(values, "state_size", int, 16),
            "step_rank": math.ceil(hidden / 16)
            if rank == "auto"
            else read_value(values, "dt_rank", int),
        }
    size = read_value(values, "head_dim", int, 64)
    refuse(values, {"num_heads": (None, head_size(values, inner, size, "head_dim"))})
    return found | {
        "state_size": read_value(values, "state_size", int, 128),
        "head_size": size,
        "groups": read_value(values, "n_groups", int, 1),
    }
