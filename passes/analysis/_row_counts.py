"""Values that say how many rows there are, or which place a row has among them.

They are the same for whatever the rows hold, and so no data of them; but a row that is computed
with one changes when its neighbours come and go.  As a shape, a size is no such use.
"""

from collections.abc import Container, Sequence

import onnx_ir as ir

from intaglio.passes.graph import attribute, dims, integers, producer
from intaglio.state import BATCH

SHAPES = {"ConstantOfShape": 0, "Expand": 1, "Reshape": 1, "Tile": 1}
"""Operators whose result does not hold what this input says, but is shaped by it."""


def row_counts(graph: ir.Graph) -> set[ir.Value]:
    """The values of `graph` that are computed from the number of rows, as numbers."""
    found: set[ir.Value] = set()
    for node in graph:
        used = [
            value
            for place, value in enumerate(node.inputs)
            if value in found and SHAPES.get(node.op_type) != place
        ]
        passed_on = used and not _picks_another(node) and not _picks_own(node, found)
        if passed_on or _counts_on(node) or _reads(node):
            found.update(node.outputs)
    return found


def _counts_on(node: ir.Node) -> bool:
    """Whether a CumSum goes along the rows, as it does to number them."""
    if node.domain or node.op_type != "CumSum":
        return False
    shape, axes = dims(node.inputs[0]) or (), integers(node.inputs[1])
    return bool(shape) and any(BATCH in str(shape[axis]) for axis in axes or ())


def _picks_own(node: ir.Node, counts: Container[ir.Value | None]) -> bool:
    """Whether a row picks by its place in the batch alone, and so what is there for itself.

    That is its own data, as `rows` shows of data, or what is there for every row alike.
    """
    if node.op_type not in ("Gather", "GatherND") or node.domain or node.inputs[0] in counts:
        return False
    shape = dims(node.inputs[0]) or ()
    if node.op_type == "Gather":
        axis = attribute(node, "axis", 0)
        return bool(shape) and shape[axis] == BATCH
    places = node.inputs[1]
    joined = producer(places, "Concat")
    others = joined.inputs[1:] if joined is not None else ()
    single = (dims(places) or (0,))[-1] == 1
    known = single or (joined is not None and not any(value in counts for value in others))
    return known and _of_rows(shape, dims(places) or ()) and not attribute(node, "batch_dims", 0)


def _of_rows(table: Sequence[int | str], places: Sequence[int | str]) -> bool:
    """Whether a table begins with the axis of rows, alone or merged with one within each row.

    Merged, there is a place for each entry of that axis: fewer would be of other rows.
    """
    first = table[0] if table else 1
    return first == BATCH or (BATCH in str(first) and first in places)


def _reads(node: ir.Node) -> bool:
    """Whether a Shape, or a Size, tells the number of rows."""
    if node.domain or node.op_type not in ("Shape", "Size"):
        return False
    shape = dims(node.inputs[0]) or ()
    if node.op_type == "Shape":
        shape = shape[slice(attribute(node, "start", 0), attribute(node, "end"))]
    return any(BATCH in str(dim) for dim in shape)


def _picks_another(node: ir.Node) -> bool:
    """Whether a Gather takes another size from a shape than that of the rows."""
    shape = producer(node.inputs[0], "Shape") if node.op_type == "Gather" else None
    place = node.inputs[1].const_value if shape is not None and node.inputs[1] is not None else None
    if shape is None or place is None or shape.attributes.get("start") is not None:
        return False
    sizes = dims(shape.inputs[0]) or ()
    return not any(BATCH in str(sizes[int(i)]) for i in place.numpy().reshape(-1))
