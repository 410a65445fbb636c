"""The graph that an engine of TensorRT is built from, run without one."""

from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.ort.ort_backend import OrtBackend
from intaglio.runtime.ort.ort_engine import open_engine
from intaglio.runtime.session import Session
from intaglio.runtime.trt.engine_build import TARGET


def graph_session(graph: BundleGraph) -> Session:
    """The graph for TensorRT in ONNX Runtime, the bodies of its functions in place of plugins.

    Raises:
        BundleError: if the bundle has no such graph, or ONNX Runtime refuses it.
    """
    backend = OrtBackend(open_engine(graph, TARGET, None), graph.entry)
    return Session.over(graph, TARGET, backend)
