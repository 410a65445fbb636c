"""Which axis of each value is time, and which nodes mix it.

A node whose inputs lie along time must be known to act on each token alone (a rule in
`time_rules`), be one of the ops that statefulize rewrites (`Timing.mixers`), or it is refused by
name.  Nothing is passed through because it is unknown.  `time_facts` says what is told of a value.
"""

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import dims
from intaglio.state import TIME, entries_of

from .blocks import Blocks
from .meetings import Meeting, Meetings
from .time_facts import LAST, Along, Fact, Meets, Needed, Timing, refuse
from .time_rules import propagate

__all__ = ["LAST", "Along", "Timing", "analyse", "refuse"]


def analyse(graph: ir.Graph, met: Meetings) -> Timing:
    """Propagate time through `graph`, but for the pairs of tokens that hide behind its meetings.

    Raises:
        PassError: a node mixes tokens in a way that no carried state can reproduce, or is unknown.
    """
    timing = Timing(meetings={node: _meets(found) for node, found in met.found.items()})
    for value in graph.inputs:
        timing.facts[value] = _of_input(value)
    for node in graph:
        if node not in met.live:
            continue
        for output, fact in zip(node.outputs, propagate(node, timing), strict=False):
            timing.facts[output] = fact
        _note_frontier(node, timing)
    for value in graph.outputs:
        _check_output(value, timing)
    return timing


def _meets(found: Meeting) -> Meets:
    needed = []
    for term in found.data:
        axes = [axis for axis in (term.axes.query, term.axes.key) if axis is not None]
        needed.append(Needed(term.value, axes[0] if axes else None, tuple(term.shape)))
    return Meets(found.axis, tuple(needed), isinstance(found.mask, Blocks))


def _of_input(value: ir.Value) -> Fact:
    shape = dims(value) or ()
    axes = [axis for axis, dim in enumerate(shape) if TIME in str(dim)]
    if not axes:
        return None
    each = entries_of(shape[axes[0]])
    if len(axes) > 1 or each is None:
        raise PassError(
            f"the input {value.name!r} has shape {list(shape)}: a step graph takes one plain time "
            "axis per input. Compute masks inside the model, or leave this input out."
        )
    return Along(axes[0], each=each)


def _note_frontier(node: ir.Node, timing: Timing) -> None:
    outputs = [timing.of(output) for output in node.outputs]
    if any(isinstance(fact, Along) and fact.positional for fact in outputs):
        return
    for index, value in enumerate(node.inputs):
        fact = timing.of(value)
        if isinstance(fact, Along) and fact.positional:
            timing.frontier.append((node, index))


def _check_output(value: ir.Value, timing: Timing) -> None:
    fact = timing.of(value)
    if fact is LAST:
        return
    if not isinstance(fact, Along):
        raise PassError(
            f"the output {value.name!r} of shape {list(dims(value) or ())} has no time axis, so it "
            "cannot be returned for each token. Return the values before they are pooled over time."
        )
    if fact.flat or fact.padded:
        raise PassError(
            f"the output {value.name!r} of shape {list(dims(value) or ())} does not hold one entry "
            "per token along an axis of its own. Return it as [batch, time, ...]."
        )
    if fact.positional:
        raise PassError(
            f"the output {value.name!r} depends on positions alone, not on the inputs; "
            "leave it out."
        )
