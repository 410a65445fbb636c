"""Scores by distance, shifted by padding and a reshape -> scores by distance, gathered.

Attention with relative positions has scores X[i, c] of token i and distance T - 1 - c, and moves
row i by as much as brings distance i - j to column j: an entry of zero is put before each row, and
rows of T + 1 entries are read as T + 1 rows of T, without the first (Dai et al. 2019,
arXiv:1901.02860, appendix B; Huang et al. 2018, arXiv:1809.04281, section 3.4.1).  For j <= i that
is X[i, T - 1 - (i - j)]; what stands at later tokens is of other tokens, and is masked.

With Y the scores whose columns are distances 0, 1, 2, ..., entry (i, j) is Y[i, max(i - j, 0)].
Y is X computed from turned positions, or from the last rows of a table in turned order.  Later
entries come to be others of Y, so that this holds for graphs that are stepped alone: there every
sum over pairs is shown to leave them out, whatever finite number stands there.
"""

from dataclasses import dataclass

import numpy as np
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
    producer,
    replace_uses,
)
from intaglio.state import TIME

from .reverse_sums import flipped

INT64 = ir.DataType.INT64
LAST = np.iinfo(np.int64).max
LED = f"{TIME} + 1"


@dataclass(frozen=True)
class _Shift:
    """Scores [.., time, time, ..], of which `axis` and the next are those of tokens and columns."""

    scores: ir.Value
    axis: int


class RelativeShifts(Exact):
    """Gather scores by distance where they are shifted by a reshape."""

    for_tokens = True

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite each shift of scores whose columns can be turned round."""
        notes = []
        for node in list(model.graph):
            shift = _shift(node)
            if shift is None:
                continue
            emit, old = Emitter(node), node.outputs[0]
            turned = _Turned(emit).of(shift.scores, shift.axis + 1)
            if turned is None:
                continue
            replace_uses(old, _gathered(emit, turned, shift.axis))
            model.graph.remove(node, safe=True)
            notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _shift(node: ir.Node) -> _Shift | None:
    """Rows of T + 1 entries, the first of which was put there, read as rows of T but the first."""
    if node.op_type != "Slice" or node.domain:
        return None
    starts, ends, axes = (integers(input_of(node, place)) for place in (1, 2, 3))
    shape, view = dims(node.outputs[0]) or (), producer(node.inputs[0], "Reshape")
    if view is None or starts != [1] or axes is None or len(axes) != 1 or ends is None:
        return None
    axis, rows = axes[0] % len(shape), dims(view.outputs[0]) or ()
    wide = dims(view.inputs[0]) or ()
    whole = ends[0] == LAST and integers(input_of(node, 4)) in (None, [1])
    if not whole or len(wide) != len(shape) or rows != (*shape[:axis], LED, *shape[axis + 1 :]):
        return None
    if shape[axis : axis + 2] != (TIME, TIME) or axis + 2 > len(shape):
        return None
    if wide != (*shape[: axis + 1], LED, *shape[axis + 2 :]):
        return None
    given = view.inputs[0]
    scores = None if given is None else _led(given.producer(), axis + 1)
    return None if scores is None else _Shift(scores, axis)


def _led(node: ir.Node | None, axis: int) -> ir.Value | None:
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


class _Turned:
    """Values with their entries along an axis in turned order; None where that is not known."""

    def __init__(self, emit: Emitter) -> None:
        self._emit = emit

    def of(self, value: ir.Value, axis: int) -> ir.Value | None:
        """`value`, turned along `axis`, of as many entries as there are tokens; or of one."""
        shape = dims(value)
        node = value.producer()
        if shape is None or node is None or node.domain or len(node.outputs) != 1:
            return value if shape is not None and shape[axis] == 1 else None
        if shape[axis] != TIME:
            return value if shape[axis] == 1 else None
        if node.op_type == "Slice":
            return self._slice(node, axis)
        if node.op_type == "Range":
            return self._counted(node)
        given = node.inputs[0] if node.inputs else None
        if given is None:
            return None
        if node.op_type in ELEMENTWISE or node.op_type == "Expand":
            count = 1 if node.op_type == "Expand" else len(node.inputs)
            places = [self._meets(value, one, axis) for one in node.inputs[:count]]
        elif node.op_type == "Gather":
            places = [-1, self._picked(node, axis)]
        elif node.op_type == "Concat":
            beside = attribute(node, "axis") % len(shape) != axis
            places = [axis if beside else None] * len(node.inputs)
        elif node.op_type in ("MatMul", "Gemm"):
            places = _of_product(node, axis)
        else:
            places = [_of_moved(node, axis)]
        return self._again(node, places)

    def _meets(self, value: ir.Value, one: ir.Value | None, axis: int) -> int | None:
        """The axis of an operand; -1 where it has none."""
        shape = dims(one)
        if shape is None:
            return -1 if one is None else None
        own = axis - len(dims(value) or ()) + len(shape)
        return own if own >= 0 and shape[own] != 1 else -1

    def _picked(self, node: ir.Node, axis: int) -> int | None:
        """The axis of the index of a Gather that becomes `axis` of what it picks."""
        where = attribute(node, "axis", 0) % len(dims(node.inputs[0]) or ())
        inside = where <= axis < where + len(dims(node.inputs[1]) or ())
        return axis - where if inside else None

    def _counted(self, node: ir.Node) -> ir.Value | None:
        """Numbers up to, or down to, one that does not depend on how many there are."""
        end, step = (constant(node.inputs[place]) for place in (1, 2))
        old, emit = node.outputs[0], self._emit
        if end is None or step is None or abs(float(step)) != 1 or old.dtype is None:
            return None
        shape, dtype = dims(old), old.dtype.numpy()
        if end != np.round(end):
            return None
        size = emit("Shape", [old], INT64, [1])
        ends = [emit.constant(0), emit("Squeeze", [size], INT64, []), emit.constant(1)]
        each = emit("Range", ends, INT64, shape)
        if old.dtype != INT64:
            each = emit("Cast", [each], old.dtype, shape, to=old.dtype)
        each = emit("Mul", [each, emit.constant(-step, dtype)], old.dtype, shape)
        return emit("Add", [each, emit.constant(end - step, dtype)], old.dtype, shape)

    def _again(self, node: ir.Node, places: list[int | None]) -> ir.Value | None:
        """`node` of operands that are turned along `places`: -1 for as it is."""
        inputs = list(node.inputs)
        if None in places or all(place == -1 for place in places):
            return None
        for at, place in enumerate(places):
            given = inputs[at]
            if place is None or place == -1 or given is None:
                continue
            inputs[at] = self.of(given, place)
            if inputs[at] is None:
                return None
        old = node.outputs[0]
        attributes = attributes_of(node)
        return self._emit(node.op_type, inputs, old.dtype, dims(old), **attributes)

    def _slice(self, node: ir.Node, axis: int) -> ir.Value | None:
        """A sequence that was turned, or the last rows of a table."""
        given, emit, old = node.inputs[0], self._emit, node.outputs[0]
        if given is None or flipped(node) == axis:
            return given
        before, axes = dims(given) or (), integers(input_of(node, 3))
        if axes is None or [one % len(before) for one in axes] != [axis]:
            return (
                None
                if axes is None or axis in [a % len(before) for a in axes]
                else self._again(node, [axis])
            )
        rows, ends = before[axis], integers(node.inputs[2])
        if not isinstance(rows, int) or ends is None or ends[0] < rows:
            return None
        if integers(input_of(node, 4)) not in (None, [1]) or not _last(node.inputs[1]):
            return None
        turn = [emit.constant([n]) for n in (-1, -LAST, axis, -1)]
        table = emit("Slice", [given, *turn], given.dtype, before)
        count = emit("Neg", [node.inputs[1]], INT64, [1])
        cut = [emit.constant([0]), count, emit.constant([axis])]
        return emit("Slice", [table, *cut], old.dtype, dims(old))


def _last(start: ir.Value | None) -> bool:
    """Whether a Slice starts as many entries before the end as there are tokens."""
    while (node := producer(start, "Reshape", "Cast", "Unsqueeze", "Squeeze")) is not None:
        start = node.inputs[0]
    node = producer(start, "Neg")
    return node is not None


def _of_product(node: ir.Node, axis: int) -> list[int | None]:
    """Which axes of the operands of a product are the rows, or columns, of the result."""
    ranks = [len(dims(one) or ()) for one in node.inputs[:2]]
    rank = len(dims(node.outputs[0]) or ())
    if min(ranks) < 2:
        return [None]
    turned = [
        bool(attribute(node, name, 0)) if node.op_type == "Gemm" else False
        for name in ("transA", "transB")
    ]
    if axis == rank - 2:
        return [ranks[0] - 1 if turned[0] else ranks[0] - 2, -1]
    if axis == rank - 1:
        plain = node.op_type == "MatMul"
        return [-1, ranks[1] - 2 if turned[1] else ranks[1] - 1] if plain else [None]
    return [None]


def _of_moved(node: ir.Node, axis: int) -> int | None:
    """The axis of what a node moves that is `axis` of its result."""
    before, after = dims(node.inputs[0]) or (), dims(node.outputs[0]) or ()
    if node.op_type == "Transpose":
        perm = list(attribute(node, "perm") or reversed(range(len(before))))
        return int(perm[axis])
    if node.op_type in ("Reshape", "Unsqueeze", "Squeeze"):
        same = [own for own, dim in enumerate(before) if dim == TIME]
        return same[0] if len(same) == 1 and after.count(TIME) == 1 else None
    return None


def _gathered(emit: Emitter, scores: ir.Value, axis: int) -> ir.Value:
    """Entry (i, j) of scores by distance: at i - j, and at 0 for later tokens."""
    shape = dims(scores) or ()
    count = emit("Shape", [scores], INT64, [1], start=axis, end=axis + 1)
    count = emit("Squeeze", [count], INT64, [])
    each = emit("Range", [emit.constant(0), count, emit.constant(1)], INT64, [TIME])
    row = emit("Unsqueeze", [each, emit.constant([1])], INT64, [TIME, 1])
    apart = emit("Sub", [row, each], INT64, [TIME, TIME])
    apart = emit("Max", [apart, emit.constant(0)], INT64, [TIME, TIME])
    sizes: list[Dim] = [TIME, TIME, *[1] * (len(shape) - axis - 2)]
    if len(sizes) > 2:
        missing = emit.constant(list(range(2, len(sizes))))
        apart = emit("Unsqueeze", [apart, missing], INT64, sizes)
    whole = emit("Shape", [scores], INT64, [len(shape)])
    index = emit("Expand", [apart, whole], INT64, shape)
    return emit("GatherElements", [scores, index], scores.dtype, shape, axis=axis + 1)
