"""AffineLowBitMatMul -> the same in planes, which our plugin's kernels read; the rest in full.

The node keeps its name, which TensorRT's importer looks for among the plugins; its weight is
arranged anew, and its body reads that arrangement.  There are kernels for 2 bits.  Other weights
are written out: TensorRT has no operator for their float offsets, nor for Gather.
"""

from collections.abc import Iterator

import numpy as np
import onnx.parser
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.ops.low_bit_planes import Planes, body_of_planes, size_in_planes, to_planes
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    add_initializer,
    dims,
    input_of,
    module_of,
    replace_uses,
)
from intaglio.passes.low_bit import MATMUL, LowBitWeight, low_bit_nodes, weight_of
from intaglio.signature import DOMAIN

PLANES = "planes"  # how overloads that read planes begin


class TrtLowBit(Lower):
    """Arrange weights of 2 bits for our plugin; write the others out."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every MatMul and Gather with a weight of few bits."""
        written, arranged = [], 0
        for node in list(low_bit_nodes(model)):
            if (node.overload or "").startswith(PLANES):
                continue
            weight = weight_of(node)
            size = size_in_planes(weight.K, weight.bits, weight.group)
            if node.op_type == MATMUL and size is not None:
                _arrange(model, node, weight)
                arranged += 1
            else:
                _write_out(node, weight)
                written.append(f"{module_of(node)}: {weight.bits} bits, groups of {weight.group}")
        if arranged or written:
            common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return PassResult(
            changed=bool(arranged or written),
            notes=[f"{line}: written out for TensorRT." for line in written],
            details={"arranged": arranged, "written_out": len(written)},
            advice=list(_advice(written)),
        )


def _advice(written: list[str]) -> Iterator[str]:
    if written:
        yield (
            f"{len(written)} weights of few bits are written out for TensorRT, which takes their "
            "full size there: its kernels are for products of 2 bits in groups of 16 or more."
        )


def _arrange(model: ir.Model, node: ir.Node, weight: LowBitWeight) -> None:
    """Give a product the arrangement of its weight that kernels read, and a body that reads it."""
    name = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)
    planes = to_planes(weight.packed, weight.scale, weight.offset, K=weight.K, group=weight.group)
    bias = input_of(node, 4)
    for index, part in enumerate(("words", "scale", "offset"), start=1):
        array = getattr(planes, part)
        value = add_initializer(model.graph, f"{name}.{PLANES}.{part}", array, of=[name])
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, value)
    node.overload = _define(model, weight, planes, biased=bias is not None)
    node.version = None


def _define(model: ir.Model, weight: LowBitWeight, planes: Planes, *, biased: bool) -> str:
    """Add the function of a product in planes; return its overload."""
    inputs = ["input", "words", "scale", "offset", *(["bias"] if biased else [])]
    sizes = {"K": weight.K, "N": weight.rows, "bits": weight.bits, "group": weight.group}
    overload = "_".join([PLANES, *inputs[4:], *(f"{key}{size}" for key, size in sizes.items())])
    opset = model.opset_imports[""]
    head = f'<domain: "{DOMAIN}", opset_import: ["": {opset}], overload: "{overload}">'
    signature = f"{MATMUL} <{', '.join(sizes)}> ({', '.join(inputs)}) => (output)"
    body = body_of_planes(K=weight.K, size=planes.size, bias=biased)
    function = ir.serde.deserialize_function(
        onnx.parser.parse_function(f"{head} {signature} {{\n{body}\n}}")
    )
    model.functions[function.identifier()] = function
    return overload


def _write_out(node: ir.Node, weight: LowBitWeight) -> None:
    """Compute with the float weight instead."""
    emit, old, graph = Emitter(node), node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    name = str(node.inputs[1].name) if node.inputs[1] is not None else str(node.name)
    full = np.ascontiguousarray(weight.dequantize())
    if node.op_type == MATMUL:
        table = add_initializer(graph, f"{name}.full", full.T, of=[name])
        y = emit("MatMul", [node.inputs[0], table], old.dtype, dims(old))
        bias = input_of(node, 4)
        if bias is not None:
            y = emit("Add", [y, bias], old.dtype, dims(old))
    else:
        table = add_initializer(graph, f"{name}.rows", full, of=[name])
        y = emit("Gather", [table, node.inputs[0]], old.dtype, dims(old), axis=0)
    replace_uses(old, y)
    graph.remove(node, safe=True)
