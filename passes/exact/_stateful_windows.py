"""Convolutions and pooling over time gain the entries in front of a step as their states.

    conv(x)       of a window that takes `front` entries before those of a token:
                  conv([state, x]), the state being the last `front` entries of x
    x of some entries ago: the first of [state, x]
    transposed(x) whose results come from the `history` entries before as well:
                  transposed([state, x]) without what the state alone gave, or what comes later

Strides stay: each step has a multiple of them.
"""

import onnx_ir as ir

from intaglio.passes.analysis.time import Along, refuse
from intaglio.passes.analysis.time_facts import dim_of
from intaglio.passes.analysis.windows import Window
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    attributes_of,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import BATCH, Layout

from ._initial_values import chosen
from ._padding import Sequence
from ._stateful_ops import Carried, dtype_of, last_entries, past_value, shape_of


def window(node: ir.Node, sequence: Sequence) -> list[Carried]:
    """Give a node that moves over `sequence` the entries that it needs from earlier steps."""
    fact = sequence.fact
    plain = sequence.before is None and not sequence.edge
    if node.op_type == "Slice":
        return [_delayed(node, sequence)]
    moves = Window.of(node, fact.axis)
    if node.op_type == "ConvTranspose":
        return _transposed(node, fact, moves)
    front = moves.front(fact)
    channels, per_channel = _channels(node)
    if front and per_channel and plain and (front, moves.stride) == (moves.reach, 1):
        return [_per_channel(node, channels)]
    emit, old = Emitter(node), node.outputs[0]
    given, past = _sequence(node, sequence, front, emit)
    attributes = {**attributes_of(node), "pads": _pads(node, fact.axis)}
    whole = [*node.inputs]
    whole[0] = given
    shape = _shape(old, fact, fact.each // moves.stride)
    y = emit(node.op_type, whole, old.dtype, shape, **attributes)
    replace_uses(old, y)
    return [] if past is None else [_carried(node, past, given, front, fact, emit)]


def _delayed(node: ir.Node, sequence: Sequence) -> Carried:
    """What each token gets that came some entries before."""
    fact, emit, old = sequence.fact, Emitter(node), node.outputs[0]
    starts = integers(node.inputs[1])
    assert starts is not None
    front = fact.lead - starts[0]
    given, past = _sequence(node, sequence, front, emit)
    assert past is not None
    places = [emit.constant([number]) for number in (0, -front, fact.axis)]
    replace_uses(old, emit("Slice", [given, *places], old.dtype, _shape(old, fact, fact.each)))
    return _carried(node, past, given, front, fact, emit)


def _channels(node: ir.Node) -> tuple[Dim, bool]:
    """Channels of what `node` takes, and whether it is a plain convolution of each by itself."""
    shape = dims(node.inputs[0]) or ()
    if node.op_type != "Conv":
        return shape[1], False
    outputs, width, *kernel = (dims(node.inputs[1]) if node.inputs[1] is not None else None) or ()
    groups = attribute(node, "group", 1)
    dilated = any(each != 1 for each in attribute(node, "dilations") or ())
    return shape[1], groups == shape[1] == outputs and width == 1 == len(kernel) and not dilated


def _per_channel(node: ir.Node, channels: Dim) -> Carried:
    """The operator that has its state: a convolution of each channel by itself."""
    source, weight, bias = node.inputs[0], node.inputs[1], input_of(node, 2)
    emit, old = Emitter(node), node.outputs[0]
    kernel = int((dims(weight) or (0,))[-1])
    rows, shape = shape_of(node, source)[0], dims(source)
    past = past_value("conv", dtype_of(source), [rows, channels, kernel - 1])
    y, present = emit.node(
        "CausalConvWithState",
        [source, weight, bias, past],
        [(old.dtype, shape), (past.dtype, dims(past))],
        {"activation": "none"},
    )
    replace_uses(old, y)
    return Carried(
        node=node, op="causal_conv", port="conv", layout=Layout.CONV, past=past, present=present
    )


def _sequence(
    node: ir.Node, sequence: Sequence, front: int, emit: Emitter
) -> tuple[ir.Value, ir.Value | None]:
    """The entries that a step takes, and its state: `front` of them; None for none."""
    fact = sequence.fact
    source, axis = node.inputs[0], fact.axis
    assert source is not None
    if not front:
        return source, None
    shape = list(shape_of(node, source))
    if any(not isinstance(dim, int) for dim in (*shape[1:axis], *shape[axis + 1 :])):
        raise refuse(node, f"works on {shape}: axes beside rows and time must be of fixed sizes.")
    past = past_value("conv", dtype_of(source), [*shape[:axis], front, *shape[axis + 1 :]])
    start = past
    first = _first(node, sequence, front, emit)
    if first is not None:
        assert isinstance(node.graph, ir.Graph)
        if shape[0] != BATCH:
            raise refuse(node, "starts each band of a row from what padding became.")
        start = chosen(emit, node.graph, past, first)
    whole = [*shape[:axis], f"{dim_of(fact.each)} + {front}", *shape[axis + 1 :]]
    return emit("Concat", [start, source], past.dtype, whole, axis=axis), past


def _first(node: ir.Node, sequence: Sequence, front: int, emit: Emitter) -> ir.Value | None:
    """What stands before the first token, as it is or one entry for all; None for zeros."""
    axis, before, source = sequence.fact.axis, sequence.before, node.inputs[0]
    if sequence.edge and source is not None:
        shape = [1 if at == axis else dim for at, dim in enumerate(dims(source) or ())]
        places = [emit.constant([0]), emit.constant([1]), emit.constant([axis])]
        return emit("Slice", [source, *places], source.dtype, shape)
    if before is None:
        return None
    last = before.take(range(before.shape[axis] - front, before.shape[axis]), axis)
    return emit.constant(last, last.dtype)


def _carried(
    node: ir.Node, past: ir.Value, given: ir.Value, front: int, fact: Along, emit: Emitter
) -> Carried:
    plain = node.op_type == "Conv" and len(dims(past) or ()) == 3
    return Carried(
        node=node,
        op="causal_conv" if plain else "window",
        port="conv",
        layout=Layout.CONV,
        past=past,
        present=last_entries(given, front, past, emit, fact.axis),
    )


def _pads(node: ir.Node, axis: int) -> list[int]:
    """The pads of `node` without those along time."""
    size = len(dims(node.inputs[0]) or ()) - 2
    pads = list(attribute(node, "pads") or [0] * 2 * size)
    pads[axis - 2] = pads[axis - 2 + size] = 0
    return pads


def _shape(value: ir.Value, fact: Along, each: int) -> list[Dim]:
    shape = list(dims(value) or ())
    shape[fact.axis] = dim_of(each)
    return shape


def _transposed(node: ir.Node, fact: Along, moves: Window) -> list[Carried]:
    emit, old, axis = Emitter(node), node.outputs[0], fact.axis
    front, stride = moves.history, moves.stride
    given, past = _sequence(node, Sequence(fact, None), front, emit)
    attributes = {**attributes_of(node), "pads": _pads(node, axis)}
    inputs = [given, *node.inputs[1:]]
    shape, extra = _shape(old, fact, fact.each * stride), moves.reach + 1 - stride + moves.extra
    longer = [*shape]
    if (beside := extra + front * stride) > 0:
        longer[axis] = f"{shape[axis]} + {beside}"
    y = emit(node.op_type, inputs, old.dtype, longer, **attributes)
    if beside:
        ends = emit.constant([-extra if extra else 2**63 - 1])
        places = [emit.constant([front * stride]), ends, emit.constant([axis])]
        y = emit("Slice", [y, *places], old.dtype, shape)
    replace_uses(old, y)
    return [] if past is None else [_carried(node, past, given, front, fact, emit)]
