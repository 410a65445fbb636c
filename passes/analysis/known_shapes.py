"""Shapes that tracing leaves out, filled in from those of the inputs.

What is expanded to the shape of another value, and what follows, comes without dimensions; sizes
are quotients that only look as if they were of another length, (time**2)//time.
"""

import re
from collections.abc import Callable, Sequence

import onnx_ir as ir

from intaglio.passes.graph import Dim, attribute, dims, integers, producer, set_dims

QUOTIENT = re.compile(r"\(?\((\w+)\*\*2\)\s*//\s*\1\)?")


def complete_shapes(graph: ir.Graph) -> None:
    """Give every value of `graph` that has none the shape that follows from its inputs."""
    for node in graph:
        for output in node.outputs:
            shape = dims(output)
            if shape is not None and any(QUOTIENT.fullmatch(str(dim)) for dim in shape):
                set_dims(output, [_simple(dim) for dim in shape])
        if node.domain or len(node.outputs) != 1 or "?" not in (dims(node.outputs[0]) or "?"):
            continue
        given = [dims(value) for value in node.inputs]
        rule = RULES.get(node.op_type)
        needed = given[:1] if node.op_type in ("Expand", "Unsqueeze") else given
        known = all(one is not None and "?" not in one for one in needed)
        found = rule(node, [one or () for one in given]) if rule is not None and known else None
        if found is not None:
            set_dims(node.outputs[0], found)


def _simple(dim: Dim) -> Dim:
    match = QUOTIENT.fullmatch(str(dim))
    return dim if match is None else match[1]


def broadcast(shapes: Sequence[Sequence[Dim]]) -> list[Dim]:
    """The shape of what an elementwise operator makes of `shapes`."""
    rank = max(map(len, shapes))
    columns = zip(*[(*[1] * (rank - len(shape)), *shape) for shape in shapes], strict=True)
    return [next((dim for dim in column if dim != 1), 1) for column in columns]


def _elementwise(_: ir.Node, given: Sequence[Sequence[Dim]]) -> list[Dim]:
    return broadcast(given)


def _expand(node: ir.Node, given: Sequence[Sequence[Dim]]) -> list[Dim] | None:
    target = producer(node.inputs[1], "Shape")
    if target is None or target.attributes.get("end") is not None or attribute(target, "start", 0):
        return None
    shape = dims(target.inputs[0])
    return None if shape is None or "?" in shape else broadcast([given[0], shape])


def _unsqueeze(node: ir.Node, given: Sequence[Sequence[Dim]]) -> list[Dim] | None:
    axes = integers(node.inputs[1])
    if axes is None:
        return None
    rank = len(given[0]) + len(axes)
    new, rest = {axis % rank for axis in axes}, iter(given[0])
    return [1 if axis in new else next(rest) for axis in range(rank)]


def _concat(node: ir.Node, given: Sequence[Sequence[Dim]]) -> list[Dim] | None:
    axis = attribute(node, "axis") % len(given[0])
    sizes = [shape[axis] for shape in given]
    if not all(isinstance(size, int) for size in sizes):
        return None
    return [*given[0][:axis], sum(int(size) for size in sizes), *given[0][axis + 1 :]]


def _gather_nd(node: ir.Node, given: Sequence[Sequence[Dim]]) -> list[Dim] | None:
    depth = given[1][-1]
    if attribute(node, "batch_dims", 0) or not isinstance(depth, int):
        return None
    return [*given[1][:-1], *given[0][depth:]]


RULES: dict[str, Callable[[ir.Node, Sequence[Sequence[Dim]]], list[Dim] | None]] = {
    "Concat": _concat,
    "Expand": _expand,
    "GatherND": _gather_nd,
    "Unsqueeze": _unsqueeze,
    **dict.fromkeys("Add And Cast Equal Less LessOrEqual Not Or Sub Where".split(), _elementwise),
}
