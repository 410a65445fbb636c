"""Operators that carry state or that ONNX lacks: meaning, ONNX form and samples, one file each."""

from .linear_attention import LINEAR_ATTENTION, linear_attention

OPS = (LINEAR_ATTENTION,)

__all__ = ["OPS", "linear_attention"]
