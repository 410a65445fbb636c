"""A graph as two streams: one decides, the other is what the first decided, as an affine map.

For an input x0 every unit that is not linear is recorded as what it did: a rectifier's slopes, the
places that a pool took, the mean and spread of a norm, phi(a) / a of another activation.  Replayed
on any x1 these make a map that is affine in x1, and gives the graph's own output for x1 = x0.
"""

import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import Emitter, describe, dims, set_dims

from ._linear_forms import TwoStreams, replay

COLUMNS = "batch"  # rows of the second stream, for each of which the first one has one
GATES = frozenset(("HardSigmoid", "Sigmoid", "Softmax", "Softplus", "Tanh"))
"""What is kept of a product of two values that both depend on the input."""
LINEAR = frozenset(
    "Add AveragePool BatchNormalization Cast Concat Conv ConvTranspose DepthToSpace Div Dropout "
    "Expand Flatten Gather Gemm GlobalAveragePool Identity MatMul Mul Neg Pad ReduceMean ReduceSum "
    "Reshape Resize Slice SpaceToDepth Split Squeeze Sub Sum Transpose Unsqueeze Upsample "
    "Where".split()
)
FIRST_ALONE = LINEAR - {"Add", "Concat", "MatMul", "Mul", "Sub", "Sum", "Where"}
"""Linear in their first input, while the others may not depend on the input of the graph."""


def dependents(graph: ir.Graph) -> set[str]:
    """Names of the values that the contents of the input flow into, not its sizes alone."""
    found = {str(value.name) for value in graph.inputs}
    for node in graph:
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue
        if any(value is not None and value.name in found for value in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def split(model: ir.Model) -> tuple[ir.Model, ir.Model]:
    """The graph that records what it decides, and the one that replays it.

    Raises:
        PassError: if a node is of a kind that has no affine form, or rows are mixed.
    """
    moving, batch = dependents(model.graph), _batch_of(model.graph)
    _require_rows(model.graph, moving, batch)
    kept = _kept(model.graph, moving)
    needed = _needed(model.graph, moving, kept)
    streams = TwoStreams(model.clone(), model.clone())
    first = {node.name: node for node in streams.record.graph}
    for node in list(streams.replay.graph):
        moved = [value for value in node.inputs if value is not None and value.name in moving]
        if not moved or node.name not in needed or node.op_type in ("Shape", "Size"):
            continue
        own = first[node.name]
        if node.name in kept:
            index = kept[str(node.name)]
            value = own.inputs[index]
            assert value is not None
            same = Emitter(streams.tail)("Identity", [value], value.dtype, dims(value))
            node.replace_input_with(index, streams.decide(f"{value.name}.kept", same))
        elif node.domain or node.op_type not in LINEAR:
            replay(streams, own, node)
        else:
            _require_linear(node, moving)
    streams.record.graph.remove(streams.tail, safe=True)
    _rename(streams.record.graph, batch, 1)
    _rename(streams.replay.graph, batch, COLUMNS)
    return streams.record, streams.replay


def _batch_of(graph: ir.Graph) -> str:
    """The free axis of rows; the only one."""
    if len(graph.inputs) != 1:
        names = ", ".join(str(value.name) for value in graph.inputs)
        raise PassError(
            f"linear-interpreter: the graph has the inputs {names}; it should have one, whose "
            "contents the map is taken of."
        )
    value = graph.inputs[0]
    shape = dims(value) or ()
    if not shape or not isinstance(shape[0], str):
        raise PassError(
            f"linear-interpreter: the input {value.name!r} has the shape {list(shape)}; its first "
            "axis should be free, for columns of the map."
        )
    free = [dim for dim in shape[1:] if isinstance(dim, str)]
    if free:
        said = "x".join(["batch", *("SIZE" if isinstance(d, str) else str(d) for d in shape[1:])])
        raise PassError(
            f"linear-interpreter: {', '.join(free)} of {value.name!r} is free, and a map has one "
            f"size. Fix it: --axes '{value.name}:{said}'."
        )
    return shape[0]


def _require_rows(graph: ir.Graph, moving: set[str], batch: str) -> None:
    """Refuse values in which rows are merged with other axes."""
    for node in graph:
        for value in node.outputs:
            shape = dims(value)
            rest = [] if shape is None else [d for d in shape[1:] if isinstance(d, str)]
            if value.name in moving and (not shape or shape[0] != batch or rest):
                raise PassError(
                    f"linear-interpreter: {describe(node)} gives the shape {list(shape or ())}, in "
                    "which rows do not stand alone along the first axis."
                )


def _kept(graph: ir.Graph, moving: set[str]) -> dict[str, int]:
    """By the name of a node, which of its inputs the first stream gives.

    That is the gate in a product of two dependent values, and the condition of a choice.
    """
    found = {}
    for node in graph:
        condition = node.inputs[0] if node.op_type == "Where" else None
        if condition is not None and condition.name in moving:
            found[str(node.name)] = 0
            continue
        pair = [v for v in node.inputs if v is not None and v.name in moving]
        if node.op_type not in ("Mul", "MatMul") or len(pair) < 2:
            continue
        gates = [i for i, v in enumerate(node.inputs) if v is not None and _is_gate(v)]
        if not gates:
            raise PassError(
                f"linear-interpreter: {describe(node)} multiplies two values that depend on the "
                f"input, of which none is a gate ({', '.join(sorted(GATES))})."
            )
        found[str(node.name)] = gates[0]
    return found


def _is_gate(value: ir.Value) -> bool:
    """Whether a value is a gate, or one that was moved or stretched."""
    node = value.producer()
    while node is not None and node.op_type in ("Expand", "Reshape", "Transpose", "Unsqueeze"):
        node = None if node.inputs[0] is None else node.inputs[0].producer()
    return node is not None and node.op_type in GATES


def _needed(graph: ir.Graph, moving: set[str], kept: dict[str, int]) -> set[str]:
    """Names of the nodes that the outputs follow from where what is kept is given."""
    wanted = {str(value.name) for value in graph.outputs}
    found = set()
    for node in reversed(list(graph)):
        if not any(value.name in wanted for value in node.outputs):
            continue
        found.add(str(node.name))
        for index, value in enumerate(node.inputs):
            if value is not None and kept.get(str(node.name)) != index and value.name in moving:
                wanted.add(str(value.name))
    return found


def _require_linear(node: ir.Node, moving: set[str]) -> None:
    """Refuse operators whose further inputs, weights or sizes, depend on the input."""
    later = [v for v in node.inputs[1:] if v is not None and v.name in moving]
    if later and node.op_type in FIRST_ALONE:
        raise PassError(
            f"linear-interpreter: {describe(node)} takes something else than its data from the "
            "input, and is not linear in it."
        )


def _rename(graph: ir.Graph, symbol: str, dim: int | str) -> None:
    """Let the axis `symbol` be `dim` in all shapes."""
    values = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    for value in values:
        shape = dims(value)
        if shape is not None and symbol in shape:
            set_dims(value, [dim if each == symbol else each for each in shape])
