"""Heads of a linear attention whose keys, values, decays and rates are the same: one state.

A packed input [batch, time, heads * size] that only moves the numbers of one with fewer heads is
told by running what lies between on numbers that are all different, for two lengths of a sequence.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.graph import Emitter, attribute, constant, dims, input_of
from intaglio.state import BATCH, TIME

MOVERS = ("Cast", "Expand", "Gather", "Identity", "Reshape", "Tile", "Transpose", "Unsqueeze")
KEY, VALUE, PAST, DECAY, BETA = 1, 2, 3, 4, 5  # inputs of LinearAttention
SIZES = ({BATCH: 2, TIME: 3}, {BATCH: 1, TIME: 5})
HEADS_LAST, HEADS_FIRST = (0, 1, 2, 3), (0, 2, 1, 3)  # how [batch, time, heads, size] lies


class FewerHeads(NamedTuple):
    """A value whose heads another repeats; `perm` makes [batch, time, heads, size] of four axes."""

    value: ir.Value
    perm: tuple[int, ...]


def share_states(model: ir.Model, node: ir.Node) -> tuple[int, int] | None:
    """Let equal heads of a LinearAttention share a state: how many there are, and were."""
    heads = int(attribute(node, "kv_num_heads", 0))
    present = node.outputs[1] if len(node.outputs) > 1 else None
    kept = present is not None and (present.uses() or present.is_graph_output())
    if not heads or kept or input_of(node, PAST) is not None:
        return None
    places = [
        place
        for place in (KEY, VALUE, DECAY, BETA)
        if (given := input_of(node, place)) is not None
        and not (place == BETA and (dims(given) or ())[-1:] == (1,))  # one rate for all heads
    ]
    found = {place: _origins(model, node.inputs[place], heads) for place in places}
    common = set.intersection(*(set(origins) for origins in found.values()))
    if not common:
        return None
    fewer = min(common)
    emit = Emitter(node)
    for place in places:
        node.replace_input_with(place, _packed(emit, found[place][fewer]))
    node.attributes["kv_num_heads"] = ir.AttrInt64("kv_num_heads", fewer)
    if present is not None and (shape := dims(present)):
        present.shape = ir.Shape([shape[0], fewer, *shape[2:]])
    return fewer, heads


def _origins(model: ir.Model, value: ir.Value | None, heads: int) -> dict[int, FewerHeads]:
    """By their number of heads, the values that `value` is a repetition of."""
    found: dict[int, FewerHeads] = {}
    shape, origin = dims(value), value
    if value is None or not shape or not isinstance(shape[-1], int):
        return found
    size = shape[-1] // heads
    while (origin := _moved(origin)) is not None:
        for fewer, perm in _readings(origin, heads, size):
            if fewer not in found and _repeats(model, origin, value, (fewer, size), perm):
                found[fewer] = FewerHeads(origin, perm)
    return found


def _moved(value: ir.Value | None) -> ir.Value | None:
    """What `value` has the numbers of, in another order or several times."""
    node = None if value is None else value.producer()
    if node is None or node.op_type not in MOVERS or node.domain:
        return None
    if node.op_type == "Gather" and constant(node.inputs[1]) is None:
        return None  # what it picks depends on data
    return node.inputs[0]


def _readings(origin: ir.Value, heads: int, size: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """How many heads `origin` may have, fewer than `heads`, and how its axes lie."""
    shape = dims(origin) or ()
    readings: list[tuple[int | str, tuple[int, ...]]] = []
    if len(shape) == 3 and shape[:2] == (BATCH, TIME) and isinstance(shape[2], int):
        packed, rest = divmod(shape[2], size)
        readings += [] if rest else [(packed, ())]
    elif len(shape) == 4 and shape[3] == size and shape[0] == BATCH:
        laid = [HEADS_LAST] if shape[1] == TIME else [HEADS_FIRST] if shape[2] == TIME else []
        readings += [(shape[perm[2]], perm) for perm in laid]
    for fewer, perm in readings:
        if isinstance(fewer, int) and 0 < fewer < heads and heads % fewer == 0:
            yield fewer, perm


def _repeats(
    model: ir.Model,
    origin: ir.Value,
    value: ir.Value,
    sizes: tuple[int, int],
    perm: tuple[int, ...],
) -> bool:
    """Whether `value` is `origin` with each of its heads repeated in place."""
    probe = evaluate.part(model, [value], given=[origin])
    for known in SIZES:
        feeds = {}
        for entry in probe.graph.inputs:
            shape = [
                dim if isinstance(dim, int) else known.get(str(dim.value), 1)
                for dim in entry.shape or ()
            ]
            kind = (entry.dtype or ir.DataType.FLOAT).numpy()
            feeds[str(entry.name)] = (
                np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
            )
        base = feeds[str(origin.name)]
        apart = base.transpose(perm) if perm else base
        apart = apart.reshape(*apart.shape[:2], *sizes)
        result = next(iter(evaluate.run(probe, feeds).values()))
        times = result.shape[-1] // (sizes[0] * sizes[1])
        if not np.array_equal(result, apart.repeat(times, 2).reshape(result.shape)):
            return False
    return True


def _packed(emit: Emitter, origin: FewerHeads) -> ir.Value:
    """[batch, time, heads * size] of it."""
    value, perm = origin
    if not perm:
        return value
    shape = dims(value) or ()
    laid = [shape[axis] for axis in perm]
    if perm != HEADS_LAST:
        value = emit("Transpose", [value], value.dtype, laid, perm=list(perm))
    width = int(laid[2]) * int(laid[3])
    target = emit.constant([0, 0, width])
    return emit("Reshape", [value, target], value.dtype, [*laid[:2], width])
