"""What stays written in a graph: the module path of each node, and nothing that PyTorch noted."""

import ast
import re

import onnx_ir as ir

from intaglio.graph_keys import MODULE
from intaglio.version import __version__

_SCOPES = "pkg.torch.onnx.name_scopes"
_NAMED = re.compile(r"/(.+)/[^/]+")  # how PyTorch's older exporter names a node: by its modules


def strip(model: ir.Model) -> None:
    """Keep the module path of each node and drop all else that PyTorch noted: local paths too."""
    for node in model.graph.all_nodes():
        path = _module_path(node)
        node.metadata_props.clear()
        node.meta.clear()
        node.doc_string = None
        if path and not path.startswith("_empty_nn_module_stack"):
            node.metadata_props[MODULE] = path
        for value in node.outputs:
            value.metadata_props.clear()
            value.meta.clear()
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values()):
        value.metadata_props.clear()
        value.meta.clear()
    for holder in (graph, model):
        holder.metadata_props.clear()
        holder.meta.clear()
        holder.doc_string = None
    model.producer_name, model.producer_version = "intaglio", __version__


def _module_path(node: ir.Node) -> str:
    """The path of the module that `node` came from, as either of PyTorch's exporters wrote it."""
    try:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
    except (ValueError, SyntaxError):
        scopes = []
    named = _NAMED.fullmatch(node.name or "")
    if not scopes and named:
        return named[1].replace("/", ".")
    # The last scope is the operation; a scope that no module has stands for the root.
    return str(scopes[-2]) if len(scopes) > 1 else ""
