"""Time of each operator by the module it came from, read from ONNX Runtime's own profile.

https://onnxruntime.ai/docs/performance/tune-performance/profiling-tools.html: a JSON list of
events, `dur` and `ts` in whole microseconds.  A node whose body runs other nodes (Scan, If) is
given what is left of its time when theirs is taken off, so that times add up.
"""

import json
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from intaglio.errors import ProfileError

from .graph import Graph

_SUFFIX = "_kernel_time"
_WORD = re.compile(r"[/:(), ]+")
ENGINE = "(ONNX Runtime)"  # owner of nodes that the engine made of no node of the graph

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OpTime:
    """Milliseconds that one node takes in one call, the mean over the calls.

    `fused` is what the engine made of the node, where it is another operator than the graph's.
    """

    node: str
    op: str
    module: str
    milliseconds: float
    fused: bool = False


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """Where the time of one kind of call goes, with the engine's profiler on.

    Attributes:
        kind: "prefill" or "step".
        tokens: length of the prompt, or of the context.
        calls: how many were traced.
        ops: the nodes, in the order in which they run.
        overhead: milliseconds of a call that the engine spends between nodes, tracing included.
        arena_held: most bytes that the engine's arena held, weights that it copied included.
        arena_used: most bytes of them in use at one time.
    """

    kind: str
    tokens: int
    calls: int
    ops: Sequence[OpTime]
    overhead: float
    arena_held: int | None
    arena_used: int | None

    @property
    def kernels(self) -> float:
        """Milliseconds of all nodes together."""
        return sum(op.milliseconds for op in self.ops)

    @property
    def engine(self) -> float:
        """Milliseconds of a call within the engine."""
        return self.kernels + self.overhead

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "kind": self.kind,
            "tokens": self.tokens,
            "calls": self.calls,
            "engine_ms": self.engine,
            "kernels_ms": self.kernels,
            "overhead_ms": self.overhead,
            "arena_held_bytes": self.arena_held,
            "arena_used_bytes": self.arena_used,
            "by_module": [{"module": m, "ms": ms} for m, ms in self.by_module()],
            "by_op": [{"op": o, "nodes": n, "ms": ms} for o, n, ms in self.by_op()],
            "ops": [
                {
                    "node": op.node,
                    "op": op.op,
                    "module": op.module,
                    "ms": op.milliseconds,
                    "fused": op.fused,
                }
                for op in self.ops
            ],
        }

    def by_module(self) -> list[tuple[str, float]]:
        """Milliseconds by module path, the slowest first."""
        sums: dict[str, float] = defaultdict(float)
        for op in self.ops:
            sums[op.module] += op.milliseconds
        return sorted(sums.items(), key=lambda entry: -entry[1])

    def by_op(self) -> list[tuple[str, int, float]]:
        """Operator, nodes and milliseconds, the slowest first."""
        sums: dict[str, list[float]] = defaultdict(list)
        for op in self.ops:
            sums[op.op].append(op.milliseconds)
        found = [(op, len(times), sum(times)) for op, times in sums.items()]
        return sorted(found, key=lambda entry: -entry[2])


class Names:
    """Finds the node of a graph that an event of the engine speaks of.

    What an optimizer of ONNX Runtime makes of several nodes gives a value that one of them gave,
    mostly the last: that one's module owns it.  Where it gives another value, it is named after one
    of the nodes or values that it replaces (``InsertedPrecisionFreeCast_silu_3``), so it belongs to
    the known name that it starts with, or else holds as a word.
    """

    def __init__(self, graph: Graph, optimized: Graph | None = None) -> None:
        """Know the bundle's graph, and the one that the engine made of it."""
        self._modules = {node.name: node.module for node in graph.nodes if node.name}
        self._ops = {node.name: node.op.rpartition("::")[2] for node in graph.nodes}
        values = {name: node.module for node in graph.nodes for name in node.outputs if name}
        self._anything = {**values, **self._modules}
        self._fused = {
            node.name: values[output]
            for node in (optimized.nodes if optimized is not None else ())
            for output in reversed(node.outputs)
            if output in values
        }

    def owner(self, name: str, op: str) -> tuple[str, bool]:
        """Module of the node called `name` in the engine, and whether it is a fused one."""
        if name in self._modules:
            return self._modules[name], self._ops[name] != op
        if name in self._fused:
            return self._fused[name], True
        for end in range(len(name) - 1, 0, -1):
            if name[:end] in self._anything and not name[end].isalnum():
                return self._anything[name[:end]], True
        for word in _WORD.split(name):
            for start in range(len(word)):
                if word[start:] in self._anything and (start == 0 or word[start - 1] in "_/"):
                    return self._anything[word[start:]], True
        return ENGINE, True


def read_trace(path: Path) -> list[list[Event]]:
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


def op_profile(kind: str, tokens: int, calls: Sequence[Sequence[Event]], names: Names) -> OpProfile:
    """Summarize calls of one kind.

    Times are means of the middle half of the calls, so that an interruption of one does not make
    its node look slow.
    """
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    between = []
    for *nodes, call in calls:
        own = _own_times(nodes)
        between.append(call["dur"] - sum(time for _, time in own))
        once: dict[tuple[str, str], float] = defaultdict(float)  # a body may run several times
        for event, time in own:
            once[event["name"].removesuffix(_SUFFIX), event["args"]["op_name"]] += time
        for key, time in once.items():
            times[key].append(time)
    held, used = (
        max((int(event["args"].get(key, -1)) for *nodes, _ in calls for event in nodes), default=-1)
        for key in ("mem_arena_held", "mem_in_use_peak")
    )
    ops = []
    for (name, op), found in times.items():
        module, fused = names.owner(name, op)
        own_time = midmean(found) / 1e3
        ops.append(OpTime(node=name, op=op, module=module, milliseconds=own_time, fused=fused))
    return OpProfile(
        kind=kind,
        tokens=tokens,
        calls=len(calls),
        ops=ops,
        overhead=midmean(between) / 1e3,
        arena_held=held if held >= 0 else None,
        arena_used=used if used >= 0 else None,
    )


def midmean(values: Sequence[float]) -> float:
    """Mean of the values between the quartiles; finer than the median of whole microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


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
