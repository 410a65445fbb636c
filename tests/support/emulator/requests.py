"""Requests for each plugin, larger than the samples of the operators."""

from typing import Any

from intaglio.trt_plugins.plugin import Input, Request


def _inputs(dtype: str = "float16", **shapes: tuple[int | None, ...]) -> dict[str, Input]:
    """Inputs by their shapes; states and what is not a token's are in fp32."""
    others = dict.fromkeys(("past_state", "A", "W", "h"), "float32") | {"words": "int32"}
    return {name: Input(others.get(name, dtype), shape) for name, shape in shapes.items()}


# Several warps and blocks, tiles that do not fit.
WIDE: dict[str, tuple[dict[str, Any], dict[str, Input]]] = {
    "affine_low_bit_mat_mul": (
        {"K": 300, "N": 140, "bits": 2, "group": 64},
        _inputs(input=(None, None, 300), words=(140, 3, 8), scale=(6, 140), offset=(6, 140)),
    ),
    "causal_conv_with_state": (
        {"activation": "silu"},
        _inputs(input=(None, 200, None), weight=(200, 1, 4), past_state=(None, 200, 3)),
    ),
    "diagonal_ssm": (
        {"discretization": "mamba", "lti": 0},
        _inputs(
            input=(None, None, 100),
            A=(100, 16),
            B=(None, None, 16),
            C=(None, None, 16),
            delta=(None, None, 100),
            past_state=(None, 100, 16),
        ),
    ),
    "linear_attention": (
        {"update_rule": "gated_delta", "q_num_heads": 4, "kv_num_heads": 2},
        _inputs(
            query=(None, None, 160),
            key=(None, None, 80),
            value=(None, None, 100),
            past_state=(None, 2, 40, 50),
            decay=(None, None, 2),
            beta=(None, None, 2),
        ),
    ),
    "piecewise_linear_rnn": (
        {"num_relu": 20},
        {
            **_inputs(drive=(None, None, 127), A=(127,), W=(127, 127), h=(127,)),
            **_inputs(force=(None, None, 5), past_state=(None, 127)),
            "force_mask": Input("bool", (None, None)),
        },
    ),
}


def wide(name: str, sm: int) -> Request:
    """A request for an operator, of the shapes above, batch and time free."""
    attributes, described = WIDE[name]
    return Request(attributes=attributes, inputs=described, sm=sm)
