"""Numbers of 8 bits without sign, as pixels are, computed as TensorRT can: in int32.

TensorRT takes and gives uint8, casts it to floats and back, and knows it nowhere else.  What moves,
chooses or compares such numbers does the same with int32, and a cast to uint8 is one to int32 and
the remainder of a division by 256, which is where PyTorch's cast ends as well.
Arithmetic that would wrap around is left as it is, with all that it is computed with.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, replace_uses

BYTE, WIDE, FLOAT = ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.FLOAT
SAME = frozenset(
    "ArgMax ArgMin Cast Concat Constant ConstantOfShape Equal Expand Flatten Gather GatherElements "
    "GatherND Greater GreaterOrEqual Identity Less LessOrEqual Max Min Pad ReduceMax ReduceMin "
    "Reshape Shape Size Slice Split Squeeze Tile Transpose Unsqueeze Where".split()
)
"""Operators that give the same for numbers of either type."""


class TrtBytes(Lower):
    """Compute numbers of 8 bits without sign in int32."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Widen each group of values that only operators of `SAME` lead from one to another."""
        graph, notes, seen = model.graph, [], set[ir.Value]()
        for node in list(graph):
            for value in _bytes_of(node):
                if value in seen:
                    continue
                nodes, values = _group(value)
                seen |= values
                inner = any(not each.is_graph_input() for each in values) or any(
                    each.op_type != "Cast" for each in nodes
                )
                if inner and all(_is_same(each, graph) for each in nodes):
                    _widen(graph, [each for each in graph if each in nodes], values)
                    notes += [describe(each) for each in nodes if each.graph is graph]
        return PassResult(changed=bool(notes), notes=notes)


def _bytes_of(node: ir.Node) -> Iterator[ir.Value]:
    for value in (*node.inputs, *node.outputs):
        if value is not None and value.dtype == BYTE:
            yield value


def _group(value: ir.Value) -> tuple[set[ir.Node], set[ir.Value]]:
    """The values of 8 bits that nodes link with `value`, and these nodes."""
    nodes, values, left = set[ir.Node](), {value}, [value]
    while left:
        each = left.pop()
        maker = each.producer()
        around = {use.node for use in each.uses()} | ({maker} if maker is not None else set())
        for node in around - nodes:
            nodes.add(node)
            new = set(_bytes_of(node)) - values
            values |= new
            left += new
    return nodes, values


def _is_same(node: ir.Node, graph: ir.Graph) -> bool:
    return node.graph is graph and not node.domain and node.op_type in SAME


def _widen(graph: ir.Graph, nodes: list[ir.Node], values: set[ir.Value]) -> None:
    for value in values:
        if value.is_graph_input():
            first = next(iter(graph))
            emit = Emitter(first, prefix=f"{value.name}/wide")
            plain = emit("Cast", [value], FLOAT, dims(value), to=FLOAT)
            uses = [use for use in value.uses() if use.node is not plain.producer()]
            wide = emit("Cast", [plain], WIDE, dims(value), to=WIDE)
            for node, index in uses:
                node.replace_input_with(index, wide)
        elif value.is_initializer():
            _widen_constant(value)
    for node in nodes:
        if node.op_type in ("Constant", "ConstantOfShape") and node.outputs[0] in values:
            held = attribute(node, "value")
            wide_held = ir.tensor(held.numpy().astype(np.int32), name=held.name)
            node.attributes["value"] = ir.AttrTensor("value", wide_held)
            if node.outputs[0].const_value is not None:
                node.outputs[0].const_value = wide_held
        for output in node.outputs:
            if output not in values:
                continue
            output.type = ir.TensorType(WIDE)
            if output.is_graph_output():
                _narrow(graph, output)
            if node.op_type == "Cast":
                _wrap(node, output)


def _widen_constant(value: ir.Value) -> None:
    assert value.const_value is not None
    value.const_value = ir.tensor(value.const_value.numpy().astype(np.int32), name=value.name)
    value.type = ir.TensorType(WIDE)


def _wrap(node: ir.Node, output: ir.Value) -> None:
    """A cast to 8 bits: to int32, and what is left of that by 256."""
    given, emit = node.inputs[0], Emitter(node)
    if given is not None and given.dtype in (BYTE, ir.DataType.BOOL):
        node.attributes["to"] = ir.AttrInt64("to", WIDE)
        return
    whole = emit("Cast", [given], WIDE, dims(output), to=WIDE)
    left = emit("Mod", [whole, emit.constant(256, np.int32)], WIDE, dims(output))
    replace_uses(output, left)
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _narrow(graph: ir.Graph, output: ir.Value) -> None:
    """Give an output of the graph the type that it had, from int32 through floats."""
    maker = output.producer()
    assert maker is not None
    emit = Emitter(maker)
    plain = emit("Cast", [output], FLOAT, dims(output), to=FLOAT)
    given = emit("Cast", [plain], BYTE, dims(output), to=BYTE)
    for place, value in enumerate(graph.outputs):
        if value is output:
            graph.outputs[place] = given
    output.name, given.name = given.name, output.name
    casts = [value.producer() for value in (plain, given)]
    added = [cast for cast in casts if cast is not None]
    graph.remove(added)
    graph.insert_after(maker, added)
