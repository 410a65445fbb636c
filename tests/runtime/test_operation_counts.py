"""Every operator that a graph of ours can hold is counted, by a rule that knows its shapes."""

from typing import Any

import onnx
import pytest

from intaglio.operators import SIGNATURES
from intaglio.passes.analysis.time_rules import ELEMENTWISE, RULES
from intaglio.runtime.onnx_graph import Node
from intaglio.runtime.operation_counts import known, operations
from intaglio.signature import UnknownSizeError

# Of the standard, what no graph of numbers holds: texts, files of pictures, losses for training.
ELSEWHERE = frozenset(
    "ImageDecoder NegativeLogLikelihoodLoss RegexFullMatch SoftmaxCrossEntropyLoss StringConcat "
    "StringNormalizer StringSplit TfIdfVectorizer".split()
)
# What lowering makes, and what the optimizer of ONNX Runtime does of its own.
MADE = frozenset(
    "BiasGelu BiasSoftmax DynamicQuantizeMatMul FastGelu FusedConv FusedGemm FusedMatMul "
    "GatherBlockQuantized GroupQueryAttention Inverse LinearAttentionGate MatMulIntegerToFloat "
    "MatMulNBits MultiHeadAttention NhwcMaxPool QuickGelu ReorderInput ReorderOutput "
    "SimplifiedLayerNormalization SkipLayerNormalization SkipSimplifiedLayerNormalization".split()
)


def node(op: str, **attributes: Any) -> Node:
    return Node(
        name="n",
        op=op,
        module="",
        inputs=(),
        outputs=(),
        integers={k: v for k, v in attributes.items() if isinstance(v, int)},
        lists={k: v for k, v in attributes.items() if isinstance(v, tuple)},
        texts={k: v for k, v in attributes.items() if isinstance(v, str)},
    )


def test_every_operator_that_can_occur_is_counted() -> None:
    """All of the standard, what passes carry along time, and what engines make of either."""
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == "" and not s.deprecated}
    declared = {each.onnx_type for each in SIGNATURES if each.operations}
    carried = {*ELEMENTWISE, *RULES}

    assert len(standard) > 150
    assert len(carried) > 50
    assert standard - known() - declared == ELSEWHERE
    assert {op.rpartition("::")[2] for op in carried} <= known() | declared
    assert known() >= MADE


def test_an_operator_without_a_rule_is_unknown_and_not_cheap() -> None:
    with pytest.raises(UnknownSizeError):
        operations(node("Nonsense"), [(4,)], [(4,)], {})
    with pytest.raises(UnknownSizeError):
        operations(node("GroupQueryAttention"), [(1, 2, 4)], [(1, 2, 4)], {})
    with pytest.raises(UnknownSizeError):
        operations(node("LSTM"), [(3, 1, 4)], [(3, 1, 4)], {})  # without its weights


@pytest.mark.parametrize(
    ("made", "takes", "gives", "count"),
    [
        (node("ReduceSum"), [(3, 50)], [(3,)], 150),
        (node("ReduceLogSumExp"), [(3, 50)], [(3,)], 450),
        (node("Softmax"), [(3, 50)], [(3, 50)], 600),
        (node("Sum"), [(5,), (5,), (5,)], [(5,)], 10),
        (node("FusedMatMul", transA=1), [(7, 4), (7, 5)], [(4, 5)], 2 * 4 * 5 * 7),
        (node("ConvTranspose"), [(2, 3, 10), (3, 4, 5)], [(2, 4, 14)], 2 * 60 * 20),
        (node("QLinearConv"), [(1, 3, 9), (), (), (4, 3, 2)], [(1, 4, 8)], 2 * 32 * 6),
        (node("AveragePool", kernel_shape=(2, 3)), [(1, 4, 8, 9)], [(1, 4, 4, 3)], 6 * 48),
        (node("Resize", mode="linear"), [(1, 2, 4, 4)], [(1, 2, 8, 8)], 2 * 4 * 128),
        (node("Resize"), [(1, 2, 4)], [(1, 2, 8)], 0),
        (node("DFT"), [(1, 8, 1)], [(1, 8, 2)], 5 * 8 * 3),
        (node("Einsum", equation="bik,bkj->bij"), [(2, 3, 5), (2, 5, 4)], [(2, 3, 4)], 2 * 120),
        (node("Einsum", equation="...i,ij->...j"), [(6, 3, 5), (5, 4)], [(6, 3, 4)], 2 * 360),
        (node("ScatterND", reduction="add"), [(9, 4), (2, 1), (2, 4)], [(9, 4)], 8),
        (node("ScatterND"), [(9, 4), (2, 1), (2, 4)], [(9, 4)], 0),
        (node("LRN", size=5), [(1, 8, 3)], [(1, 8, 3)], 13 * 24),
        (node("Scan"), [(9, 4)], [(9, 4)], 0),  # its body is counted, each time that it runs
    ],
)
def test_operations_follow_from_shapes(
    made: Node, takes: list[tuple[int, ...]], gives: list[tuple[int, ...]], count: int
) -> None:
    assert operations(made, takes, gives, {}) == count


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("ways", [1, 2])
def test_recurrent_layers_meet_every_weight_once_a_token(op: str, gates: int, ways: int) -> None:
    """6 tokens of width 4 into 5 of a state, in one direction or both."""
    shapes = [(3, 2, 4), (ways, 5 * gates, 4), (ways, 5 * gates, 5)]

    assert operations(node(op), shapes, [(3, ways, 2, 5)], {}) == 2 * 6 * ways * 5 * gates * 9
