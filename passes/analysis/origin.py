"""What each value of a graph depends on: weights alone, conditions, or the tokens of a step.

A *condition* is an input without time axis that is no carried state: an encoder's input, a label,
a picture.  It holds for a whole sequence, and so does whatever is computed from conditions and
weights alone.
"""

from collections.abc import Collection, Sequence
from enum import IntEnum

import onnx_ir as ir

from intaglio.passes.graph import Dim, attribute, dims, taken
from intaglio.state import BATCH, PAST_LENGTH, TIME


class Origin(IntEnum):
    """What a value depends on; a node's results depend on the most that its inputs do."""

    FIXED = 0  # weights and constants
    ROWS = 1  # the number of rows as well
    GIVEN = 2  # conditions as well
    STEP = 3  # tokens, carried states or how many tokens came before


class Origins:
    """The origin of every value of a graph; `conditions` are its inputs of the origin GIVEN."""

    def __init__(self, graph: ir.Graph, carried: Collection[str] = ()) -> None:
        """Follow every value of `graph`, whose inputs named in `carried` are states."""
        self._found: dict[ir.Value, Origin] = {}
        for value in graph.inputs:
            stepped = TIME in "".join(map(str, dims(value) or ()))
            stepped = stepped or value.name == PAST_LENGTH or value.name in carried
            self._found[value] = Origin.STEP if stepped else Origin.GIVEN
        self.conditions = [v for v in graph.inputs if self._found[v] is Origin.GIVEN]
        sides = {self._found[v] for v in graph.inputs if BATCH in (dims(v) or ())}
        self._both_have_rows = sides == {Origin.STEP, Origin.GIVEN}
        for node in graph:
            origin = self._of_node(node)
            self._found.update(dict.fromkeys(node.outputs, origin))

    def of(self, value: ir.Value | None) -> Origin:
        """The origin of `value`; FIXED for an absent input."""
        return Origin.FIXED if value is None else self._found.get(value, Origin.FIXED)

    def look_outside(self, node: ir.Node) -> bool:
        """Whether an attention has keys and values that are there before the first token."""
        attends = node.op_type == "Attention" and not node.domain
        return attends and all(self.of(value) < Origin.STEP for value in node.inputs[1:3])

    def _of_node(self, node: ir.Node) -> Origin:
        origin = max(map(self.of, taken(node)), default=Origin.FIXED)
        if node.op_type != "Shape" or node.domain:
            return origin
        picked = sizes(node)
        if picked is None or not all(isinstance(dim, int) or dim == BATCH for dim in picked):
            return origin
        if BATCH in picked and not self._both_have_rows:
            return origin
        return min(origin, Origin.ROWS if BATCH in picked else Origin.FIXED)


def sizes(node: ir.Node) -> Sequence[Dim] | None:
    """The dimensions that a Shape gives, None where the rank is unknown."""
    shape = dims(node.inputs[0])
    return None if shape is None else shape[attribute(node, "start", 0) : attribute(node, "end")]
