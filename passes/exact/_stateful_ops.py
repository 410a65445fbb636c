"""The rewrites of operators that mix time: each gains its state as an input and an output."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from intaglio.operators import BY_TYPE
from intaglio.passes.analysis.time_facts import refuse
from intaglio.passes.graph import (
    Dim,
    Emitter,
    Shape,
    attributes_of,
    dims,
    integers,
    replace_uses,
    signature_of,
)
from intaglio.signature import ACTIVATIONS, Signature, UnknownSizeError
from intaglio.state import BATCH, CAPACITY, PAST, TIME, Layout

from ._initial_values import chosen, is_zero
from ._step_values import StepValues, by_entries


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


def last_entries(
    value: ir.Value, count: int, like: ir.Value, emit: Emitter, axis: int = 2
) -> ir.Value:
    """The last `count` entries of `value` along `axis`, as the next state `like` the past one."""
    end = emit.constant([2**63 - 1])
    places = [emit.constant([-count]), end, emit.constant([axis]), emit.constant([1])]
    return emit("Slice", [value, *places], like.dtype, dims(like))


MERGED = re.compile(rf"([1-9][0-9]*)\*{BATCH}")


def rows_apart(state: Carried) -> Carried:
    """`state` with the rows on an axis of their own, where its node has bands merged with them."""
    shape, emit = dims(state.past) or (), Emitter(state.node)
    found = MERGED.fullmatch(str(shape[0]))
    if found is None:
        return state
    past = past_value(state.port, dtype_of(state.past), [BATCH, int(found[1]), *shape[1:]])
    merged = emit("Reshape", [past, emit.constant([-1, *shape[1:]])], past.dtype, shape)
    for user, index in list(state.past.uses()):
        user.replace_input_with(index, merged)
    apart = emit.constant([-1, int(found[1]), *shape[1:]])
    present = emit("Reshape", [state.present, apart], past.dtype, dims(past))
    axis = None if state.axis is None else state.axis + 1
    return replace(state, past=past, present=present, axis=axis)


def shape_of(node: ir.Node, value: ir.Value | None) -> tuple[Dim, ...]:
    """The shape of a sequence that a node carries something of.

    Raises:
        PassError: if its first axis is not the batch, alone or with bands behind each row.
    """
    shape = None if value is None else dims(value)
    if not shape or (shape[0] != BATCH and MERGED.fullmatch(str(shape[0])) is None):
        raise refuse(node, f"works on {list(shape or ())}: its first axis must be the batch.")
    return shape


def dtype_of(value: ir.Value | None) -> ir.DataType:
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
    if (dims(past) or ("",))[0] != BATCH:
        raise refuse(node, "starts each band of a row from what is not zero.")
    assert isinstance(node.graph, ir.Graph)
    return chosen(emit, node.graph, past, initial)


def _pasts(node: ir.Node, signature: Signature) -> dict[str, ir.Value]:
    """The states before a node, as inputs of its operator, in the shapes that the others imply."""
    attributes = attributes_of(node)
    timed = [f for f in signature.inputs if f.time(attributes) is not None]
    given = dict(zip(signature.names, node.inputs, strict=False))
    first = given[timed[0].name]
    shape_of(node, first)
    sizes = signature.bind({name: dims(value) for name, value in given.items()}, attributes)
    found = {}
    for state in signature.states:
        kind = signature.formal(state.past).dtype
        dtype = dtype_of(first) if kind == ACTIVATIONS else ir.DataType.from_numpy(np.dtype(kind))
        try:
            shape = signature.shape(state.past, sizes, attributes)
        except UnknownSizeError as error:
            raise refuse(node, f"carries a state whose size {error} is not known.") from error
        rows = (dims(first) or (BATCH,))[0]  # with bands behind each perhaps
        shape = tuple(rows if dim == BATCH else dim for dim in shape)
        found[state.past] = past_value(state.port, dtype, shape)
    return found


def cumulative_sum(node: ir.Node) -> list[Carried]:
    """Give CumSum along time the sum of what came before, in its own dtype."""
    given, old, emit = node.inputs[0], node.outputs[0], Emitter(node)
    shape, axis = list(shape_of(node, given)), (integers(node.inputs[1]) or [0])[0]
    place = axis % len(shape)
    past = past_value("sum", dtype_of(given), shape[:place] + shape[place + 1 :])
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


def first_token(node: ir.Node) -> list[Carried]:
    """Keep what is taken of the first token of a row: by the first call, which has it."""
    emit, old = Emitter(node), node.outputs[0]
    shape = shape_of(node, old)
    if any(not isinstance(dim, int) for dim in shape[1:]) or shape[0] != BATCH:
        raise refuse(node, f"keeps {list(shape)} of the first token: sizes must be fixed.")
    assert isinstance(node.graph, ir.Graph)
    past = past_value("first", dtype_of(old), shape)
    now = emit(node.op_type, list(node.inputs), old.dtype, shape, **attributes_of(node))
    first = chosen(emit, node.graph, past, now)
    replace_uses(old, first)
    return [
        Carried(
            node=node, op="first_token", port="first", layout=Layout.RECURRENT,
            past=past, present=first,
        )
    ]  # fmt: skip


REWRITES: dict[str, Callable[[ir.Node], list[Carried]]] = {
    "CumSum": cumulative_sum,
    **dict.fromkeys(("Gather", "Slice"), first_token),
    **{key: recurrence for key, each in BY_TYPE.items() if each.recurrent},
}


def past_caches(node: ir.Node, *, window: int | None, grow: bool, each: int = 1) -> list[ir.Value]:
    """The keys and values of an Attention before a step: a window of them, or all.

    Where a token has `each` of them, an entry of a cache of all holds these beside each other.
    """
    length: Dim = CAPACITY
    if window is not None:
        length = window - 1
    elif grow:
        length = PAST
    pasts = []
    for port, new in (("key", node.inputs[1]), ("value", node.inputs[2])):
        rows, heads, _, size = shape_of(node, new)
        if rows != BATCH or not isinstance(size, int):
            raise refuse(node, "attends over time for several bands of a row at once.")
        wide = size * each if window is None else size
        pasts.append(past_value(port, dtype_of(new), [BATCH, heads, length, wide]))
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
    each = step.each
    pasts = pasts or past_caches(node, window=window, grow=grow, each=each)
    lead, size = (dims(key) or ())[:2], [(dims(new) or ())[3] for new in (key, value)]
    kept = CAPACITY if layout is Layout.STATIC else PAST
    entries = [[*lead, by_entries(kept, each), wide] for wide in size]
    if layout is Layout.GROW:
        total = f"{PAST} + {TIME}"
        held = [by_entry(emit, *one) for one in zip(pasts, entries, strict=True)]
        grown = by_entries(total, each)
        made = [(new.dtype, [*lead, grown, wide]) for new, wide in zip(pasts, size, strict=True)]
        inputs = [query, key, value, mask, *held]
        y, *found = emit.node("Attention", inputs, [result, *made], {**causal, **scale})
        presents = [by_token(emit, present, each, total) for present in found]
    elif layout is Layout.STATIC:
        presents = [
            emit(
                "TensorScatter",
                [past, by_token(emit, new, each, TIME), step.tokens.past_length],
                past.dtype,
                dims(past),
                axis=2,
            )
            for past, new in zip(pasts, (key, value), strict=True)
            if new is not None
        ]
        inputs = [query, *(by_entry(emit, *one) for one in zip(presents, entries, strict=True))]
        inputs += [None, None, None, step.total_length] if mask is None else [mask]
        y = emit.node("Attention", inputs, [result], {**causal, **scale})[0]
    else:
        assert window is not None
        if window < 2:
            raise refuse(node, "sees the current token alone (a window of 1); leave it out.")
        y, presents = _windowed(emit, node, step, window, pasts, scale)
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


def by_token(emit: Emitter, value: ir.Value, each: int, length: Dim, axis: int = 2) -> ir.Value:
    """[.., each * length, size, ..] -> [.., length, each * size, ..]: what a cache keeps."""
    if each == 1:
        return value
    shape = dims(value) or ()
    size, *behind = [int(dim) for dim in shape[axis + 1 :]] or [1]
    told = [-1, each * size, *behind]
    target = emit.constant([*[0] * axis, *told])
    return emit("Reshape", [value, target], value.dtype, [*shape[:axis], length, *told[1:]])


def by_entry(emit: Emitter, value: ir.Value, whole: Shape, axis: int = 2) -> ir.Value:
    """What `by_token` made, in the shape `whole` again, whose tokens lie along `axis`."""
    if dims(value) == tuple(whole):
        return value
    target = emit.constant([*[0] * axis, -1, *(int(dim) for dim in whole[axis + 1 :])])
    return emit("Reshape", [value, target], value.dtype, list(whole))


def within_blocks(node: ir.Node, step: StepValues, ends: Sequence[int]) -> None:
    """Let Attention see the tokens of the same block, all of which are in the call."""
    scale = {name: x for name, x in attributes_of(node).items() if name in ("scale", "softcap")}
    emit, old = Emitter(node), node.outputs[0]
    inputs = [*node.inputs[:3], step.block_mask(tuple(ends))]
    replace_uses(old, emit("Attention", inputs, old.dtype, dims(old), **scale))


def _windowed(
    emit: Emitter,
    node: ir.Node,
    step: StepValues,
    window: int,
    pasts: Sequence[ir.Value],
    scale: dict[str, float],
) -> tuple[ir.Value, list[ir.Value]]:
    """Attention over the last window-1 keys and the new ones, keeping the last window-1."""
    joined, presents = [], []
    for past, new in zip(pasts, node.inputs[1:3], strict=True):
        batch, heads, kept, size = dims(past) or ()
        shape = [batch, heads, f"{step.time} + {kept}", size]
        both = emit("Concat", [past, new], past.dtype, shape, axis=2)
        joined.append(both)
        presents.append(last_entries(both, int(kept), past, emit))
    y = emit(
        "Attention",
        [node.inputs[0], *joined, step.window_mask(window)],
        node.outputs[0].dtype,
        dims(node.outputs[0]),
        **scale,
    )
    return y, presents
