"""Recurrences without absent inputs before their last: TensorRT gives no plugin a null tensor.

A node of our own operators keeps the inputs that it has, one after the other, and gets a function
whose parameters are these; a plugin knows by its plan which they are.  The standard's operators
have places that their importer knows, so what is absent is given as what it stands for: a bias of
zeros, or a decay of zeros, whose exponential keeps all of the state.
"""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.operators import LINEAR_ATTENTION
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import (
    Emitter,
    attribute,
    attributes_of,
    describe,
    dims,
    signature_of,
)
from intaglio.signature import DOMAIN

GIVEN = "given"  # how overloads of such functions begin


class TrtGivenInputs(Lower):
    """Leave absent inputs out of the nodes of our own operators, and fill those of the standard."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every node that lacks an input before its last."""
        notes = [describe(node) for node in list(model.graph) if _filled(node)]
        for node in model.graph.all_nodes():
            if node.domain != DOMAIN or None not in node.inputs:
                continue
            given = [index for index, value in enumerate(node.inputs) if value is not None]
            node.overload = _define(model, node, given)
            for place, index in enumerate(given):
                node.replace_input_with(place, node.inputs[index])
            node.resize_inputs(len(given))
            notes.append(describe(node))
        if notes:
            common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
        return PassResult(changed=bool(notes), notes=notes)


def _filled(node: ir.Node) -> bool:
    """Give a node of the standard what it lacks; whether it lacked something."""
    signature = None if node.domain else signature_of(node)
    if signature is None or None not in node.inputs:
        return False
    given = dict(zip(signature.names, node.inputs, strict=False))
    sizes = signature.bind({n: dims(value) for n, value in given.items()}, attributes_of(node))
    filled = False
    for place, formal in enumerate(signature.inputs[: len(node.inputs)]):
        if given[formal.name] is None and formal.absent is not None:
            shape = signature.shape(formal.name, sizes, attributes_of(node))
            like = given[signature.names[0]]
            assert like is not None
            assert like.dtype is not None
            array = np.full([int(dim) for dim in shape], formal.absent)
            node.replace_input_with(place, Emitter(node).constant(array, like.dtype.numpy()))
            filled = True
    beta = given.get("beta")
    if signature is LINEAR_ATTENTION and given.get("decay") is None and beta is not None:
        _keep_all(node, signature.names.index("decay"), beta)
        filled = True
    return filled


def _keep_all(node: ir.Node, decay: int, beta: ir.Value) -> None:
    """Give a delta rule the decay of a gated one that forgets nothing."""
    assert beta.dtype is not None
    emit, heads = Emitter(node), attribute(node, "kv_num_heads")
    zeros = emit.constant([0.0] * heads, beta.dtype.numpy())
    shape = [*(dims(beta) or ())[:2], heads]
    node.replace_input_with(decay, emit("Mul", [beta, zeros], beta.dtype, shape))
    node.attributes["update_rule"] = ir.AttrString("update_rule", "gated_delta")


def _define(model: ir.Model, node: ir.Node, given: list[int]) -> str:
    """Add the function of `node` with the parameters `given` alone; return its overload."""
    function = ir.serde.serialize_function(model.functions[node.op_identifier()])
    names = [function.input[index] for index in given]
    function.overload = f"{GIVEN}_{function.overload}"
    del function.input[:]
    function.input.extend(names)
    made = ir.serde.deserialize_function(function)
    model.functions[made.identifier()] = made
    return made.overload
