"""Reductions along an axis of a tensor that has none, which PyTorch allows as axis 0 or -1.

ONNX's operators refuse an axis of a scalar, some of them only once ONNX Runtime folds their graph.
"""

from typing import Any

from torch import Tensor, fx
from torch import ops as torch_ops
from torch.export import ExportedProgram

aten = torch_ops.aten
VIEW = aten.view.default
ALONG = {
    aten.all.dim,
    aten.all.dims,
    aten.amax.default,
    aten.amin.default,
    aten.any.dim,
    aten.any.dims,
    aten.linalg_vector_norm.default,
    aten.prod.dim_int,
    aten.std.correction,
    aten.std.dim,
    aten.std_mean.correction,
    aten.topk.default,
    aten.var.correction,
    aten.var.dim,
    aten.var_mean.correction,
}


def settle_scalars(program: ExportedProgram) -> None:
    """Give the scalar that is reduced along an axis an axis of one entry."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target not in ALONG or node.args[0].meta["val"].ndim:
            continue
        scalar = node.args[0]
        with graph.inserting_before(node):
            row = _viewed(graph, scalar, scalar.meta["val"], [1])
        node.args = (row, *node.args[1:])
        _restore(graph, node)
    program.graph_module.recompile()


def _restore(graph: fx.Graph, node: fx.Node) -> None:
    """Results are scalars again to all who take them."""
    value = node.meta["val"]
    if isinstance(value, Tensor):
        _scalar(graph, node)
        return
    node.meta["val"] = tuple(each.reshape([1]) for each in value)
    for part in list(node.users):
        _scalar(graph, part)


def _scalar(graph: fx.Graph, node: fx.Node) -> None:
    value, users = node.meta["val"], list(node.users)
    with graph.inserting_after(node):
        scalar = _viewed(graph, node, value, [])
    node.meta = {**node.meta, "val": value.reshape([1])}
    for user in users:
        user.replace_input_with(node, scalar)


def _viewed(graph: fx.Graph, node: fx.Node, value: Any, shape: list[int]) -> fx.Node:
    view = graph.call_function(VIEW, (node, shape))
    view.meta = {**node.meta, "val": value.reshape(shape)}
    return view
