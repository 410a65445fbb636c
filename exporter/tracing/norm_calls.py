"""Calls of rms_norm in the form that PyTorch's converter takes.

Where there is no weight it writes one of ones in the shape of the whole input, batch and time
included, by which a norm of single tokens looks like one that knows how many there are.
"""

from torch import ops as torch_ops
from torch.export import ExportedProgram

CALL, ONES = torch_ops.aten.rms_norm.default, torch_ops.aten.ones.default


def settle_norm_calls(program: ExportedProgram) -> None:
    """Give each norm without a weight one of ones, in the shape that is normalized."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not CALL or (len(node.args) > 2 and node.args[2] is not None):
            continue
        x, shape, *rest = node.args
        if any(not isinstance(size, int) for size in shape):
            continue
        known = x.meta["val"].new_ones(shape)
        with graph.inserting_before(node):
            ones = graph.call_function(ONES, (list(shape),), {"dtype": known.dtype})
        ones.meta = {**node.meta, "val": known}
        node.args = (x, shape, ones, *rest[1:])
    program.graph_module.recompile()
