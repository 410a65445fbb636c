"""Values that hold an entry for each pair of a query token and a key token, as terms.

Masks, biases and attention scores have two axes of time: entry (i, j) says what token i makes of
token j.  A step has T queries and S keys, so such a value is computed anew for the positions at
hand.  `Reader` reads the nodes behind one backwards, from the axes of the result to those of the
inputs, and proves of each that entry (i, j) comes from entries i and j alone.  What it finds is a
tree of terms that `bounds` evaluates over all pairs at once and statefulize emits again:

* a position, i or j itself; a row of a table at a position;
* a constant, the same for all pairs;
* data of one token: that of the query is at hand, that of the keys is carried as a state;
* a node, of other terms.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

from intaglio.passes.graph import describe, dims
from intaglio.state import TIME

from .time_facts import length


class TermKind(Enum):
    """What a term is."""

    POSITION = "position"
    CONSTANT = "constant"
    DATA = "data"
    NODE = "node"


@dataclass(frozen=True)
class Axes:
    """Which axis of a value counts the queries and which the keys, None where none does."""

    query: int | None = None
    key: int | None = None

    def __bool__(self) -> bool:
        return self.query is not None or self.key is not None


NONE = Axes()


@dataclass(frozen=True, eq=False)
class PairTerm:
    """`value` with the roles of its axes; a NODE's `inputs` are terms, None where it has none."""

    kind: TermKind
    value: ir.Value
    axes: Axes
    inputs: tuple["PairTerm | None", ...] = ()

    @property
    def node(self) -> ir.Node:
        """The node that computes the value."""
        found = self.value.producer()
        assert found is not None
        return found

    @property
    def shape(self) -> tuple[int | str, ...]:
        """Shape of the value in the training graph."""
        return dims(self.value) or ()


def time_axes(value: ir.Value | None) -> list[int]:
    """The axes of `value` that are sized by the number of tokens."""
    return [axis for axis, dim in enumerate(dims(value) or ()) if TIME in str(dim)]


def surplus(dim: int | str) -> int | None:
    """How many entries a dimension has beside those of tokens; None where it is no such."""
    first, sign, last = str(dim).replace(" ", "").partition("+")
    found = length(f"{last} + {first}" if sign and first.isdigit() else dim)
    return found[1] if found is not None and found[1] >= 0 else None


def leaves(term: PairTerm) -> list[PairTerm]:
    """The data that `term` is computed from, each once."""
    return [found for found in walk(term) if found.kind is TermKind.DATA]


def walk(term: PairTerm, known: Container[PairTerm] = ()) -> list[PairTerm]:
    """`term` and all that it is computed from, each once, inputs before what takes them.

    What those that are `known` are computed from is left out.
    """
    order: dict[PairTerm, None] = {}
    pending: list[tuple[PairTerm, bool]] = [(term, False)]
    while pending:
        entry, ready = pending.pop()
        if ready:
            order[entry] = None
        elif entry not in order:
            pending.append((entry, True))
            given = () if entry in known else reversed(entry.inputs)
            pending += [(one, False) for one in given if one is not None]
    return list(order)


def name(term: PairTerm) -> str:
    """What an error calls `term`."""
    node = term.value.producer()
    return repr(term.value.name) if node is None else describe(node)
