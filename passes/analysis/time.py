"""Which axis of each value is time, and which nodes mix it.

Every value of a training-form graph gets one of three facts:

* `None`: it does not depend on time (parameters, constants, what is computed from them alone);
* `LENGTH`: a number that depends on how many tokens there are (sizes of shapes);
* `Along`: an array with one entry per token along one axis.

A node whose inputs lie along time must be known to act on each token alone (a rule in
`time_rules`), be one of the ops that statefulize rewrites (`Timing.mixers`), or it is refused by
name.  Nothing is passed through because it is unknown.

`positional` marks values that depend on a token's index alone (RoPE angles, learned positions):
they start at `Timing.sources` and meet the data at `Timing.frontier`, where statefulize gives each
row its own offset.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import describe, dims
from intaglio.state import BATCH, TIME

if TYPE_CHECKING:
    from .meetings import Meeting, Meetings


class Length(Enum):
    """The fact of values that hold the number of tokens."""

    LENGTH = "length"


LENGTH = Length.LENGTH


@dataclass(frozen=True)
class Along:
    """One entry per token along `axis` (not negative).

    `flat`: where batch and time are merged into one axis, and axes behind them perhaps, how many
    entries of it each token has; 0 where time is an axis of its own.  `lead` and `trail` count
    extra entries that padding put before and after the tokens; only a causal convolution takes
    them away again.
    """

    axis: int
    flat: int = 0
    positional: bool = False
    lead: int = 0
    trail: int = 0


Fact = Along | Length | None


@dataclass
class Timing:
    """What the analysis found: facts of all values, and the nodes that statefulize rewrites."""

    facts: dict[ir.Value, Fact] = field(default_factory=dict)
    mixers: list[ir.Node] = field(default_factory=list)
    sources: list[ir.Node] = field(default_factory=list)
    frontier: list[tuple[ir.Node, int]] = field(default_factory=list)
    meetings: "Mapping[ir.Node, Meeting]" = field(default_factory=dict)

    def of(self, value: ir.Value | None) -> Fact:
        """The fact of `value`; None for an absent input."""
        return None if value is None else self.facts.get(value)


def refuse(node: ir.Node, reason: str) -> PassError:
    """The error for a node that cannot be stepped; the caller raises it."""
    return PassError(f"{describe(node)} {reason}")


def batchless(value: ir.Value) -> bool:
    """Whether `value` is the same for all rows, as positions are."""
    return all(BATCH not in str(dim) for dim in dims(value) or ())


def shifted(fact: Along, by: int) -> Along:
    """`fact` with its axis moved by `by`."""
    return replace(fact, axis=fact.axis + by)


def moved(fact: Along, axis: int, *, flat: int | None = None) -> Along:
    """`fact` with its axis at `axis`."""
    return replace(fact, axis=axis, flat=fact.flat if flat is None else flat)


def only(node: ir.Node, timing: Timing, index: int = 0) -> Along:
    """The fact of input `index`; no other input may depend on tokens."""
    fact = timing.of(node.inputs[index])
    others = [timing.of(v) for i, v in enumerate(node.inputs) if i != index]
    if not isinstance(fact, Along) or any(isinstance(other, Along) for other in others):
        raise refuse(node, "takes values of tokens where only constants keep tokens apart.")
    return fact


def normal(axis: int, rank: int) -> int:
    """`axis` counted from the front."""
    return axis + rank if axis < 0 else axis


def analyse(graph: ir.Graph, met: "Meetings") -> Timing:
    """Propagate time through `graph`, but for the pairs of tokens that hide behind its meetings.

    Raises:
        PassError: a node mixes tokens in a way that no carried state can reproduce, or is unknown.
    """
    from .time_rules import propagate  # the rules speak of the facts above

    timing = Timing(meetings=met.found)
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


def _of_input(value: ir.Value) -> Fact:
    shape = dims(value) or ()
    axes = [axis for axis, dim in enumerate(shape) if TIME in str(dim)]
    if not axes:
        return None
    if len(axes) > 1 or shape[axes[0]] != TIME:
        raise PassError(
            f"the input {value.name!r} has shape {list(shape)}: a step graph takes one plain time "
            "axis per input. Compute masks inside the model, or leave this input out."
        )
    return Along(axes[0])


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
    if not isinstance(fact, Along):
        raise PassError(
            f"the output {value.name!r} of shape {list(dims(value) or ())} has no time axis, so it "
            "cannot be returned for each token. Return the values before they are pooled over time."
        )
    if fact.flat or fact.lead or fact.trail:
        raise PassError(
            f"the output {value.name!r} of shape {list(dims(value) or ())} does not hold one entry "
            "per token along an axis of its own. Return it as [batch, time, ...]."
        )
    if fact.positional:
        raise PassError(
            f"the output {value.name!r} depends on positions alone, not on the inputs; "
            "leave it out."
        )
