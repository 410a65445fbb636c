"""How strictly a graph can be held to its source: what rounds on the way to each output and state.

A graph in float32 differs from its source by the order of sums alone.  Where values of few bits are
computed with, more is lost, and only what is computed from those is granted it.  All of it follows
from the graph that runs; what a manifest says of it plays no part.
"""

from collections.abc import Iterator, Mapping, Sequence

import onnx_ir as ir

from intaglio.passes.analysis.loop_ends import told
from intaglio.state import StateSpec

EXACT = 1e-4
TOLD = 1.0
"""Of what only tells how a loop ended: a residual below its tolerance is of the same size."""
INT8 = 2e-2
"""Where activations are rounded to 8 bits.  On random tokens that makes more of trained models, and
of recurrent ones much more; two parts of 8 bits stay far below."""
HALF: Mapping[ir.DataType, float] = {ir.DataType.FLOAT16: 2e-2, ir.DataType.BFLOAT16: 5e-2}
INT8_LEVEL = 4  # of MatMulNBits: activations in 8 bits


def limits_of(
    graph: ir.Graph, states: Sequence[StateSpec], prepare: ir.Graph | None = None
) -> dict[str, float]:
    """The limit of each output of a graph by name, and of each state by the name of its input.

    What a step leaves in a state the next one computes with; what `prepare` makes of conditions,
    every step does.
    """
    found = {} if prepare is None else limits_of(prepare, ())
    for value in graph.inputs:
        name = str(value.name)
        found[name] = max(found.get(name, EXACT), _of_dtype(value.dtype))
    found |= {
        name: HALF.get(value.const_value.dtype, EXACT)
        for name, value in graph.initializers.items()
        if value.const_value is not None
    }
    carried = {spec.output: spec.input for spec in states if spec.output}
    while True:
        for node in graph:
            limit = max((found.get(name, EXACT) for name in _taken(node)), default=EXACT)
            limit = max(limit, _own(node))
            found |= {str(value.name): limit for value in node.outputs if value.name}
        grown = {
            source: found[output]
            for output, source in carried.items()
            if found.get(output, EXACT) > found.get(source, EXACT)
        }
        if not grown:
            break
        found |= grown
    found |= dict.fromkeys(told(graph), TOLD)
    names = [str(value.name) for value in graph.outputs]
    names += [spec.input for spec in states if not spec.output]
    return {carried.get(name, name): found.get(name, EXACT) for name in names}


def _of_dtype(dtype: ir.DataType | None) -> float:
    return EXACT if dtype is None else HALF.get(dtype, EXACT)


def rounds_activations(graph: ir.Graph) -> bool:
    """Whether products with weights of few bits round what they are given to 8 bits."""
    return any(map(_rounds, graph.all_nodes()))


def _rounds(node: ir.Node) -> bool:
    level = node.attributes.get_int("accuracy_level", 0)
    return node.op_type == "MatMulNBits" and level == INT8_LEVEL


def _own(node: ir.Node) -> float:
    """The limit that a node brings, or one within it."""
    limits = [INT8 if _rounds(node) else EXACT]
    limits += [HALF.get(value.dtype, EXACT) for value in node.outputs if value.dtype is not None]
    if node.op_type == "Cast":
        limits.append(HALF.get(ir.DataType(node.attributes.get_int("to", 1)), EXACT))
    for graph in _subgraphs(node):
        limits += [_own(inner) for inner in graph]
    return max(limits)


def _taken(node: ir.Node) -> Iterator[str]:
    """Names of the values that a node reads, those that its subgraphs take from outside as well."""
    yield from (str(value.name) for value in node.inputs if value is not None)
    for graph in _subgraphs(node):
        for inner in graph:
            yield from _taken(inner)


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()
