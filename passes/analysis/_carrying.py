"""Rules for the operators that statefulize gives a state, and for rotary positions."""

from collections.abc import Sequence

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims

from .time import Along, Fact, Timing, batchless, only, refuse


def attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    facts = {timing.of(value) for value in node.inputs[:3]}
    if facts == {Along(1)} and all(timing.of(value) is None for value in node.inputs[3:]):
        return [Along(1)] * len(node.outputs)  # over an axis of its own: each token stays alone
    for name, value in zip(("query", "key", "value"), node.inputs, strict=False):
        fact = timing.of(value)
        rank = len(dims(value) or ()) if value is not None else 0
        if fact is None:
            raise refuse(
                node,
                f"takes its {name} from outside the sequence (cross attention), which has no step.",
            )
        if fact != Along(2) or rank != 4:
            raise refuse(node, f"has a {name} that is not [batch, heads, time, head size].")
    if not attribute(node, "is_causal", 0) and node not in timing.meetings:
        raise refuse(
            node,
            "lets each token attend to later ones (is_causal is not set and there is no causal "
            "mask), so it cannot be stepped.",
        )
    timing.mixers.append(node)
    return [Along(2)]


def meeting(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Where tokens meet through values of pairs, made of data of single tokens and positions."""
    found = timing.meetings[node]
    for term in found.data:
        axes = [axis for axis in (term.axes.query, term.axes.key) if axis is not None]
        if timing.of(term.value) != (Along(axes[0]) if axes else None):
            raise refuse(
                node,
                f"compares tokens by {term.value.name!r} of shape {list(term.shape)}, which has "
                "no entry of its own for each token.",
            )
    if node.op_type == "Attention":
        return attention(node, timing)
    timing.mixers.append(node)
    positional = not found.data and batchless(node.outputs[0])
    return [Along(found.axis, positional=positional)]


def linear_attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    for index, value in enumerate(node.inputs):
        if value is not None and index != 3 and timing.of(value) != Along(1):
            raise refuse(node, f"has an input {index} that is not [batch, time, ...].")
    timing.mixers.append(node)
    return [Along(1), None]


def diagonal_ssm(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fixed = (1, 2, 3) if attribute(node, "lti", 0) else (1,)
    for index, value in enumerate(node.inputs[:5]):
        expected = None if index in fixed else Along(1)
        if value is not None and timing.of(value) != expected:
            kind = "the same for all tokens" if index in fixed else "[batch, time, ...]"
            raise refuse(node, f"has an input {index} that is not {kind}.")
    timing.mixers.append(node)
    return [Along(1), None]


def piecewise_linear_rnn(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    for index, value in enumerate(node.inputs[:6]):
        fixed = index in (1, 2, 3)
        if value is not None and timing.of(value) != (None if fixed else Along(1)):
            kind = "the same for all tokens" if fixed else "[batch, time, ...]"
            raise refuse(node, f"has an input {index} that is not {kind}.")
    timing.mixers.append(node)
    return [Along(1), None]


def rnn(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    for index, value in enumerate(node.inputs[:5]):
        if value is not None and timing.of(value) != (None if index else Along(1)):
            kind = "the same for all tokens" if index else "[batch, time, ...]"
            raise refuse(node, f"has an input {index} that is not {kind}.")
    timing.mixers.append(node)
    return [Along(1), None]


def conv(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = only(node, timing)
    weight = dims(node.inputs[1]) or ()
    spatial = fact.axis - 2
    if fact.axis == 0 and not (fact.lead or fact.trail):
        return [fact]
    if spatial < 0:
        raise refuse(node, "has time as its channels: it sums over time.")
    size = len(weight) - 2
    kernel = int(weight[fact.axis])
    reach = (kernel - 1) * list(attribute(node, "dilations") or [1] * size)[spatial]
    pads = list(attribute(node, "pads") or [0] * 2 * size)
    lead, trail = fact.lead + pads[spatial], fact.trail + pads[spatial + size]
    auto = attribute(node, "auto_pad", "NOTSET")
    if auto not in ("NOTSET", b"NOTSET", "VALID", b"VALID"):
        raise refuse(node, f"pads itself ({auto}), which looks ahead in time.")
    if list(attribute(node, "strides") or [1] * size)[spatial] != 1:
        raise refuse(node, "skips tokens (its stride along time is not 1).")
    if lead < reach:
        raise refuse(
            node,
            f"looks {reach - lead} tokens ahead: a causal convolution of kernel {kernel} is padded "
            f"by {reach} on the left.",
        )
    if lead > reach or trail < 0:
        raise refuse(node, "shifts the sequence in time by more than its kernel.")
    if kernel > 1:
        if size > 1 or fact.flat:
            raise refuse(node, "is a convolution over time and space at once.")
        timing.mixers.append(node)
    return [Along(fact.axis, fact.flat, lead=0, trail=trail)]


def rotary(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    tables = [timing.of(value) for value in node.inputs[1:]]
    rank = len(dims(node.inputs[0]) or ())
    if fact != Along(2 if rank == 4 else 1) or None in tables:
        raise refuse(node, "rotates something that is not a sequence at its positions.")
    return [fact]
