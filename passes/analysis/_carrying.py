"""Rules for the operators that statefulize gives a state, and for rotary positions."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

from intaglio.passes.graph import attribute, attributes_of, captured, dims, input_of, signature_of
from intaglio.signature import Formal, Signature
from intaglio.state import TIME, entries_of

from .time_facts import LAST, Along, Fact, Timing, batchless, normal, refuse


def attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    if [timing.of(value) for value in node.inputs[1:3]] == [None, None]:
        return _cross_attention(node, timing)
    if (within := _within_tokens(node, timing)) is not None:
        return [within] * len(node.outputs)
    for name, value in zip(("query", "key", "value"), node.inputs, strict=False):
        fact = timing.of(value)
        rank = len(dims(value) or ()) if value is not None else 0
        if fact is None:
            raise refuse(
                node,
                f"takes its {name} from outside the sequence, and not its keys and values both.",
            )
        each = fact.each if isinstance(fact, Along) else 1
        if fact != Along(2, each=each) or fact != timing.of(node.inputs[0]) or rank != 4:
            raise refuse(node, f"has a {name} that is not [batch, heads, time, head size].")
    if not attribute(node, "is_causal", 0) and node not in timing.meetings:
        raise refuse(
            node,
            "lets each token attend to later ones (is_causal is not set and there is no causal "
            "mask), so it cannot be stepped.",
        )
    met = timing.meetings.get(node)
    if each > 1 and met is not None and met.blocks:
        raise refuse(node, f"attends within blocks of what has {each} entries for each token.")
    timing.mixers.append(node)
    return [Along(2, each=each)]


def _within_tokens(node: ir.Node, timing: Timing) -> Along | None:
    """Where tokens lie along the rows or the heads, attention is over an axis within each."""
    facts = {timing.of(value) for value in node.inputs[:3]}
    fact = next(iter(facts))
    ranks = {len(dims(value) or ()) for value in node.inputs[:3]}
    if len(facts) > 1 or ranks != {4} or any(timing.of(v) is not None for v in node.inputs[3:]):
        return None
    apart = isinstance(fact, Along) and fact.axis < 2 and not (fact.padded or fact.positional)
    return fact if apart and isinstance(fact, Along) else None


def meeting(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Where tokens meet through values of pairs, made of data of single tokens and positions."""
    found = timing.meetings[node]
    each = entries_of((dims(node.outputs[0]) or ())[found.axis]) or 1
    for needed in found.data:
        axis = needed.axis
        if timing.of(needed.value) != (None if axis is None else Along(axis, each=each)):
            raise refuse(
                node,
                f"compares tokens by {needed.value.name!r} of shape {list(needed.shape)}, which "
                "has no entry of its own for each token.",
            )
    if node.op_type == "Attention":
        return attention(node, timing)
    timing.mixers.append(node)
    positional = not found.data and batchless(node.outputs[0])
    return [Along(found.axis, each=each, positional=positional)]


def recurrence(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Operators whose signature says what lies along time and what is carried."""
    signature, attributes = signature_of(node), attributes_of(node)
    assert signature is not None
    timed = [
        timing.of(value)
        for formal, value in zip(signature.inputs, node.inputs, strict=False)
        if value is not None and formal.time(attributes) is not None
    ]
    first = timed[0]
    if isinstance(first, Along) and first.flat and first.axis == 0:  # within each token
        return _recurrence_within(node, timing, signature, first)
    each = first.each if isinstance(first, Along) else 1
    for index, (formal, value) in enumerate(zip(signature.inputs, node.inputs, strict=False)):
        axis = formal.time(attributes)
        fact = None if axis is None else Along(axis, each=each)
        if value is not None and formal.name not in signature.pasts and timing.of(value) != fact:
            kind = "the same for all tokens" if axis is None else _words(formal, attributes)
            raise refuse(node, f"has an input {index} that is not {kind}: {formal.name}.")
    for formal, value in zip(signature.inputs, node.inputs, strict=False):
        if formal.name in signature.pasts and timing.of(value) is not None:
            raise refuse(
                node,
                "starts from a state that depends on the tokens, which a step does not have. Make "
                "it an input of the model.",
            )
    timing.mixers.append(node)
    axes = [formal.time(attributes) for formal in signature.outputs]
    return [LAST if axis is None else Along(axis, each=each) for axis in axes]


def _recurrence_within(
    node: ir.Node, timing: Timing, signature: Signature, fact: Along
) -> Sequence[Fact]:
    """A recurrence over an axis within each token, tokens lying along its rows."""
    attributes = attributes_of(node)
    for formal, value in zip(signature.inputs, node.inputs, strict=False):
        own = formal.time(attributes) is not None or formal.name in signature.pasts
        found = timing.of(value)
        if found not in (fact, None) if own else found is not None:
            raise refuse(node, f"takes {formal.name} of other tokens than its own.")
        if own and formal.time(attributes) is not None and value is not None and found is None:
            raise refuse(node, f"takes {formal.name} that is no value of its tokens.")
    return [fact] * len(node.outputs)


def _cross_attention(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """Keys and values that are the same for all tokens: each token's result is its own.

    softmax(q_t K^T + mask_t) V has one row of queries, and of the mask, for each token.
    """
    query, mask = timing.of(node.inputs[0]), timing.of(input_of(node, 3))
    rank = len(dims(node.inputs[0]) or ())
    time = rank - 2
    if query != Along(time) or rank not in (3, 4):
        raise refuse(node, "has a query that is not [batch, heads, time, head size].")
    if attribute(node, "is_causal", 0) or any(value is not None for value in node.inputs[4:]):
        raise refuse(
            node, "counts keys and values from outside the sequence as if they were its tokens."
        )
    if mask is not None:
        behind = len(dims(node.inputs[3]) or ()) - 2
        if not isinstance(mask, Along) or mask.flat or mask.axis != behind:
            raise refuse(node, "has a mask whose time axis is not that of its queries.")
    if len(node.outputs) > 1:
        raise refuse(node, "returns more than what its queries find.")
    return [Along(time)]


def _words(formal: Formal, attributes: Mapping[str, Any]) -> str:
    """A shape along time, without what comes after it."""
    (terms, *_) = formal.shapes(attributes)
    end = terms.index(TIME) + 1
    return f"[{', '.join([*terms[:end], *(['...'] if end < len(terms) else [])])}]"


def scan(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    """A loop over tokens: what it carries is its state, what it gives lies along time."""
    count = attribute(node, "num_scan_inputs")
    carried = len(node.inputs) - count
    given = len(node.outputs) - carried
    read = [*(attribute(node, "scan_input_axes") or [0] * count)]
    gives = [*(attribute(node, "scan_output_axes") or [0] * given)]
    directions = ("scan_input_directions", "scan_output_directions")
    if any(any(attribute(node, name) or ()) for name in directions):
        raise refuse(node, "runs from the last token to the first, so it cannot be stepped.")
    if any(timing.of(value) is not None for value in captured(node)):
        raise refuse(node, "takes all tokens in each of its iterations.")
    for value in node.inputs[:carried]:
        if timing.of(value) is not None:
            raise refuse(
                node,
                "starts from what depends on the tokens; start from zeros, from parameters or from "
                "an input without time.",
            )
    first = timing.of(node.inputs[carried]) if count else None
    each = first.each if isinstance(first, Along) else 1
    for value, axis in zip(node.inputs[carried:], read, strict=True):
        place = normal(axis, len(dims(value) or ()))
        fact = timing.of(value)
        if not isinstance(fact, Along) or fact != Along(place, each=each):
            raise refuse(node, f"loops over axis {axis} of a value, which is not that of time.")
    timing.mixers.append(node)
    ranks = [len(dims(value) or ()) for value in node.outputs[carried:]]
    return [LAST] * carried + [
        Along(normal(a, r), each=each) for a, r in zip(gives, ranks, strict=True)
    ]


def rotary(node: ir.Node, timing: Timing) -> Sequence[Fact]:
    fact = timing.of(node.inputs[0])
    tables = [timing.of(value) for value in node.inputs[1:]]
    rank = len(dims(node.inputs[0]) or ())
    each = fact.each if isinstance(fact, Along) else 1
    if fact != Along(2 if rank == 4 else 1, each=each) or None in tables:
        raise refuse(node, "rotates something that is not a sequence at its positions.")
    return [fact]
