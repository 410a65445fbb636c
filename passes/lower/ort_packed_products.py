"""Products of one input with several weights -> one product, cut apart.

    x A^T, x B^T, x C^T  ->  split(x [A; B; C]^T)

The query, key and value projections of attention, the gate and up projections of a gated
feed-forward, and whatever else a layer projects its input to.  A step of one token spends on each
product a call and a wait of all threads.  Weights are stacked by rows, as PyTorch holds them, so
that in a bundle the stack is the same bytes as its parts, one after the other.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from intaglio.graph_keys import MODULE
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    dims,
    module_of,
    note_parts,
    producer,
    replace_uses,
)

LEAST = 1024  # bytes below which a weight stands inside the graph and not beside others


class OrtPackedProducts(Lower):
    """Multiply an input by all weights that it meets at once."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Pack products of the same input whose weights nobody else takes."""
        groups: dict[ir.Value, list[ir.Node]] = {}
        for node in model.graph:
            x = _input(node)
            if x is not None:
                groups.setdefault(x, []).append(node)
        notes = []
        for x, nodes in groups.items():
            if len(nodes) > 1:
                notes.append(", ".join(module_of(node) or "the model" for node in nodes))
                _pack(x, nodes)
        return PassResult(changed=bool(notes), notes=notes)


def _input(node: ir.Node) -> ir.Value | None:
    """What `node` multiplies by a transposed weight that it alone takes, if it does that."""
    if node.op_type != "MatMul" or node.domain or node.outputs[0].is_graph_output():
        return None
    turned, x = producer(node.inputs[1], "Transpose"), node.inputs[0]
    weight = turned.inputs[0] if turned else None
    tensor = weight.const_value if weight is not None and weight.is_initializer() else None
    if turned is None or weight is None or tensor is None or len(tensor.shape) != 2:
        return None
    if attribute(turned, "perm") not in (None, [1, 0], (1, 0)) or tensor.nbytes < LEAST:
        return None
    alone = len(weight.uses()) == 1 and len(turned.outputs[0].uses()) == 1
    known = x is not None and dims(x) is not None and x.dtype == tensor.dtype
    return x if alone and known else None


def _pack(x: ir.Value, nodes: Sequence[ir.Node]) -> None:
    first, graph = nodes[0], nodes[0].graph
    assert isinstance(graph, ir.Graph)
    turned = [producer(node.inputs[1], "Transpose") for node in nodes]
    weights = [node.inputs[0] for node in turned if node is not None]
    stack = _stack([weight for weight in weights if weight is not None], graph)
    rows, K = (int(size) for size in (dims(stack) or ()))
    emit, shape = Emitter(first), list(dims(x) or ())[:-1]
    weight = emit("Transpose", [stack], x.dtype, [K, rows], perm=[1, 0])
    y = emit("MatMul", [x, weight], x.dtype, [*shape, rows])
    counts = [int((dims(node.outputs[0]) or ())[-1]) for node in nodes]
    outputs = [(x.dtype, [*shape, count]) for count in counts]
    parts = emit.node("Split", [y, emit.constant(counts)], outputs, {"axis": len(shape)})
    for made in (weight, y, *parts):
        made.producer().metadata_props[MODULE] = _parent(nodes)  # type: ignore[union-attr]
    for node, part in zip(nodes, parts, strict=True):
        replace_uses(node.outputs[0], part)
    graph.remove(nodes, safe=True)
    graph.remove([node for node in turned if node is not None], safe=True)


def _stack(weights: Sequence[ir.Value], graph: ir.Graph) -> ir.Value:
    """The initializer of all `weights`, one above the other; it is put together when asked for."""
    tensors = [weight.const_value for weight in weights]
    name = "|".join(str(weight.name) for weight in weights)
    rows = sum(int((dims(weight) or ())[0]) for weight in weights)
    shape = ir.Shape([rows, int((dims(weights[0]) or ())[1])])

    def stacked() -> ir.TensorProtocol:
        return ir.tensor(np.concatenate([t.numpy() for t in tensors if t is not None]), name=name)

    dtype = weights[0].dtype
    assert dtype is not None
    tensor = ir.LazyTensor(stacked, dtype, shape, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=shape, const_value=tensor)
    note_parts(value, {str(weight.name): dims(weight) for weight in weights})
    graph.register_initializer(value)
    return value


def _parent(nodes: Sequence[ir.Node]) -> str:
    """The innermost module that holds those of all `nodes`."""
    paths = [module_of(node).split(".") for node in nodes]
    common = []
    for steps in zip(*paths, strict=False):
        if len(set(steps)) > 1:
            break
        common.append(steps[0])
    return ".".join(common)
