"""The graph that an engine of TensorRT is built from, run without one."""

from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.ort.ort_backend import OrtBackend
from intaglio.runtime.ort.ort_engine import open_engine
from intaglio.runtime.prepared_conditions import Preparer
from intaglio.runtime.session import Session
from intaglio.runtime.trt.engine_build import TARGET


def graph_session(graph: BundleGraph) -> Session:
    """The graph for TensorRT in ONNX Runtime, the bodies of its functions in place of plugins.

    Raises:
        BundleError: if the bundle has no such graph, or ONNX Runtime refuses it.
    """
    backend = _backend(graph)
    if graph.entry.prepare is None:
        return Session.over(graph, TARGET, backend)
    prepare = _backend(graph.bundle.graph(graph.entry.prepare))
    preparer = Preparer(graph.entry, graph.entry.states_of(TARGET), prepare.call)
    return Session.over(graph, TARGET, backend, preparer=preparer)


def _backend(graph: BundleGraph) -> OrtBackend:
    return OrtBackend(open_engine(graph, TARGET, None), graph.entry)
