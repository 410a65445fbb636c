"""Positions that start at each row's own offset.

A training graph computes with positions 0 .. T-1, once for the whole batch; a step needs
past_length[b] + t.  The nodes that compute on positions alone stay as they are and run over all
batch*time positions as one long sequence; where the result meets the data it is cut back into
[batch, .., time, ..] and broadcasts as before.
"""

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes import evaluate
from intaglio.passes.analysis.time import Along, Timing, refuse
from intaglio.passes.analysis.time_facts import dim_of
from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.base import Context
from intaglio.passes.graph import Emitter, constant, dims, integers, replace_uses, set_dims
from intaglio.state import BATCH, entries_of

from ._step_values import INT64, StepValues, flat_of

PROBE = 64
"""Positions tried past the end of a table, to see whether an index ever leaves it."""


def offset_positions(
    model: ir.Model, timing: Timing, step: StepValues, context: Context
) -> list[str]:
    """Let every position of `model` start at the row's `past_length`; say what was found."""
    _check_frontier(timing)
    for node in list(model.graph):
        if _positional(timing, node.outputs[0]) and node not in timing.sources:
            _free_of_length(node, timing)
    for node in timing.sources:
        _restart(node, timing, step, context)
    for along, fact in timing.facts.items():
        if isinstance(fact, Along) and fact.positional:
            flat = {dim_of(fact.each): flat_of(fact.each)}
            set_dims(along, [flat.get(str(dim), dim) for dim in dims(along) or ()])
    cut: dict[tuple[ir.Value, int, int], ir.Value] = {}
    for node, index in timing.frontier:
        value, shape = node.inputs[index], dims(node.outputs[0]) or ()
        assert value is not None
        place = value, len(shape), shape.index(BATCH)
        if place not in cut:
            cut[place] = _by_row(value, len(shape), place[-1], timing, step, Emitter(node))
        node.replace_input_with(index, cut[place])
    return [f"{node.op_type} {node.name!r} counts from past_length" for node in timing.sources]


def limit_by_tables(model: ir.Model, timing: Timing, context: Context) -> None:
    """End the context where a table ends that positions look up, before anything is rewritten."""
    for node in model.graph:
        _limit_by_table(model, node, timing, context)


def _positional(timing: Timing, value: ir.Value | None) -> bool:
    fact = timing.of(value)
    return isinstance(fact, Along) and fact.positional


def _check_frontier(timing: Timing) -> None:
    for node, _ in timing.frontier:
        shape = dims(node.outputs[0]) or ("",)
        if node.op_type not in ELEMENTWISE | {"Expand", "RotaryEmbedding"} or BATCH not in shape:
            raise refuse(
                node,
                "uses positions in a way that cannot be given an offset per row: positions may "
                "meet the data in elementwise operators, one axis of which is the batch.",
            )


def _limit_by_table(model: ir.Model, node: ir.Node, timing: Timing, context: Context) -> None:
    """A table looked up by position ends the context where its rows end."""
    if node.op_type not in ("Gather", "GatherND") or node.domain:
        return
    table, index = node.inputs[:2]
    if index is None or timing.of(table) is not None or not isinstance(timing.of(index), Along):
        return
    found = evaluate.part(model, [index])
    if not _of_sizes_alone(found):  # looked up by data
        return
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    rows = (dims(table) or (0,))[axis] if table is not None else 0
    if not isinstance(rows, int):
        raise refuse(node, "looks positions up in a table of unknown length.")
    feeds = {
        str(v.name): np.zeros(
            [d if isinstance(d, int) else (entries_of(str(d.value)) or 0) * (rows + PROBE) or 1
             for d in v.shape or ()],
            (v.dtype or INT64).numpy(),
        )
        for v in found.graph.inputs
    }  # fmt: skip
    values = np.moveaxis(
        next(iter(evaluate.run(found, feeds).values())), _along(timing, index).axis, 0
    )
    values = values.reshape(len(values), -1)
    if node.op_type == "GatherND":  # the first of each group of places
        values = values[:, :: int((dims(index) or (1,))[-1])]
    outside = (values >= rows).any(axis=1)
    if outside.any():
        context.limit_context(int(outside.argmax()) // _along(timing, index).each)


def _of_sizes_alone(part: ir.Model) -> bool:
    """Whether a part of a graph takes nothing of its inputs but how large they are."""
    takes = [(v, node) for v in part.graph.inputs for node, _ in v.uses()]
    direct = any(value in part.graph.inputs for value in part.graph.outputs)
    return not direct and all(node.op_type == "Shape" for _, node in takes)


def _along(timing: Timing, value: ir.Value) -> Along:
    fact = timing.of(value)
    assert isinstance(fact, Along)
    return fact


def _free_of_length(node: ir.Node, timing: Timing) -> None:
    """Shapes that name T would be wrong for batch*time positions: say them without it."""
    fact = _along(timing, node.outputs[0])
    if node.op_type in ("Reshape", "Expand"):
        shape = dims(node.outputs[0]) or ()
        free = -1 if node.op_type == "Reshape" else 1
        sizes = [free if dim == dim_of(fact.each) else dim for dim in shape]
        if any(isinstance(dim, str) for dim in sizes):
            raise refuse(node, f"gives positions the shape {list(shape)}, which is not understood.")
        node.replace_input_with(1, Emitter(node).constant(sizes))
    elif node.op_type == "Slice" and fact.axis in (integers(node.inputs[3]) or ()):
        if len(integers(node.inputs[3]) or ()) != 1 or node.inputs[0] is None:
            raise refuse(node, "slices positions along time and another axis at once.")
        replace_uses(node.outputs[0], node.inputs[0])
    elif node.op_type == "Shape":
        raise refuse(node, "takes the number of tokens from the shape of positions.")


def _restart(node: ir.Node, timing: Timing, step: StepValues, context: Context) -> None:
    """Replace 0 .. T-1, or the first T rows of a table, by the positions of this step."""
    emit, old = Emitter(node), node.outputs[0]
    fact = _along(timing, old)
    step = step.at(fact.each)
    positions = step.flat_positions
    if node.op_type == "Range":
        dtype = old.dtype or INT64
        if dtype != INT64:
            positions = emit("Cast", [positions], dtype, [step.flat], to=dtype)
        for op, index, idle in (("Mul", 2, 1), ("Add", 0, 0)):
            number = constant(node.inputs[index])
            if number is not None and number != idle:
                positions = emit(
                    op, [positions, emit.constant(number, number.dtype)], dtype, [step.flat]
                )
        new = positions
    else:
        axis, table = fact.axis, node.inputs[0]
        assert table is not None
        rows = (dims(table) or ())[axis]
        if not isinstance(rows, int):
            raise refuse(node, "takes positions from a table of unknown length.")
        context.limit_context(rows // fact.each)
        shape = [step.flat if dim == step.time else dim for dim in dims(old) or ()]
        new = emit("Gather", [table, positions], old.dtype, shape, axis=axis)
    timing.facts[new] = timing.facts[old]
    replace_uses(old, new)


def _by_row(
    value: ir.Value, rank: int, batch: int, timing: Timing, step: StepValues, emit: Emitter
) -> ir.Value:
    """Cut the batch*time axis of `value` in two: one of `rank` axes, `batch`, and the time axis."""
    shape, dtype = list(dims(value) or ()), value.dtype
    missing = rank - len(shape)
    fact = _along(timing, value)
    step, time = step.at(fact.each), fact.axis + missing
    whole = [*[1] * missing, *shape]
    if whole[batch] != 1 or batch == time:
        raise PassError(
            f"{value.name!r} depends on positions and has shape {shape} with no room for a batch "
            f"axis at {batch}; give it an axis of one there."
        )
    result = [
        step.time if i == time else BATCH if i == batch else dim for i, dim in enumerate(whole)
    ]
    if batch < time and all(dim == 1 for dim in whole[:time]):
        return _reshaped(value, result, step, emit)
    if missing < time:  # [.., batch*time, ..] -> [batch*time, .., ..]
        axis = time - missing
        order = [axis, *(i for i in range(len(shape)) if i != axis)]
        moved = [shape[i] for i in order]
        value = emit("Transpose", [value], dtype, moved, perm=order)
    others = [i for i in range(rank) if i not in (batch, time)]
    cut = _reshaped(value, [BATCH, step.time, *(whole[i] for i in others)], step, emit)
    perm = [[batch, time, *others].index(i) for i in range(rank)]
    return emit("Transpose", [cut], dtype, result, perm=perm)


def _reshaped(value: ir.Value, shape: list[int | str], step: StepValues, emit: Emitter) -> ir.Value:
    """Reshape to `shape`, whose batch is inferred and whose time is this step's."""
    parts: list[ir.Value] = []
    for dim in shape:
        if dim == step.time:
            parts.append(step.count)
        elif dim == BATCH:
            parts.append(emit.constant([-1]))
        elif isinstance(dim, int):
            parts.append(emit.constant([dim]))
        else:
            raise PassError(f"{value.name!r} has a dimension {dim!r} beside batch and time")
    target = emit("Concat", parts, INT64, [len(parts)], axis=0)
    return emit("Reshape", [value, target], value.dtype, shape)
