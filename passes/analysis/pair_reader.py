"""Reads terms off a graph, from the axes of a value to those of what it is computed from."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import constant, dims
from intaglio.state import BATCH, TIME

from .pair_rules import first_of, gathers_along, inputs_of, shift
from .pairs import NONE, Axes, PairTerm, TermKind, leaves, surplus, time_axes
from .time_facts import length, refuse

MOVERS = frozenset("Cast Expand Gather Identity Reshape Squeeze Tile Transpose Unsqueeze".split())


@dataclass
class PairReader:
    """Reads terms off a graph; a value is read once for each role of its axes."""

    graph: ir.Graph
    _known: dict[tuple[ir.Value, Axes], PairTerm] = field(default_factory=dict)
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

    def read(self, value: ir.Value, axes: Axes) -> PairTerm:
        """`value` as a term.

        Raises:
            PassError: some node behind it does not act on each pair alone, or is not known.
        """
        if (value, axes) not in self._known:
            self._known[value, axes] = self._read(value, axes)
        return self._known[value, axes]

    def _read(self, value: ir.Value, axes: Axes) -> PairTerm:
        node = value.producer()
        _check_axes(value, axes)
        if node is None or (not axes and constant(value) is not None):
            kind = TermKind.DATA if self.from_data(value) else TermKind.CONSTANT
            return PairTerm(kind, value, axes)
        one_token = axes.query is None or axes.key is None
        if self.from_data(value) and one_token and not self._worth_moving(node, axes):
            return PairTerm(TermKind.DATA, value, axes)
        if node.op_type == "Range" and axes and not node.domain:
            return PairTerm(TermKind.POSITION, value, axes)
        if not axes and not self.from_data(value) and not _sized_by_time(value):
            return PairTerm(TermKind.CONSTANT, value, axes)
        try:
            return self.open(node, axes)
        except PassError:
            if axes and one_token and (dims(value) or ("",))[0] == BATCH:
                return PairTerm(
                    TermKind.DATA, value, axes
                )  # a step may compute it, if not from positions
            raise

    def open(self, node: ir.Node, axes: Axes) -> PairTerm:
        """The result of `node` as a term of its inputs, whatever else it could be.

        Raises:
            PassError: the node does not act on each pair alone, or is not known to.
        """
        if (behind := shift(node, axes)) is not None:
            first, rest = node.inputs[0].producer().inputs  # type: ignore[union-attr]
            assert first is not None
            assert rest is not None
            joined = self.read(rest, axes), self.read(first, NONE)
            return PairTerm(TermKind.NODE, node.outputs[0], axes, joined[: 1 + behind])
        if not axes and (axis := first_of(node)) is not None and node.inputs[0] is not None:
            return PairTerm(
                TermKind.NODE, node.outputs[0], axes, (self.read(node.inputs[0], Axes(axis)),)
            )
        places = inputs_of(node, axes)
        if places is None:
            raise refuse(node, "is not known to act on each pair of tokens alone.")
        inputs = [
            None if given is None or place is None else self.read(given, place)
            for given, place in zip(node.inputs, places, strict=True)
        ]
        _check_picked(node, inputs[0] if inputs else None)
        return PairTerm(TermKind.NODE, node.outputs[0], axes, tuple(inputs))

    def _worth_moving(self, node: ir.Node, axes: Axes) -> bool:
        """Whether to carry what `node` moves instead of its result: it is smaller, or its own."""
        shape = dims(node.outputs[0]) or ()
        time = TIME if axes.key is None else shape[axes.key]
        size = _entries(shape)
        whole = (dims(node.outputs[0]) or ("",))[0] == BATCH
        moved: ir.Node | None = node
        if axes.key is not None and node.op_type == "Unsqueeze":
            whole = False
        while moved is not None and moved.op_type in MOVERS and not moved.domain:
            given = dims(moved.inputs[0])
            if axes.key is None or not given or given.count(time) != 1:
                return False
            if given[0] == BATCH and (not whole or _entries(given) < size):
                return True
            moved = moved.inputs[0].producer() if moved.inputs[0] is not None else None
        # Keys are carried as [batch, heads, time, size], which products take turned as well.
        given = dims(node.inputs[0]) or ()
        turned = node.op_type == "Transpose" and len(shape) - 1 == axes.key
        return turned and given[0] == BATCH and given.index(time) == len(given) - 2


def _check_picked(node: ir.Node, source: PairTerm | None) -> None:
    """Entries at places that are computed are of positions: a step has no token of any place."""
    if source is None or source.axes.key is None or gathers_along(node) != source.axes.key:
        return
    if any(leaf.axes.key is not None for leaf in leaves(source)):
        raise refuse(node, "takes values of tokens at places that are computed.")


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
    rates = {found[0] for axis in wanted if (found := length((shape or ())[axis])) is not None}
    if shape is not None and time_axes(value) == wanted and len(rates) <= 1:
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
