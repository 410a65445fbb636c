"""The converter has no form for a number less a tensor where one is whole and the other is not.

In ``1.0 - arange(T)`` the tensor of integers becomes one of the dtype that PyTorch gives the
difference.
"""

from torch import fx
from torch import ops as torch_ops
from torch.export import ExportedProgram

REVERSED, CAST = torch_ops.aten.rsub.Scalar, torch_ops.aten._to_copy.default  # noqa: SLF001


def settle_reversed_differences(program: ExportedProgram) -> None:
    """Give the tensor in each difference of `program` the dtype of the difference."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not REVERSED or not isinstance(node.args[0], fx.Node):
            continue
        dtype = node.meta["val"].dtype
        if node.args[0].meta["val"].dtype == dtype:
            continue
        with graph.inserting_before(node):
            cast = graph.call_function(CAST, node.args[:1], {"dtype": dtype})
        cast.meta = dict(node.meta)  # a number leaves the shape as it is
        node.args = (cast, *node.args[1:])
