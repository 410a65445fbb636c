"""Initial values of states that are no single number: chosen in the graph where a row is new."""

from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.graph_keys import FOLDED
from intaglio.passes.graph import Emitter, constant, dims
from intaglio.state import BATCH, StateSpec

from ._step_values import past_length_of

MOVES = frozenset(
    "Cast Expand Flatten Gather Identity Reshape Slice Squeeze Tile Transpose Unsqueeze".split()
)
INT64, BOOL = ir.DataType.INT64, ir.DataType.BOOL


def start_at(graph: ir.Graph, past: ir.Value, spec: StateSpec, row: npt.NDArray[Any]) -> None:
    """Let every user of the state `past` see `row` instead where a row has consumed nothing.

    Args:
        graph: whose input `past` is.
        past: the state.
        spec: what it is.
        row: its initial value, of size 1 along the rows, or of the shape of the state.

    Raises:
        PassError: if `row` has another shape.
    """
    wanted = [1 if dim == BATCH else dim for dim in spec.shape]
    if list(row.shape) != wanted:
        raise PassError(
            f"the initial value of the state {spec.input!r} has the shape {list(row.shape)}; one "
            f"row of the state has {wanted}."
        )
    name = f"{spec.input}.initial"
    value = ir.Value(
        name=name, type=ir.TensorType(past.dtype or ir.DataType.FLOAT), shape=ir.Shape(wanted)
    )
    value.const_value = ir.tensor(row.astype(spec.dtype), name=name)
    value.metadata_props[FOLDED] = "initial value"
    graph.initializers.add(value)
    users = list(past.uses())
    emit = Emitter(next(iter(graph)), prefix=f"{spec.input}.start")
    start = chosen(emit, graph, past, value)
    for node, index in users:
        node.replace_input_with(index, start)


def chosen(emit: Emitter, graph: ir.Graph, past: ir.Value, initial: ir.Value) -> ir.Value:
    """``Where(past_length == 0, initial, past)``, the state that a step starts from."""
    shape = dims(past) or ()
    rows = shape.index(BATCH) if BATCH in shape else None
    fresh = emit("Equal", [past_length_of(graph), emit.constant([0])], BOOL, [BATCH])
    layout = [1] * len(shape)
    if rows is None:  # one state for all rows, which stand at the same token
        fresh = emit(
            "ReduceMax", [emit("Cast", [fresh], INT64, [BATCH], to=7)], INT64, [], keepdims=0
        )
        fresh = emit("Cast", [fresh], BOOL, [], to=9)
    elif len(shape) > 1:
        layout[rows] = -1
        target = [BATCH if axis == rows else 1 for axis in range(len(shape))]
        fresh = emit("Reshape", [fresh, emit.constant(layout)], BOOL, target)
    return emit("Where", [fresh, initial, past], past.dtype, shape)


def is_zero(value: ir.Value | None) -> bool:
    """Whether `value` holds zeros alone, however they were made as many as there are rows."""
    array = constant(value)
    if array is not None:
        return not array.any()
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "ConstantOfShape":
        fill = node.attributes.get("value")
        return fill is None or not fill.as_tensor().numpy().any()
    if node.op_type == "Concat":
        return all(is_zero(entry) for entry in node.inputs)
    return node.op_type in MOVES and is_zero(node.inputs[0])
