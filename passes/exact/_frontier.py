"""Which values a step graph carries from `prepare`: where what conditions decide meets tokens.

Every value that depends on conditions alone and that a step takes is carried as it is, except
where nodes that only repeat, reshape or broadcast made it larger than what it was made of: then
these nodes stay in the step, and their inputs are carried.  `_entries` counts, for a value, the
fewest entries from which cheap nodes make it; as each node is looked at once, this is the minimal
cut of the trees of cheap nodes that end in the step.  No other node is ever computed twice.
"""

from collections.abc import Collection, Iterator

import onnx_ir as ir

from intaglio.passes.analysis.origin import Origin, Origins, sizes
from intaglio.passes.graph import Dim, dims, taken
from intaglio.state import BATCH

CHEAP = frozenset(
    "Add And Concat Div Equal Expand Greater GreaterOrEqual Identity Less LessOrEqual Mul Not Or "
    "Range Reshape Squeeze Sub Tile Unsqueeze Where Xor".split()
)
"""What costs no more than to read its result: views, repetitions, broadcasts of two values."""

SIZE = 64
"""Taken for each free size but the batch when entries are counted."""


def frontier(graph: ir.Graph, origins: Origins, known: Collection[Dim]) -> list[ir.Value]:
    """The values to carry, in the order of the graph; `known` are sizes that a step knows."""
    met = _met(graph, origins)
    every = {dim for value in origins.conditions for dim in dims(value) or ()}
    cut = _Cut(origins, {*known, *every}).of(met)
    measured = {*known, *(dim for value in cut for dim in dims(value) or ())}
    return _Cut(origins, measured).of(met)


def _met(graph: ir.Graph, origins: Origins) -> list[ir.Value]:
    """The values that depend on conditions alone and that nodes of the step take."""
    found: dict[ir.Value, None] = {}
    for node in graph:
        if all(origins.of(output) is Origin.STEP for output in node.outputs):
            found.update((v, None) for v in taken(node) if origins.of(v) is Origin.GIVEN)
    return list(found)


class _Cut:
    """The fewest entries to carry, where the sizes `known` can be read in the step."""

    def __init__(self, origins: Origins, known: Collection[Dim]) -> None:
        self._origins = origins
        self._known = known
        self._entries: dict[ir.Value, int] = {}

    def of(self, values: Collection[ir.Value]) -> list[ir.Value]:
        """What has to be carried for `values`."""
        found: dict[ir.Value, None] = {}
        for value in values:
            found.update((each, None) for each in self._carried(value))
        return list(found)

    def _carried(self, value: ir.Value) -> Iterator[ir.Value]:
        if self._least(value) == _entries(value) and _keeps_rows(value):
            yield value
            return
        for given in self._given(value):
            yield from self._carried(given)

    def _least(self, value: ir.Value) -> int:
        """The fewest entries that `value` can be made of in the step."""
        if value not in self._entries:
            self._entries[value] = _entries(value)  # what it is where nothing cheap makes it
            if self._is_cheap(value):
                made_of = sum(map(self._least, self._given(value)))
                if made_of < _entries(value) or not _keeps_rows(value):
                    self._entries[value] = made_of
        return self._entries[value]

    def _is_cheap(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None or node.domain:
            return False
        if node.op_type == "Shape":
            picked = sizes(node)
            return picked is not None and all(
                isinstance(dim, int) or dim in self._known for dim in picked
            )
        return node.op_type in CHEAP

    def _given(self, value: ir.Value) -> list[ir.Value]:
        """The inputs of the cheap node behind `value` that depend on conditions."""
        node = value.producer()
        if node is None or node.op_type == "Shape":
            return []  # its size is read where the step knows it
        return [v for v in taken(node) if self._origins.of(v) is Origin.GIVEN]


def _keeps_rows(value: ir.Value) -> bool:
    """Whether rows, if `value` has any, have an axis of their own."""
    shape = dims(value)
    return shape is not None and all(dim == BATCH or BATCH not in str(dim) for dim in shape)


def _entries(value: ir.Value) -> int:
    """How many entries `value` has for one row, every other free size being `SIZE`."""
    count = 1
    for dim in dims(value) or ():
        count *= dim if isinstance(dim, int) else 1 if dim == BATCH else SIZE
    return count
