"""The sum of two tensors of booleans is true where either is; the converter makes an Add of it."""

import torch
from torch import Tensor, fx
from torch import ops as torch_ops
from torch.export import ExportedProgram

SUM, EITHER = torch_ops.aten.add.Tensor, torch_ops.aten.logical_or.default


def settle_boolean_sums(program: ExportedProgram) -> None:
    """Make sums of booleans what PyTorch computes; a factor that is not zero changes nothing."""
    for node in program.graph.nodes:
        if node.target is not SUM or not _boolean(node) or node.kwargs.get("alpha", 1) == 0:
            continue
        if all(isinstance(each, fx.Node) and _boolean(each) for each in node.args):
            node.target, node.kwargs = EITHER, {}
    program.graph_module.recompile()


def _boolean(node: fx.Node) -> bool:
    value = node.meta["val"]
    return isinstance(value, Tensor) and value.dtype == torch.bool
