"""Shape(x)[i] -> a number where that dimension of x is one, else the same dimension of an input.

x[.. : Shape(x)[i] - k] -> x[.. : -k], where all of x but its last k entries along i are taken.
x[Shape(x)[i] - 1] -> x[-1], the last one of these.

Graphs of older exporters take every size from a Shape, also those that never change; what is
computed from them, splits of channels and scales of attention, then looks as if it depended on
the number of tokens, and a mask as if it depended on all the layers before it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    describe,
    dims,
    input_of,
    integers,
    producer,
    replace_uses,
)
from intaglio.state import BATCH, TIME

INT64 = ir.DataType.INT64


class FoldSizes(Exact):
    """Take each size from where it is known: a number, or an input's own batch and time."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Replace what a Gather or a Slice takes from a Shape, or a Shape says."""
        notes = []
        places = _places(model.graph)
        for node in model.graph:
            end = _short_of(node)
            if end is not None:
                node.replace_input_with(2, Emitter(node).constant([end]))
                notes.append(describe(node))
            if _takes_last(node):
                last = np.full([int(n) for n in dims(node.inputs[1]) or ()], -1)
                node.replace_input_with(1, Emitter(node).constant(last))
                notes.append(describe(node))
        for node in sorted(model.graph, key=lambda node: node.op_type == "Shape"):
            used = any(value.uses() or value.is_graph_output() for value in node.outputs)
            picked = _picked(node) if used else None
            if not picked or not all(isinstance(d, int) or d in places for d in picked):
                continue
            if node.inputs[0] in model.graph.inputs and any(dim in places for dim in picked):
                continue
            old = node.outputs[0]
            new = _sized(picked, places, Emitter(node), scalar=_is_scalar(node))
            notes.append(describe(node))
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
        return PassResult(changed=bool(notes), notes=notes)


def _places(graph: ir.Graph) -> dict[Dim, tuple[ir.Value, int]]:
    """Where batch and time can be read: an input and its axis."""
    found: dict[Dim, tuple[ir.Value, int]] = {}
    for value in graph.inputs:
        for axis, dim in enumerate(dims(value) or ()):
            if dim in (BATCH, TIME):
                found.setdefault(dim, (value, axis))
    return found


def _sized(
    picked: Sequence[Dim],
    places: Mapping[Dim, tuple[ir.Value, int]],
    emit: Emitter,
    *,
    scalar: bool,
) -> ir.Value:
    """The sizes `picked`, as a vector or, if there is one, as a number."""
    if all(isinstance(dim, int) for dim in picked):
        return emit.constant(picked[0] if scalar else picked)
    parts = []
    for dim in picked:
        if isinstance(dim, int):
            parts.append(emit.constant([dim]))
            continue
        value, axis = places[dim]
        parts.append(emit("Shape", [value], INT64, [1], start=axis, end=axis + 1))
    if scalar:
        return emit("Squeeze", [parts[0], emit.constant([0])], INT64, [])
    return parts[0] if len(parts) == 1 else emit("Concat", parts, INT64, [len(parts)], axis=0)


def _short_of(node: ir.Node) -> int | None:
    """-k where `node` takes all but the last k entries of an axis, by the size of that axis."""
    if node.op_type != "Slice" or node.domain or integers(input_of(node, 2)) is not None:
        return None
    shape, axes = dims(node.inputs[0]), integers(input_of(node, 3))
    if shape is None or axes is None or len(axes) != 1:
        return None
    size, offset = _offset(input_of(node, 2))
    return offset if offset < 0 and size is not None and size == shape[axes[0]] else None


def _takes_last(node: ir.Node) -> bool:
    """Whether `node` takes the last entry of an axis, by the size of that axis."""
    if node.op_type != "Gather" or node.domain or integers(node.inputs[1]) is not None:
        return False
    shape, places = dims(node.inputs[0]), dims(node.inputs[1])
    if not shape or places not in ((), (1,)):
        return False
    size, offset = _offset(node.inputs[1])
    return offset == -1 and size is not None and size == shape[attribute(node, "axis", 0)]


def _offset(value: ir.Value | None, added: int = 0) -> tuple[Dim | None, int]:
    """The free size and the number that `value`, of one entry, is the sum of."""
    node = None if value is None else value.producer()
    if node is None or node.domain:
        return None, 0
    if node.op_type in ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity"):
        return _offset(node.inputs[0], added)
    if node.op_type in ("Add", "Sub"):
        first, second = node.inputs
        terms = [(first, second, 1)] if node.op_type == "Add" else [(first, second, -1)]
        terms += [(second, first, 1)] if node.op_type == "Add" else []
        for size, number, sign in terms:
            known = integers(number)
            if known is not None and len(known) == 1:
                return _offset(size, added + sign * known[0])
        return None, 0
    picked = _picked(node)
    return (picked[0], added) if picked and len(picked) == 1 else (None, 0)


def _is_scalar(node: ir.Node) -> bool:
    return node.op_type == "Gather" and dims(node.inputs[1]) == ()


def _picked(node: ir.Node) -> list[Dim] | None:
    """The dimensions that `node` takes from the shape of a value, None where it does not."""
    if node.domain or node.op_type not in ("Shape", "Gather", "Slice"):
        return None
    if node.op_type == "Shape":
        return _sizes(node)
    shape = producer(node.inputs[0], "Shape")
    sizes = None if shape is None else _sizes(shape)
    if sizes is None:
        return None
    places = [integers(input_of(node, i)) for i in range(1, len(node.inputs))]
    if node.op_type == "Gather":
        index = places[0]
        flat = len(dims(node.inputs[1]) or ()) < 2
        return [sizes[i] for i in index] if index is not None and flat else None
    starts, ends = places[0], places[1]
    steps = places[3] if len(places) > 3 else [1]
    if starts is None or ends is None or steps != [1] or len(starts) != 1:
        return None
    return sizes[starts[0] : ends[0]]


def _sizes(node: ir.Node) -> list[Dim] | None:
    """What a Shape gives, with the names of free dimensions."""
    shape = dims(node.inputs[0])
    if shape is None:
        return None
    return list(shape[slice(attribute(node, "start", 0), attribute(node, "end"))])
