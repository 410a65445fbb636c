"""Triton kernels of TensorRT plugins, a file per operator, and their compilation ahead of time."""

if __name__ != "intaglio.trt_plugins":
    raise ImportError(f"imported as {__name__!r}: use intaglio.trt_plugins")

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .plugin import Plugin

NAMES = (
    "affine_low_bit_mat_mul",
    "causal_conv_with_state",
    "diagonal_ssm",
    "dplr_delta_rule",
    "linear_attention",
    "piecewise_linear_rnn",
)

# What kernels read, where that is not what the operator does.
INPUTS = {"affine_low_bit_mat_mul": ("input", "words", "scale", "offset", "bias")}


def find(name: str) -> "Plugin":
    """The plugin of the operator called `name`; imports its kernels, and so Triton."""
    plugin: Plugin = importlib.import_module(f"{__name__}.{name}").PLUGIN
    return plugin
