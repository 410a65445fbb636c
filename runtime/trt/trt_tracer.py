"""Time of each layer of an engine, from TensorRT's profiler.

https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/advanced.html: the profiler
is told the time of every layer of a run, those of a captured graph included.  What a layer is made
of, the engine tells itself: the nodes of the graph stand in its metadata.
"""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from intaglio.errors import DeviceError, ProfileError
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.onnx_graph import Node, OnnxGraph, read_graph
from intaglio.runtime.op_trace import EngineCall, Trace, TracedOp
from intaglio.runtime.work import Ceilings

from . import ceilings
from .driver import Stopwatch
from .engine_build import TARGET
from .trt_backend import open_trt

ENGINE = "(TensorRT)"  # owner of layers that come from no node of the graph
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


class TrtTracer:
    """A session of an engine with TensorRT's profiler in each of its contexts."""

    def __init__(self, graph: BundleGraph) -> None:
        """Open it; see `open_engine`."""
        self._graph = graph
        self.backend = open_trt(graph)
        self._stream = self.backend.stream
        self._stream.tracer = self
        self._engine = self.backend.engine
        self._clock = Stopwatch(self._stream.device, self._stream.stream)
        self._profiler = _profiler(self._engine.trt)
        self._times: list[dict[str, float]] = []
        self._totals: list[float] = []

    def begin(self) -> None:
        """Let a call of the session begin, which may be several of the engine."""
        self._times.append(defaultdict(float))
        self._totals.append(0.0)

    def watch(self, context: Any) -> None:
        """Have the runs of an execution context timed, layer by layer."""
        context.profiler = self._profiler
        context.enqueue_emits_profile = False  # it would wait within a capture

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Time what is enqueued meanwhile, as a whole."""
        self._clock.start()
        yield
        self._clock.stop()

    def take(self, context: Any) -> None:
        """Take the times of the run of `context` that has just ended.

        Raises:
            DeviceError: if TensorRT has none.
        """
        self._profiler.times.clear()
        if not context.report_to_profiler():
            raise DeviceError(
                f"TensorRT reports no time of layers: {self._stream.complaint()}. Leave the "
                "operators out with --no-ops."
            )
        for name, time in self._profiler.times:
            self._times[-1][name] += time
        self._totals[-1] += self._clock.milliseconds()

    def ceilings(self) -> Ceilings:
        """What the GPU reaches at best, measured once and kept."""
        dtype = self._graph.target(TARGET).dtype
        return ceilings.of(self._engine, dtype)

    def end(self) -> Trace:
        """Stop tracing; what was traced."""
        self._stream.tracer = None
        graph = read_graph(self._graph, TARGET)
        made = {entry["Name"]: entry for entry in layers(self._engine)}
        names = list(dict.fromkeys(name for times in self._times for name in times))
        places = {name: place for place, name in enumerate(names)}
        return Trace(
            ops=[traced(name, made.get(name, {}), graph) for name in names],
            calls=[
                EngineCall(times={places[name]: time for name, time in times.items()}, total=total)
                for times, total in zip(self._times, self._totals, strict=True)
            ],
        )


def layers(engine: Any) -> list[Mapping[str, Any]]:
    """What an engine tells of its layers: ``Name``, ``LayerType``, ``Metadata`` and more.

    Raises:
        ProfileError: if it tells something else.
    """
    form = engine.trt.LayerInformationFormat.JSON
    said = engine.cuda_engine.create_engine_inspector().get_engine_information(form)
    try:
        found = json.loads(said)["Layers"]
        return [entry if isinstance(entry, dict) else {"Name": entry} for entry in found]
    except (ValueError, KeyError, TypeError) as error:
        raise ProfileError(
            f"The engine does not tell its layers: {error!r}. Leave them out with --no-ops."
        ) from error


def traced(name: str, layer: Mapping[str, Any], graph: OnnxGraph) -> TracedOp:
    """The layer called `name`.

    Where several nodes are in it, it belongs to the innermost module that holds all of theirs.
    """
    known = {node.name: node for node in graph.nodes if node.name}
    said = _NODE.findall(str(layer.get("Metadata", ""))) or name.split(" + ")
    nodes = [known[each] for each in dict.fromkeys(said) if each in known]
    kind = str(layer.get("LayerType", "layer"))
    return TracedOp(
        node=name,
        op="+".join(dict.fromkeys(node.op.rpartition("::")[2] for node in nodes)) or kind,
        module=_common(nodes) if nodes else ENGINE,
        nodes=tuple(node.name for node in nodes),
        fused=len(nodes) != 1,
    )


def _common(nodes: Sequence[Node]) -> str:
    """The module that holds those of all nodes."""
    paths = [node.module.replace(".", "/") for node in nodes if node.module]
    return os.path.commonpath(paths).replace("/", ".") if paths else ""


def _profiler(trt: Any) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        """Keeps the times of layers, in milliseconds."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.times: list[tuple[str, float]] = []

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.append((layer_name, ms))

    return Profiler()
