"""Mixed precision for TensorRT: what is worth it in 16 bits, the rest in 32.

A network of TensorRT computes in the dtypes that its graph says.  As PyTorch's autocast does, the
pass takes products, attention, convolutions and recurrences in fp16, and leaves norms, gates,
position tables and the residual stream in fp32; what only moves numbers, like Reshape or Gather
in a table of weights, keeps the dtype that it is given.  Key-value and convolution caches become
fp16; recurrent states stay fp32, which the kernels accumulate in, but for those of LSTM, GRU and
RNN: TensorRT's loops carry them in the dtype of their inputs, and a step casts them at its edges.
Inputs and outputs keep their dtypes.  What of an operator follows the activations, its signature
says, and whether its steps may enlarge what was rounded: all that it is computed from is in fp32.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import (
    add_initializer,
    attributes_of,
    constant,
    dims,
    input_of,
    producer,
    signature_of,
    subgraphs,
    taken,
    type_of,
)
from intaglio.passes.own_ops import input_names
from intaglio.signature import ACTIVATIONS, Signature

FULL, HALF = ir.DataType.FLOAT, ir.DataType.FLOAT16
LARGEST = float(np.finfo(np.float16).max)

# Inputs and outputs that become fp16, of operators that no signature declares.
Places = tuple[int, ...]
HALVED: dict[str, tuple[Places, Places]] = {
    "MatMul": ((0, 1), (0,)),
    "Gemm": ((0, 1, 2), (0,)),
    "Conv": ((0, 1, 2), (0,)),
}
# Operators that move the numbers of one input, and all that move any.
MOVES_ONE = frozenset("Expand Flatten Identity Reshape Slice Squeeze Transpose Unsqueeze".split())
MOVES = MOVES_ONE | {"Concat", "Gather", "Split", "TensorScatter"}


AGNOSTIC = frozenset(("Cast", "Shape", "Size"))  # take any dtype, and give what does not depend


class TrtHalf(Lower):
    """Compute products, attention, convolutions and recurrences in fp16."""

    def run(self, model: ir.Model, context: Context) -> PassResult:
        """Change dtypes, with casts where they meet.

        Raises:
            PassError: if fp16 does not hold a weight.
        """
        graph, casts = model.graph, _Casts(model.graph)
        caches = [spec for spec in context.states if spec.stored_in("float16") != spec]
        inputs = {value.name: value for value in graph.inputs}
        for spec in caches:
            inputs[spec.input].type = ir.TensorType(HALF)
        kept = _amplified(graph)
        halved = {node for node in list(graph) if node not in kept and _halve(model, node, casts)}
        for node in list(graph.all_nodes()):  # bodies of loops as well, which capture values
            if node in halved or node in casts.nodes or node.op_type in AGNOSTIC:
                continue
            for index, value in enumerate(node.inputs):
                if value is not None and value.dtype is HALF:
                    node.replace_input_with(index, casts.full(value))
        for index, value in enumerate(graph.outputs):
            wanted = HALF if value.name in {spec.output for spec in caches} else FULL
            if value.dtype in (FULL, HALF) and value.dtype is not wanted:
                casts.output(index, wanted)
        return PassResult(
            changed=True,
            details={"fp16": len(halved), "casts": casts.count, "caches": len(caches)},
        )


def _amplified(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that enlarge roundings from step to step, or hold one, and all that these need."""
    found: set[ir.Node] = set()
    waiting = [node for node in graph if any(map(_amplifies, (node, *_within(node))))]
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            makers = (value.producer() for value in taken(node))
            waiting += [maker for maker in makers if maker is not None]
    return found


def _amplifies(node: ir.Node) -> bool:
    signature = signature_of(node)
    return signature is not None and signature.amplifies


def _within(node: ir.Node) -> list[ir.Node]:
    return [inner for graph in subgraphs(node) for inner in graph.all_nodes()]


def _halve(model: ir.Model, node: ir.Node, casts: "_Casts") -> bool:
    """Compute a node in fp16, if that is worth it, or what it moves is in fp16."""
    inputs, outputs = tuple(range(len(node.inputs))), tuple(range(len(node.outputs)))
    if node.op_type in MOVES and not node.domain:
        if not any(_moved_in_half(node, node.inputs[index]) for index in inputs):
            return False
    elif type_of(node) in HALVED:
        inputs, outputs = HALVED[node.op_type]
    elif (signature := signature_of(node)) is not None:
        inputs, outputs = _activations(signature, input_names(model, node))
    else:
        return False
    for index in inputs:
        value = input_of(node, index)
        if value is not None and value.dtype is FULL:
            node.replace_input_with(index, casts.half(value))
    for index in outputs:
        if index < len(node.outputs) and node.outputs[index].dtype is FULL:
            node.outputs[index].type = ir.TensorType(HALF)
    return True


def _activations(signature: Signature, names: Sequence[str]) -> tuple[Places, Places]:
    """Inputs, called `names`, and outputs of the dtype of the activations."""
    kinds = {formal.name: formal.dtype for formal in signature.inputs}
    inputs = (i for i, name in enumerate(names) if kinds.get(name) == ACTIVATIONS)
    outputs = (i for i, each in enumerate(signature.outputs) if each.dtype == ACTIVATIONS)
    return tuple(inputs), tuple(outputs)


def _moved_in_half(node: ir.Node, value: ir.Value | None) -> bool:
    """Whether a value is in fp16, or a table of weights that rows are taken of."""
    if value is None:
        return False
    table = node.op_type == "Gather" and value is node.inputs[0] and value.is_initializer()
    return value.dtype is HALF or (table and value.dtype is FULL and len(dims(value) or ()) > 1)


class _Casts:
    """Values in the other precision, each cast once, where it is made.

    Attributes:
        count: casts that were added.
        nodes: movers that were added, which move in fp16.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._made: dict[ir.Value, ir.Value] = {}
        self.count = 0
        self.nodes: set[ir.Node] = set()

    def half(self, value: ir.Value) -> ir.Value:
        """The value in fp16: a weight is written anew, and what was moved, moved in fp16."""
        if value not in self._made:
            mover = producer(value, *MOVES_ONE)
            if value.is_initializer():
                made = self._weight(value)
            elif mover is not None and mover.inputs[0] is not None:
                made = self._moved(mover, self.half(mover.inputs[0]))
            else:
                made = self._cast(value, HALF)
            self._made[value] = made
        return self._made[value]

    def full(self, value: ir.Value) -> ir.Value:
        """The value in fp32."""
        if value not in self._made:
            self._made[value] = self._cast(value, FULL)
        return self._made[value]

    def output(self, index: int, dtype: ir.DataType) -> None:
        """Give an output of the graph another dtype under its name."""
        value = self._graph.outputs[index]
        name = value.name
        value.name = f"{name}.before"
        self._graph.outputs[index] = cast = self._cast(value, dtype)
        cast.name = name

    def _weight(self, value: ir.Value) -> ir.Value:
        array = constant(value)
        assert array is not None
        largest = float(np.abs(array).max(initial=0.0))
        if largest > LARGEST:
            raise PassError(
                f"{value.name} has an entry of {largest:.3g}, and fp16 holds none above "
                f"{LARGEST:.5g}. Export with --dtype fp32."
            )
        return add_initializer(
            self._graph, f"{value.name}.half", array.astype(np.float16), of=[str(value.name)]
        )

    def _moved(self, mover: ir.Node, half: ir.Value) -> ir.Value:
        """The output of `mover` with `half` in place of what it moves."""
        old = mover.outputs[0]
        made = ir.Value(name=f"{old.name}.half", type=ir.TensorType(HALF), shape=old.shape)
        node = ir.node(
            mover.op_type,
            [half, *mover.inputs[1:]],
            attributes_of(mover),
            outputs=[made],
            name=f"{mover.name}.half",
        )
        node.metadata_props.update(mover.metadata_props)
        self._graph.insert_after(mover, node)
        self.nodes.add(node)
        return made

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        word = "half" if dtype is HALF else "full"
        made = ir.Value(name=f"{value.name}.{word}", type=ir.TensorType(dtype), shape=value.shape)
        node = ir.node(
            "Cast", [value], {"to": int(dtype)}, outputs=[made], name=f"{value.name}/Cast.{word}"
        )
        maker = value.producer()
        if maker is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            node.metadata_props.update(maker.metadata_props)
            self._graph.insert_after(maker, node)
        self.count += 1
        return made
