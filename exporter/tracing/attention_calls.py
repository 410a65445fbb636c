"""Calls of scaled_dot_product_attention in the forms that PyTorch's converter takes.

Its translation asks for [batch, heads, time, size] and for `enable_gqa` exactly where the queries
have more heads than the keys; PyTorch itself takes other ranks, and broadcasts one head.
"""

from torch import fx
from torch import ops as torch_ops
from torch.export import ExportedProgram

CALL = torch_ops.aten.scaled_dot_product_attention.default
UNSQUEEZE, SQUEEZE = torch_ops.aten.unsqueeze.default, torch_ops.aten.squeeze.dim


def settle_attention_calls(program: ExportedProgram) -> None:
    """Rewrite the calls in `program` that the converter would refuse."""
    graph = program.graph
    for node in list(graph.nodes):
        if node.target is not CALL:
            continue
        _add_heads(node, graph)
        query, key = (node.args[i].meta["val"] for i in (0, 1))
        if query.ndim == 4:
            repeated = query.shape[1] != key.shape[1]
            node.kwargs = {**node.kwargs, "enable_gqa": repeated}
    program.graph_module.recompile()


def _add_heads(node: fx.Node, graph: fx.Graph) -> None:
    """[batch, time, size] is attention of one head."""
    if any(node.args[i].meta["val"].ndim != 3 for i in range(3)):  # type: ignore[union-attr]
        return

    def apart(value: fx.Node) -> fx.Node:
        new = graph.call_function(UNSQUEEZE, (value, 1))
        new.meta = {**node.meta, "val": UNSQUEEZE(value.meta["val"], 1)}
        return new

    args = list(node.args)
    with graph.inserting_before(node):
        for index, value in enumerate(args[:4]):
            if isinstance(value, fx.Node) and value.meta["val"].ndim == 3:
                args[index] = apart(value)
        if isinstance(mask := node.kwargs.get("attn_mask"), fx.Node) and mask.meta["val"].ndim == 3:
            node.kwargs = {**node.kwargs, "attn_mask": apart(mask)}
    node.args = tuple(args)
    with graph.inserting_after(node):
        new = graph.call_function(SQUEEZE, (node, 1))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    node.meta = {**node.meta, "val": UNSQUEEZE(new.meta["val"], 1)}
