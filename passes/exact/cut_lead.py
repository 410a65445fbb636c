"""Entries that were put in front of a sequence and are cut off again were never there.

A difference of sums over tokens is written with a sum of nothing in front: ``pad``, ``repeat``,
``x - x.mT``, ``[..., 1:, 1:]`` (the stabilised parallel form of mLSTM, Beck et al. 2024,
arXiv:2405.04517, appendix A.3).  The cut is moved to the inputs of what computes entry by entry,
until it meets what it cuts; where it meets anything else, nothing is changed.
"""

import onnx_ir as ir

from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import (
    Dim,
    Emitter,
    attribute,
    attributes_of,
    constant,
    describe,
    dims,
    input_of,
    integers,
    replace_uses,
)
from intaglio.state import TIME

LED = f"{TIME} + 1"


class CutLead(Exact):
    """Leave out what is put before a sequence and cut off behind operators entry by entry."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each Slice all of whose inputs are led so."""
        notes = []
        for node in list(model.graph):
            axis = _cut(node)
            if axis is None:
                continue
            old, given = node.outputs[0], node.inputs[0]
            new = None if given is None else _Without(Emitter(node), axis).of(given, axis)
            if new is None or dims(new) != dims(old):
                continue
            replace_uses(old, new)
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _cut(node: ir.Node) -> int | None:
    """The axis of which a Slice leaves out the first of one entry more than tokens."""
    if node.op_type != "Slice" or node.domain:
        return None
    before, after = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    if len(before) != len(after):
        return None
    starts, axes, steps = (integers(input_of(node, place)) for place in (1, 3, 4))
    if starts != [1] or axes is None or len(axes) != 1 or steps not in (None, [1]):
        return None
    axis = axes[0] % len(before)
    return axis if before[axis] == LED and after[axis] == TIME else None


class _Without:
    """Values as they are without the first entry along an axis; None where that is not known."""

    def __init__(self, emit: Emitter, axis: int) -> None:
        self._emit, self._axis = emit, axis
        self._known: dict[tuple[ir.Value, int], ir.Value | None] = {}

    def of(self, value: ir.Value, axis: int) -> ir.Value | None:
        """`value` without its first entry along `axis`; one of one entry there is as it is.

        What an Expand repeats is given before that, for what comes after to stretch.
        """
        if (dims(value) or ())[axis] == 1:
            return value
        if (value, axis) not in self._known:
            self._known[value, axis] = self._of(value, axis)
        return self._known[value, axis]

    def _of(self, value: ir.Value, axis: int) -> ir.Value | None:
        node, shape = value.producer(), dims(value) or ()
        if node is None or node.domain or len(node.outputs) != 1 or shape[axis] != LED:
            return None
        if node.op_type in ("Pad", "Concat"):
            return led(node, axis)
        given = node.inputs[0]
        if given is None or dims(given) is None:
            return None
        if node.op_type == "Expand":
            own = axis - len(shape) + len(dims(given) or ())
            return self.of(given, own) if own >= 0 else given
        if node.op_type == "Transpose":
            return self._turned(node, given, axis)
        return self._entry_by_entry(node, axis) if node.op_type in ELEMENTWISE else None

    def _turned(self, node: ir.Node, given: ir.Value, axis: int) -> ir.Value | None:
        perm = list(attribute(node, "perm") or reversed(range(len(dims(given) or ()))))
        inner = self.of(given, perm[axis])
        shape = dims(inner)
        if inner is None or shape is None or len(shape) != len(perm):
            return None
        turned = [shape[place] for place in perm]
        return self._emit("Transpose", [inner], inner.dtype, turned, perm=perm)

    def _entry_by_entry(self, node: ir.Node, axis: int) -> ir.Value | None:
        rank = len(dims(node.outputs[0]) or ())
        inputs: list[ir.Value | None] = []
        if None in [dims(value) for value in node.inputs if value is not None]:
            return None
        for value in node.inputs:
            own = axis - rank + len(dims(value) or ())
            inner = value if value is None or own < 0 else self.of(value, own)
            if inner is None and value is not None:
                return None
            inputs.append(inner)
        shapes = [dims(value) or () for value in inputs if value is not None]
        met = _met(shapes)
        if met is None:
            return None
        dtype, attributes = node.outputs[0].dtype, attributes_of(node)
        return self._emit(node.op_type, inputs, dtype, met, **attributes)


def _met(shapes: list[tuple[Dim, ...]]) -> list[Dim] | None:
    """The shape of values that meet entry by entry; None where they do not."""
    rank = max(map(len, shapes))
    found: list[Dim] = []
    for column in zip(*[(1,) * (rank - len(shape)) + shape for shape in shapes], strict=True):
        wide = {dim for dim in column if dim != 1}
        if len(wide) > 1:
            return None
        found.append(wide.pop() if wide else 1)
    return found


def led(node: ir.Node | None, axis: int) -> ir.Value | None:
    """The sequence before which `node` puts one entry along `axis`, and nothing else."""
    if node is None or node.domain or node.op_type not in ("Pad", "Concat"):
        return None
    rank = len(dims(node.outputs[0]) or ())
    if node.op_type == "Concat":
        sizes = [(dims(value) or (None,) * rank)[axis] for value in node.inputs]
        along = attribute(node, "axis") % rank == axis
        return node.inputs[1] if along and sizes == [1, TIME] else None
    pads, given = constant(input_of(node, 1)), node.inputs[0]
    if pads is None or input_of(node, 3) is not None:
        return None
    wanted = [int(place == axis) for place in range(2 * rank)]
    return given if pads.tolist() == wanted and (dims(given) or ())[axis] == TIME else None
