"""The table of operators: which rule of `coupling_shapes.py` or `coupling_layers.py` is whose."""

from collections.abc import Mapping

import onnx_ir as ir

from intaglio.passes.graph import signature_of

from . import coupling_layers as layers
from . import coupling_shapes as shapes
from .coupling_shapes import Rule

ELEMENTWISE = frozenset(
    "Add And BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less "
    "LessOrEqual Max Mean Min Mod Mul Or Pow PRelu Sub Sum Where Xor".split()
)
ENTRIES = frozenset(
    "Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Floor "
    "Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log LogSoftmax "
    "LpNormalization Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softmax "
    "Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu".split()
)
REDUCTIONS = frozenset(
    f"Reduce{how}" for how in "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare".split()
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, shapes.elementwise),
    **dict.fromkeys(ENTRIES, shapes.entrywise),
    **dict.fromkeys(REDUCTIONS, shapes.reduce),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), shapes.reshape),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), layers.norm),
    **dict.fromkeys(
        ("BatchNormalization", "GroupNormalization", "InstanceNormalization"), layers.channel_norm
    ),
    **dict.fromkeys(("Conv", "ConvTranspose"), layers.convolution),
    **dict.fromkeys(
        ("AveragePool", "MaxPool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"), layers.pool
    ),
    **dict.fromkeys(("Shape", "Size", "Range"), shapes.sizes_alone),
    "Attention": layers.attention,
    "Concat": shapes.concat,
    "ConstantOfShape": shapes.filled,
    "CumSum": shapes.along_axis,
    "Expand": shapes.expand,
    "Gather": shapes.gather,
    "Gemm": shapes.gemm,
    "MatMul": shapes.mat_mul,
    "Pad": shapes.pad,
    "RotaryEmbedding": layers.rotary,
    "Slice": shapes.slice_,
    "Split": shapes.split,
    "TensorScatter": layers.write,
    "Transpose": shapes.transpose,
    "Trilu": shapes.last_two,
}


def rule_of(node: ir.Node) -> Rule | None:
    """The rule for the operator of `node`, None where there is none."""
    found = signature_of(node)
    if found is not None and found.name in layers.FREE:
        return layers.by_signature
    return None if node.domain else RULES.get(node.op_type)
