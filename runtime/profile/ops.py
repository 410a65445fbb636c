"""Where the time of one kind of call goes: operators, modules, and what their work bounds."""

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.op_trace import EngineCall, TracedOp
from intaglio.runtime.work import Ceilings, NodeWork, Works, added

UNKNOWN, NONE = "?", "-"


@dataclass(frozen=True, kw_only=True)
class OpTime(TracedOp):
    """An operator with the milliseconds that it takes in one call, the mean over the calls.

    `work` is what it has to do, None where that is not known.
    """

    milliseconds: float
    work: NodeWork | None = None


@dataclass(frozen=True, kw_only=True)
class OpSum:
    """All nodes of one operator: how many, their milliseconds in one call, and their work."""

    op: str
    nodes: int
    milliseconds: float
    work: NodeWork | None

    @property
    def bandwidth(self) -> float | None:
        """Bytes a second."""
        return self._rate(None if self.work is None else self.work.bytes)

    @property
    def throughput(self) -> float | None:
        """Operations a second."""
        return self._rate(None if self.work is None else self.work.operations)

    def _rate(self, amount: int | None) -> float | None:
        return amount / self.milliseconds * 1e3 if amount and self.milliseconds else None


@dataclass(frozen=True, kw_only=True)
class OpProfile:
    """Where the time of one kind of call goes, with the engine's profiler on.

    Attributes:
        graph: what was called, of the graphs of the bundle.
        kind: "prefill" or "step".
        tokens: length of the prompt, or of the context.
        calls: how many were traced.
        ops: what ran, in its order.
        overhead: milliseconds of a call that the engine spends between them, tracing included: on
            a GPU the gaps between launches.
        arena_held: most bytes that the engine's arena held, weights that it copied included.
        arena_used: most bytes of them in use at one time.
        ceilings: what the device reaches at best, None where that is not measured.
    """

    kind: str
    tokens: int
    calls: int
    ops: Sequence[OpTime]
    overhead: float
    arena_held: int | None
    arena_used: int | None
    ceilings: Ceilings | None = None
    graph: str = MAIN

    @property
    def kernels(self) -> float:
        """Milliseconds of all operators together."""
        return sum(op.milliseconds for op in self.ops)

    @property
    def engine(self) -> float:
        """Milliseconds of a call within the engine."""
        return self.kernels + self.overhead

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "graph": self.graph,
            "kind": self.kind,
            "tokens": self.tokens,
            "calls": self.calls,
            "engine_ms": self.engine,
            "kernels_ms": self.kernels,
            "overhead_ms": self.overhead,
            "arena_held_bytes": self.arena_held,
            "arena_used_bytes": self.arena_used,
            "ceilings": _ceilings(self.ceilings),
            "by_module": [{"module": m, "ms": ms} for m, ms in self.by_module()],
            "by_op": [
                {"op": each.op, "nodes": each.nodes, **self._figures(each.milliseconds, each.work)}
                for each in self.by_op()
            ],
            "ops": [
                {
                    "node": op.node,
                    "op": op.op,
                    "module": op.module,
                    "fused": op.fused,
                    **self._figures(op.milliseconds, op.work),
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

    def by_op(self) -> list[OpSum]:
        """By operator, the slowest first."""
        alike: dict[str, list[OpTime]] = defaultdict(list)
        for op in self.ops:
            alike[op.op].append(op)
        sums = [
            OpSum(
                op=name,
                nodes=len(ops),
                milliseconds=sum(op.milliseconds for op in ops),
                work=added(*(op.work for op in ops)),
            )
            for name, ops in alike.items()
        ]
        return sorted(sums, key=lambda each: -each.milliseconds)

    def reached(self, milliseconds: float, work: NodeWork | None) -> float | None:
        """The share of the roofline that `work` in this time reaches."""
        if self.ceilings is None or work is None or not milliseconds:
            return None
        return self.ceilings.least(work) / milliseconds

    @property
    def columns(self) -> list[str]:
        """What reports tell of each operator beside its time, as they head it."""
        return ["GB/s", "Gop/s", *["of roofline"] * (self.ceilings is not None)]

    def cells(self, each: OpSum) -> list[str]:
        """The figures of an operator under `columns`: NONE where it only moves or only shows."""
        rates = (each.bandwidth, each.throughput)
        reached = self.reached(each.milliseconds, each.work)
        without = UNKNOWN if each.work is None else NONE
        return [
            *(without if rate is None else f"{rate / 1e9:.3g}" for rate in rates),
            *[f"{reached:.0%}" if reached else without] * (self.ceilings is not None),
        ]

    def _figures(self, milliseconds: float, work: NodeWork | None) -> dict[str, Any]:
        return {
            "ms": milliseconds,
            "bytes": None if work is None else work.bytes,
            "operations": None if work is None else work.operations,
            "of_roofline": self.reached(milliseconds, work),
        }


def op_profile(
    kind: str,
    tokens: int,
    ops: Sequence[TracedOp],
    calls: Sequence[EngineCall],
    works: Works,
    ceilings: Ceilings | None = None,
    graph: str = MAIN,
) -> OpProfile:
    """Summarize calls of one kind.

    Times are means of the middle half of the calls, so that an interruption of one does not make
    its node look slow.
    """
    times: dict[int, list[float]] = defaultdict(list)
    for call in calls:
        for place, time in call.times.items():
            times[place].append(time)
    seen = {place: work for call in calls for place, work in call.works.items()}
    held, used = (
        max((size for size in sizes if size is not None), default=None)
        for sizes in ([c.arena_held for c in calls], [c.arena_used for c in calls])
    )
    return OpProfile(
        graph=graph,
        kind=kind,
        tokens=tokens,
        calls=len(calls),
        ops=[
            OpTime(
                **vars(ops[place]),
                milliseconds=midmean(found),
                work=works.of(ops[place].nodes) or seen.get(place),
            )
            for place, found in times.items()
        ],
        overhead=midmean([call.total - sum(call.times.values()) for call in calls]),
        arena_held=held,
        arena_used=used,
        ceilings=ceilings,
    )


def midmean(values: Sequence[float]) -> float:
    """Mean of the values between the quartiles; finer than the median of whole microseconds."""
    ordered = sorted(values)
    cut = len(ordered) // 4
    return statistics.fmean(ordered[cut : len(ordered) - cut])


def _ceilings(found: Ceilings | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "device": found.device,
        "bytes_per_second": found.bytes,
        "operations_per_second": dict(found.operations),
    }
