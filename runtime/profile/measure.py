"""Measuring bundles: latencies, memory and operators, each bundle in a fresh process.

Contestants take turns, round by round, so that what disturbs the machine disturbs all of them;
ratios are medians over rounds.  The words of options are those of trtexec: warm-up in
milliseconds, duration in seconds, a least number of iterations, percentiles.
"""

import datetime as dt
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import version

from intaglio.call_ends import last_end
from intaglio.errors import BundleError, OptionError
from intaglio.runtime import machine
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.child_worker import Worker
from intaglio.runtime.engines import choose_target
from intaglio.runtime.onnx_graph import OnnxGraph, read_graph
from intaglio.runtime.op_trace import Trace
from intaglio.runtime.trt.engine_build import TARGET, read_built
from intaglio.runtime.weights import total, weights_of
from intaglio.runtime.work import Ceilings, Works
from intaglio.state import BATCH, CAPACITY, PAST, TIME, time_of

from .advice import advice
from .ops import OpProfile, op_profile
from .report import BUNDLE, Contender, Latencies, Phase, ProfileReport
from .settings import Contestant, ProfileSettings

CHILD = "intaglio.runtime.profile.child"
CONTEXTS = (128, 1024, 4096)
PROMPTS = (512,)
FARTHEST = 1 << 24  # tokens of a prompt or a context, which are all consumed
EVENTS = 100_000  # of the engine's profiler, about 600 bytes each
TRACED = 20  # calls of each phase, at most

Progress = Callable[[str, float | None], None]


def profile(
    bundles: Sequence[str | os.PathLike[str] | Bundle],
    settings: ProfileSettings | None = None,
    *,
    peers: Sequence[Contestant] = (),
    progress: Progress | None = None,
) -> ProfileReport:
    """Measure bundles side by side, and whatever else takes part.

    Args:
        bundles: folders that `intaglio export` wrote; ratios are to the first.
        settings: what to measure.
        peers: further contestants.
        progress: is told what runs and the fraction of it that is done.

    Raises:
        BundleError: if a bundle cannot be opened, or takes other inputs than the first.
        OptionError: if a bundle cannot do what `settings` ask for.
        ProfileError: if a process ends before it has answered.
    """
    settings = settings or ProfileSettings()
    tell = progress or (lambda what, done: None)  # noqa: ARG005
    opened = [Bundle.open(bundle) for bundle in bundles]
    names = graphs_of(opened, settings)
    phases = [
        phase
        for name in names
        for phase in phases_of([bundle.graph(name) for bundle in opened], settings)
    ]
    if settings.streams and not any(phase.kind == "streams" for phase in phases):
        raise OptionError(
            f"{opened[0].root} has no streams: it carries nothing from one token to the next. "
            "Leave --streams out."
        )
    ours = [_contestant(bundle, settings, opened, names) for bundle in opened]
    load_before = machine.load_average()
    measured = _measure([*ours, *peers], phases, settings, tell)
    for index, bundle in enumerate(opened):
        tell(f"operators: {ours[index].name}", index / len(ours))
        graphs = {name: _read(bundle.graph(name), settings) for name in names}
        ops = [
            profile
            for name, graph in graphs.items()
            if settings.ops
            for profile in _trace(ours[index], graph, name, phases, settings)
        ]
        measured[index] = _with_graphs(measured[index], bundle, graphs, ops)
    return ProfileReport(
        taken=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        machine={
            **machine.describe(),
            "load_before": load_before,
            "load_after": machine.load_average(),
        },
        versions={name: version(name) for name in ("intaglio", "numpy", "onnxruntime")},
        options=asdict(settings),
        percentiles=settings.percentiles,
        measured=measured,
        notes=advice(measured),
    )


def graphs_of(bundles: Sequence[Bundle], settings: ProfileSettings) -> list[str]:
    """Names of the graphs to measure: the one asked for, or all that the bundles have in common."""
    if settings.graph is not None:
        return [bundle.graph(settings.graph).name for bundle in bundles][:1]
    first, *others = bundles
    return [name for name in first.graphs if all(name in other.graphs for other in others)]


def phases_of(graphs: Sequence[BundleGraph], settings: ProfileSettings) -> list[Phase]:
    """What to measure of graphs of one name: prefills, then steps in the order of their contexts.

    Raises:
        BundleError: if the graphs take different inputs.
        OptionError: if one cannot do what `settings` ask for.
    """
    first = graphs[0]
    for graph in graphs:
        if _inputs(graph) != _inputs(first):
            raise BundleError(
                f"{graph} takes {_inputs(graph)}, {first} takes {_inputs(first)}. "
                "Bundles are measured side by side on the same inputs."
            )
        if graph.entry.limits.batch not in (None, settings.batch):
            raise OptionError(
                f"{graph} was exported for a batch of {graph.entry.limits.batch}, not of "
                f"{settings.batch}. Give --batch {graph.entry.limits.batch}"
            )
    ends = [end for graph in graphs if (end := _end(graph, settings)) is not None]
    end = min(ends, default=None)
    if first.name in {entry.prepare for entry in first.bundle.manifest.graphs.values()}:
        return [Phase("prepare", 1, first.name)]
    timed = any(time_of(spec.shape) is not None for spec in first.entry.inputs)
    stateful = all(graph.entry.states for graph in graphs)
    prompts = _within(settings.prompts, PROMPTS, end, "prompt") if timed else [1]
    last = None if end is None else end - 1  # the step itself needs a position
    contexts = _within(settings.contexts, CONTEXTS, last, "context") if timed and stateful else []
    if blocks := first.entry.limits.ends:  # which a step takes whole
        prompts, contexts = sorted({last_end(blocks, tokens) for tokens in prompts}), []
    return [
        *(Phase("prefill", tokens, first.name) for tokens in prompts),
        *(Phase("step", tokens, first.name) for tokens in contexts),
        *(Phase("streams", t, first.name, settings.streams) for t in contexts if settings.streams),
    ]


def _read(graph: BundleGraph, settings: ProfileSettings) -> OnnxGraph:
    return read_graph(graph, choose_target(graph, settings.target))


def _end(graph: BundleGraph, settings: ProfileSettings) -> int | None:
    """Tokens at which a row ends: that of positions, or of an engine's caches."""
    limits = graph.entry.limits
    end = limits.sizes[TIME][1] if TIME in limits.sizes else limits.max_context
    if choose_target(graph, settings.target) != TARGET or (built := read_built(graph)) is None:
        return end
    room = built.capacity(graph.entry)
    return min((each for each in (end, room) if each is not None), default=None)


def _within(
    wanted: Sequence[int] | None, usual: Sequence[int], end: int | None, what: str
) -> list[int]:
    """The tokens wanted, sorted; the usual ones, as far as positions reach, if none are."""
    if wanted is None:
        return [tokens for tokens in usual if end is None or tokens <= end] or [end or 1]
    if max(wanted, default=0) > FARTHEST:
        raise OptionError(
            f"A {what} of {max(wanted)} tokens would have to be consumed first; {FARTHEST} at most."
        )
    beyond = [tokens for tokens in wanted if end is not None and tokens > end]
    if beyond:
        raise OptionError(
            f"A {what} of {beyond[0]} tokens does not fit: the model's positions allow {end}."
        )
    return sorted(set(wanted))


def _contestant(
    bundle: Bundle, settings: ProfileSettings, among: Sequence[Bundle], graphs: Sequence[str]
) -> Contestant:
    """The bundle, named by its folder, or by its whole path where several folders agree."""
    target = choose_target(bundle.graph(graphs[0]), settings.target)
    alike = [other for other in among if other.root.name == bundle.root.name]
    source = bundle.manifest.source
    return Contestant(
        name=bundle.root.name if len(alike) == 1 else str(bundle.root),
        kind=BUNDLE,
        child=CHILD,
        load={
            "bundle": str(bundle.root),
            "target": settings.target,
            "threads": settings.threads,
            "capacity": settings.capacity,
            "graphs": list(graphs),
        },
        graphs=tuple(graphs),
        about={
            "target": target,
            "model": str(source.get("model") or ""),
            "source": str(source["name"]),
            "intaglio": bundle.manifest.intaglio,
        },
    )


def _measure(
    contestants: Sequence[Contestant],
    phases: Sequence[Phase],
    settings: ProfileSettings,
    tell: Progress,
) -> list[Contender]:
    """Let all of them take turns in every phase."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(c.name, c.child)) for c in contestants]
        loaded = []
        for contestant, worker in zip(contestants, workers, strict=True):
            tell(f"load: {contestant.name}", None)
            loaded.append(worker.call("load", **contestant.load))
        timings: list[list[Latencies]] = [[] for _ in workers]
        for index, phase in enumerate(phases):
            tell(str(phase), index / len(phases))
            turns = [place for place, each in enumerate(contestants) if _takes(each, phase)]
            found = _turns([workers[place] for place in turns], phase, settings)
            for place, timing in zip(turns, found, strict=True):
                timings[place].append(timing)
    return [
        Contender(
            name=facts.get("name", contestant.name),
            kind=contestant.kind,
            about={**contestant.about, **facts.get("about", {})},
            load_seconds=facts["seconds"],
            before=facts["before"],
            loaded=facts["resident"],
            weights=facts.get("weights"),
            timings=kept,
        )
        for contestant, facts, kept in zip(contestants, loaded, timings, strict=True)
    ]


def _takes(contestant: Contestant, phase: Phase) -> bool:
    """Whether it takes part: what is no bundle has no streams."""
    has = phase.kind != "streams" or contestant.kind == BUNDLE
    return has and phase.graph in contestant.graphs


def _turns(workers: Sequence[Worker], phase: Phase, settings: ProfileSettings) -> list[Latencies]:
    """One phase: everybody gets ready and warm, then they alternate."""
    for worker in workers:
        _ready(worker, phase, settings)
        worker.call("run", seconds=settings.warmup / 1e3, iterations=1)
    rounds: list[list[list[float]]] = [[] for _ in workers]
    least = -(-settings.iterations // settings.rounds)
    for _ in range(settings.rounds):
        for worker, kept in zip(workers, rounds, strict=True):
            seconds = settings.duration / settings.rounds
            kept.append(worker.call("run", seconds=seconds, iterations=least))
    footprints = [worker.call("footprint") for worker in workers]
    return [
        Latencies(
            phase=phase,
            batch=phase.streams or settings.batch,
            rounds=kept,
            states=found.get("states"),
            states_held=found.get("states_held"),
            capacity=found.get("capacity"),
            peak=found["peak"],
        )
        for kept, found in zip(rounds, footprints, strict=True)
    ]


def _trace(
    contestant: Contestant,
    graph: OnnxGraph,
    name: str,
    phases: Sequence[Phase],
    settings: ProfileSettings,
) -> list[OpProfile]:
    """Where the time of each phase of a graph goes, with its engine's profiler on.

    It runs in another process, alone.
    """
    phases = [phase for phase in phases if phase.graph == name and phase.kind != "streams"]
    calls = max(1, min(TRACED, EVENTS // (max(len(graph.nodes), 1) * len(phases))))
    parts = []
    with Worker(contestant.name, contestant.child) as worker:
        worker.call("load", **{**contestant.load, "graphs": [name]}, trace=True)
        for phase in phases:
            _ready(worker, phase, settings)
            worker.call("run", seconds=0, iterations=1)
            start = worker.call("steps")
            worker.call("run", seconds=0, iterations=calls)
            parts.append((phase, start, worker.call("footprint")["capacity"]))
        usual: Mapping[str, int] = worker.call("usual_sizes")
        ceilings = worker.call("ceilings")
        trace = Trace.from_json(worker.call("end_trace"))
    return [
        op_profile(
            phase.kind,
            phase.tokens,
            trace.ops,
            trace.calls[start : start + calls],
            Works(graph, {**usual, **_sizes(phase, settings.batch, capacity or 0)}),
            ceilings and Ceilings(**ceilings),
            phase.graph,
        )
        for phase, start, capacity in parts
    ]


def _ready(worker: Worker, phase: Phase, settings: ProfileSettings) -> None:
    worker.call(
        "ready",
        kind=phase.kind,
        tokens=phase.tokens,
        batch=phase.streams or settings.batch,
        graph=phase.graph,
    )


def _sizes(phase: Phase, batch: int, capacity: int) -> dict[str, int]:
    """What the dimensions of a graph stand for in a phase."""
    step = phase.kind == "step"
    return {
        BATCH: batch,
        TIME: 1 if step else phase.tokens,
        PAST: phase.tokens if step else 0,
        CAPACITY: capacity,
    }


def _with_graphs(
    entry: Contender,
    bundle: Bundle,
    graphs: Mapping[str, OnnxGraph],
    ops: Sequence[OpProfile],
) -> Contender:
    """Add what is known without running: weights, each once, and how states are described."""
    tensors = {(t.name, t.nbytes): t for graph in graphs.values() for t in graph.tensors.values()}
    weights = {(w.name, w.bytes): w for graph in graphs.values() for w in weights_of(graph)}
    entries = [bundle.graph(name).entry for name in graphs]
    return replace(
        entry,
        weights=sum(tensor.nbytes for tensor in tensors.values()),
        bits=total(list(weights.values())).bits,
        states=[spec for each in entries for spec in each.states_of(entry.about["target"])],
        ops=ops,
    )


def _inputs(graph: BundleGraph) -> str:
    return ", ".join(
        f"{spec.name} {spec.dtype} [{', '.join(map(str, spec.shape))}]"
        for spec in graph.entry.inputs
    )
