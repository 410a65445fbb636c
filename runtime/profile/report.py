"""What a profile found: latencies, memory and operators of each contestant, side by side."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intaglio.runtime.graph_entry import MAIN
from intaglio.state import StateSpec

from .ops import OpProfile

BUNDLE, EAGER = "bundle", "eager"
NOISY = 2.0  # p99 : median from which a measurement is called noisy
SLOWED = 2.0  # traced : not traced from which shares are doubtful
BUSY = 0.5  # load average per core from which the machine is called busy


@dataclass(frozen=True, order=True)
class Phase:
    """One kind of call: "prefill" of `tokens`, or "step" of one token after `tokens` others.

    "prepare" is what conditions cost, once for a sequence; "streams" a step of each of `streams`
    sequences that one engine takes together.

    `graph` is the graph of the bundle that is called.
    """

    kind: str
    tokens: int
    graph: str = MAIN
    streams: int = 0

    def __str__(self) -> str:
        """As a row of a table is called."""
        said = {
            "prefill": f"prefill {self.tokens}",
            "step": f"step at {self.tokens}",
            "streams": f"{self.streams} streams at {self.tokens}",
            "prepare": "once for a sequence",
        }[self.kind]
        return said if self.graph == MAIN else f"{self.graph}: {said}"


@dataclass(frozen=True, kw_only=True)
class Latencies:
    """Latencies of one contestant in one phase, and what it then held.

    Attributes:
        phase: what was measured.
        batch: rows of each call.
        rounds: seconds of each call, by round; contestants took turns round by round.
        states: bytes of the carried states, all rows; None where there is no such thing.
        states_held: bytes of the buffers that they are in.
        capacity: tokens that growing states have room for.
        peak: most bytes that the process held so far.
    """

    phase: Phase
    batch: int
    rounds: Sequence[Sequence[float]]
    states: int | None = None
    states_held: int | None = None
    capacity: int | None = None
    peak: int | None = None

    @property
    def seconds(self) -> list[float]:
        """Seconds of every call."""
        return [time for part in self.rounds for time in part]

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Tokens of all rows by the median."""
        tokens = self.phase.tokens if self.phase.kind == "prefill" else 1
        return self.batch * tokens / self.median

    def percentile(self, rank: float) -> float:
        """The latency, in seconds, that `rank` per cent of the calls do not exceed."""
        return float(np.percentile(self.seconds, rank))

    def to_json(self, percentiles: Sequence[float]) -> dict[str, Any]:
        """As plain JSON values; `quantiles_ms` are the 0th, 0.5th, ... 100th percentiles."""
        times = np.asarray(self.seconds) * 1e3
        return {
            "graph": self.phase.graph,
            "kind": self.phase.kind,
            "tokens": self.phase.tokens,
            "batch": self.batch,
            "iterations": len(times),
            "rounds": len(self.rounds),
            "min_ms": float(times.min()),
            "mean_ms": float(times.mean()),
            "median_ms": float(np.median(times)),
            "max_ms": float(times.max()),
            "percentiles_ms": {f"{q:g}": float(np.percentile(times, q)) for q in percentiles},
            "tokens_per_second": self.tokens_per_second,
            "state_bytes": self.states,
            "state_held_bytes": self.states_held,
            "state_capacity": self.capacity,
            "peak_bytes": self.peak,
            "quantiles_ms": [
                round(float(value), 6) for value in np.percentile(times, np.linspace(0, 100, 201))
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One contestant.

    Attributes:
        name: as the report calls it.
        kind: "bundle", or "eager" for the source in PyTorch.
        about: facts about it: target, model, source.
        load_seconds: time to open it, in a process whose libraries were loaded.
        weights: bytes of its weights, as the engine is given them.
        bits: mean bits of a weight, None where unknown.
        before: bytes that its process held before it was loaded.
        loaded: bytes that its process held after that.
        timings: latencies by phase.
        ops: where the time goes, by phase, where that was asked for.
        states: the carried states, as the manifest describes them.
    """

    name: str
    kind: str
    load_seconds: float
    weights: int | None
    timings: Sequence[Latencies]
    about: Mapping[str, str] = field(default_factory=dict)
    bits: float | None = None
    before: int | None = None
    loaded: int | None = None
    ops: Sequence[OpProfile] = ()
    states: Sequence[StateSpec] = ()

    @property
    def peak(self) -> int | None:
        """Most bytes that its process held."""
        return max((timing.peak for timing in self.timings if timing.peak), default=None)

    @property
    def arena(self) -> int | None:
        """Most bytes that the engine's arena held in the traced calls."""
        return max((op.arena_held for op in self.ops if op.arena_held is not None), default=None)

    def timing(self, phase: Phase) -> Latencies | None:
        """The latencies of one phase, if it was measured."""
        return next((timing for timing in self.timings if timing.phase == phase), None)

    def to_json(self, percentiles: Sequence[float]) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "name": self.name,
            "kind": self.kind,
            "about": dict(self.about),
            "load_seconds": self.load_seconds,
            "memory": {
                "before_bytes": self.before,
                "loaded_bytes": self.loaded,
                "peak_bytes": self.peak,
                "weight_bytes": self.weights,
                "arena_bytes": self.arena,
            },
            "bits_per_weight": self.bits,
            "states": [spec.to_json() for spec in self.states],
            "timings": [timing.to_json(percentiles) for timing in self.timings],
            "ops": [entry.to_json() for entry in self.ops],
        }


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Latency of one contestant to the first one's: median, lower and upper quartile of pairs."""

    phase: Phase
    name: str
    ratio: float
    low: float
    high: float
    pairs: int

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "graph": self.phase.graph,
            "kind": self.phase.kind,
            "tokens": self.phase.tokens,
            "name": self.name,
            "ratio": self.ratio,
            "low": self.low,
            "high": self.high,
            "pairs": self.pairs,
        }


@dataclass(frozen=True, kw_only=True)
class ProfileReport:
    """All contestants, and the circumstances.

    `machine` tells processor, cores and load averages, `options` what was asked for, `percentiles`
    the ranks of latency, `taken` when, in ISO 8601.
    """

    taken: str
    machine: Mapping[str, Any]
    versions: Mapping[str, str]
    options: Mapping[str, Any]
    percentiles: Sequence[float]
    measured: Sequence[Contender]
    notes: Sequence[str] = ()

    @property
    def phases(self) -> list[Phase]:
        """What was measured, in order."""
        return list(dict.fromkeys(t.phase for entry in self.measured for t in entry.timings))

    @property
    def ratios(self) -> list[Ratio]:
        """Every contestant after the first against the first, phase by phase."""
        first, *others = self.measured
        pairs = [(phase, other) for phase in self.phases for other in others]
        return [
            _ratio(phase, other.name, ours, theirs)
            for phase, other in pairs
            if (ours := first.timing(phase)) and (theirs := other.timing(phase))
        ]

    @property
    def warnings(self) -> list[str]:
        """What makes the figures doubtful."""
        entries = self.measured
        return [
            *_busy(self.machine),
            *(note for entry in entries for note in _noisy(entry)),
            *(note for entry in entries for note in _slowed(entry)),
        ]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "taken": self.taken,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "options": dict(self.options),
            "measured": [entry.to_json(self.percentiles) for entry in self.measured],
            "ratios": [ratio.to_json() for ratio in self.ratios],
            "warnings": self.warnings,
            "notes": list(self.notes),
        }


def _ratio(phase: Phase, name: str, ours: Latencies, theirs: Latencies) -> Ratio:
    """Ratio of medians, round by round."""
    values = [
        statistics.median(b) / statistics.median(a)
        for a, b in zip(ours.rounds, theirs.rounds, strict=True)
    ]
    low, middle, high = (float(np.percentile(values, q)) for q in (25, 50, 75))
    return Ratio(phase=phase, name=name, ratio=middle, low=low, high=high, pairs=len(values))


def _busy(machine: Mapping[str, Any]) -> list[str]:
    load, cores = machine["load_before"], machine["cores"]
    if load is None or load[0] < BUSY * cores:
        return []
    said = (
        f"The machine was busy before anything was measured: load average {load[0]:.1f} on "
        f"{cores} cores. Close other programs and profile again."
    )
    return [said]


def _slowed(entry: Contender) -> list[str]:
    """Name the phases that tracing slows so much that shares say little."""
    found = [
        f"{phase} ({ops.engine:.3f} ms against {1e3 * timing.median:.3f} ms)"
        for ops in entry.ops
        for phase in [Phase(ops.kind, ops.tokens, ops.graph)]
        if (timing := entry.timing(phase)) and ops.engine > SLOWED * 1e3 * timing.median
    ]
    if not found:
        return []
    said = (
        f"{entry.name} takes more than {SLOWED:g} times as long while its operators are traced, in "
        f"{', '.join(found)}: what each share costs the tracer is in it, and small operators look "
        "slower than they are."
    )
    return [said]


def _noisy(entry: Contender) -> list[str]:
    """Name the phases whose slowest calls are far from the usual ones."""
    found = [
        f"{timing.phase} ({timing.percentile(99) / timing.median:.1f} times)"
        for timing in entry.timings
        if timing.percentile(99) > NOISY * timing.median
    ]
    if not found:
        return []
    said = (
        f"{entry.name} was disturbed: the 99th percentile is far above the median in "
        f"{', '.join(found)}. Something else ran meanwhile, or the processor changed its clock."
    )
    return [said]
