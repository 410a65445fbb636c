"""Sizes as one operand of a remainder whose other is a tensor of whole numbers, ``place % width``.

The converter takes a number there, and no size that is free: it becomes a tensor without axes.
"""

from torch import SymInt, fx
from torch import ops as torch_ops
from torch.export import ExportedProgram

from .program_nodes import emitted

aten = torch_ops.aten
OF_TENSORS = {
    aten.remainder.Scalar: aten.remainder.Tensor,
    aten.remainder.Scalar_Tensor: aten.remainder.Tensor,
}


def settle_size_operands(program: ExportedProgram) -> None:
    """Make a tensor of each free size that is an operand of one of `OF_TENSORS`."""
    for node in program.graph.nodes:
        if node.target not in OF_TENSORS:
            continue
        sized = [isinstance(each, fx.Node) and isinstance(each.meta["val"], SymInt)
                 for each in node.args]  # fmt: skip
        if any(sized):
            with program.graph.inserting_before(node):
                node.args = tuple(
                    emitted(node, aten.full.default, [], each, dtype=node.meta["val"].dtype)
                    if free
                    else each
                    for each, free in zip(node.args, sized, strict=True)
                )
            node.target = OF_TENSORS[node.target]
    program.graph_module.recompile()
