"""Attention that a mask multiplies by 0 for every token of a call -> a branch that is not taken.

    y = h m   ->   y = if any(active): h m  else: 0

where m is 0 wherever the truth value `active` is false, as a weight times a mask is, and what
computes h is read by nothing else.  A router that lets few tokens attend (SeqBoat, Ren et al. 2023,
arXiv:2306.11197) so costs a step of one row what its token needs; a call of several rows or tokens
computes h as soon as one of them is active.  States are written outside of the branch, whichever is
taken.  Of an h that is infinite the product would have made nan; the branch makes 0.  A mask that
weights have no part in, as one of padding, is no choice of the model's and is left as it is.
"""

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, constant, describe, dims, replace_uses

BOOL, INT32, INT64 = ir.DataType.BOOL, ir.DataType.INT32, ir.DataType.INT64
PRODUCTS = ("MatMul", "Gemm")  # of few bits too
MOVERS = ("Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze")


class OrtConditional(Lower):
    """Skip attention in calls that let nothing of it through."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Put what is masked into branches, product by product."""
        notes = []
        for node in [each for each in model.graph if each.op_type == "Mul" and not each.domain]:
            for value, gate in _factors(node):
                active, branch = _vanishing(gate), _alone(node, value)
                heavy = any(each.op_type == "Attention" and not each.domain for each in branch)
                sizes = _sizes(node, gate)
                if active is None or not heavy or sizes is None or not _chosen(active):
                    continue
                _branch(model.graph, node, branch, active, sizes)
                notes.append(describe(node))
                break
        return PassResult(changed=bool(notes), notes=notes)


def _factors(node: ir.Node) -> Iterator[tuple[ir.Value, ir.Value]]:
    a, b = node.inputs
    if a is not None and b is not None:
        yield from ((a, b), (b, a))


def _vanishing(gate: ir.Value | None) -> ir.Value | None:
    """The truth values of which `gate` is 0 everywhere if all are false; None if there are none."""
    node = None if gate is None else gate.producer()
    if node is None or node.domain:
        return None
    first = node.inputs[0] if node.inputs else None
    if node.op_type == "Cast":
        data = first is not None and first.dtype == BOOL and constant(first) is None
        return first if data else None
    if node.op_type in MOVERS:
        return _vanishing(first)
    if node.op_type == "Mul":
        return _vanishing(first) or _vanishing(node.inputs[1])
    return None


def _chosen(active: ir.Value) -> bool:
    """Whether a product with weights decides what is active."""
    seen: set[ir.Node] = set()
    waiting: list[ir.Value | None] = [active]
    while waiting:
        value = waiting.pop()
        node = None if value is None else value.producer()
        if node is None or node in seen:
            continue
        if node.op_type.startswith(PRODUCTS):
            return True
        seen.add(node)
        waiting += node.inputs
    return False


def _alone(node: ir.Node, value: ir.Value) -> list[ir.Node]:
    """What computes `value` and nothing else but for `node`, in the order of the graph."""
    inside: dict[ir.Node, None] = {}
    waiting = [value]
    while waiting:
        found = waiting.pop().producer()
        if found is None or found in inside or found.graph is not node.graph:
            continue
        readers = {use.node for result in found.outputs for use in result.uses()}
        told = any(result.is_graph_output() for result in found.outputs)
        if told or not all(reader is node or reader in inside for reader in readers):
            continue  # seen again from its last reader, if that is inside
        inside[found] = None
        waiting += [each for each in found.inputs if each is not None]
    assert node.graph is not None
    return [each for each in node.graph if each in inside]


def _sizes(node: ir.Node, gate: ir.Value) -> list[int] | None:
    """The shape of the product, -1 - axis of `gate` where that tells a free dimension."""
    shape, known = dims(node.outputs[0]), dims(gate)
    if shape is None or known is None or node.outputs[0].dtype is None:
        return None
    found = []
    for dim in shape:
        if not isinstance(dim, int) and (dim == "?" or dim not in known):
            return None
        found.append(dim if isinstance(dim, int) else -1 - known.index(dim))
    return found


def _branch(
    graph: ir.Graph,
    node: ir.Node,
    branch: list[ir.Node],
    active: ir.Value,
    sizes: list[int],
) -> None:
    """Put `branch` and the product into one of two graphs, and zeros into the other."""
    result, gate = node.outputs[0], next(x for x in node.inputs if x not in _results(branch))
    emit = Emitter(node)
    count = emit("ReduceSum", [emit("Cast", [active], INT32, dims(active), to=INT32)], INT32, [],
                 keepdims=0)  # fmt: skip
    taken = emit("Greater", [count, emit.constant(np.int32(0), np.int32)], BOOL, [])
    product = ir.Value(name=f"{result.name}.taken", type=result.type, shape=result.shape)
    zeros = ir.Value(name=f"{result.name}.skipped", type=result.type, shape=result.shape)
    imports = dict(graph.opset_imports)
    graph.remove(branch)
    last = ir.node("Mul", list(node.inputs), outputs=[product], name=f"{node.name}.taken")
    last.metadata_props.update(node.metadata_props)
    computed = ir.Graph([], [product], nodes=[*branch, last], opset_imports=imports, name="taken")
    assert gate is not None
    skipped = ir.Graph(
        [], [zeros], nodes=_zeros(zeros, gate, sizes), opset_imports=imports, name="skipped"
    )
    branches = {"then_branch": computed, "else_branch": skipped}
    (chosen,) = emit.node("If", [taken], [(result.dtype, dims(result))], branches)
    replace_uses(result, chosen)
    graph.remove(node, safe=True)


def _results(branch: list[ir.Node]) -> set[ir.Value]:
    return {value for node in branch for value in node.outputs}


def _zeros(result: ir.Value, gate: ir.Value, sizes: list[int]) -> list[ir.Node]:
    """Nodes that make zeros of the shape of the product."""
    nodes, parts = [], []
    for axis, size in enumerate(sizes):
        name = f"{result.name}.{axis}"
        if size < 0:
            at = -1 - size
            part = ir.node("Shape", [gate], {"start": at, "end": at + 1}, name=name)
        else:
            part = ir.node("Constant", [], {"value": ir.tensor(np.array([size]))}, name=name)
        part.outputs[0].name = name
        part.outputs[0].type = ir.TensorType(INT64)
        part.outputs[0].shape = ir.Shape([1])
        nodes.append(part)
        parts.append(part.outputs[0])
    shape = ir.node("Concat", parts, {"axis": 0}, name=f"{result.name}.shape")
    shape.outputs[0].name = f"{result.name}.shape"
    assert result.dtype is not None
    zero = ir.tensor(np.zeros(1, result.dtype.numpy()))
    filled = ir.node("ConstantOfShape", shape.outputs, {"value": zero}, outputs=[result])
    filled.name = result.name
    return [*nodes, shape, filled]
