"""Operators that carry state or that ONNX lacks: meaning, ONNX form and samples, one file each."""

from .attention import ATTENTION, attention
from .causal_conv_with_state import CAUSAL_CONV_WITH_STATE, causal_conv_with_state
from .linear_attention import LINEAR_ATTENTION, linear_attention

OPS = (ATTENTION, CAUSAL_CONV_WITH_STATE, LINEAR_ATTENTION)

__all__ = [
    "ATTENTION",
    "CAUSAL_CONV_WITH_STATE",
    "LINEAR_ATTENTION",
    "OPS",
    "attention",
    "causal_conv_with_state",
    "linear_attention",
]
