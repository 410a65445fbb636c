"""The transpose of a graph that is affine in its input: from weights of the outputs to a row.

Each node hands what arrives at its output on to its input, by the transpose of what it does; what
is constant falls away.  Shapes are fixed but for the first axis, along which rows stand alone.
"""

from math import prod

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.graph import Emitter, attribute, describe, dims, input_of, integers

from ._linear_windows import (
    Rule,
    convolution,
    cut,
    data_of,
    deconvolution,
    expanded,
    padded,
    picked,
    pooled,
    reshaped,
)

ROW = "row"
WEIGHTS = "{}_weights"  # of the output of that name


def transposed(replay: ir.Model) -> ir.Model:
    """The graph of a row of the map: weights of the outputs times its matrix.

    Raises:
        PassError: if a node has no transpose here.
    """
    model = replay.clone()
    graph = model.graph
    source = graph.inputs[0]
    moving = dependents_of_first(graph)
    nodes = [n for n in graph if n.op_type not in ("Shape", "Size") and _moves(n, moving)]
    tail = ir.node("Identity", [graph.outputs[0]], name="tail")
    graph.append(tail)
    emit = Emitter(tail, "transpose")
    arrived: dict[ir.Value, list[ir.Value]] = {}
    given = []
    for value in graph.outputs:
        weights = ir.Value(name=WEIGHTS.format(value.name), type=value.type, shape=value.shape)
        given.append(weights)
        arrived.setdefault(value, []).append(weights)
    for node in reversed(nodes):
        pieces = [arrived.get(value) for value in node.outputs]
        if pieces[0] is None and node.op_type != "Split":
            continue
        rule = RULES.get(node.op_type) if not node.domain else None
        if rule is None:
            raise PassError(f"{describe(node)} has no transpose here.")
        if node.op_type == "Split":
            parts = [_sum(p, v, emit) if p else _zeros(v, given[0], emit)
                     for p, v in zip(pieces, node.outputs, strict=True)]  # fmt: skip
            made = _split(node, parts, emit)
        else:
            made = rule(node, _sum(pieces[0] or [], node.outputs[0], emit), emit)
        for value, piece in made:
            if value.name in moving:
                arrived.setdefault(value, []).append(piece)
    if source not in arrived:
        raise PassError("linear-interpreter: the output does not depend on the input.")
    row = emit("Identity", [_sum(arrived[source], source, emit)], source.dtype, dims(source))
    row.name = ROW
    graph.outputs[:] = [row]
    others = list(graph.inputs)[1:]
    graph.inputs.extend(given)
    graph.remove(tail, safe=True)
    _sweep(graph)
    graph.inputs[:] = [*given, *(value for value in others if value.uses())]
    return model


def dependents_of_first(graph: ir.Graph) -> set[str]:
    """Names of the values that the first input flows into; the others are decisions."""
    others = {str(value.name) for value in list(graph.inputs)[1:]}
    found = {str(graph.inputs[0].name)}
    for node in graph:
        if node.op_type in ("Shape", "Size") and not node.domain:
            continue
        if any(v is not None and v.name in found and v.name not in others for v in node.inputs):
            found.update(str(value.name) for value in node.outputs)
    return found


def _moves(node: ir.Node, moving: set[str]) -> bool:
    return any(value.name in moving for value in node.outputs)


def _sweep(graph: ir.Graph) -> None:
    """Take away the nodes of the map itself, which nothing needs now."""
    for node in reversed(list(graph)):
        if not any(v.uses() or v.is_graph_output() for v in node.outputs):
            graph.remove(node, safe=True)


def _sum(pieces: list[ir.Value], like: ir.Value, emit: Emitter) -> ir.Value:
    total = pieces[0]
    for piece in pieces[1:]:
        total = emit("Add", [total, piece], like.dtype, dims(like))
    return total


def _zeros(like: ir.Value, rows: ir.Value, emit: Emitter) -> ir.Value:
    shape = dims(like)
    assert shape is not None
    return expanded(emit.constant(0, np.float32), shape, rows, like, emit)


def _narrowed(piece: ir.Value, wide: ir.Value, value: ir.Value, emit: Emitter) -> ir.Value:
    """What arrives at an input that was stretched to the shape of `wide`: the sum over copies."""
    big, small = dims(wide), dims(value)
    assert big is not None
    assert small is not None
    padded = (*[1] * (len(big) - len(small)), *small)
    axes = [i for i, (a, b) in enumerate(zip(big, padded, strict=True)) if a != b]
    if not axes:
        return piece
    ends: list[int | str] = [1 if i in axes else d for i, d in enumerate(big)]
    found = emit("ReduceSum", [piece, emit.constant(axes)], wide.dtype, ends, keepdims=1)
    return reshaped(found, value, emit) if len(small) != len(big) else found


def _same(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of sums: each input gets what arrives."""
    return [
        (v, _narrowed(piece, node.outputs[0], v, emit))
        for v in node.inputs
        if v is not None and dims(v)
    ]


def _difference(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    first, second = node.inputs
    assert first is not None
    assert second is not None
    found = [(first, _narrowed(piece, node.outputs[0], first, emit))] if dims(first) else []
    if dims(second):
        minus = emit("Neg", [piece], piece.dtype, dims(node.outputs[0]))
        found.append((second, _narrowed(minus, node.outputs[0], second, emit)))
    return found


def _factor(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of products and quotients with what does not move."""
    out, found = node.outputs[0], []
    first, second = node.inputs
    assert first is not None
    assert second is not None
    pairs = ((first, second), (second, first)) if node.op_type == "Mul" else ((first, second),)
    for value, other in pairs:
        if dims(value):
            scaled = emit(node.op_type, [piece, other], out.dtype, dims(out))
            found.append((value, _narrowed(scaled, out, value, emit)))
    return found


def _negative(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    return [(data_of(node), emit("Neg", [piece], piece.dtype, dims(data_of(node))))]


def _moved(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of operators that keep all entries in their order."""
    return [(data_of(node), reshaped(piece, data_of(node), emit))]


def _permuted(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    order = list(attribute(node, "perm", range(len(dims(node.outputs[0]) or ()))[::-1]))
    back = [order.index(axis) for axis in range(len(order))]
    return [
        (data_of(node), emit("Transpose", [piece], piece.dtype, dims(data_of(node)), perm=back))
    ]


def _joined(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    axis, start, found = int(attribute(node, "axis")), 0, []
    for value in node.inputs:
        shape = dims(value)
        assert value is not None
        assert shape is not None
        end = start + int(shape[axis])
        cut = [emit.constant([n]) for n in (start, end, axis)]
        found.append((value, emit("Slice", [piece, *cut], value.dtype, shape)))
        start = end
    return found


def _split(node: ir.Node, parts: list[ir.Value], emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    value, axis = data_of(node), int(attribute(node, "axis", 0))
    return [(value, emit("Concat", parts, value.dtype, dims(value), axis=axis))]


def _dense(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a Gemm in its first input, and the sum in its third."""
    value, out = data_of(node), node.outputs[0]
    if attribute(node, "transA", 0):
        raise PassError(f"{describe(node)} transposes its input, and has no transpose here.")
    own = {
        "transB": 1 - int(attribute(node, "transB", 0)),
        "alpha": float(attribute(node, "alpha", 1.0)),
    }
    found = [(value, emit("Gemm", [piece, node.inputs[1]], out.dtype, dims(value), **own))]
    third = input_of(node, 2)
    if third is not None and dims(third):
        scale = emit.constant(attribute(node, "beta", 1.0), np.float32)
        scaled = emit("Mul", [piece, scale], out.dtype, dims(out))
        found.append((third, _narrowed(scaled, out, third, emit)))
    return found


def _product(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a MatMul in whichever side moves: the other one, its last two axes exchanged."""
    found, out = [], node.outputs[0]
    first, second = node.inputs
    assert first is not None
    assert second is not None
    for value, other, left in ((first, second, True), (second, first, False)):
        shape, sizes = dims(value), dims(other)
        if shape is None or sizes is None or len(shape) < 2 or len(sizes) < 2:
            continue
        order = [*range(len(sizes) - 2), len(sizes) - 1, len(sizes) - 2]
        turned = emit("Transpose", [other], other.dtype, [sizes[i] for i in order], perm=order)
        pair = [piece, turned] if left else [turned, piece]
        lead = (dims(out) or ())[:-2]
        made = emit("MatMul", pair, out.dtype, [*lead, *shape[-2:]])
        found.append((value, _narrowed(made, made, value, emit)))
    return found


def _mean(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of sums and means over axes: stretched, and divided."""
    value = data_of(node)
    shape = dims(value)
    assert shape is not None
    if node.op_type == "GlobalAveragePool":
        axes = list(range(2, len(shape)))
    else:
        axes = [axis % len(shape) for axis in integers(input_of(node, 1)) or range(len(shape))]
    if 0 in axes:
        raise PassError(f"{describe(node)} sums rows, and has no transpose here.")
    ends = [1 if i in axes else d for i, d in enumerate(shape)]
    kept = emit("Reshape", [piece, emit.constant([-1, *map(int, ends[1:])])], value.dtype, ends)
    wide = expanded(kept, shape, piece, value, emit)
    if node.op_type == "ReduceSum":
        return [(value, wide)]
    count = emit.constant(prod(int(shape[axis]) for axis in axes), np.float32)
    return [(value, emit("Div", [wide, count], value.dtype, shape))]


def _batch_norm(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a norm with fixed statistics: times its scale over its spread."""
    value, scale, spread = data_of(node), node.inputs[1], node.inputs[4]
    shape, size = dims(value), dims(scale)
    assert shape is not None
    epsilon = emit.constant(attribute(node, "epsilon", 1e-5), np.float32)
    root = emit("Sqrt", [emit("Add", [spread, epsilon], value.dtype, size)], value.dtype, size)
    factor = emit("Div", [scale, root], value.dtype, size)
    ones = [1] * (len(shape) - 2)
    wide = emit("Reshape", [factor, emit.constant([-1, *ones])], value.dtype, [shape[1], *ones])
    return [(value, emit("Mul", [piece, wide], value.dtype, shape))]


def _chosen(node: ir.Node, piece: ir.Value, emit: Emitter) -> list[tuple[ir.Value, ir.Value]]:
    """Of a choice: what arrives goes to the side that was chosen."""
    condition, *sides = node.inputs
    out, found = node.outputs[0], []
    zero = emit.constant(0, np.float32)
    for place, value in enumerate(sides):
        if value is not None and dims(value):
            pair = [piece, zero] if place == 0 else [zero, piece]
            own = emit("Where", [condition, *pair], out.dtype, dims(out))
            found.append((value, _narrowed(own, out, value, emit)))
    return found


RULES: dict[str, Rule] = {
    "Add": _same,
    "AveragePool": pooled,
    "BatchNormalization": _batch_norm,
    "Concat": _joined,
    "Conv": convolution,
    "ConvTranspose": deconvolution,
    "Div": _factor,
    "Dropout": _moved,
    "Flatten": _moved,
    "Gather": picked,
    "Gemm": _dense,
    "GlobalAveragePool": _mean,
    "Identity": _moved,
    "MatMul": _product,
    "Mul": _factor,
    "Neg": _negative,
    "Pad": padded,
    "ReduceMean": _mean,
    "ReduceSum": _mean,
    "Reshape": _moved,
    "Slice": cut,
    "Split": _same,
    "Squeeze": _moved,
    "Sub": _difference,
    "Sum": _same,
    "Transpose": _permuted,
    "Unsqueeze": _moved,
    "Where": _chosen,
}
