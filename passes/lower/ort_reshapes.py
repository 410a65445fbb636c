"""Fewer nodes where shapes are computed: each costs as much as a small product.

    reshape(squeeze(x)), as long along each axis as x    ->  x
    reshape(reshape(x), s)                               ->  reshape(x, s)
    transpose(transpose(x))                              ->  transpose(x), or x
    transpose(unsqueeze(x))                              ->  unsqueeze(transpose(x))
    reshape(x, concat(n, 3, 4))                          ->  reshape(x, [-1, 3, 4])

PyTorch's exporter takes a size out of a Shape as a number, makes a vector of it again, and puts it
beside those that never change; one size of a shape follows from the others.  Heads are put before
the tokens and back, which our operators take as they come out of a product.
"""

from collections.abc import Sequence

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    describe,
    dims,
    integers,
    producer,
    replace_uses,
)

MOVES = ("Reshape", "Squeeze", "Unsqueeze")


class OrtReshapes(Lower):
    """Leave out reshapes that are undone, and sizes that need not be told."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every move of axes of the main graph."""
        notes = []
        outputs = set(model.graph.outputs)
        for node in list(model.graph):
            same = _turned(node)
            if same is None:
                same = _undone(node)
            if same is not None and (node.outputs[0] not in outputs or _emitted(same)):
                notes.append(describe(node))
                if node.outputs[0] in outputs:
                    replace_uses(node.outputs[0], same)
                else:
                    ir.convenience.replace_all_uses_with(node.outputs[0], same)
                model.graph.remove(node, safe=True)
                continue
            if (sizes := _inferred(node)) is not None:
                notes.append(describe(node))
                node.replace_input_with(1, Emitter(node).constant(sizes))
            if (earlier := _before(node)) is not None:
                notes.append(describe(node))
                node.replace_input_with(0, earlier)
        return PassResult(changed=bool(notes), notes=notes)


def _emitted(value: ir.Value) -> bool:
    """Whether a pass named a value, which so has no name that others stand on."""
    return value.producer() is not None and not value.is_graph_output() and "/" in str(value.name)


def _undone(node: ir.Node) -> ir.Value | None:
    """What a move of axes gives back to itself, with another move between or with none."""
    if node.op_type not in MOVES or node.domain:
        return None
    inner = producer(node.inputs[0], *MOVES)
    wanted = dims(node.outputs[0])
    if wanted is None or "?" in wanted:
        return None
    found = [node.inputs[0], None if inner is None else inner.inputs[0]]
    return next((x for x in found if x is not None and dims(x) == wanted), None)


def _before(node: ir.Node) -> ir.Value | None:
    """What was moved before a Reshape to sizes that do not depend on its shape."""
    if node.op_type != "Reshape" or node.domain:
        return None
    value, found = node.inputs[0], None
    while (inner := producer(value, *MOVES)) is not None:
        value = inner.inputs[0]
        found = value if _told(node, value) else found
    return found


def _told(node: ir.Node, value: ir.Value | None) -> bool:
    """Whether the target of a Reshape says the same of `value`, whose entries it puts in order.

    A size of 0 is copied: as a number it never does, as one that is read, where both have it.
    """
    sizes = integers(node.inputs[1])
    if sizes is not None:
        return 0 not in sizes
    target, given, wanted = producer(node.inputs[1], "Concat"), dims(value), dims(node.outputs[0])
    if target is None or given is None or wanted is None or len(target.inputs) != len(wanted):
        return False
    for place, part in enumerate(target.inputs):
        known = integers(part)
        alike = given[place : place + 1] == wanted[place : place + 1] != ("?",)
        if dims(part) != (1,) or not (known not in (None, [0]) or alike):
            return False
    return True


def _turned(node: ir.Node) -> ir.Value | None:
    """The result of a Transpose with fewer of them, where there are."""
    perm = attribute(node, "perm") if producer(node.outputs[0], "Transpose") else None
    if perm is None:
        return None
    value, axes = node.inputs[0], list(perm)
    inner = producer(value, "Transpose", "Unsqueeze")
    if inner is None:
        return None
    if inner.op_type == "Transpose":
        return _transposed(node, value, axes)
    added = integers(inner.inputs[1])
    if added is None or producer(inner.inputs[0], "Transpose") is None:
        return None
    new = {axis % len(axes) for axis in added}
    kept = [axis for axis in axes if axis not in new]
    order = [axis - sum(each < axis for each in new) for axis in kept]
    value = _transposed(node, inner.inputs[0], order)
    emit, places = Emitter(node), [place for place, axis in enumerate(axes) if axis in new]
    if value is None:
        return None
    return emit("Unsqueeze", [value, emit.constant(places)], value.dtype, dims(node.outputs[0]))


def _transposed(node: ir.Node, value: ir.Value | None, perm: Sequence[int]) -> ir.Value | None:
    """A value with its axes in an order, by one Transpose before `node` at most."""
    shape = None if value is None else dims(value)
    while (inner := producer(value, "Transpose")) is not None and "perm" in inner.attributes:
        earlier = attribute(inner, "perm")
        value, perm = inner.inputs[0], [earlier[axis] for axis in perm]
    if list(perm) == sorted(perm):
        return value
    given = dims(value)
    if value is None or shape is None or given is None:
        return None
    return Emitter(node)(
        "Transpose", [value], value.dtype, [given[axis] for axis in perm], perm=list(perm)
    )


def _inferred(node: ir.Node) -> list[int] | None:
    """The sizes of a Reshape of which one is computed and the others are numbers."""
    if node.op_type != "Reshape" or node.domain:
        return None
    target = producer(node.inputs[1], "Concat")
    if target is None or attribute(target, "axis", 0) not in (0, -1):
        return None
    sizes: list[int] = []
    for part in target.inputs:
        known = integers(part)
        if known is None and dims(part) != (1,):
            return None
        sizes += [-1] if known is None else known
    return sizes if sizes.count(-1) == 1 and all(size > 0 or size == -1 for size in sizes) else None
