"""f(x) -> Cast(f(Cast(x))), where ONNX Runtime has no kernel for values of the type of x.

Its CPU kernels leave out, among types that operators may have, Where of booleans, a few operators
of small integers, and nearly all of bfloat16.  A wider type holds every value of the narrower one,
and what comes back is one of those or, of bfloat16, rounded once, as PyTorch rounds it.
A choice between booleans is logic: Where(c, a, b) is (c and a) or (not c and b).
Found by trying each operator with each type in ONNX Runtime 1.32.
"""

import onnx_ir as ir

from intaglio.passes.analysis.known_shapes import broadcast
from intaglio.passes.base import Exact, PassResult
from intaglio.passes.graph import Emitter, describe, dims, replace_uses

Kind = ir.DataType

MOVES = frozenset(
    "Cast CastLike Concat Constant Gather GatherElements GatherND Identity Reshape ScatterElements "
    "ScatterND Shape Size Slice Squeeze Transpose Unsqueeze Flatten Split IsNaN IsInf "
    "LayerNormalization DequantizeLinear QuantizeLinear If Loop Scan".split()
)
"""What there is of bfloat16; of other operators some have it at some opsets alone."""
SHORT = frozenset("ArgMax ArgMin Clip Max Min NonZero Pad ReduceMax ReduceMin Relu Where".split())
LACKING: dict[ir.DataType, tuple[frozenset[str], ir.DataType]] = {
    Kind.INT8: (frozenset(("NonZero", "Trilu")), Kind.INT32),
    Kind.INT16: (SHORT | {"Trilu"}, Kind.INT32),
    Kind.UINT8: (frozenset(("Trilu",)), Kind.INT32),
}


class WidenKinds(Exact):
    """Compute in types of values that ONNX Runtime has kernels for."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Put casts around each node that has none for its own types."""
        notes = []
        for node in list(model.graph.all_nodes()):
            wider = _wider(node)
            if _chooses_booleans(node):
                _write_logic(node)
                notes.append(describe(node))
            elif wider:
                _widen(node, *wider)
                notes.append(describe(node))
        return PassResult(changed=bool(notes), notes=notes)


def _chooses_booleans(node: ir.Node) -> bool:
    return (
        node.op_type == "Where"
        and not node.domain
        and isinstance(node.graph, ir.Graph)
        and all(value is not None and value.dtype == Kind.BOOL for value in node.inputs)
    )


def _write_logic(node: ir.Node) -> None:
    emit, (choice, first, second) = Emitter(node), node.inputs

    def logic(op: str, *of: ir.Value | None) -> ir.Value:
        shapes = [shape for value in of if value and (shape := dims(value)) is not None]
        known = len(shapes) == len(of)
        return emit(op, list(of), Kind.BOOL, broadcast(shapes) if known else None)

    other = logic("And", logic("Not", choice), second)
    replace_uses(node.outputs[0], logic("Or", logic("And", choice, first), other))
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)


def _wider(node: ir.Node) -> tuple[ir.DataType, ir.DataType] | None:
    """The type of values to leave, and the one to compute in."""
    if node.domain or not isinstance(node.graph, ir.Graph):
        return None
    data = [value.dtype for value in _data(node) if value.dtype is not None]
    if Kind.BFLOAT16 in (*data, *(value.dtype for value in node.outputs)):
        return None if node.op_type in MOVES else (Kind.BFLOAT16, Kind.FLOAT)
    found = LACKING.get(data[0]) if data else None
    return None if found is None or node.op_type not in found[0] else (data[0], found[1])


def _data(node: ir.Node) -> list[ir.Value]:
    """What is computed with: no condition of a Where."""
    given = node.inputs[1:] if node.op_type == "Where" else node.inputs
    return [value for value in given if value is not None]


def _widen(node: ir.Node, kind: ir.DataType, wide: ir.DataType) -> None:
    emit = Emitter(node)
    data, known = _data(node), dict[ir.Value, ir.Value]()
    for value in data:
        if value.dtype == kind and value not in known:
            known[value] = emit("Cast", [value], wide, dims(value), to=wide)
    given = [known.get(v, v) if v is not None and v in data else v for v in node.inputs]
    if node.op_type == "Where":
        given[0] = node.inputs[0]
    kinds = [(wide if v.dtype == kind else v.dtype, dims(v)) for v in node.outputs]
    made = emit.node(node.op_type, given, kinds, {}, node.domain)
    new = made[0].producer()
    assert new is not None
    new.attributes.update(node.attributes)
    for old, value in zip(node.outputs, made, strict=True):
        narrow = emit("Cast", [value], kind, dims(old), to=kind) if old.dtype == kind else value
        replace_uses(old, narrow)
    assert isinstance(node.graph, ir.Graph)
    node.graph.remove(node, safe=True)
