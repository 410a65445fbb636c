"""Bring a graph of another opset of the standard to the one that intaglio speaks.

Where `relabel` can prove that every node keeps its meaning under the other label, nothing else
changes.  Where it cannot, ONNX's version converter rewrites the nodes; whoever calls compares the
results of both graphs, since its rewrites are not proven.
"""

import onnx
import onnx.version_converter
import onnx_ir as ir

from intaglio.errors import PassError
from intaglio.graph_keys import MODULE

from .relabel import STANDARD, relabel

LARGE = 1024  # bytes from which a weight does not go through the converter


def convert_opset(model: ir.Model, to: int) -> ir.Model:
    """Return `model` at opset `to`: itself with another label, or a rewritten copy.

    Raises:
        PassError: if neither way can.
    """
    try:
        relabel(model, to)
    except PassError as refusal:
        try:
            return _rewritten(model, to)
        except Exception as error:
            first = str(error).strip().partition("\n")[0][:200]
            raise PassError(f"{refusal} ONNX's version converter cannot either: {first}") from error
    return model


def _rewritten(model: ir.Model, to: int) -> ir.Model:
    """Convert a copy without its large weights, which are inputs meanwhile."""
    modules = {node.name: node.metadata_props.get(MODULE) for node in model.graph}
    bare = model.clone()
    large = {
        name: value.const_value
        for name, value in list(bare.graph.initializers.items())
        if value.const_value is not None and value.const_value.nbytes >= LARGE
    }
    own = len(bare.graph.inputs)
    for name in large:
        value = bare.graph.initializers.pop(name)
        value.const_value = None
        bare.graph.inputs.append(value)
    proto = onnx.version_converter.convert_version(ir.to_proto(bare), to)
    converted = ir.from_proto(proto)
    for value in converted.graph.inputs[own:]:
        assert value.name is not None
        value.const_value = large[value.name]
        converted.graph.initializers.add(value)
    del converted.graph.inputs[own:]
    for node in converted.graph:
        if path := modules.get(node.name):
            node.metadata_props[MODULE] = path
    converted.opset_imports[STANDARD] = to
    return converted
