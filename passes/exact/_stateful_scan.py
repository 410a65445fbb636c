"""A Scan over tokens gains its carried values as states.

A state starts from one number, or, where the loop starts from something else, a parameter or what
an input without time gives, each row takes that while it has consumed nothing.
"""

from typing import Any

import numpy as np
import onnx_ir as ir

from intaglio.passes.analysis.time_facts import refuse
from intaglio.passes.graph import Emitter, attribute, constant, dims
from intaglio.state import BATCH, Layout

from ._initial_values import MOVES, chosen
from ._stateful_ops import MERGED, Carried


def carried_by(node: ir.Node) -> range:
    """The places of what the Scan `node` carries, among its inputs and its outputs."""
    return range(len(node.inputs) - attribute(node, "num_scan_inputs"))


def scan(node: ir.Node, index: int) -> Carried:
    """Let the carried value `index` of `node` come from the step before."""
    start, graph = node.inputs[index], node.graph
    assert isinstance(graph, ir.Graph)
    shape = dims(start) or ()
    rows = bool(shape) and (shape[0] == BATCH or MERGED.fullmatch(str(shape[0])) is not None)
    if start is None or start.dtype is None or not rows:
        raise refuse(
            node, f"carries a value of shape {list(shape)}: its first axis must be the batch."
        )
    if any(not isinstance(dim, int) for dim in shape[1:]):
        free = ", ".join(str(dim) for dim in shape[1:] if not isinstance(dim, int))
        raise refuse(
            node,
            f"carries a value of shape {list(shape)}, whose {free} is free, and a state has room "
            "of a fixed size: say it with --axes, as memory:batchx11x8 where 11 entries are given.",
        )
    port = "recurrent" if len(carried_by(node)) == 1 else f"recurrent_{index}"
    past = ir.Value(name=port, type=ir.TensorType(start.dtype), shape=ir.Shape(list(shape)))
    number = _number(start)
    if number is None and shape[0] != BATCH:
        raise refuse(node, "starts what it carries for parts of a row from what is no number.")
    begin = past if number is not None else chosen(Emitter(node), graph, past, start)
    node.replace_input_with(index, begin)
    present = node.outputs[index]
    if present.uses() or present.is_graph_output():  # which keep a name of their own
        present = Emitter(node)("Identity", [present], past.dtype, shape)
    present.type, present.shape = past.type, past.shape
    return Carried(
        node=node,
        op="scan",
        port=port,
        layout=Layout.RECURRENT,
        past=past,
        present=present,
        initial=number or 0.0,
    )


def _number(value: ir.Value | None) -> float | None:
    """The number that `value` holds everywhere, however it was made as many as there are rows.

    A whole number that no float is, as the largest of int64, is none.
    """
    array = constant(value)
    if array is not None:
        first = array.reshape(-1)[:1]
        return _as_float(first[0]) if array.size and (array == first).all() else None
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None
    if node.op_type == "ConstantOfShape":
        fill = attribute(node, "value")
        return 0.0 if fill is None else _as_float(fill.numpy().reshape(-1)[0])
    return _number(node.inputs[0]) if node.op_type in MOVES else None


def _as_float(number: Any) -> float | None:
    found = float(number)
    whole = isinstance(number, np.integer)
    return found if not whole or int(found) == int(number) else None
