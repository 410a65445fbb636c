"""Writes to pieces of a tensor, and rolls, as ``cat`` of the pieces.

So ``y[:, 2:] = x[:, :-2]``, and ``y = x.roll(2, 1)`` before ``y[:, :2] = 0``, are told as what they
are: a sequence that is shifted.  PyTorch's exporter writes them as scatters to computed places,
which tell nothing.  Only sizes that are free are of interest; others stay as they are.
"""

from typing import Any

import torch
from torch import SymInt, fx
from torch.export import ExportedProgram

from .program_nodes import WHOLE, argument, emitted, shape_of, term

aten = torch.ops.aten


def join_pieces(program: ExportedProgram) -> ExportedProgram:
    """Rewrite in `program`, in place, what is written to one piece of a tensor, or rolled."""
    changed = False
    for node in list(program.graph.nodes):
        rule = RULES.get(node.target) if node.op == "call_function" else None
        if rule is not None:
            with node.graph.inserting_before(node):
                changed = rule(node) or changed
    if changed:
        program.graph.eliminate_dead_code()
        program.graph_module.recompile()
    return program


def _slice_written(node: Any) -> bool:
    """``before[start:end] = given``."""
    before, given = node.args[:2]
    axis = argument(node, 2, "dim", 0) % len(shape_of(node))
    start, end = argument(node, 3, "start") or 0, argument(node, 4, "end")
    end = WHOLE if end is None else end
    step = argument(node, 5, "step", 1)
    if not isinstance(start, int) or not isinstance(end, int) or not isinstance(step, int):
        return False
    if step != 1:
        return end >= WHOLE and _every_written(node, axis, start, step)
    if end != WHOLE and ((start < 0) != (end < 0) or end < start):
        return False  # perhaps nothing, and then the piece behind would begin too early
    parts = [_piece(node, before, axis, 0, start)] if start else []
    parts.append(given)
    parts += [_piece(node, before, axis, end, WHOLE)] if end != WHOLE else []
    return _joined(node, parts, axis)


def _every_written(node: Any, axis: int, start: int, step: int) -> bool:
    """``before[start::step] = given``, of whole groups of entries."""
    before, given = node.args[:2]
    if start >= step or term(shape_of(node)[axis]) % step != 0:
        return False
    groups = emitted(node, aten.unflatten.int, before, axis, [-1, step])
    parts = [emitted(node, aten.unsqueeze.default, given, axis + 1)]
    if start:
        parts.insert(0, emitted(node, aten.slice.Tensor, groups, axis + 1, 0, start))
    if start + 1 < step:
        parts.append(emitted(node, aten.slice.Tensor, groups, axis + 1, start + 1, WHOLE))
    joined = emitted(node, aten.cat.default, parts, axis + 1)
    node.target, node.kwargs = aten.flatten.using_ints, {}
    node.args = (joined, axis, axis + 1)
    return True


def _first_written(node: Any) -> bool:
    """``before[0] = given``."""
    before, given, axis, place = node.args
    axis %= len(shape_of(node))
    if place != 0 or not isinstance(shape_of(node)[axis], SymInt):
        return False
    first = emitted(node, aten.unsqueeze.default, given, axis)
    return _joined(node, [first, _piece(node, before, axis, 1, WHOLE)], axis)


def _rolled(node: Any) -> bool:
    """``given.roll(k, axis)``: the last k entries, and all others behind them."""
    given, shifts, axes = node.args[0], node.args[1], argument(node, 2, "dims", [])
    if len(shifts) != 1 or len(axes) != 1 or not isinstance(shifts[0], int) or shifts[0] <= 0:
        return False
    axis, count = axes[0] % len(shape_of(node)), shifts[0]
    if not isinstance(shape_of(node)[axis], SymInt):
        return False
    parts = [_piece(node, given, axis, -count, WHOLE), _piece(node, given, axis, 0, -count)]
    return _joined(node, parts, axis)


def _cut(node: Any) -> bool:
    """``cat((first, rest))[k:]``, where first has k entries; a whole slice."""
    given, axis = node.args[0], argument(node, 1, "dim", 0) % len(shape_of(node))
    start, end = argument(node, 2, "start") or 0, argument(node, 3, "end")
    if argument(node, 4, "step", 1) != 1 or end not in (None, WHOLE):
        return False
    same = given if start == 0 else _behind(given, axis, start)
    if same is not None:  # what is returned keeps the name that it is known by
        node.replace_all_uses_with(same, delete_user_cb=lambda user: user.op != "output")
    return same is not None


def _behind(given: Any, axis: int, start: Any) -> fx.Node | None:
    """What is joined behind the first `start` entries; None where nothing is joined there."""
    if given.target is not aten.cat.default or len(given.args[0]) != 2:
        return None
    (first, rest), along = given.args[0], argument(given, 1, "dim", 0) % len(shape_of(given))
    found: fx.Node | None = rest if along == axis and shape_of(first)[axis] == start else None
    return found


def _joined(node: Any, parts: list[fx.Node], axis: int) -> bool:
    if any(part.meta["val"].dtype != node.meta["val"].dtype for part in parts):
        return False
    node.target, node.kwargs = aten.cat.default, {}
    node.args = (parts, axis)
    return True


def _piece(node: Any, given: fx.Node, axis: int, start: int, end: int) -> fx.Node:
    same = _behind(given, axis, start) if end == WHOLE else None
    return emitted(node, aten.slice.Tensor, given, axis, start, end) if same is None else same


RULES = {
    aten.slice_scatter.default: _slice_written,
    aten.select_scatter.default: _first_written,
    aten.roll.default: _rolled,
    aten.slice.Tensor: _cut,
}
