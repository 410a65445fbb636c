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

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from enum import Enum

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import constant, describe, dims
from intaglio.state import BATCH, TIME

from .time_facts import refuse


class Kind(Enum):
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
class Term:
    """`value` with the roles of its axes; a NODE's `inputs` are terms, None where it has none."""

    kind: Kind
    value: ir.Value
    axes: Axes
    inputs: tuple["Term | None", ...] = ()

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
    """How many entries a dimension has beside one for each token; None where it is no such."""
    left, _, right = str(dim).replace(" ", "").partition("+")
    if left == TIME:
        return int(right) if right.isdigit() else 0 if not right else None
    return int(left) if right == TIME and left.isdigit() else None


@dataclass
class Reader:
    """Reads terms off a graph; a value is read once for each role of its axes."""

    graph: ir.Graph
    _known: dict[tuple[ir.Value, Axes], Term] = field(default_factory=dict)
    _from_data: dict[ir.Value, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._from_data = dict.fromkeys(self.graph.inputs, True)
        for node in self.graph:
            sized = node.op_type in ("Shape", "Size") and not node.domain
            found = not sized and any(self.from_data(value) for value in node.inputs)
            found = found or any(_has_graph(entry) for entry in node.attributes.values())
            self._from_data.update(dict.fromkeys(node.outputs, found))

    def from_data(self, value: ir.Value | None) -> bool:
        """Whether the entries of `value` depend on the graph's inputs, not on their sizes alone."""
        return value is not None and self._from_data.get(value, False)

    def read(self, value: ir.Value, axes: Axes) -> Term:
        """`value` as a term.

        Raises:
            PassError: some node behind it does not act on each pair alone, or is not known.
        """
        if (value, axes) not in self._known:
            self._known[value, axes] = self._read(value, axes)
        return self._known[value, axes]

    def _read(self, value: ir.Value, axes: Axes) -> Term:
        node = value.producer()
        _check_axes(value, axes)
        if node is None or (not axes and constant(value) is not None):
            kind = Kind.DATA if self.from_data(value) else Kind.CONSTANT
            return Term(kind, value, axes)
        one_token = axes.query is None or axes.key is None
        if self.from_data(value) and one_token and not self._worth_moving(node, axes):
            return Term(Kind.DATA, value, axes)
        if node.op_type == "Range" and axes and not node.domain:
            return Term(Kind.POSITION, value, axes)
        if not axes and not self.from_data(value) and not _sized_by_time(value):
            return Term(Kind.CONSTANT, value, axes)
        try:
            return self.open(node, axes)
        except PassError:
            if axes and one_token and (dims(value) or ("",))[0] == BATCH:
                return Term(Kind.DATA, value, axes)  # a step may compute it, if not from positions
            raise

    def open(self, node: ir.Node, axes: Axes) -> Term:
        """The result of `node` as a term of its inputs, whatever else it could be.

        Raises:
            PassError: the node does not act on each pair alone, or is not known to.
        """
        from .pair_rules import first_of, inputs_of, shift

        if (behind := shift(node, axes)) is not None:
            first, rest = node.inputs[0].producer().inputs  # type: ignore[union-attr]
            assert first is not None
            assert rest is not None
            joined = self.read(rest, axes), self.read(first, NONE)
            return Term(Kind.NODE, node.outputs[0], axes, joined[: 1 + behind])
        if not axes and (axis := first_of(node)) is not None and node.inputs[0] is not None:
            return Term(Kind.NODE, node.outputs[0], axes, (self.read(node.inputs[0], Axes(axis)),))
        places = inputs_of(node, axes)
        if places is None:
            raise refuse(node, "is not known to act on each pair of tokens alone.")
        inputs = [
            None if given is None or place is None else self.read(given, place)
            for given, place in zip(node.inputs, places, strict=True)
        ]
        return Term(Kind.NODE, node.outputs[0], axes, tuple(inputs))

    def _worth_moving(self, node: ir.Node, axes: Axes) -> bool:
        """Whether to carry what `node` moves instead of its result: it is smaller, or its own."""
        size = _entries(dims(node.outputs[0]) or ())
        whole = (dims(node.outputs[0]) or ("",))[0] == BATCH
        moved: ir.Node | None = node
        if axes.key is not None and node.op_type == "Unsqueeze":
            whole = False
        while moved is not None and moved.op_type in MOVERS and not moved.domain:
            given = dims(moved.inputs[0])
            if axes.key is None or not given or given.count(TIME) != 1:
                return False
            if given[0] == BATCH and (not whole or _entries(given) < size):
                return True
            moved = moved.inputs[0].producer() if moved.inputs[0] is not None else None
        # Keys are carried as [batch, heads, time, size], which products take turned as well.
        shape, given = dims(node.outputs[0]) or (), dims(node.inputs[0]) or ()
        turned = node.op_type == "Transpose" and len(shape) - 1 == axes.key
        return turned and given[0] == BATCH and given.index(TIME) == len(given) - 2


MOVERS = frozenset("Cast Expand Gather Identity Reshape Squeeze Tile Transpose Unsqueeze".split())


def _entries(shape: Sequence[int | str]) -> int:
    product = 1
    for dim in shape:
        product *= dim if isinstance(dim, int) else 1
    return product


def _sized_by_time(value: ir.Value) -> bool:
    """Whether a value of any shape is computed from the number of tokens."""
    pending, seen = [value], set[ir.Value]()
    while pending:
        entry = pending.pop()
        node = entry.producer()
        if entry in seen or node is None:
            continue
        seen.add(entry)
        if node.op_type in ("Shape", "Size") and time_axes(node.inputs[0]):
            return True
        pending += [given for given in node.inputs if given is not None]
    return False


def _check_axes(value: ir.Value, axes: Axes) -> None:
    """The axes of time are those that have a role, one entry for each token."""
    shape, node = dims(value), value.producer()
    wanted = sorted(axis for axis in (axes.query, axes.key) if axis is not None)
    if shape is not None and time_axes(value) == wanted:
        extra = [surplus(shape[axis]) for axis in wanted]
        if all(
            n == 0 or (n is not None and axis == axes.key)
            for n, axis in zip(extra, wanted, strict=True)
        ):
            return
    reason = f"has shape {list(shape or ())}, whose axes are not those of queries and keys."
    if node is not None:
        raise refuse(node, reason)
    raise ValueError(f"{value.name!r} {reason}")


def _has_graph(entry: ir.Attr) -> bool:
    return entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def leaves(term: Term) -> list[Term]:
    """The data that `term` is computed from, each once."""
    return [found for found in walk(term) if found.kind is Kind.DATA]


def walk(term: Term, known: Container[Term] = ()) -> list[Term]:
    """`term` and all that it is computed from, each once, inputs before what takes them.

    What those that are `known` are computed from is left out.
    """
    order: dict[Term, None] = {}
    pending: list[tuple[Term, bool]] = [(term, False)]
    while pending:
        entry, ready = pending.pop()
        if ready:
            order[entry] = None
        elif entry not in order:
            pending.append((entry, True))
            given = () if entry in known else reversed(entry.inputs)
            pending += [(one, False) for one in given if one is not None]
    return list(order)


def name(term: Term) -> str:
    """What an error calls `term`."""
    node = term.value.producer()
    return repr(term.value.name) if node is None else describe(node)
