"""The graphs of a bundle, as a program or a model of ours declares them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CODES, AT, THEN = "codes", "at", "then"  # what a generation gives to the graph that goes on


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How the graphs of a bundle generate a whole, block by block, from conditions alone.

    A step of main takes the input `tokens` of the next block, zeros for the first, and gives
    `logits` of each token; a code is drawn for each.  The graph `advance` takes them as ``codes``,
    their places as ``at``, those of the next block as ``then``, and what is carried, which starts
    as zeros: its inputs by the names of the outputs that they become, `carried`.  Its output of
    the name `tokens` is the next block.  The graph `finish` makes the result of what is carried in
    the end, by the names of those inputs.  `unconditional` are the values of conditions that stand
    for none, by name, for guidance without a classifier.
    """

    logits: str = "logits"
    tokens: str = "tokens"
    advance: str = "advance"
    finish: str = "decode"
    carried: Mapping[str, str] = field(default_factory=dict)
    unconditional: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Graph:
    """One graph of a bundle: a method of a module, or a module within it by its dotted path.

    `inputs` are example inputs of its own, and `axes` their dimensions, in place of those that are
    given for all graphs, in any form that `export` takes.  `generates` says how main and others
    make a whole together; it stands at main.
    """

    method: str = "forward"
    inputs: Any = None
    axes: Mapping[str, Any] = field(default_factory=dict)
    generates: Generation | None = None
