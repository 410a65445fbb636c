"""Which values a step graph carries from `prepare`: where what conditions decide meets tokens.

Every value that depends on conditions alone and that a step takes is carried as it is, except
where nodes that only repeat, reshape or broadcast made it larger than what it was made of: then
these nodes stay in the step, and their inputs are carried: of every tree of cheap nodes that ends
in the step, the cut with the fewest entries.  No other node is ever computed by a step.
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
        self._made: dict[ir.Value, int | None] = {}

    def of(self, values: Collection[ir.Value]) -> list[ir.Value]:
        """What has to be carried for `values`."""
        found: dict[ir.Value, None] = {}
        for value in values:
            found.update((each, None) for each in self._carried(value))
        return list(found)

    def _carried(self, value: ir.Value) -> Iterator[ir.Value]:
        if self._made_of(value) is None:
            yield value
            return
        for given in self._given(value):
            yield from self._carried(given)

    def _made_of(self, value: ir.Value) -> int | None:
        """The fewest entries that the step makes `value` of; None where it is carried itself."""
        if value not in self._made:
            self._made[value] = None
            if self._is_cheap(value):
                entries = sum(
                    _entries(given) if (made := self._made_of(given)) is None else made
                    for given in self._given(value)
                )
                if entries < _entries(value) or not keeps_rows(value):
                    self._made[value] = entries
        return self._made[value]

    def _is_cheap(self, value: ir.Value) -> bool:
        node = value.producer()
        if node is None or node.domain:
            return False
        if node.op_type != "Shape":
            return node.op_type in CHEAP
        picked = sizes(node)
        return picked is not None and all(
            isinstance(dim, int) or dim in self._known for dim in picked
        )

    def _given(self, value: ir.Value) -> list[ir.Value]:
        """The inputs of the cheap node behind `value` that depend on conditions."""
        node = value.producer()
        if node is None or node.op_type == "Shape":
            return []  # its size is read where the step knows it
        return [v for v in taken(node) if self._origins.of(v) is Origin.GIVEN]


def keeps_rows(value: ir.Value) -> bool:
    """Whether rows, if `value` has any, have an axis of their own."""
    shape = dims(value)
    if shape is None or list(shape).count(BATCH) > 1:
        return False
    return all(dim == BATCH or BATCH not in str(dim) for dim in shape)


def _entries(value: ir.Value) -> int:
    """How many entries `value` has for one row, every other free size being `SIZE`."""
    count = 1
    for dim in dims(value) or ():
        count *= dim if isinstance(dim, int) else 1 if dim == BATCH else SIZE
    return count
