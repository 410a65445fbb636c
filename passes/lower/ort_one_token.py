"""A loop over one token runs its body once, without the loop.

    Scan(states, x)   ->   if length(x) == 1: body(states, x[0])  else: Scan(states, x)

ONNX Runtime opens a frame for a loop as it does for a graph, which costs a small recurrence more
than its arithmetic.  A branch costs nearly as much, unless the sizes of the call are fixed when the
graph is opened: the condition is then a number, and what is not taken is left out.  So the graph is
marked for the runtime, which opens it twice, the second time for one token of one row; both map the
same weights, but those that a kernel packs are packed twice.  Where there are more than `MOST`
bytes of them, the loop's own share of a step is small, and nothing is done.
"""

from collections.abc import Container, Sequence
from itertools import chain

import numpy as np
import onnx_ir as ir

from intaglio.graph_keys import ONE_STEP
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, producer, replace_uses

MOST = 1 << 26
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64


class OrtOneToken(Lower):
    """Run the body of a loop over one token without the loop."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Put every Scan of the main graph into a branch."""
        loops = [node for node in model.graph if node.op_type == "Scan" and not node.domain]
        loops = [node for node in loops if not node.attributes["body"].as_graph().initializers]
        tensors = [value.const_value for value in model.graph.initializers.values()]
        if not loops or sum(each.nbytes for each in tensors if each is not None) > MOST:
            return PassResult(changed=False)
        notes = [describe(node) for node in loops]
        for node in loops:
            _branch(model.graph, node)
        model.metadata_props[ONE_STEP] = "1"
        return PassResult(changed=True, notes=notes)


def _branch(graph: ir.Graph, scan: ir.Node) -> None:
    sequences = attribute(scan, "num_scan_inputs")
    states = len(scan.inputs) - sequences
    axes = attribute(scan, "scan_input_axes", [0] * sequences)
    placed = attribute(scan, "scan_output_axes", [0] * (len(scan.outputs) - states))
    emit = Emitter(scan)
    turns = list(map(_turn, scan.outputs[states:], placed))
    given = list(map(_unturned, scan.inputs[states:], axes))
    kept = {*scan.inputs[:states], *(value for value, _ in given)}
    before = _before(scan, kept)
    chains = [_chain(scan, before, *each) for each in given]
    (sequence, axis), made = given[0], chains[0]
    length = emit("Shape", [_data(made[-1]) if made else sequence], INT64, [1], **_one(axis))
    alone = emit("Equal", [length, emit.constant([1])], BOOL, [1])
    once = _once(graph, scan, given, chains, list(map(_place, placed, turns)))
    wanted = [
        *scan.outputs[:states],
        *(
            value if turn is None else turn.outputs[0]
            for value, turn in zip(scan.outputs[states:], turns, strict=True)
        ),
    ]
    for mine, value in zip(once.outputs, wanted, strict=True):
        mine.type = value.type
    shapes = [(value.dtype, dims(value)) for value in wanted]
    found = emit.node("If", [alone], shapes, {"then_branch": once})
    for old, new in zip(wanted, found, strict=True):
        replace_uses(old, new)
    alone_here = dict.fromkeys([*chain(*chains), *before])
    inside = [node for node in graph if node in alone_here]
    inside += [scan, *(turn for turn in turns if turn is not None)]
    graph.remove(inside)
    imports = dict(graph.opset_imports)
    many = ir.Graph([], wanted, nodes=inside, opset_imports=imports, name="many")
    choice = found[0].producer()
    assert choice is not None
    choice.attributes.add(ir.AttrGraph("else_branch", many))


def _once(
    graph: ir.Graph,
    scan: ir.Node,
    given: Sequence[tuple[ir.Value | None, int]],
    chains: Sequence[Sequence[ir.Node]],
    placed: Sequence[int],
) -> ir.Graph:
    """The body as a graph of its own, on the states and the only entry of each sequence.

    `given` are the sequences with their axes of time, `chains` what computes them and may leave
    that axis out, the last node first; `placed` is where the results have it.
    """
    body = scan.attributes["body"].as_graph().clone(allow_outer_scope_values=True)
    states = len(scan.inputs) - len(given)
    first: dict[tuple[ir.Value | None, int], list[ir.Node]] = {}
    entries = [
        _entry(first, value, axis, nodes)
        for (value, axis), nodes in zip(given, chains, strict=True)
    ]
    for inner, outer in zip(list(body.inputs), [*scan.inputs[:states], *entries], strict=True):
        assert outer is not None
        ir.convenience.replace_all_uses_with(inner, outer, replace_graph_outputs=True)
    computed, outputs = list(body), list(body.outputs)
    body.outputs.clear()
    body.remove(computed)
    last = [[ir.node("Identity", [value])] for value in outputs[:states]]
    last += map(_moved, ["Unsqueeze"] * len(placed), outputs[states:], placed)
    nodes = [*chain(*first.values()), *computed, *chain(*last)]
    for index, node in enumerate(nodes):
        node.name = f"{scan.name}/one/{node.op_type}_{index}"
        node.metadata_props.update({**scan.metadata_props, **node.metadata_props})
        for place, value in enumerate(node.outputs):
            value.name = f"{node.name}.{place}"
    results = [each[-1].outputs[0] for each in last]
    imports = dict(graph.opset_imports)
    return ir.Graph([], results, nodes=nodes, opset_imports=imports, name="one")


def _one(axis: int) -> dict[str, int]:
    """The part of a shape that is one axis, which may be counted from the end."""
    return {"start": axis} if axis == -1 else {"start": axis, "end": axis + 1}


def _entry(
    made: dict[tuple[ir.Value | None, int], list[ir.Node]],
    value: ir.Value | None,
    axis: int,
    nodes: Sequence[ir.Node],
) -> ir.Value:
    """The only entry of a sequence along an axis; `made` are the nodes so far, by results."""
    if (value, axis) not in made:
        if not nodes:
            made[value, axis] = _moved("Squeeze", value, axis)
        else:
            node, *others = nodes
            data = _data(node)
            lower = _entry(made, data, axis, others)
            inputs = [lower if each is data else each for each in node.inputs]
            made[value, axis] = [ir.node(node.op_type, inputs)]
    return made[value, axis][-1].outputs[0]


def _chain(
    scan: ir.Node, before: Sequence[ir.Node], value: ir.Value | None, axis: int
) -> list[ir.Node]:
    """Products with weights and sums that only the loop reads, the last first.

    They are as well computed without the axis of time, which fewer nodes do.
    """
    found: list[ir.Node] = []
    while value is not None and (node := value.producer()) is not None:
        readers = {use.node for use in value.uses()}
        shape = dims(value)
        if value.is_graph_output() or not readers <= {scan, *before, *found} or shape is None:
            break
        data = _data(node)
        rank = len(shape)
        if data is None or not 0 <= axis < rank - 1 or len(dims(data) or ()) != rank:
            break
        others = [len(dims(each) or ()) for each in node.inputs if each is not data and each]
        if node.op_type == "MatMul" and others != [2]:
            break
        if node.op_type == "Add" and not all(other < rank - axis for other in others):
            break
        found.append(node)
        value = data
    return found


def _data(node: ir.Node) -> ir.Value | None:
    """What a product with a weight, or a sum with one, takes beside it."""
    if node.domain or node.op_type not in ("MatMul", "Add"):
        return None
    a, b = node.inputs
    if _is_weight(b) and not _is_weight(a):
        return a
    return b if node.op_type == "Add" and _is_weight(a) and not _is_weight(b) else None


def _is_weight(value: ir.Value | None) -> bool:
    turn = producer(value, "Transpose")
    value = value if turn is None else turn.inputs[0]
    return value is not None and value.is_initializer() and dims(value) is not None


def _moved(op: str, value: ir.Value | None, axis: int) -> list[ir.Node]:
    """An axis of one entry left out, or put in, behind the number of it."""
    number = ir.node("Constant", [], {"value": ir.tensor(np.array([axis]))})
    number.outputs[0].type = ir.TensorType(INT64)
    return [number, ir.node(op, [value, number.outputs[0]])]


def _turn(value: ir.Value, axis: int) -> ir.Node | None:
    """The Transpose that alone reads a result of the loop, if it moves no axis but `axis`."""
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output() or readers[0].graph is not value.graph:
        return None
    turn = producer(readers[0].outputs[0], "Transpose")
    return turn if turn is not None and _keeps_rest(turn, axis) else None


def _unturned(value: ir.Value | None, axis: int) -> tuple[ir.Value | None, int]:
    """The same sequence before a Transpose that moves no axis but `axis`, and its axis there."""
    turn = producer(value, "Transpose")
    perm = attribute(turn, "perm") if turn is not None else None
    if turn is None or perm is None or not _keeps_rest(turn, perm[axis]):
        return value, axis
    return turn.inputs[0], perm[axis]


def _before(scan: ir.Node, kept: Container[ir.Value | None]) -> list[ir.Node]:
    """The Transposes that only the loop reads: nothing takes a node out that a branch left over.

    Not those whose results, among `kept`, the body reads as well: of states, and of more than time.
    """
    made = dict.fromkeys(producer(value, "Transpose") for value in scan.inputs)
    return [
        turn
        for turn in made
        if turn is not None
        and turn.outputs[0] not in kept
        and not turn.outputs[0].is_graph_output()
        and all(use.node is scan for use in turn.outputs[0].uses())
    ]


def _place(axis: int, turn: ir.Node | None) -> int:
    """Where an axis of a result is behind a Transpose."""
    if turn is None:
        return axis
    perm = list(attribute(turn, "perm"))
    return perm.index(axis % len(perm))


def _keeps_rest(turn: ir.Node, axis: int) -> bool:
    """Whether a Transpose keeps the order of the axes of what it takes, but for one."""
    perm = attribute(turn, "perm")
    if perm is None:
        return False
    rest = [each for each in perm if each != axis % len(perm)]
    return rest == sorted(rest)
