"""What stands in front of a sequence, joined to it -> a Pad, which says that it is padding.

    concat(k zeros, x)                         ->  pad(x, k zeros in front)
    concat(k times x[:, :1], x)                ->  pad(x, k in front, mode = edge)

along time, x having all tokens.  Windows that move over such a sequence find what stands in front
in their states.  Moving averages that take seasons from trends repeat the first token so (Wu et
al. 2021, arXiv:2106.13008, section 3.1).
"""

from dataclasses import dataclass

import onnx_ir as ir

from intaglio.passes.base import Context, Exact, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    constant,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import BATCH, TIME

from ._initial_values import is_zero

REPEATS = ("Expand", "Tile", "Identity")


@dataclass(frozen=True)
class _Front:
    """`count` entries before `x` along `axis`: its first one, or zeros."""

    x: ir.Value
    axis: int
    count: int
    zeros: bool


class JoinPadding(Exact):
    """Write zeros, or the first token, that are joined to a sequence in front as a Pad."""

    for_tokens = True

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite every join along time whose front is known."""
        notes = []
        for node in list(model.graph):
            front = _front(node)
            if front is None:
                continue
            old, emit = node.outputs[0], Emitter(node)
            rank = len(dims(old) or ())
            pads = [front.count if at == front.axis else 0 for at in range(2 * rank)]
            mode = "constant" if front.zeros else "edge"
            new = emit("Pad", [front.x, emit.constant(pads)], old.dtype, dims(old), mode=mode)
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(f"{describe(node)} pads by {front.count}")
        return PassResult(changed=bool(notes), notes=notes)


def _front(node: ir.Node) -> _Front | None:
    """What `node` joins in front of a sequence; None for anything else."""
    if node.op_type != "Concat" or node.domain or len(node.inputs) < 2:
        return None
    *before, x = node.inputs
    shape = dims(x) or ()
    axis = attribute(node, "axis") % max(len(shape), 1)
    if x is None or len(shape) < 2 or shape[0] != BATCH or shape[axis] != TIME or axis == 0:
        return None
    counts = [(dims(value) or (0,) * len(shape))[axis] for value in before]
    if not all(isinstance(count, int) and count > 0 for count in counts):
        return None
    count = sum(int(each) for each in counts)
    if all(map(is_zero, before)):
        return _Front(x, axis, count, zeros=True)
    if all(_repeats_first(value, x, axis) for value in before):
        return _Front(x, axis, count, zeros=False)
    return None


def _repeats_first(value: ir.Value | None, x: ir.Value, axis: int) -> bool:
    """Whether `value` is the first token of `x` along `axis`, any number of times."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return False
    if node.op_type in REPEATS:
        given = node.inputs[0]
        before, after = (list(dims(each) or ()) for each in (given, node.outputs[0]))
        if len(before) != len(after) or axis >= len(before):
            return False
        before[axis] = after[axis] = 0
        return before == after and _repeats_first(given, x, axis)
    if node.op_type == "Concat" and attribute(node, "axis") % len(dims(x) or ()) == axis:
        return all(_repeats_first(each, x, axis) for each in node.inputs)
    return is_first(node, x, axis)


def is_first(node: ir.Node, x: ir.Value, axis: int) -> bool:
    """Whether `node` gives the first token of `x`, as a sequence of one along `axis`."""
    if node.op_type == "Unsqueeze" and integers(input_of(node, 1)) == [axis]:
        inner = None if node.inputs[0] is None else node.inputs[0].producer()
        if inner is None or inner.op_type != "Gather" or inner.inputs[0] is not x:
            return False
        index, along = constant(inner.inputs[1]), attribute(inner, "axis", 0)
        place = index is not None and index.ndim == 0 and int(index) == 0
        return place and along % len(dims(x) or ()) == axis
    if node.op_type != "Slice" or node.inputs[0] is not x:
        return False
    starts, ends, axes, steps = (integers(input_of(node, at)) for at in range(1, 5))
    along = [a % len(dims(x) or ()) for a in axes or [0]] == [axis]
    return along and starts == [0] and ends == [1] and steps in (None, [1])
