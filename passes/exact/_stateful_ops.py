"""The rewrites of operators that mix time: each gains its state as an input and an output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from intaglio.operators import BY_TYPE
from intaglio.passes.analysis.time_facts import refuse
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    attributes_of,
    dims,
    input_of,
    integers,
    replace_uses,
    set_dims,
    signature_of,
)
from intaglio.signature import ACTIVATIONS, Signature, UnknownSizeError
from intaglio.state import BATCH, CAPACITY, PAST, TIME, Layout

from ._initial_values import chosen, is_zero
from ._step_values import StepValues


@dataclass(frozen=True, kw_only=True)
class Carried:
    """A state that a rewritten node asks for, before it has a name."""

    node: ir.Node
    op: str
    port: str
    layout: Layout
    past: ir.Value
    present: ir.Value
    axis: int | None = None
    window: int | None = None
    initial: float = 0.0


def past_value(port: str, dtype: ir.DataType, shape: Sequence[Dim]) -> ir.Value:
    """The value of a state before a step, which is to become an input of the graph."""
    return ir.Value(name=port, type=ir.TensorType(dtype), shape=ir.Shape(list(shape)))


def _shape(node: ir.Node, value: ir.Value | None) -> tuple[Dim, ...]:
    shape = None if value is None else dims(value)
    if not shape or shape[0] != BATCH:
        raise refuse(node, f"works on {list(shape or ())}: its first axis must be the batch alone.")
    return shape


def _dtype(value: ir.Value | None) -> ir.DataType:
    return (value.dtype if value is not None else None) or ir.DataType.FLOAT


def recurrence(node: ir.Node) -> list[Carried]:
    """Give an operator the states that its signature declares, each as an input and an output."""
    signature, attributes = signature_of(node), attributes_of(node)
    assert signature is not None
    given = dict(zip(signature.names, node.inputs, strict=False))
    pasts, emit = _pasts(node, signature), Emitter(node)
    starts = {name: _start(emit, node, past, given.get(name)) for name, past in pasts.items()}
    inputs = [starts.get(name, given.get(name)) for name in signature.names]
    while inputs[-1] is None:
        inputs.pop()
    old = dict(zip((formal.name for formal in signature.outputs), node.outputs, strict=False))
    like = {state.present: pasts[state.past] for state in signature.states}
    kept = {**old, **like}  # what each output looks like
    outputs = [(value.dtype, dims(value)) for value in kept.values()]
    new = emit.node(node.op_type, inputs, outputs, attributes, node.domain)
    made = dict(zip(kept, new, strict=True))
    for name, value in old.items():
        if name not in like or value.uses() or value.is_graph_output():
            replace_uses(value, made[name])
    return [
        Carried(
            node=node,
            op=signature.name,
            port=state.port,
            layout=state.layout or Layout.RECURRENT,
            past=pasts[state.past],
            present=made[state.present],
            axis=state.axis,
            initial=state.initial,
        )
        for state in signature.states
    ]


def _start(emit: Emitter, node: ir.Node, past: ir.Value, initial: ir.Value | None) -> ir.Value:
    """What a node starts from: `past`, or where a row is new what it started from, a weight."""
    if initial is None or is_zero(initial):
        return past
    assert isinstance(node.graph, ir.Graph)
    return chosen(emit, node.graph, past, initial)


def _pasts(node: ir.Node, signature: Signature) -> dict[str, ir.Value]:
    """The states before a node, as inputs of its operator, in the shapes that the others imply."""
    attributes = attributes_of(node)
    timed = [f for f in signature.inputs if f.time(attributes) is not None]
    given = dict(zip(signature.names, node.inputs, strict=False))
    first = given[timed[0].name]
    _shape(node, first)
    sizes = signature.bind({name: dims(value) for name, value in given.items()}, attributes)
    found = {}
    for state in signature.states:
        kind = signature.formal(state.past).dtype
        dtype = _dtype(first) if kind == ACTIVATIONS else ir.DataType.from_numpy(np.dtype(kind))
        try:
            shape = signature.shape(state.past, sizes, attributes)
        except UnknownSizeError as error:
            raise refuse(node, f"carries a state whose size {error} is not known.") from error
        found[state.past] = past_value(state.port, dtype, shape)
    return found


def cumulative_sum(node: ir.Node) -> list[Carried]:
    """Give CumSum along time the sum of what came before, in its own dtype."""
    given, old, emit = node.inputs[0], node.outputs[0], Emitter(node)
    shape, axis = list(_shape(node, given)), (integers(node.inputs[1]) or [0])[0]
    place = axis % len(shape)
    past = past_value("sum", _dtype(given), shape[:place] + shape[place + 1 :])
    at = emit.constant([place])
    within = emit("CumSum", [given, node.inputs[1]], past.dtype, shape)
    start = emit("Unsqueeze", [past, at], past.dtype, [*shape[:place], 1, *shape[place + 1 :]])
    total = emit("Add", [within, start], past.dtype, shape)
    last = emit("Gather", [total, emit.constant(-1)], past.dtype, dims(past), axis=place)
    replace_uses(old, total)
    return [
        Carried(
            node=node,
            op="cumulative_sum",
            port="sum",
            layout=Layout.RECURRENT,
            past=past,
            present=last,
        )
    ]


REWRITES: dict[str, Callable[[ir.Node], list[Carried]]] = {
    "CumSum": cumulative_sum,
    **{key: recurrence for key, each in BY_TYPE.items() if each.recurrent},
}


def past_caches(node: ir.Node, *, window: int | None, grow: bool) -> list[ir.Value]:
    """The keys and values of an Attention before a step: a window of them, or all."""
    length: Dim = CAPACITY
    if window is not None:
        length = window - 1
    elif grow:
        length = PAST
    pasts = []
    for port, new in (("key", node.inputs[1]), ("value", node.inputs[2])):
        _, heads, _, size = _shape(node, new)
        pasts.append(past_value(port, _dtype(new), [BATCH, heads, length, size]))
    return pasts


def attention(
    node: ir.Node,
    step: StepValues,
    *,
    window: int | None,
    grow: bool,
    mask: ir.Value | None = None,
    pasts: Sequence[ir.Value] = (),
) -> list[Carried]:
    """Give Attention a cache of keys and values, laid out as its window and `grow` ask.

    With a `mask` for the keys of `pasts` it is that which forbids later tokens.
    """
    query, key, value = node.inputs[:3]
    scale = {name: x for name, x in attributes_of(node).items() if name in ("scale", "softcap")}
    causal = {"is_causal": 1} if mask is None else {}
    emit = Emitter(node)
    old = node.outputs[0]
    result = (old.dtype, dims(old))
    layout = Layout.WINDOW if window is not None else Layout.GROW if grow else Layout.STATIC
    pasts = pasts or past_caches(node, window=window, grow=grow)
    if layout is Layout.GROW:
        total = [
            (past.dtype, [f"{PAST} + {TIME}" if d == PAST else d for d in dims(past) or ()])
            for past in pasts
        ]
        inputs = [query, key, value, mask, *pasts]
        y, *presents = emit.node("Attention", inputs, [result, *total], {**causal, **scale})
    elif layout is Layout.STATIC:
        presents = [
            emit("TensorScatter", [past, new, step.past_length], past.dtype, dims(past), axis=2)
            for past, new in zip(pasts, (key, value), strict=True)
        ]
        inputs = [query, *presents]
        inputs += [None, None, None, step.total_length] if mask is None else [mask]
        y = emit.node("Attention", inputs, [result], {**causal, **scale})[0]
    else:
        assert window is not None
        if window < 2:
            raise refuse(node, "sees the current token alone (a window of 1); leave it out.")
        y, presents = _windowed(emit, node, step.window_mask(window), pasts, scale)
    replace_uses(old, y)
    return [
        Carried(
            node=node,
            op="attention",
            port=port,
            layout=layout,
            past=past,
            present=present,
            axis=2,
            window=window,
        )
        for port, past, present in zip(("key", "value"), pasts, presents, strict=True)
    ]


def _windowed(
    emit: Emitter,
    node: ir.Node,
    mask: ir.Value,
    pasts: Sequence[ir.Value],
    scale: dict[str, float],
) -> tuple[ir.Value, list[ir.Value]]:
    """Attention over the last window-1 keys and the new ones, keeping the last window-1."""
    joined, presents = [], []
    for past, new in zip(pasts, node.inputs[1:3], strict=True):
        batch, heads, kept, size = dims(past) or ()
        shape = [batch, heads, f"{TIME} + {kept}", size]
        both = emit("Concat", [past, new], past.dtype, shape, axis=2)
        joined.append(both)
        presents.append(_last(both, int(kept), past, emit))
    y = emit(
        "Attention",
        [node.inputs[0], *joined, mask],
        node.outputs[0].dtype,
        dims(node.outputs[0]),
        **scale,
    )
    return y, presents


def _last(value: ir.Value, count: int, like: ir.Value, emit: Emitter) -> ir.Value:
    """The last `count` entries of `value` along axis 2, as the next state `like` the past one."""
    end = emit.constant([2**63 - 1])
    places = [emit.constant([-count]), end, emit.constant([2]), emit.constant([1])]
    return emit("Slice", [value, *places], like.dtype, dims(like))


def convolution(node: ir.Node) -> list[Carried]:
    """Give a causal convolution over [batch, channels, time] its last inputs as a state."""
    given, weight = node.inputs[0], node.inputs[1]
    bias = input_of(node, 2)
    pad = None if given is None else given.producer()
    source = pad.inputs[0] if pad is not None and pad.op_type == "Pad" else given
    channels = _shape(node, source)[1]
    outputs, width, kernel = (dims(weight) if weight is not None else None) or ()
    dilation = int((attribute(node, "dilations") or [1])[0])
    reach = (int(kernel) - 1) * dilation
    groups = attribute(node, "group", 1)
    old, emit = node.outputs[0], Emitter(node)
    past = past_value("conv", _dtype(source), [BATCH, channels, reach])
    shape = [BATCH, outputs, TIME]
    if groups == channels == outputs and width == 1 and dilation == 1:
        y, present = emit.node(
            "CausalConvWithState",
            [source, weight, bias, past],
            [(old.dtype, shape), (past.dtype, dims(past))],
            {"activation": "none"},
        )
    else:
        joined = emit(
            "Concat", [past, source], past.dtype, [BATCH, channels, f"{TIME} + {reach}"], axis=2
        )
        attributes = {**attributes_of(node), "pads": [0, 0]}
        inputs = [joined, weight, *([] if bias is None else [bias])]
        y = emit.node("Conv", inputs, [(old.dtype, shape)], attributes)[0]
        present = _last(joined, reach, past, emit)
    replace_uses(old, y)
    return [
        Carried(
            node=node,
            op="causal_conv",
            port="conv",
            layout=Layout.CONV,
            past=past,
            present=present,
        )
    ]


def cut_trailing(
    graph: ir.Graph, cuts: Sequence[ir.Node], trailing: Callable[[ir.Value | None], int]
) -> None:
    """Drop `cuts`, which cut what a convolution padded on the right; nothing trails any more."""
    for node in cuts:
        given, axes = node.inputs[0], integers(input_of(node, 3)) or []
        assert given is not None
        if len(axes) == 1:
            replace_uses(node.outputs[0], given)
            continue
        shape, ends = dims(given) or (), integers(node.inputs[2]) or []
        time = shape.index(TIME)
        whole = [
            2**63 - 1 if axis % len(shape) == time else end
            for axis, end in zip(axes or range(len(ends)), ends, strict=True)
        ]
        node.replace_input_with(2, Emitter(node).constant(whole))
    for node in graph:
        for value in node.outputs:
            if extra := trailing(value):
                longer = f"{TIME} + {extra}"
                set_dims(value, [TIME if dim == longer else dim for dim in dims(value) or ()])
