"""Outputs that only tell how a loop ended: the residual that was left, and how many trips it took.

A loop that goes on until a number falls below a tolerance ends at another trip where sums are in
another order.  Its solution is the same to rounding, the number itself and the count are not, and
are held to their size alone.  A value that a loop carries is one of them if

* the loop's condition compares what it becomes in a trip with something,
* nothing else is computed from it: it is compared, or kept where a row is done,
* or, an integer, added to.
"""

from collections.abc import Iterator

import onnx_ir as ir

from intaglio.passes.graph import constant, input_of, producer, subgraphs, taken

COMPARED = frozenset(("Greater", "GreaterOrEqual", "Less", "LessOrEqual"))
MOVED = frozenset(("Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Expand", "Flatten"))
COUNTED = frozenset(("Add", "Sub"))
CARRIED = 2  # inputs of a Loop and of its body in front of what it carries
INTEGERS = (ir.DataType.INT32, ir.DataType.INT64)


def told(graph: ir.Graph) -> frozenset[str]:
    """Names of the outputs of `graph` that only tell how a loop ended."""
    return frozenset(
        str(value.name)
        for value in graph.outputs
        if (root := _root(value)) is not None
        and (loop := producer(root, "Loop")) is not None
        and _tells(loop, loop.outputs.index(root))
    )


def tolerances(graph: ir.Graph) -> dict[str, float]:
    """Of those outputs that a loop brings below a number: their names, and the number.

    Where the loop ended for another reason, such an output is above it.
    """
    found = {}
    names = told(graph)
    for value in graph.outputs:
        root = _root(value) if str(value.name) in names else None
        loop = None if root is None else producer(root, "Loop")
        if root is None or loop is None:
            continue
        (body,) = subgraphs(loop)
        after = _root(body.outputs[1 + loop.outputs.index(root)])
        bounds = {bound for each, bound in _goes_on_above(body.outputs[0]) if _root(each) is after}
        if len(bounds) == 1:
            found[str(value.name)] = bounds.pop()
    return found


def _goes_on_above(condition: ir.Value) -> Iterator[tuple[ir.Value, float]]:
    """Values, and the constants above which they ask for another trip."""
    waiting, seen = [(condition, False)], set()
    while waiting:
        asked, turned = waiting.pop()
        node = asked.producer()
        if node is None or (node, turned) in seen:
            continue
        seen.add((node, turned))
        if node.op_type not in COMPARED:
            turned ^= node.op_type == "Not"
            waiting += [(each, turned) for each in node.inputs if each is not None]
            continue
        left, right = node.inputs[:2]
        above = node.op_type.startswith("Greater") != turned
        value, bound = (left, constant(right)) if above else (right, constant(left))
        if bound is not None and bound.size == 1 and bound.dtype.kind == "f" and value is not None:
            yield value, float(bound.item())


def _root(value: ir.Value | None) -> ir.Value | None:
    """What `value` is a copy, a view or a cast of."""
    while value is not None and (node := producer(value, *MOVED)) is not None:
        value = input_of(node, 0)
    return value


def _tells(loop: ir.Node, index: int) -> bool:
    (body,) = subgraphs(loop)
    if index >= len(loop.inputs) - CARRIED:
        return False  # what a trip gives, not what the loop carries
    before, after = body.inputs[CARRIED + index], body.outputs[1 + index]
    compared = {root for value in _compared(body.outputs[0]) if (root := _root(value)) is not None}
    return _root(after) in compared and _is_only_kept(before, body, after)


def _compared(condition: ir.Value) -> Iterator[ir.Value]:
    """What is compared, in the body, to know whether there is another trip."""
    waiting, seen = [condition], set()
    while waiting:
        node = waiting.pop().producer()
        if node is None or node in seen:
            continue
        seen.add(node)
        values = [value for value in node.inputs if value is not None]
        if node.op_type in COMPARED:
            yield from values
        else:
            waiting += values


def _is_only_kept(start: ir.Value, body: ir.Graph, end: ir.Value) -> bool:
    """Whether `start` flows into comparisons and into `end` alone, its number unchanged."""
    inner = {
        value for node in body for graph in subgraphs(node) for n in graph for value in taken(n)
    }
    waiting, seen = [start], {start}
    while waiting:
        value = waiting.pop()
        if value in inner or any(value is other for other in body.outputs if other is not end):
            return False
        for node, index in value.uses():
            if node.op_type in COMPARED:
                continue
            if not _keeps(node, index, value):
                return False
            fresh = [each for each in node.outputs if each not in seen]
            seen.update(fresh)
            waiting += fresh
    return True


def _keeps(node: ir.Node, index: int, value: ir.Value) -> bool:
    if node.op_type in MOVED:
        return index == 0
    if node.op_type in COUNTED:
        return value.dtype in INTEGERS
    return node.op_type == "Where" and index > 0
