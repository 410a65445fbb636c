"""The engines that run targets; the one place that knows all of them.

Each library is imported where it is used: neither needs the other to be installed.
"""

from intaglio.errors import BundleError, InputError
from intaglio.runtime.backend import Backend
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.op_trace import Tracer
from intaglio.runtime.prepared_conditions import Preparer

AUTO = "auto"
ORT = "ort"
TARGETS = (ORT, "trt")  # in the order in which AUTO prefers them


def choose_target(graph: BundleGraph, target: str) -> str:
    """The target to run: `target`, or with "auto" the best that the bundle and this package have.

    Raises:
        BundleError: if there is none.
    """
    if target == AUTO:
        target = next((name for name in TARGETS if name in graph.entry.targets), TARGETS[0])
    if target not in TARGETS:
        known = ", ".join(TARGETS)
        raise BundleError(f"intaglio cannot run the target {target!r}; it runs: {known}.")
    graph.target(target)
    return target


def open_backend(
    graph: BundleGraph, target: str, threads: int | None, *, tables: bool = False
) -> Backend:
    """What runs `target` of a graph.

    Args:
        graph: of a bundle; files that are opened are checked against its manifest.
        target: as `choose_target` returns it.
        threads: threads for the work inside one operator, on a processor.
        tables: whether one token's products with weights of 2 bits are looked up, on a processor.

    Raises:
        InputError: if there is nothing that tables could serve.
        BundleError: if a file is absent or changed, or the engine refuses it.
        DeviceError: if the engine is for another GPU or another library.
        MissingExtraError: if the engine's library is not installed.
    """
    if target == "ort":
        from intaglio.runtime.ort.ort_backend import open_ort

        return open_ort(graph, target, threads, tables=tables)
    if tables:
        raise InputError(f"Look-up tables are of ONNX Runtime, and {target!r} was to run.")
    from intaglio.runtime.trt.trt_backend import open_trt

    return open_trt(graph)


def open_preparer(graph: BundleGraph, target: str, threads: int | None) -> Preparer | None:
    """What makes states of the conditions of a graph, None where it takes none.

    It runs on what runs the steps, or on ONNX Runtime where it was exported for that alone.
    Arguments and errors are otherwise those of `open_backend`.
    """
    if graph.entry.prepare is None:
        return None
    prepare = graph.bundle.graph(graph.entry.prepare)
    backend = open_backend(prepare, preparing_target(graph, target), threads)
    return Preparer(graph.entry, graph.entry.states_of(target), backend.call)


def preparing_target(graph: BundleGraph, target: str) -> str:
    """What runs the graph that prepares `graph`, where the steps run on `target`."""
    assert graph.entry.prepare is not None
    return target if target in graph.bundle.graph(graph.entry.prepare).entry.targets else ORT


def open_tracer(graph: BundleGraph, target: str, threads: int | None) -> Tracer:
    """Open the engine of `target` for tracing; arguments and errors are those of `open_backend`."""
    if target == "ort":
        from intaglio.runtime.ort.ort_tracer import OrtTracer

        return OrtTracer(graph, target, threads)
    from intaglio.runtime.trt.trt_tracer import TrtTracer

    return TrtTracer(graph)
