"""Windows and causality that Attention has as attributes, written as part of its mask.

A mask says them all in one way, so that what is proven of masks holds for attributes as well.
"""

import onnx_ir as ir

from intaglio.passes.analysis.known_shapes import broadcast
from intaglio.passes.analysis.meetings import MASK
from intaglio.passes.graph import Emitter, attribute, dims, input_of
from intaglio.state import entries_of

BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
ANY = -1  # window size of one that has no end


def attributes_to_masks(graph: ir.Graph) -> None:
    """Give each Attention a mask in place of its windows, and of `is_causal` beside a mask."""
    for node in list(graph):
        if node.op_type != "Attention" or node.domain or any(node.inputs[MASK + 1 :]):
            continue
        left = int(attribute(node, "left_window_size", ANY))
        right = int(attribute(node, "right_window_size", ANY))
        causal = bool(attribute(node, "is_causal", 0))
        times = [(dims(value) or (0,) * 3)[2:3] for value in node.inputs[:2]]
        if (
            times[0] != times[1]
            or entries_of(*times[0]) is None
            or ((left, right) == (ANY, ANY) and not (causal and input_of(node, MASK) is not None))
        ):
            continue
        right = 0 if causal else right
        _write(node, left, right)
        for name in ("left_window_size", "right_window_size", "is_causal"):
            node.attributes.pop(name, None)


def _write(node: ir.Node, left: int, right: int) -> None:
    emit = Emitter(node)
    count = emit("Shape", [node.inputs[0]], INT64, [1], start=2, end=3)
    ends = [emit.constant(0), emit("Squeeze", [count], INT64, []), emit.constant(1)]
    time = (dims(node.inputs[0]) or ())[2]
    positions = emit("Range", ends, INT64, [time])
    rows = emit("Unsqueeze", [positions, emit.constant([1])], INT64, [time, 1])
    apart = emit("Sub", [rows, positions], INT64, [time, time])
    allowed: ir.Value | None = None
    for op, end in (("LessOrEqual", left), ("GreaterOrEqual", -right)):
        if end == (ANY if op == "LessOrEqual" else -ANY):
            continue
        inside = emit(op, [apart, emit.constant(end)], BOOL, [time, time])
        both = [allowed, inside]
        allowed = inside if allowed is None else emit("And", both, BOOL, [time, time])
    assert allowed is not None
    given = input_of(node, MASK)
    if given is not None:
        shape = broadcast([dims(given) or (), (time, time)])
        low = emit.constant(float("-inf"), given.dtype.numpy() if given.dtype else float)
        if given.dtype == BOOL:
            allowed = emit("And", [given, allowed], BOOL, shape)
        else:
            allowed = emit("Where", [allowed, given, low], given.dtype, shape)
    if len(node.inputs) <= MASK:
        node.resize_inputs(MASK + 1)
    node.replace_input_with(MASK, allowed)
