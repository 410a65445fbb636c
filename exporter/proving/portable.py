"""A short run of the portable graph, which other runtimes take, in ONNX Runtime."""

from dataclasses import replace

from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.graph_entry import TargetEntry
from intaglio.runtime.ort.ort_backend import open_ort
from intaglio.runtime.session import Session

from .quantized import portable_path

TARGET = "portable"  # as if it were one of the bundle's


def portable_session(graph: BundleGraph) -> Session | None:
    """A session of the portable form of a graph, None where the bundle has none.

    Raises:
        BundleError: if it is absent or changed, or ONNX Runtime refuses it.
    """
    bundle, path = graph.bundle, portable_path(graph)
    if path not in bundle.manifest.files:
        return None
    opset = graph.target("ort").opset
    target = TargetEntry(path=path, opset=opset)
    entry = replace(graph.entry, targets={**graph.entry.targets, TARGET: target})
    form = Bundle(bundle.root, bundle.manifest.with_graph(graph.name, entry)).graph(graph.name)
    return Session.over(form, TARGET, open_ort(form, TARGET, None))
