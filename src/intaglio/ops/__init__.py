"""Operators that carry state or that ONNX lacks: meaning, ONNX form and samples, one file each."""

from ._low_bit_packing import (
    BITS,
    Codes,
    Floats,
    Packed,
    dequantize_codes,
    pack_codes,
    unpack_codes,
)
from .affine_low_bit_gather import AFFINE_LOW_BIT_GATHER, affine_low_bit_gather
from .affine_low_bit_mat_mul import AFFINE_LOW_BIT_MAT_MUL, affine_low_bit_mat_mul
from .attention import ATTENTION, attention
from .causal_conv_with_state import CAUSAL_CONV_WITH_STATE, causal_conv_with_state
from .diagonal_ssm import DIAGONAL_SSM, diagonal_ssm
from .dplr_delta_rule import DPLR_DELTA_RULE, dplr_delta_rule
from .linear_attention import LINEAR_ATTENTION, linear_attention
from .piecewise_linear_rnn import PIECEWISE_LINEAR_RNN, piecewise_linear_rnn
from .rnn import RNN, rnn

OPS = (
    AFFINE_LOW_BIT_GATHER,
    AFFINE_LOW_BIT_MAT_MUL,
    ATTENTION,
    CAUSAL_CONV_WITH_STATE,
    DIAGONAL_SSM,
    DPLR_DELTA_RULE,
    LINEAR_ATTENTION,
    PIECEWISE_LINEAR_RNN,
    RNN,
)

__all__ = [
    "AFFINE_LOW_BIT_GATHER",
    "AFFINE_LOW_BIT_MAT_MUL",
    "ATTENTION",
    "BITS",
    "CAUSAL_CONV_WITH_STATE",
    "DIAGONAL_SSM",
    "DPLR_DELTA_RULE",
    "LINEAR_ATTENTION",
    "OPS",
    "PIECEWISE_LINEAR_RNN",
    "RNN",
    "Codes",
    "Floats",
    "Packed",
    "affine_low_bit_gather",
    "affine_low_bit_mat_mul",
    "attention",
    "causal_conv_with_state",
    "dequantize_codes",
    "diagonal_ssm",
    "dplr_delta_rule",
    "linear_attention",
    "pack_codes",
    "piecewise_linear_rnn",
    "rnn",
    "unpack_codes",
]
