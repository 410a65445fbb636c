"""Drop nodes that give back what they take: Identity, whole slices, products with one.

    x[0:], x * 1, x / 1, x + 0, x - 0, transpose(x, (0, 1, ..)), expand and reshape to its own shape

An Expand is left out where an operator broadcasts its operands by itself, and another one of them
has the size to which it would be expanded: expand(x, shape(y)) * y = x * y.

Libraries index with ``x[:, :, None, :]`` and scale by factors that are one, which hides from other
passes what stands before and behind.  Shapes are compared as they are known, symbols included.
"""

from collections.abc import Sequence

import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    attribute,
    constant,
    dims,
    input_of,
    integers,
    module_of,
    producer,
)

UNITS = {"Mul": 1, "Div": 1, "Add": 0, "Sub": 0}
COMMUTES = ("Mul", "Add")
BROADCAST = frozenset(
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mul Or Pow Sub Where "
    "Xor".split()
)
Shape = tuple[int | str, ...] | None
LAST = 2**31 - 1  # ends of slices from here on mean the end of any axis


class RemoveNoOps(Exact):
    """Drop nodes that give back what they take."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Let consumers take the input instead; outputs of the graph keep their node."""
        graph = model.graph
        outputs = set(graph.outputs)
        removed = sum(map(_takes_before_expand, graph))
        for node in list(graph):
            if node.domain or len(node.outputs) != 1 or node.outputs[0] in outputs:
                continue
            same = _same(node)
            if same is None or same.dtype != node.outputs[0].dtype:
                continue
            ir.convenience.replace_all_uses_with(node.outputs[0], same)
            graph.remove(node, safe=True)
            removed += 1
        return PassResult(changed=removed > 0, details={"removed": removed})


def _same(node: ir.Node) -> ir.Value | None:
    """The input that the output of `node` equals, if it is known to equal one."""
    x = input_of(node, 0)
    if node.op_type == "Identity":
        return x
    if node.op_type in UNITS:
        return _unchanged_by_unit(node)
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm") or [])
        return x if perm and perm == sorted(perm) else None
    if node.op_type == "Slice":
        return x if _takes_all(node) else None
    if node.op_type == "Reshape" and _flattens_one_axis(node):
        return x
    if node.op_type in ("Expand", "Reshape", "Cast"):
        return x if _equal_shapes(x, node.outputs[0]) else None
    return None


def _flattens_one_axis(node: ir.Node) -> bool:
    return len(dims(node.inputs[0]) or ()) == 1 and integers(node.inputs[1]) == [-1]


def _takes_before_expand(node: ir.Node) -> int:
    """Let an operator broadcast what an Expand repeats for it; how many operands changed."""
    if node.op_type not in BROADCAST or node.domain:
        return 0
    changed = 0
    for index, value in enumerate(node.inputs):
        expand = producer(value, "Expand")
        others = [dims(other) for i, other in enumerate(node.inputs) if i != index]
        if expand is None or module_of(expand) != module_of(node):
            continue  # what is refused is named by the module that wrote it
        if _broadcasts(dims(expand.inputs[0]), dims(value), others):
            node.replace_input_with(index, expand.inputs[0])
            changed += 1
    return changed


def _broadcasts(own: Shape, wide: Shape, others: Sequence[Shape]) -> bool:
    """Whether each size that `wide` has beyond `own` is had by one of `others` as well."""
    if own is None or wide is None or "?" in (*own, *wide):
        return False
    sizes = [other[::-1] for other in others if other is not None]
    before = (*own[::-1], *[None] * (len(wide) - len(own)))
    return all(
        old == new or (new != "?" and any(new == size[at] for size in sizes if at < len(size)))
        for at, (old, new) in enumerate(zip(before, wide[::-1], strict=True))
    )


def _unchanged_by_unit(node: ir.Node) -> ir.Value | None:
    x, unit = node.inputs
    for value, other in ((x, unit), (unit, x)) if node.op_type in COMMUTES else ((x, unit),):
        array = constant(other)
        if array is None or array.size != 1 or not _equal_shapes(value, node.outputs[0]):
            continue
        if array.item() == UNITS[node.op_type]:
            return value
    return None


def _takes_all(node: ir.Node) -> bool:
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    steps = integers(input_of(node, 4)) or [1]
    axes = integers(input_of(node, 3))
    shape = dims(node.inputs[0])
    if starts is None or any(starts) or any(step != 1 for step in steps):
        return False
    if _equal_shapes(node.inputs[0], node.outputs[0]):
        return True
    if ends is None:
        return False
    sizes = [shape[axis] for axis in axes or range(len(ends))] if shape is not None else []
    known = [size if isinstance(size, int) else LAST for size in sizes] or [LAST] * len(ends)
    return all(end >= min(size, LAST) for end, size in zip(ends, known, strict=True))


def _equal_shapes(a: ir.Value | None, b: ir.Value | None) -> bool:
    known = dims(a)
    return known is not None and "?" not in known and known == dims(b)
