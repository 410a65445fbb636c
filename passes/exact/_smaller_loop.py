"""A Scan over tokens of what cannot be computed of all of them at once."""

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from intaglio.passes.analysis.time_rules import ELEMENTWISE
from intaglio.passes.graph import Emitter, constant, dims, type_of
from intaglio.state import BATCH, TIME

from ._all_tokens import AllTokens, Lifted, UnliftedError, shape_of, turned
from ._loop_body import LoopBody, entries

FREE = ("Constant", "Identity")  # nodes that cost nothing
GROWS = ELEMENTWISE | {"Einsum", "Expand", "MatMul", "Unsqueeze"}


@dataclass(frozen=True)
class Loop:
    """What a smaller loop gives: values over all tokens, carried values after the last one."""

    over: dict[ir.Value, Lifted]
    finals: dict[int, ir.Value]
    nodes: int


def heavy(node: ir.Node | None) -> bool:
    """Whether what `node` gives is larger than what it takes, so that it stays in the loop."""
    if node is None or type_of(node) not in GROWS:
        return False
    return entries(node.outputs[0]) > sum(map(entries, node.inputs))


class _Inside:
    """Copies of the body's values in a new body, with an input for each that comes from outside."""

    def __init__(self, body: LoopBody, group: Sequence[int], tokens: AllTokens) -> None:
        self._body, self._own, self._tokens = body, body.within(group), tokens
        self.nodes: list[ir.Node] = []
        self.inputs: dict[ir.Value, ir.Value] = {}  # what is outside, and the input for it
        self.states = {body.states[index]: _like(body.states[index]) for index in group}
        self._made: dict[ir.Value, ir.Value] = dict(self.states)
        self._constants: dict[ir.Value, ir.Value] = {}

    def of(self, value: ir.Value) -> ir.Value:
        if value not in self._made:
            self._made[value] = self._make(value)
        return self._made[value]

    def _make(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        inner = node is not None and node.graph is self._body.graph
        if node is not None and inner and (value in self._own or heavy(node)):
            given = [None if x is None else self.of(x) for x in node.inputs]
            copies = [_like(old) for old in node.outputs]
            self._made.update(zip(node.outputs, copies, strict=True))
            self.nodes.append(
                ir.Node(
                    node.domain,
                    node.op_type,
                    given,
                    list(node.attributes.values()),
                    outputs=copies,
                    name=node.name,
                    metadata_props=dict(node.metadata_props),
                )
            )
            return self._made[value]
        if value.graph is self._body.graph and constant(value) is not None:
            array = constant(value)
            assert array is not None
            copy = _like(value)
            tensor = ir.tensor(array)
            self.nodes.insert(0, ir.node("Constant", [], {"value": tensor}, outputs=[copy]))
            return copy
        found = self._tokens.of(value)
        if not found.along:
            return found.value
        rows = shape_of(value)[:1] == (BATCH,)
        outer = found.value
        if rows:
            rank = len(dims(outer) or ())
            outer = turned(self._tokens.emit, outer, [1, 0, *range(2, rank)])
        if outer not in self.inputs:
            self.inputs[outer] = _like(value)
        return self.inputs[outer]


def _like(value: ir.Value) -> ir.Value:
    return ir.Value(name=value.name, type=value.type, shape=value.shape)


def smaller_loop(
    emit: Emitter, body: LoopBody, group: Sequence[int], cuts: Sequence[ir.Value], tokens: AllTokens
) -> Loop:
    """Emit a Scan that carries the states of `group` and gives `cuts` for each token.

    Raises:
        UnliftedError: what it takes from outside cannot be computed of all tokens at once.
    """
    inside = _Inside(body, group, tokens)
    following = [inside.of(body.following[index]) for index in group]
    given = [inside.of(value) for value in cuts]
    nodes = list(inside.nodes)
    results: list[ir.Value] = []
    for value in (*following, *given):  # each output of a body is a value of its own
        copy = ir.Value(name=f"{value.name}.{len(results)}", type=value.type, shape=value.shape)
        nodes.append(ir.node("Identity", [value], outputs=[copy]))
        results.append(copy)
    if not inside.inputs:
        raise UnliftedError
    graph = ir.Graph(
        [*(inside.states[body.states[index]] for index in group), *inside.inputs.values()],
        results,
        nodes=nodes,
        opset_imports=dict(body.graph.opset_imports),
        name=f"{body.graph.name}_{group[0]}",
    )
    _name_apart(graph)
    starts = [body.node.inputs[index] for index in group]
    looks = [(value.dtype, dims(value)) for value in following]
    looks += [(value.dtype, (TIME, *(dims(value) or ()))) for value in given]
    outputs = emit.node(
        "Scan",
        [*starts, *inside.inputs],
        looks,
        {
            "body": graph,
            "num_scan_inputs": len(inside.inputs),
        },
    )
    count = sum(node.op_type not in FREE for node in inside.nodes)
    over = {}
    for value, outer in zip(cuts, outputs[len(group) :], strict=True):
        rank = len(dims(outer) or ())
        rows = shape_of(value)[:1] == (BATCH,)
        lifted = turned(emit, outer, [1, 0, *range(2, rank)]) if rows else outer
        over[value] = Lifted(lifted, along=True)
    return Loop(over, dict(zip(group, outputs, strict=False)), count)


def _name_apart(graph: ir.Graph) -> None:
    """Names that occur once in a body."""
    for index, value in enumerate(graph.inputs):
        value.name = f"{graph.name}_in_{index}"
    for place, node in enumerate(graph):
        node.name = f"{graph.name}_{place}"
        for index, value in enumerate(node.outputs):
            value.name = f"{graph.name}_{place}_{index}"
