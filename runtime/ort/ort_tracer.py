"""Time of each node, from the profiler of ONNX Runtime.

https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html: a JSON list of
events, `dur` and `ts` in whole microseconds.  A node whose body runs other nodes (Scan, If) is
given what is left of its time when theirs is taken off, so that times add up.
"""

import json
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intaglio.errors import ProfileError
from intaglio.runtime.bundle import BundleGraph
from intaglio.runtime.onnx_graph import Node, OnnxGraph, parse_graph, read_graph
from intaglio.runtime.op_trace import EngineCall, Trace, TracedOp
from intaglio.runtime.work import NOTHING, Ceilings, NodeWork, added

from . import ort_ceilings
from .event_work import EventWorks
from .ort_backend import OrtBackend
from .ort_engine import OPTIMIZED, WEIGHTS, open_engine

ENGINE = "(ONNX Runtime)"  # owner of nodes that the engine made of no node of the graph
_SUFFIX = "_kernel_time"
_WORD = re.compile(r"[/:(), ]+")

Event = Mapping[str, Any]


class OrtTracer:
    """A session of ONNX Runtime with its profiler on."""

    def __init__(self, graph: BundleGraph, target: str, threads: int | None) -> None:
        """Open it; see `open_engine`."""
        self._folder = tempfile.TemporaryDirectory(prefix="intaglio-")
        self._files = Path(self._folder.name) / "trace"
        self._files.with_name(WEIGHTS).symlink_to(os.devnull)  # nobody reads them
        self._threads = threads
        self._engine = open_engine(graph, target, threads, str(self._files))
        self._graph = read_graph(graph, target)
        self.backend = OrtBackend(self._engine, graph.entry)

    def begin(self) -> None:
        """Nothing: each call of a session is one of the engine."""

    def ceilings(self) -> Ceilings:
        """What the processor reaches at best, with as many threads as the engine has."""
        return ort_ceilings.of(self._threads)

    def end(self) -> Trace:
        """Stop tracing; what was traced.

        Raises:
            ProfileError: if ONNX Runtime wrote something else than a profile.
        """
        events = read_events(Path(self._engine.end_profiling()))
        made = parse_graph(self._files.with_name(self._files.name + OPTIMIZED).read_bytes())
        self._folder.cleanup()
        return trace_of(events, Names(self._graph, made), EventWorks((made, self._graph)))


class Names:
    """Finds the node of a graph that an event of the engine speaks of.

    What an optimizer of ONNX Runtime makes of several nodes gives a value that one of them gave,
    mostly the last: that one's module owns it.  Where it gives another value, it is named after one
    of the nodes or values that it replaces (``InsertedPrecisionFreeCast_silu_3``), so it belongs to
    the known name that it starts with, or else holds as a word.  What is named after nothing works
    for the nearest node that reads what it gives, or else for the one that it reads from.
    """

    def __init__(self, graph: OnnxGraph, optimized: OnnxGraph | None = None) -> None:
        """Know the bundle's graph, and the one that the engine made of it."""
        self._modules = {node.name: node.module for node in graph.nodes if node.name}
        self._ops = {node.name: node.op.rpartition("::")[2] for node in graph.nodes}
        values = {name: node.module for node in graph.nodes for name in node.outputs if name}
        self._anything = {**values, **self._modules}
        made = () if optimized is None else optimized.nodes
        self._fused = {
            node.name: values[output]
            for node in made
            for output in reversed(node.outputs)
            if output in values
        }
        self._made = {node.name: node for node in made}
        self._gives = {name: node for node in made for name in node.outputs if name}
        self._reads: dict[str, list[Node]] = defaultdict(list)
        for node in made:
            for name in node.inputs:
                self._reads[name].append(node)

    def traced(self, name: str, op: str) -> TracedOp:
        """The node called `name` in the engine."""
        if self._ops.get(name) == op and name:
            return TracedOp(node=name, op=op, module=self._modules[name], nodes=(name,))
        return TracedOp(node=name, op=op, module=self._owner(name), fused=True)

    def _owner(self, name: str) -> str:
        owner = self._named(name)
        if owner is None and name in self._made:
            readers = self._nearest(
                name, lambda node: [r for n in node.outputs for r in self._reads[n]]
            )
            owner = readers or self._nearest(
                name, lambda node: [self._gives[n] for n in node.inputs if n in self._gives]
            )
        return owner or ENGINE

    def _nearest(self, name: str, beside: Callable[[Node], list[Node]]) -> str | None:
        """The module of the first node that has one, going from neighbour to neighbour."""
        met, queue = {name}, [self._made[name]]
        for node in queue:
            for other in beside(node):
                if (owner := self._named(other.name)) is not None:
                    return owner
                if other.name not in met:
                    met.add(other.name)
                    queue.append(other)
        return None

    def _named(self, name: str) -> str | None:
        if name in self._modules:
            return self._modules[name]
        if name in self._fused:
            return self._fused[name]
        for end in range(len(name) - 1, 0, -1):
            if name[:end] in self._anything and not name[end].isalnum():
                return self._anything[name[:end]]
        for word in _WORD.split(name):
            for start in range(len(word)):
                if word[start:] in self._anything and (start == 0 or word[start - 1] in "_/"):
                    return self._anything[word[start:]]
        return None


def read_events(path: Path) -> list[list[Event]]:
    """The events of each call: its node events and, last, the call's own.

    Raises:
        ProfileError: if the file is not what ONNX Runtime writes.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8", errors="replace"))
        calls: list[list[Event]] = []
        nodes: list[Event] = []
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
                nodes.append(event)
            elif event.get("cat") == "Session" and event["name"] == "model_run":
                calls.append([*nodes, event])
                nodes = []
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ProfileError(
            f"The profile that ONNX Runtime wrote cannot be read: {error!r}. "
            "Leave the operators out with --no-ops."
        ) from error
    return calls


def trace_of(
    calls: Sequence[Sequence[Event]], names: Names, works: EventWorks | None = None
) -> Trace:
    """What the events of calls tell."""
    works = works or EventWorks(())
    places: dict[tuple[str, str], int] = {}
    found = []
    for *nodes, call in calls:
        times: dict[int, float] = defaultdict(float)  # a body may run several times
        done: dict[int, NodeWork | None] = {}
        for event, time in _own_times(nodes):
            key = event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]
            place = places.setdefault(key, len(places))
            times[place] += time / 1e3
            done[place] = added(done.get(place, NOTHING), works.of(*key, event["args"]))
        held, used = (
            max((int(event["args"].get(key, -1)) for event in nodes), default=-1)
            for key in ("mem_arena_held", "mem_in_use_peak")
        )
        found.append(
            EngineCall(
                times=times,
                works={place: work for place, work in done.items() if work is not None},
                total=call["dur"] / 1e3,
                arena_held=held if held >= 0 else None,
                arena_used=used if used >= 0 else None,
            )
        )
    return Trace(ops=[names.traced(*key) for key in places], calls=found)


def _own_times(events: Iterable[Event]) -> list[tuple[Event, float]]:
    """Each event with its microseconds, less those of the events within it on the same thread."""
    own: list[list[Any]] = []
    open_: dict[int, list[int]] = defaultdict(list)
    ordered = sorted(events, key=lambda event: (event["ts"], -event["dur"]))
    for index, event in enumerate(ordered):
        stack = open_[event["tid"]]
        while stack and _end(ordered[stack[-1]]) <= event["ts"]:
            stack.pop()
        if stack and _end(event) <= _end(ordered[stack[-1]]):
            own[stack[-1]][1] -= event["dur"]
        own.append([event, float(event["dur"])])
        stack.append(index)
    return [(event, max(time, 0.0)) for event, time in own]


def _end(event: Event) -> int:
    return int(event["ts"]) + int(event["dur"])
