"""Requests for each plugin, larger than the samples of the operators: several warps and blocks."""

from dataclasses import replace
from typing import Any

from intaglio.operators import BY_NAME
from intaglio.signature import ACTIVATIONS
from intaglio.trt_plugins.plugin import Input, Request

# Sizes that fit no tile, and attributes, by their names in the signature; what is left out.
WIDE: dict[str, tuple[dict[str, int], dict[str, Any], set[str]]] = {
    "causal_conv_with_state": (
        {"channels": 200, "kernel": 4},
        {"activation": "silu"},
        {"bias"},
    ),
    "diagonal_ssm": ({"D": 100, "N": 16}, {"discretization": "mamba", "lti": 0}, set()),
    "dplr_delta_rule": ({"K": 40, "V": 50}, {"num_heads": 2}, set()),
    "linear_attention": (
        {"K": 40, "V": 50},
        {"update_rule": "gated_delta", "q_num_heads": 4, "kv_num_heads": 2},
        set(),
    ),
    "piecewise_linear_rnn": ({"M": 127, "n": 5}, {"num_relu": 20}, set()),
}
# A product of few bits has its weight in planes: its kernels read other inputs than the operator.
PLANES = Request(
    attributes={"K": 300, "N": 140, "bits": 2, "group": 64},
    inputs={
        "input": Input("float16", (None, None, 300)),
        "words": Input("int32", (140, 3, 8)),
        "scale": Input("float16", (6, 140)),
        "offset": Input("float16", (6, 140)),
    },
    sm=0,
)


def wide(name: str, sm: int) -> Request:
    """A request in fp16 for an operator, of the sizes above, batch and time free."""
    if name == "affine_low_bit_mat_mul":
        return replace(PLANES, sm=sm)
    if name not in WIDE:
        raise LookupError(f"the plugin {name!r} has no sizes in WIDE, tests/support/emulator")
    signature, (sizes, attributes, absent) = BY_NAME[name], WIDE[name]
    inputs = {}
    for formal in signature.inputs:
        if formal.name not in absent:
            shape = signature.shape(formal.name, sizes | attributes, attributes)
            free = tuple(dim if isinstance(dim, int) else None for dim in shape)
            dtype = "float16" if formal.dtype == ACTIVATIONS else formal.dtype
            inputs[formal.name] = Input(dtype, free)
    return Request(attributes=attributes, inputs=inputs, sm=sm)
