"""Heads on the last token become heads on every token.

What a model computes from its last token alone, as ``head(y[:, -1])``, is a function of one token
of each row.  Batch and time are merged into one axis in its place, on which the same nodes then
work token for token:

    f(y[:, -1])  ->  f(y.reshape(batch*time, ...)).reshape(batch, time, ...)

Taken where all that the function reads beside is constant, and every value of it has the rows on
one axis; that its nodes keep rows apart, and so tokens, is proven by `analysis.time` after it.
"""

from collections.abc import Iterator, Sequence

import onnx_ir as ir

from intaglio.passes.graph import END, Emitter, attribute, dims, input_of, integers, set_dims
from intaglio.state import BATCH, TIME

INT64 = ir.DataType.INT64
FLAT = f"{BATCH}*{TIME}"


def every_token(graph: ir.Graph) -> list[str]:
    """Rewrite the heads on last tokens in `graph`; return the names of the outputs concerned."""
    roots = [node for node in graph if _picks_last(node)]
    while roots:
        cone = _cone(graph, roots)
        bad = next((node for node in cone if not _fits(graph, node, cone, roots)), None)
        if bad is None:
            return _rewrite(graph, roots, cone)
        roots = [root for root in roots if bad not in _cone(graph, [root])]
    return []


def _picks_last(node: ir.Node) -> bool:
    """Whether `node` takes the last entry along time of a sequence of rows."""
    shape = dims(node.inputs[0]) if node.inputs else None
    after = dims(node.outputs[0]) or ()
    if node.domain or shape is None or not _one_axis(shape, TIME) or not _one_axis(shape, BATCH):
        return False
    if not _one_axis(after, BATCH) or not all(isinstance(d, int) or d == BATCH for d in after):
        return False
    axis, rank = shape.index(TIME), len(shape)
    if node.op_type == "Gather":
        return attribute(node, "axis", 0) % rank == axis and integers(node.inputs[1]) == [-1]
    if node.op_type != "Slice":
        return False
    starts, ends, axes, steps = (integers(input_of(node, i)) for i in range(1, 5))
    along = [a % rank for a in axes or range(len(starts or ()))] == [axis]
    return along and starts == [-1] and (ends or [0])[0] >= END and steps in (None, [1])


def _one_axis(shape: Sequence[int | str], symbol: str) -> bool:
    return [dim for dim in shape if symbol in str(dim)] == [symbol]


def _cone(graph: ir.Graph, roots: Sequence[ir.Node]) -> list[ir.Node]:
    """The nodes that take what the roots give, in order."""
    values = {root.outputs[0] for root in roots}
    found = []
    for node in graph:
        if node not in roots and any(value in values for value in node.inputs):
            values.update(node.outputs)
            found.append(node)
    return found


def _fits(
    graph: ir.Graph, node: ir.Node, cone: Sequence[ir.Node], roots: Sequence[ir.Node]
) -> bool:
    if any(entry.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
           for entry in node.attributes.values()):  # fmt: skip
        return False
    inside = {*cone, *roots}
    for value in node.inputs:
        if value is not None and value.producer() not in inside and _depends(value):
            return False
    for value in node.outputs:
        shape = dims(value)
        rows = shape is not None and _one_axis(shape, BATCH)
        sizes = value.dtype is INT64 and shape is not None and BATCH not in str(shape)
        if shape is None or not (rows or sizes) or TIME in str(shape):
            return False
        if value in graph.outputs and (not rows or shape[0] != BATCH):
            return False
    return True


def _depends(value: ir.Value) -> bool:
    """Whether `value` depends on an input of the graph."""
    waiting, seen = [value], set()
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        node = each.producer()
        if node is None and not each.is_initializer():
            return True
        waiting += [entry for entry in (node.inputs if node else ()) if entry is not None]
    return False


def _rewrite(graph: ir.Graph, roots: Sequence[ir.Node], cone: Sequence[ir.Node]) -> list[str]:
    direct = [root.outputs[0] for root in roots if root.outputs[0].is_graph_output()]
    if any((dims(value) or ("",))[0] != BATCH for value in direct):
        roots = [root for root in roots if root.outputs[0] not in direct]
        cone, direct = _cone(graph, roots), []
    sizes: ir.Value | None = None
    merged: list[ir.Value] = [value for node in cone for value in node.outputs]
    for root in roots:
        flat, sizes = _flat(root)
        merged.append(flat)
        ir.convenience.replace_all_uses_with(root.outputs[0], flat, replace_graph_outputs=True)
        flat.name, root.outputs[0].name = root.outputs[0].name, f"{root.outputs[0].name}.last"
    for value in merged:
        set_dims(value, [FLAT if dim == BATCH else dim for dim in dims(value) or ()])
    assert sizes is not None or not roots
    # Of a slice the last token keeps an axis of its own, in whose place time is.
    kept = all(root.op_type == "Slice" for root in roots)
    outputs = [value for value in graph.outputs if value in merged]
    return [
        name
        for value in outputs
        if sizes is not None
        for name in _apart(graph, value, sizes, kept=kept)
    ]


def _flat(root: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The entries of every token in place of those of the last, and [rows, tokens]."""
    given, old, emit = root.inputs[0], root.outputs[0], Emitter(root)
    assert given is not None
    shape, after = dims(given) or (), dims(old) or ()
    front = [shape.index(BATCH), shape.index(TIME)]
    perm = [*front, *(axis for axis in range(len(shape)) if axis not in front)]
    turned = given
    if perm != sorted(perm):
        turned = emit("Transpose", [given], given.dtype, [shape[i] for i in perm], perm=perm)
    sizes = emit("Shape", [turned], INT64, [2], start=0, end=2)
    # The rows of what the root gave may lie behind axes of one entry each.
    target = [-1 if dim == BATCH else int(dim) for dim in after]
    if after[0] != BATCH:
        rest = [dim for dim in after if dim != BATCH]
        first = emit("Reshape", [turned, emit.constant([-1, *rest])], old.dtype, [BATCH, *rest])
        place = after.index(BATCH)
        order = [*range(1, place + 1), 0, *range(place + 1, len(after))]
        set_dims(first, [FLAT, *rest])
        return emit("Transpose", [first], old.dtype, after, perm=order), sizes
    return emit("Reshape", [turned, emit.constant(target)], old.dtype, after), sizes


def _apart(graph: ir.Graph, value: ir.Value, sizes: ir.Value, *, kept: bool) -> Iterator[str]:
    """Let `graph` return `value` [batch*time, ...] as [batch, time, ...]; its name goes along."""
    shape, name = dims(value) or (), str(value.name)
    last = next(reversed(graph))
    node = ir.node("Identity", [value])
    graph.insert_after(last, node)
    emit = Emitter(node, prefix=f"{name}.every_token")
    tail = shape[2:] if kept and shape[1:2] == (1,) else shape[1:]
    rest = emit.constant([int(dim) for dim in tail])
    target = emit("Concat", [sizes, rest], INT64, [len(tail) + 2], axis=0)
    apart = emit("Reshape", [value, target], value.dtype, [BATCH, TIME, *tail])
    graph.outputs[list(graph.outputs).index(value)] = apart
    graph.remove(node, safe=True)
    value.name, apart.name = f"{name}.tokens", name
    yield name
