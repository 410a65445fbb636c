"""Recurrences without absent inputs before their last: TensorRT gives no plugin a null tensor.

A node of our own operators keeps the inputs that it has, one after the other, and gets a function
whose parameters are these; a plugin knows by its plan which they are.  The standard's operators
have places that their importer knows, so what is absent is given as what it stands for: a bias of
zeros, or a decay of zeros, whose exponential keeps all of the state.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.ops.op import DOMAIN
from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, attribute, describe, dims, input_of

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
    if node.domain or None not in node.inputs:
        return False
    emit = Emitter(node)
    if node.op_type == "CausalConvWithState" and input_of(node, 2) is None:
        weight = node.inputs[1]
        assert weight is not None
        assert weight.dtype is not None
        channels = (dims(weight) or (0,))[0]
        node.replace_input_with(2, emit.constant([0.0] * int(channels), weight.dtype.numpy()))
        return True
    beta = input_of(node, 5)
    if node.op_type == "LinearAttention" and input_of(node, 4) is None and beta is not None:
        heads = attribute(node, "kv_num_heads")
        assert beta.dtype is not None
        zeros = emit.constant([0.0] * heads, beta.dtype.numpy())
        shape = [*(dims(beta) or ())[:2], heads]
        node.replace_input_with(4, emit("Mul", [beta, zeros], beta.dtype, shape))
        node.attributes["update_rule"] = ir.AttrString("update_rule", "gated_delta")
        return True
    return False


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
