"""Operators of our own, each with its meaning in standard ones beside the graph.

A node of the domain intaglio names a function of the model (its overload), whose body any runtime
that reads the standard can run.  A pass that adds such nodes calls `define` when it is done.
"""

from collections.abc import Sequence

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.ops import OPS
from intaglio.ops.op import Op, overload, own_function
from intaglio.signature import DOMAIN

from .graph import attributes_of, signature_of

VERSION = 1
OWN = {op.onnx_type: op for op in OPS if op.domain == DOMAIN}


def input_names(model: ir.Model, node: ir.Node) -> Sequence[str]:
    """What each input of `node` is called in its signature; nothing of operators that have none.

    A lowered node may have other inputs than its operator: those of its function.
    """
    function, signature = model.functions.get(node.op_identifier()), signature_of(node)
    if function is not None:
        return [str(value.name) for value in function.inputs]
    return () if signature is None else signature.names


def define(model: ir.Model, instead: Op | None = None) -> None:
    """Give every node of an operator of our own its function; drop functions that nobody calls.

    `instead` is an operator with another body, which its nodes get in the place of what they have.
    """
    opset = model.opset_imports[""]
    ops = OWN if instead is None else {**OWN, instead.onnx_type: instead}
    for node in model.graph.all_nodes():
        if node.domain != DOMAIN:
            continue
        op = ops[node.op_type]
        pairs = zip(op.inputs, node.inputs, strict=False)
        present = [name for name, value in pairs if value is not None]
        attributes = {name: attributes_of(node)[name] for name in op.schema.attributes}
        node.overload, node.version = overload(present, attributes), None
        if op is instead or node.op_identifier() not in model.functions:
            function = ir.serde.deserialize_function(own_function(op, present, attributes, opset))
            model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = VERSION
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
