"""Nodes of our own operators without their absent inputs: TensorRT gives no plugin a null tensor.

Of the standard's operators its importer knows which inputs may be absent.  A node of ours keeps the
inputs that it has, one after the other, and gets a function whose parameters are these; a plugin
knows by its plan which they are.
"""

import onnx_ir as ir
from onnx_ir.passes import common

from intaglio.ops.op import DOMAIN
from intaglio.passes.base import Context, Lower, PassResult
from intaglio.passes.graph import describe

GIVEN = "given"  # how overloads of such functions begin


class TrtGivenInputs(Lower):
    """Leave absent inputs out of the nodes of our own operators."""

    def run(self, model: ir.Model, context: Context) -> PassResult:  # noqa: ARG002
        """Rewrite every node that lacks an input before its last."""
        notes = []
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
