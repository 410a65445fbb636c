"""Arithmetic operations of nodes: a rule, or a number an element, for every operator.

All of the ONNX standard that a graph of numbers can hold is here, what ONNX Runtime makes of it
too, and no operator is counted that is not named: one that stands nowhere is unknown, not cheap.
A product that is added counts as two; an elementary function, however it is computed, as one, and
a comparison too.  Of what its definition leaves to an implementation the known best is taken, as
5 n log2 n for a Fourier transform of n numbers.
"""

import math
from collections.abc import Callable, Mapping, Sequence

from intaglio.signature import UnknownSizeError
from intaglio.state import PAST, TIME

from .onnx_graph import Node

Sizes = Mapping[str, int]
Shape = tuple[int, ...]
Shapes = Sequence[Shape]
_Rule = Callable[[Node, Shapes, Shapes, Sizes], int]

VIEWS = frozenset("Flatten Identity Reshape Shape Size Squeeze Unsqueeze".split())
MOVES = frozenset(
    "BitCast Cast CastLike CenterCropPad Compress Concat Constant ConstantOfShape DepthToSpace "
    "Dropout Expand EyeLike MaxUnpool NonZero OneHot Pad ReorderInput ReorderOutput "
    "ReverseSequence Slice SpaceToDepth Split TensorScatter Tile Transpose Trilu Where "
    "ConcatFromSequence Optional OptionalGetElement OptionalHasElement SequenceAt "
    "SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength "
    "SplitToSequence".split()
)
LOOKUPS = frozenset(("Gather", "GatherBlockQuantized"))  # rows of a table along one axis
PICKS = frozenset(("GatherElements", "GatherND"))  # entries of a table, each by its place
HOLDERS = frozenset(("If", "Loop", "Scan", "SequenceMap"))  # what they run is counted by itself
FREE = VIEWS | MOVES | LOOKUPS | PICKS | HOLDERS

# Operations for each element of the largest output.
_EACH = {
    **dict.fromkeys(
        "Abs Acos Acosh Add And Asin Asinh Atan Atanh Bernoulli BitShift BitwiseAnd BitwiseNot "
        "BitwiseOr BitwiseXor Ceil Celu Clip Cos Cosh CumProd CumSum Div Elu Equal Erf Exp Floor "
        "Greater GreaterOrEqual IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Min Mod Mul "
        "Multinomial Neg Not Or PRelu Pow RandomNormal RandomNormalLike RandomUniform "
        "RandomUniformLike Range Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
        "Softsign Sqrt Sub Tan Tanh ThresholdedRelu Xor".split(),
        1,
    ),
    "AffineGrid": 8,
    "BatchNormalization": 2,
    "BiasGelu": 6,
    "BiasSoftmax": 5,
    "BlackmanWindow": 6,
    "DequantizeLinear": 2,
    "DynamicQuantizeLinear": 5,
    "FastGelu": 9,
    "Gelu": 5,
    "GroupNormalization": 6,
    "HammingWindow": 3,
    "HannWindow": 3,
    "HardSigmoid": 3,
    "HardSwish": 4,
    "Hardmax": 2,
    "InstanceNormalization": 6,
    "LayerNormalization": 6,
    "LinearAttentionGate": 4,
    "LogSoftmax": 4,
    "LpNormalization": 3,
    "MeanVarianceNormalization": 5,
    "MelWeightMatrix": 5,
    "Mish": 3,
    "QuantizeLinear": 3,
    "QuickGelu": 3,
    "RMSNormalization": 4,
    "RotaryEmbedding": 3,
    "SimplifiedLayerNormalization": 4,
    "SkipLayerNormalization": 7,
    "SkipSimplifiedLayerNormalization": 5,
    "Softmax": 4,
    "SwiGLU": 3,
    "Swish": 2,
}

# Operations for each element of the first input.
_READ = {
    **dict.fromkeys(
        "ArgMax ArgMin Col2Im GlobalAveragePool GlobalMaxPool MaxRoiPool NonMaxSuppression "
        "ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum TopK Unique".split(),
        1,
    ),
    **dict.fromkeys(
        "GlobalLpPool ReduceL1 ReduceL2 ReduceLogSum ReduceSumSquare".split(),
        2,
    ),
    "ReduceLogSumExp": 3,
}


def operations(node: Node, takes: Shapes, gives: Shapes, sizes: Sizes) -> int:
    """Operations of a node with inputs of the shapes `takes`, `()` for one that is left out.

    Raises:
        UnknownSizeError: if no rule knows the operator, or a shape is not what it takes.
    """
    op = node.op.rpartition("::")[2]
    if op in FREE:
        return 0
    if op in _EACH:
        return _EACH[op] * max(map(math.prod, gives), default=0)
    if op in _READ:
        return _READ[op] * math.prod(takes[0])
    if op not in _RULES:
        raise UnknownSizeError(node.op)
    try:
        return _RULES[op](node, takes, gives, sizes)
    except IndexError:
        raise UnknownSizeError(node.op) from None


def known() -> frozenset[str]:
    """Operators that are counted, without their domains."""
    return frozenset((*FREE, *_EACH, *_READ, *_RULES))


def _sum(_node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    """Of as many inputs as there are; a mean divides, too, which is not told apart."""
    return max(len(takes) - 1, 1) * math.prod(gives[0])


def _product(node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    inner = -2 if node.integers.get("transA") else -1
    return 2 * math.prod(gives[0]) * takes[0][inner]


def _convolution(_node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    return 2 * math.prod(gives[0]) * math.prod(takes[1][1:])


def _quantized_convolution(_node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    return 2 * math.prod(gives[0]) * math.prod(takes[3][1:])


def _transposed_convolution(_node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    """Each entry that comes in meets every weight of its channel."""
    return 2 * math.prod(takes[0]) * math.prod(takes[1][1:])


def _attention(_node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    """Scores, and values weighted by them: a query meets every key there is."""
    keys = gives[1] if len(gives) > 1 and gives[1] else takes[1]
    length = keys[-2]  # [batch, heads, tokens, width], or [batch, tokens, width of all heads]
    return 2 * length * (math.prod(takes[0]) + math.prod(gives[0]))


def _cached_attention(_node: Node, _takes: Shapes, gives: Shapes, sizes: Sizes) -> int:
    try:
        return 4 * (sizes[PAST] + sizes[TIME]) * math.prod(gives[0])
    except KeyError:
        raise UnknownSizeError(PAST) from None


def _recurrent_layer(_node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    """Of the standard: each token and each state times the weights of every gate, both ways."""
    return 2 * math.prod(takes[0][:2]) * (math.prod(takes[1]) + math.prod(takes[2]))


def _pooled(node: Node, _takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    return math.prod(node.lists["kernel_shape"]) * math.prod(gives[0])


def _interpolated(node: Node, takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    """A weighted sum of two neighbours, or four, along each axis that is resized or looked up."""
    mode = node.texts.get("mode", "linear" if node.op == "GridSample" else "nearest")
    pairs = zip(takes[0], gives[0], strict=False)
    axes = len(gives[0]) - 2 if node.op == "GridSample" else sum(a != b for a, b in pairs)
    near = {"nearest": 0, "cubic": 4, "bicubic": 4}.get(mode, 2)
    return 2 * near**axes * math.prod(gives[0]) if near else 0


def _fourier(_node: Node, _takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    """5 n log2 n for n numbers; along the longest axis, if which one is not told."""
    length = max(gives[0][1:-1], default=1)
    return int(5 * math.prod(gives[0][:-1]) * max(math.log2(max(length, 1)), 1))


def _einsum(node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    """As many products as there are combinations of all indices, each of all operands."""
    terms = node.texts.get("equation", "").replace(" ", "").partition("->")[0].split(",")
    found: dict[str, int] = {}
    for term, shape in zip(terms, takes, strict=False):
        rest = len(shape) - len(term.replace("...", ""))
        letters = [*term.replace("...", "#" * rest)] if "..." in term else [*term]
        spread = [f"#{place}" for place in range(rest, 0, -1)]
        names = [spread.pop(0) if letter == "#" else letter for letter in letters]
        for name, dim in zip(names, shape, strict=False):
            found[name] = max(found.get(name, 1), dim)
    return max(len(takes), 1) * math.prod(found.values())


def _determinant(_node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    return 2 * math.prod(takes[0]) * takes[0][-1] // 3


def _inverse(_node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    return 2 * math.prod(takes[0]) * takes[0][-1]


def _scattered(node: Node, takes: Shapes, _gives: Shapes, _sizes: Sizes) -> int:
    reduced = node.texts.get("reduction", "none") != "none"
    return math.prod(takes[2]) if reduced else 0


def _local_response(node: Node, _takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    return (2 * node.integers.get("size", 1) + 3) * math.prod(gives[0])


def _region(node: Node, _takes: Shapes, gives: Shapes, _sizes: Sizes) -> int:
    """Of each place of a region several points, each between four entries."""
    return 8 * max(node.integers.get("sampling_ratio", 0), 1) ** 2 * math.prod(gives[0])


_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Mean", "Sum"), _sum),
    **dict.fromkeys(
        "DynamicQuantizeMatMul FusedGemm FusedMatMul Gemm MatMul MatMulInteger "
        "MatMulIntegerToFloat MatMulNBits QLinearMatMul".split(),
        _product,
    ),
    **dict.fromkeys(("Conv", "ConvInteger", "DeformConv", "FusedConv"), _convolution),
    "QLinearConv": _quantized_convolution,
    "ConvTranspose": _transposed_convolution,
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _attention),
    "GroupQueryAttention": _cached_attention,
    **dict.fromkeys(("GRU", "LSTM", "RNN", "DynamicQuantizeLSTM"), _recurrent_layer),
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool", "NhwcMaxPool"), _pooled),
    **dict.fromkeys(("GridSample", "Resize"), _interpolated),
    **dict.fromkeys(("DFT", "STFT"), _fourier),
    "Einsum": _einsum,
    "Det": _determinant,
    "Inverse": _inverse,
    **dict.fromkeys(("ScatterElements", "ScatterND"), _scattered),
    "LRN": _local_response,
    "RoiAlign": _region,
}
