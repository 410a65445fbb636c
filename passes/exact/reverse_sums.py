"""Flip(CumSum(Flip(x))) -> CumSum(x) in reverse, along one axis.

PyTorch has no sum from the last entry on; attention that weighs a key by what comes after it writes
one so: contextual positions (Golovneva et al. 2024, arXiv:2405.18719, equation 4) and weights that
break a stick (Tan et al. 2024, arXiv:2410.17980, section 3).
"""

import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
)


class ReverseSums(Exact):
    """Write cumulative sums between two flips as one in reverse."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each flip of the sum of what was flipped along the same axis."""
        notes = []
        for node in list(model.graph):
            if flipped(node) is None:
                continue
            total = producer(node.inputs[0], "CumSum")
            inner = None if total is None else producer(total.inputs[0], "Slice")
            if total is None or inner is None or flipped(inner) != flipped(node):
                continue
            axis, rank = integers(total.inputs[1]), len(dims(node.outputs[0]) or ())
            if axis is None or axis[0] % rank != flipped(node):
                continue
            old, emit = node.outputs[0], Emitter(node)
            turned = {
                "reverse": 1 - attribute(total, "reverse", 0),
                "exclusive": attribute(total, "exclusive", 0),
            }
            given = [inner.inputs[0], total.inputs[1]]
            replace_uses(old, emit("CumSum", given, old.dtype, dims(old), **turned))
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def flipped(node: ir.Node) -> int | None:
    """The one axis along which a Slice turns all entries round; None for any other node."""
    shape = dims(node.inputs[0]) if node.op_type == "Slice" and not node.domain else None
    if shape is None:
        return None
    starts, ends, axes, steps = (integers(input_of(node, place)) for place in (1, 2, 3, 4))
    if starts is None or ends is None or axes is None or steps is None or len(axes) != 1:
        return None
    axis = axes[0] % len(shape)
    size = shape[axis]
    before = -size if isinstance(size, int) else -(1 << 31)  # from any of fewer entries
    whole = starts[0] == -1 and ends[0] < before and dims(node.outputs[0]) == shape
    return axis if whole and steps[0] == -1 else None
