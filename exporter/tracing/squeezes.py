"""Squeezes of axes that have more than one entry, which PyTorch leaves as they are.

ONNX's Squeeze refuses such an axis, and PyTorch's converter does not look at its size.  Whether an
axis as long as the data say is squeezed is known when the model runs, and with it the number of
axes: there is no such graph.
"""

from typing import Any

from torch import ops as torch_ops
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols, statically_known_true

from intaglio.errors import TraceError

ONE, SEVERAL = torch_ops.aten.squeeze.dim, torch_ops.aten.squeeze.dims


def settle_squeezes(program: ExportedProgram) -> None:
    """Leave in `program` only the axes of one entry to each squeeze.

    Raises:
        TraceError: the data decide whether an axis has one entry.
    """
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in (ONE, SEVERAL):
            continue
        source, axes = node.args
        sizes = source.meta["val"].shape
        named = [axes] if node.target is ONE else list(axes)
        gone = [axis for axis in named if len(sizes) and _is_one(sizes[axis])]
        if not gone:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        elif len(gone) < len(named):
            node.args = (source, gone)
    program.graph_module.recompile()


def _is_one(size: Any) -> bool:
    if free_unbacked_symbols(size) and not statically_known_true(size != 1):
        raise TraceError(
            "The model squeezes an axis that is as long as the data say: with one entry it goes, "
            "with more it stays. Name the axes that squeeze() shall take away, or leave it out."
        )
    return bool(size == 1)
