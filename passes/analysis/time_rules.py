"""How each ONNX operator carries a time axis: one small rule per family of operators.

A rule takes the node and the facts so far and returns the facts of the node's outputs, or raises
the refusal.  Operators without a rule are refused as soon as time reaches them.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx_ir as ir

from intaglio.operators import BY_TYPE
from intaglio.passes.graph import (
    attribute,
    captured,
    constant,
    dims,
    input_of,
    integers,
    type_of,
)
from intaglio.state import BATCH, TIME, entries_of

from . import _carrying as carrying
from . import _combining as combining
from . import _rearranging as rearranging
from . import windows
from .time_facts import LAST, LENGTH, Along, Fact, Length, Timing, batchless, refuse, shifted

Rule = Callable[[ir.Node, Timing], Sequence[Fact]]

ELEMENTWISE = frozenset(
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr "
    "BitwiseXor Cast CastLike Ceil Celu Clip Cos Cosh Div Elu Equal Erf Exp Floor Gelu Greater "
    "GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less LessOrEqual Log Max "
    "Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor".split()
)


def propagate(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Facts of the outputs of `node`.

    Raises:
        PassError: the node mixes tokens, or no rule tells that it does not.
    """
    key = type_of(node)
    if key in ("Shape", "Size"):
        return [_shape(node, timing)]
    if node in timing.meetings:
        return carrying.meeting(node, timing)
    facts = [timing.of(value) for value in (*node.inputs, *captured(node))]
    if all(fact is None for fact in facts):
        return [None] * len(node.outputs)
    if key in SOURCES and (found := SOURCES[key](node, timing)) is not None:
        timing.sources.append(node)
        return [found]
    if LAST in facts:
        return _of_last(node, facts)
    if not any(isinstance(fact, Along) for fact in facts):
        return _of_length(node)
    if key not in TAKES_PADDED and any(isinstance(fact, Along) and fact.padded for fact in facts):
        raise refuse(
            node,
            "uses a sequence that was padded in time, and is not known to keep apart what padding "
            "put there; convolutions and slices that take it away again may follow.",
        )
    if key in ELEMENTWISE:
        return [_elementwise(node, timing)] * len(node.outputs)
    rule = RULES.get(key)
    if rule is None:
        raise refuse(
            node, "is not known to act on each token alone, so it cannot be part of a step graph."
        )
    return rule(node, timing)


def _of_last(node: ir.Node, facts: Sequence[Fact]) -> Sequence[Fact]:
    """What is computed after the last token holds after it, unless it goes back to tokens."""
    if any(isinstance(fact, Along | Length) for fact in facts):
        raise refuse(
            node,
            "gives what holds after the last token to every token: each token would see those "
            "after it. Return it, or compute with it what is returned once.",
        )
    return [LAST] * len(node.outputs)


def _shape(node: ir.Node, timing: Timing) -> Fact:
    fact = timing.of(node.inputs[0])
    if not isinstance(fact, Along):
        return fact
    if node.op_type == "Size":
        return LENGTH
    rank = len(dims(node.inputs[0]) or ()) or fact.axis + 1
    picked = range(rank)[slice(attribute(node, "start", 0), attribute(node, "end"))]
    return LENGTH if fact.axis in picked else None


def _of_length(node: ir.Node) -> Sequence[Fact]:
    """Facts where only lengths come in: numbers stay numbers, arrays sized by T lie along time."""
    facts: list[Fact] = []
    for output in node.outputs:
        axes = [axis for axis, dim in enumerate(dims(output) or ()) if TIME in str(dim)]
        if not axes:
            facts.append(LENGTH)
            continue
        if node.op_type not in ("Expand", "ConstantOfShape") or len(axes) > 1:
            raise refuse(
                node,
                "makes an array that is sized by the number of tokens in a way not known here.",
            )
        facts.append(_uniform(node, axes[0], (dims(output) or ())[axes[0]]))
    return facts


def _uniform(node: ir.Node, axis: int, dim: int | str) -> Along:
    """The fact of entries that are all the same, of which each token has some."""
    each = entries_of(dim)
    if each is not None:
        return Along(axis, each=each)
    entries, symbols = rearranging.factors([dim])
    if symbols != Counter((BATCH, TIME)):
        raise refuse(node, f"has a dimension {dim!r} that is not one entry per token.")
    return Along(axis, flat=entries)


def _range(node: ir.Node, _timing: Timing) -> Fact:
    start, step = constant(node.inputs[0]), constant(node.inputs[2])
    each = entries_of(*(dims(node.outputs[0]) or ("?",)))
    if each is None or start is None or step is None or not step.any():
        raise refuse(node, "counts positions from a number, or in steps, that are not constant.")
    return Along(0, each=each, positional=True)


def _table(node: ir.Node, timing: Timing) -> Fact:
    """`table[:T]`: rows of a constant table, one for each position."""
    if timing.of(node.inputs[0]) is not None:
        return None
    shape = dims(node.outputs[0]) or ()
    axes = [axis for axis, dim in enumerate(shape) if TIME in str(dim)]
    if not axes:
        return None
    starts, steps = integers(node.inputs[1]), integers(input_of(node, 4)) or [1]
    each = entries_of(shape[axes[0]])
    if len(axes) > 1 or each is None or starts != [0] or steps != [1]:
        raise refuse(node, "takes other rows of a table than those of the positions 0 to T-1.")
    return Along(axes[0], each=each, positional=True)


SOURCES: dict[str, Callable[[ir.Node, Timing], Fact]] = {"Range": _range, "Slice": _table}


def _rank(value: ir.Value) -> int | None:
    return None if value.shape is None else len(value.shape)


def _elementwise(node: ir.Node, timing: Timing) -> Fact:
    """Numpy broadcasting: all time axes must fall on one axis of the output."""
    ranks = [_rank(value) for value in node.inputs if value is not None]
    if any(rank is None for rank in ranks):
        raise refuse(node, "has an input of unknown shape.")
    rank = max(r for r in ranks if r is not None)
    along: list[Along] = []
    for value in node.inputs:
        fact = timing.of(value)
        if value is None or fact is None:
            continue
        if not isinstance(fact, Along):
            if node.op_type == "CastLike":
                continue
            raise refuse(node, "computes with the number of tokens, which a step does not know.")
        along.append(shifted(fact, rank - len(value.shape or ())))
    places = {(f.axis, f.flat, f.each, f.lead, f.trail, f.edge) for f in along}
    if len(places) != 1:
        raise refuse(node, "combines entries of different tokens.")
    axis = along[0].axis
    for value in node.inputs:
        shape = () if value is None or timing.of(value) is not None else dims(value) or ()
        if axis - rank >= -len(shape) and shape[axis - rank] != 1:
            raise refuse(
                node,
                f"combines the time axis with a constant of {shape[axis - rank]} entries: "
                "the number of tokens was frozen when the model was traced or trained.",
            )
    positional = all(fact.positional for fact in along) and batchless(node.outputs[0])
    kept = node.op_type in MOVES_ZEROS and all(fact.blank for fact in along)
    return replace(along[0], positional=positional, blank=kept or not along[0].lead)


MOVES_ZEROS = frozenset("Cast Identity Pad Reshape Squeeze Transpose Unsqueeze".split())
"""What leaves zeros that padding put in front of a sequence zeros."""

TAKES_PADDED = (
    MOVES_ZEROS
    | ELEMENTWISE
    | windows.WINDOWS
    | {"BatchNormalization", "Concat", "Gather", "LayerNormalization", "MatMul"}
    | {"RMSNormalization", "Slice", "Split"}
)
"""What may take a sequence that padding has made longer, and says so of what it gives."""


RULES: dict[str, Rule] = {
    "ArgMax": combining.reduce,
    "ArgMin": combining.reduce,
    "Attention": carrying.attention,
    "BatchNormalization": combining.channel_norm,
    "Concat": rearranging.concat,
    "Conv": windows.conv,
    "ConvTranspose": windows.transposed,
    "AveragePool": windows.pool,
    "MaxPool": windows.pool,
    "CumSum": combining.scan_axis,
    "Einsum": combining.einsum,
    "Expand": rearranging.expand,
    "Gather": rearranging.gather,
    "GatherElements": rearranging.along_elements,
    "GatherND": rearranging.gather_nd,
    "Gemm": combining.gemm,
    "GridSample": windows.sample,
    "GroupNormalization": combining.channel_norm,
    "Hardmax": combining.softmax,
    "InstanceNormalization": combining.channel_norm,
    "LayerNormalization": combining.layer_norm,
    "LogSoftmax": combining.softmax,
    "LpNormalization": combining.softmax,
    "MatMul": combining.matmul,
    "Pad": rearranging.pad,
    "RMSNormalization": combining.layer_norm,
    "Reshape": rearranging.reshape,
    "Resize": windows.resize,
    "RotaryEmbedding": carrying.rotary,
    "Scan": carrying.scan,
    "ScatterElements": rearranging.along_elements,
    "ScatterND": rearranging.scatter_nd,
    "Slice": rearranging.cut,
    "Softmax": combining.softmax,
    "Split": rearranging.split,
    "Squeeze": rearranging.squeeze,
    "Tile": rearranging.tile,
    "TopK": combining.top_k,
    "Transpose": rearranging.transpose,
    "Unsqueeze": rearranging.unsqueeze,
    "intaglio::AffineLowBitGather": rearranging.row_gather,
    "intaglio::AffineLowBitMatMul": combining.row_product,
    **{key: carrying.recurrence for key, each in BY_TYPE.items() if each.recurrent},
    **dict.fromkeys(
        "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
        "ReduceSum ReduceSumSquare".split(),
        combining.reduce,
    ),
}
