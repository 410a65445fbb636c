"""Squeezes of axes that have more than one entry, which PyTorch leaves as they are.

ONNX's Squeeze refuses such an axis, and PyTorch's converter does not look at its size.
"""

from torch import ops as torch_ops
from torch.export import ExportedProgram

ONE, SEVERAL = torch_ops.aten.squeeze.dim, torch_ops.aten.squeeze.dims


def settle_squeezes(program: ExportedProgram) -> None:
    """Leave in `program` only the axes of one entry to each squeeze."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in (ONE, SEVERAL):
            continue
        source, axes = node.args
        sizes = source.meta["val"].shape
        named = [axes] if node.target is ONE else list(axes)
        gone = [axis for axis in named if len(sizes) and sizes[axis] == 1]
        if not gone:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif len(gone) < len(named):
            node.args = (source, gone)
    program.graph_module.recompile()
