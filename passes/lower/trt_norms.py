"""Norms of groups of channels that stand alone: TensorRT's importer wants an axis behind these.

GroupNormalization(x [rows, channels])   ->   the same of [rows, channels, 1]
"""

import onnx_ir as ir

from intaglio.passes.base import Lower, PassResult
from intaglio.passes.graph import Emitter, describe, dims, replace_uses

LEAST = 3  # axes


class TrtNorms(Lower):
    """Give norms of groups the axes that TensorRT knows them with."""

    def rewrite(self, model: ir.Model) -> PassResult:
        """Rewrite every GroupNormalization of rows and channels alone."""
        found = [node for node in model.graph if node.op_type == "GroupNormalization"]
        nodes = [node for node in found if not node.domain and _few(node)]
        for node in nodes:
            _widen(node)
        return PassResult(changed=bool(nodes), notes=[describe(node) for node in nodes])


def _few(node: ir.Node) -> bool:
    shape = dims(node.inputs[0])
    return shape is not None and len(shape) < LEAST


def _widen(node: ir.Node) -> None:
    x, *rest = node.inputs
    shape = dims(x) or ()
    emit = Emitter(node)
    last = emit.constant([len(shape)])
    kind = None if x is None else x.dtype
    wide = emit("Unsqueeze", [x, last], kind, [*shape, 1])
    attributes = {name: each.value for name, each in node.attributes.items()}
    normal = emit("GroupNormalization", [wide, *rest], kind, [*shape, 1], **attributes)
    replace_uses(node.outputs[0], emit("Squeeze", [normal, last], kind, shape))
    assert node.graph is not None
    node.graph.remove(node, safe=True)
