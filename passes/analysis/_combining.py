"""Rules for operators that combine entries: none of them may combine those of two tokens."""

from collections.abc import Sequence
from dataclasses import replace

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, input_of, integers

from .time_facts import Along, Fact, Length, Timing, batchless, moved, normal, only, refuse, shifted

ATTENTION = (
    "Attention written out as MatMul, Softmax, MatMul cannot be given a cache: "
    "use torch.nn.functional.scaled_dot_product_attention."
)


def matmul(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    left, right = (timing.of(value) for value in node.inputs)
    ranks = [len(dims(value) or ()) for value in node.inputs if value is not None]
    if min(ranks) < 2 or isinstance(left, Length) or isinstance(right, Length):
        raise refuse(node, "multiplies vectors or lengths.")
    rank = max(ranks)
    along = [
        (side, shifted(fact, rank - ranks[side]))
        for side, fact in enumerate((left, right))
        if isinstance(fact, Along)
    ]
    for side, fact in along:
        if fact.axis == rank - 1 - side:
            raise refuse(node, f"sums over time. {ATTENTION}")
    if len({(fact.axis, fact.flat, fact.each) for _, fact in along}) > 1:
        raise refuse(node, f"compares each token with every other. {ATTENTION}")
    if len(along) == 2 and along[0][1].axis >= rank - 2:
        raise refuse(node, f"compares each token with every other. {ATTENTION}")
    positional = all(fact.positional for _, fact in along) and batchless(node.outputs[0])
    return [replace(along[0][1], positional=positional)]


def row_product(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """A product of each row with a constant matrix."""
    fact = only(node, timing)
    if fact.axis == len(dims(node.inputs[0]) or ()) - 1:
        raise refuse(node, "sums over time.")
    return [fact]


def gemm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    if fact.axis != (1 if attribute(node, "transA", 0) else 0):
        raise refuse(node, "sums over time.")
    return [moved(fact, 0)]


def einsum(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    equation = str(attribute(node, "equation")).replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = {
        term[fact.axis]
        for term, fact in zip(terms.split(","), map(timing.of, node.inputs), strict=True)
        if isinstance(fact, Along) and "." not in term
    }
    facts = [fact for fact in map(timing.of, node.inputs) if isinstance(fact, Along)]
    letter = next(iter(letters), "")
    if len(letters) != 1 or letter not in result or "." in equation:
        raise refuse(node, f"sums over time or compares tokens ({equation}).")
    inside = all(
        letter not in term or isinstance(timing.of(value), Along)
        for term, value in zip(terms.split(","), node.inputs, strict=True)
    )
    if not inside or len({(fact.flat, fact.each) for fact in facts}) > 1:
        raise refuse(node, f"combines the time axis with a constant ({equation}).")
    positional = all(fact.positional for fact in facts) and batchless(node.outputs[0])
    return [replace(facts[0], axis=result.index(letter), positional=positional)]


def reduce(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    rank = len(dims(node.inputs[0]) or ())
    keep = attribute(node, "keepdims", 1)
    if node.op_type in ("ArgMax", "ArgMin"):
        axes = [normal(attribute(node, "axis", 0), rank)]
    else:
        given = integers(input_of(node, 1)) or attribute(node, "axes") or range(rank)
        axes = [normal(axis, rank) for axis in given]
    if fact.axis in axes:
        raise refuse(node, "reduces over time: its result would need every token at once.")
    return [moved(fact, fact.axis if keep else fact.axis - sum(a < fact.axis for a in axes))]


def softmax(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    if normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ())) == fact.axis:
        raise refuse(node, f"normalises over time. {ATTENTION}")
    return [fact]


def scan_axis(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """CumSum: along time it carries its sum, from the first token to each."""
    fact = only(node, timing)
    axis = integers(node.inputs[1])
    rank = len(dims(node.inputs[0]) or ())
    if axis is not None and normal(axis[0], rank) != fact.axis:
        return [fact]
    if axis is None or attribute(node, "reverse", 0) or attribute(node, "exclusive", 0):
        raise refuse(node, "sums up what comes later, or leaves out the token itself.")
    if fact.flat or fact.positional or fact.axis == 0:
        raise refuse(node, "accumulates over time what is not [batch, ..., time, ...].")
    timing.mixers.append(node)
    return [fact]


def layer_norm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    axis = normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ()))
    if fact.axis >= axis:
        raise refuse(node, "normalises over time.")
    return [replace(fact, blank=not fact.lead)] * len(node.outputs)


def channel_norm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Batch norm at inference is pointwise; group and instance norm average over all but rows."""
    fact = only(node, timing)
    batch = node.op_type == "BatchNormalization"
    along = fact.axis == 1 if batch else fact.axis != 0
    if along or fact.padded > batch or attribute(node, "training_mode"):
        raise refuse(node, "normalises over time.")
    return [replace(fact, blank=not fact.lead)]


def top_k(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    if normal(attribute(node, "axis", -1), len(dims(node.inputs[0]) or ())) == fact.axis:
        raise refuse(node, "ranks tokens against each other.")
    return [fact] * len(node.outputs)
