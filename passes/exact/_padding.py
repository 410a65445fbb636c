"""Padding in time taken out of a graph whose convolutions are about to carry it as their states.

What stands before the first token is zeros, or what convolutions made of zeros; a convolution finds
it in its state.  What stands after the last one is cut off later, so it need not be computed.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.analysis.time import Along, Timing, refuse
from intaglio.passes.analysis.time_facts import dim_of, normal
from intaglio.passes.analysis.windows import WINDOWS
from intaglio.passes.graph import Emitter, dims, input_of, integers, replace_uses, set_dims
from intaglio.state import TIME

TRIED = 4  # tokens of a run that tells what stands before the first


@dataclass(frozen=True)
class Sequence:
    """What a node that moves over time takes in training form: its fact, and what is in front.

    `before` stands before the first token, as many entries as the lead; None for zeros.  With
    `edge` it is the first entry, which a step takes from its own tokens.
    """

    fact: Along
    before: npt.NDArray[np.generic] | None
    edge: bool = False


def sequences(model: ir.Model, timing: Timing) -> dict[ir.Node, Sequence]:
    """The sequences that convolutions and pooling of `model` take.

    Raises:
        PassError: if what stands before one of them depends on more than weights.
    """
    found = {}
    for node in timing.mixers:
        fact = timing.of(node.inputs[0]) if node.op_type in WINDOWS and not node.domain else None
        if _delays(node, timing):
            fact = timing.of(node.inputs[0])
        if isinstance(fact, Along):
            edge = fact.edge and bool(fact.lead)
            before = None if edge else _standing_before(model, node, fact)
            found[node] = Sequence(fact, before, edge)
    return found


def _delays(node: ir.Node, timing: Timing) -> bool:
    """Whether `node`, one in which tokens meet, gives them what came some time before."""
    return node.op_type == "Slice" and isinstance(timing.of(node.outputs[0]), Along)


def _standing_before(model: ir.Model, node: ir.Node, fact: Along) -> npt.NDArray[np.generic] | None:
    value = node.inputs[0]
    if value is None or not fact.lead or fact.blank:
        return None
    part = evaluate.part(model, [value])
    if any(TIME not in str(dims(each)) for each in part.graph.inputs):
        raise refuse(node, "takes padding that conditions change; pad in front of it instead.")
    before, again = (_run(part, x).take(range(fact.lead), fact.axis) for x in (0, 1))
    if not np.array_equal(before, again):
        raise refuse(node, "takes padding that changes with the tokens after it.")
    return before


def _run(part: ir.Model, fill: int) -> npt.NDArray[np.generic]:
    feeds = {
        str(value.name): np.full(
            [d if isinstance(d, int) else _size(str(d)) for d in dims(value) or ()],
            fill,
            (value.dtype or ir.DataType.FLOAT).numpy(),
        )
        for value in part.graph.inputs
    }
    found: npt.NDArray[np.generic] = next(iter(evaluate.run(part, feeds).values()))
    return found


def _size(dim: str) -> int:
    number, _, _ = dim.partition("*")
    return TRIED * int(number) if number.isdigit() else TRIED if dim == TIME else 1


def without_padding(graph: ir.Graph, timing: Timing) -> None:
    """Drop what pads sequences in time, and what takes padding away again."""
    # Found before any is dropped, which gives those behind it another sequence to take.
    for node, axis in list(_changing(graph, timing)):
        (_unpad if node.op_type == "Pad" else _uncut)(node, axis)
    for node in [n for n in graph if n.op_type == "Reshape" and not n.domain]:
        if isinstance(fact := timing.of(node.outputs[0]), Along) and fact.padded:
            _keep_rows(node, fact.axis)
    for value, fact in _padded(graph, timing):
        shape = list(dims(value) or ())
        shape[fact.axis] = dim_of(fact.each)
        set_dims(value, shape)


def _changing(graph: ir.Graph, timing: Timing) -> Iterator[tuple[ir.Node, int]]:
    """What pads and cuts sequences, and the axis of time there."""
    mixers = set(timing.mixers)
    for node in graph:
        if node in mixers:
            continue
        given = timing.of(node.inputs[0]) if node.inputs else None
        made = timing.of(node.outputs[0]) if len(node.outputs) == 1 else None
        if not isinstance(given, Along) or not isinstance(made, Along):
            continue
        changes = (given.lead, given.trail) != (made.lead, made.trail)
        if changes and node.op_type in ("Pad", "Slice"):
            yield node, given.axis


def _padded(graph: ir.Graph, timing: Timing) -> Iterator[tuple[ir.Value, Along]]:
    for node in graph:
        for value in node.outputs:
            fact = timing.of(value)
            if isinstance(fact, Along) and fact.padded:
                yield value, fact


def _keep_rows(node: ir.Node, axis: int) -> None:
    """Let a Reshape take as many entries along time as come, not as many as were padded."""
    sizes = [dim if isinstance(dim, int) else 0 for dim in dims(node.outputs[0]) or ()]
    sizes[axis] = -1
    node.attributes.pop("allowzero", None)  # a 0 is the size that is there
    node.replace_input_with(1, Emitter(node).constant(sizes))


def _unpad(node: ir.Node, axis: int) -> None:
    rank = len(dims(node.outputs[0]) or ())
    pads = integers(node.inputs[1]) or []
    axes = integers(input_of(node, 3)) or list(range(rank))
    at = [normal(each, rank) for each in axes].index(axis)
    pads[at] = pads[at + len(axes)] = 0
    _write(node, 1, pads, idle=not any(pads))


def _uncut(node: ir.Node, axis: int) -> None:
    rank = len(dims(node.outputs[0]) or ())
    starts, ends = integers(node.inputs[1]), integers(node.inputs[2])
    axes = integers(input_of(node, 3)) or list(range(len(starts or ends or ())))
    at = [normal(each, rank) for each in axes].index(axis)
    if len(axes) == 1:
        _write(node, 1, [0], idle=True)
        return
    if starts is None or ends is None:
        raise refuse(node, "slices at places that depend on the number of tokens.")
    starts[at], ends[at] = 0, 2**63 - 1
    _write(node, 1, starts, idle=False)
    _write(node, 2, ends, idle=False)


def _write(node: ir.Node, index: int, numbers: list[int], *, idle: bool) -> None:
    given = node.inputs[0]
    if idle and given is not None:
        for user, place in list(node.outputs[0].uses()):
            user.replace_input_with(place, given)
        if node.outputs[0].is_graph_output():
            replace_uses(node.outputs[0], given)
        return
    node.replace_input_with(index, Emitter(node).constant(numbers))
