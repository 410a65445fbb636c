"""Fewer nodes where shapes are computed: each costs as much as a small product.

    reshape(squeeze(x)), as long along each axis as x    ->  x
    reshape(x, concat(n, 3, 4))                          ->  reshape(x, [-1, 3, 4])

PyTorch's exporter takes a size out of a Shape as a number, makes a vector of it again, and puts it
beside those that never change; one size of a shape follows from the others.
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, integers, producer

MOVES = ("Reshape", "Squeeze", "Unsqueeze")


class OrtReshapes(Lower):
    """Leave out reshapes that are undone, and sizes that need not be told."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every reshape of the main graph."""
        notes = []
        outputs = set(model.graph.outputs)
        for node in list(model.graph):
            same = _undone(node)
            if same is not None and node.outputs[0] not in outputs:
                notes.append(describe(node))
                ir.convenience.replace_all_uses_with(node.outputs[0], same)
                model.graph.remove(node, safe=True)
            elif (sizes := _inferred(node)) is not None:
                notes.append(describe(node))
                node.replace_input_with(1, Emitter(node).constant(sizes))
        return PassResult(changed=bool(notes), notes=notes)


def _undone(node: ir.Node) -> ir.Value | None:
    """What a move of axes gives back to itself, with one other move between."""
    if node.op_type not in MOVES or node.domain:
        return None
    inner = producer(node.inputs[0], *MOVES)
    x = None if inner is None else inner.inputs[0]
    shape = dims(x)
    known = shape is not None and "?" not in shape and shape == dims(node.outputs[0])
    return x if known else None


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
