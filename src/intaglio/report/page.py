"""The page of a profile: one file, no script, nothing loaded from elsewhere."""

from collections.abc import Sequence
from pathlib import Path

from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.profile.ops import OpProfile
from intaglio.runtime.profile.report import Contender, Latencies, Phase, ProfileReport, Ratio
from intaglio.state import StateSpec
from intaglio.whole_files import output

from . import charts
from .document import document
from .figures import decimals, fixed
from .html import Html, element, grouped, join, table
from .tree import Branch, tree

UNKNOWN = "-"
_TOP = 12  # operators that are listed

_TERMS = {
    "prefill n": "One call with n tokens at once, from the initial state.",
    "step at n": "One call with one token, after n tokens; repeated at exactly that context.",
    "n streams at m": "A token of each of n sequences, which one engine steps together, after m "
    "tokens and at most 64 more.",
    "latency": "Time of Session.step as its caller sees it, the copy of outputs included; for "
    "PyTorch a forward pass over the prompt; a step there is one over the context and the token, "
    "or the library's own with its cache, as is told below the latencies.",
    "states": "Bytes that the carried states hold after the call, all rows.",
    "weights": "Bytes of the initializers of the graph that the engine is given.",
    "bits per weight": "Bytes of floating-point and packed initializers, scales and offsets "
    "included, by the number of weights that they stand for.",
    "arena": "The most memory that the engine's allocator held while operators were traced: "
    "intermediate values, and weights that it copied.",
    "process": "The most physical memory of the process that ran it, libraries included, up to "
    "the end of the phase.",
    "time by module": "From the profiler of the engine, in another process: tracing slows the "
    "call down, so shares count more than times. Those of ONNX Runtime are whole microseconds.",
    "between operators": "What the engine does between them; on a GPU, the gaps between launches.",
    "GB/s, Gop/s": "What an operator has to read, write and compute, from the shapes in the graph, "
    "by its time. A weight that is still in a cache comes faster than the memory is.",
    "of roofline": "The least time that the device would need for these bytes or these operations, "
    "whichever is longer, by the time that it took. What lies in a processor's caches can be above "
    "100 %.",
}


def write_page(report: ProfileReport, path: Path) -> None:
    """Write the page of `report` to `path`."""
    with output(path) as draft:
        draft.write_text(page(report), encoding="utf-8")


def page(report: ProfileReport) -> str:
    """The page of `report`."""
    first, *others = (entry.name for entry in report.measured)
    title = f"{first} against {' and '.join(others)}" if others else first
    sections = [
        _opening(report, title),
        _advice(report.notes),
        _latency(report),
        _comparison(report),
        _distributions(report),
        _contexts(report),
        *(_operators(entry) for entry in report.measured if entry.ops),
        _memory(report),
        _states(report),
        _closing(report),
    ]
    return document(f"Profile of {title}", *sections)


def amount(size: float | None) -> str:
    """Bytes as people read them."""
    if size is None:
        return UNKNOWN
    for unit, scale in (("B", 1), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if size < 1000 * scale or unit == "GB":
            break
    return f"{size / scale:.3g} {unit}"


def _opening(report: ProfileReport, title: str) -> Html:
    machine, options = report.machine, report.options
    load = machine.get("load_before")
    facts = [
        f"{machine.get('processor', 'unknown processor')}, {machine['cores']} cores",
        f"threads: {options.get('threads') or 'as the engine chooses'}",
        f"batch {options.get('batch', 1)}",
        f"load average {'unknown' if load is None else load[0]}",
        *(f"{name} {version}" for name, version in report.versions.items()),
        report.taken.replace("T", " ").replace("+00:00", " UTC"),
    ]
    return join(
        element("div", "intaglio profile", class_="eyebrow"),
        element("h1", title),
        element("p", " · ".join(facts), class_="facts"),
        _doubts(report.warnings),
        _tiles(report),
    )


def _doubts(warnings: Sequence[str]) -> Html:
    """What makes the figures doubtful: one line, which opens."""
    if not warnings:
        return Html("")
    first, _, rest = warnings[0].partition(". ")
    line, said = (
        (first, [rest]) if len(warnings) == 1 else (f"for {len(warnings)} reasons", warnings)
    )
    head = element("summary", element("b", "These figures are doubtful"), f": {line}.")
    return element("details", head, *(element("p", each) for each in said), class_="warning")


def _advice(notes: Sequence[str]) -> Html | None:
    said = "Choices that are known to be slower where the time goes as it does here."
    told = (element("p", each) for each in notes)
    return _section("What would be faster", said, *told) if notes else None


def _tiles(report: ProfileReport) -> Html:
    """Of one contestant how many tokens a second, of several how much longer than the first."""
    first = report.measured[0]
    tiles: list[list[Html]] = []
    for phase in _ends(report.phases):
        timing = first.timing(phase)
        ratios = [ratio for ratio in report.ratios if ratio.phase == phase]
        if len(report.measured) == 1 and timing is not None:
            rate = element("b", f"{timing.tokens_per_second:,.0f}")
            tiles.append([rate, element("span", f"tokens/s, {phase}")])
        elif ratios:
            title = element("span", f"{phase}, times the latency of {first.name}")
            tiles.append([*(_ratio(ratio, report) for ratio in ratios), title])
    return element("div", *(element("div", *tile, class_="tile") for tile in tiles), class_="tiles")


def _ends(phases: Sequence[Phase]) -> list[Phase]:
    """The longest prefill, and steps and streams at the shortest and the longest context."""
    apart = [[p for p in phases if p.kind == kind] for kind in ("step", "streams")]
    prefills = [phase for phase in phases if not any(phase in each for each in apart)]
    ends = [phase for each in apart for phase in dict.fromkeys([*each[:1], *each[-1:]])]
    return [*prefills[-1:], *ends]


def _ratio(ratio: Ratio, report: ProfileReport) -> Html:
    names = [entry.name for entry in report.measured]
    spread = f"{charts.multiple(ratio.low)} to {charts.multiple(ratio.high)}"
    return element(
        "p",
        element("b", f"{charts.multiple(ratio.ratio)}\N{MULTIPLICATION SIGN}"),
        element("span", _swatch(names.index(ratio.name)), ratio.name, " ", element("i", spread)),
    )


def _legend(report: ProfileReport) -> Html:
    if len(report.measured) == 1:
        return Html("")
    entries = [
        element("li", _swatch(index), entry.name) for index, entry in enumerate(report.measured)
    ]
    return element("ul", *entries, class_="legend")


def _swatch(index: int) -> Html:
    return element("span", class_=f"swatch s{index % charts.SERIES}")


def _section(title: str, said: str, *content: object) -> Html:
    return element("section", element("h2", title), element("p", said), *content)


def _latency(report: ProfileReport) -> Html:
    ranks = report.percentiles
    several = len(report.measured) > 1
    rates = ["tokens/s"] * several
    head = ["ms", "median", *(f"p{rank:g}" for rank in ranks), "min", "max", "calls", *rates]
    digits = decimals([1e3 * min(t.seconds) for e in report.measured for t in e.timings])
    groups: list[tuple[object, list[list[object]]]] = [
        (
            join(_swatch(index), entry.name) if several else None,
            [_row(timing, ranks, digits, rated=several) for timing in entry.timings],
        )
        for index, entry in enumerate(report.measured)
    ]
    said = "Time of one call in milliseconds, all rows of the batch together."
    steps = [
        element("p", f"{entry.name}: a step is {step}.")
        for entry in report.measured
        if (step := entry.about.get("step"))
    ]
    return _section("Latency", said, grouped([*head], groups), *steps)


def _row(timing: Latencies, ranks: Sequence[float], digits: int, *, rated: bool) -> list[object]:
    times = [timing.median, *(timing.percentile(rank) for rank in (*ranks, 0, 100))]
    median, *others = (fixed(1e3 * time, digits) for time in times)
    return [
        str(timing.phase),
        element("b", median),
        *others,
        f"{len(timing.seconds):,}",
        *[f"{timing.tokens_per_second:,.0f}"] * rated,
    ]


def _comparison(report: ProfileReport) -> Html | None:
    ratios = report.ratios
    if not ratios:
        return None
    names = [entry.name for entry in report.measured]
    said = (
        f"Latency as a multiple of {names[0]}: the median of {ratios[0].pairs} pairs of rounds "
        "that took turns, and the range from the lower to the upper quartile. Below 1 is faster."
    )
    figure = _figure("Ratios of latency, lower is faster", charts.comparison(ratios, names))
    return _section("Side by side", said, _legend(report), element("div", figure, class_="alone"))


def _figure(caption: str, svg: Html) -> Html:
    return element("figure", element("figcaption", caption), svg)


def _distributions(report: ProfileReport) -> Html:
    figures = [_figure(str(phase), charts.distribution(report, phase)) for phase in report.phases]
    said = (
        "How often a call took how long; the dashed line is the median. The slowest half per cent "
        "of the calls are beyond the right edge, in the table above."
    )
    content = element("div", *figures, class_="charts")
    return _section("Distribution of latencies", said, _legend(report), content)


def _contexts(report: ProfileReport) -> Html | None:
    contexts = [phase for phase in report.phases if phase.kind == "step" and phase.graph == MAIN]
    if len(contexts) < 2:
        return None
    said = (
        "What a step costs as more tokens lie behind it: flat for a state of fixed size, growing "
        "for a cache of keys and values. The band runs from the 10th to the 90th percentile."
    )
    figures = [
        _figure("Time of a step", charts.context_curve(report)),
        _figure("Size of the states, all rows", charts.state_curve(report)),
    ]
    content = element("div", *figures, class_="charts")
    return _section("Context", said, _legend(report), content)


def _operators(entry: Contender) -> Html:
    # Of the steps the one at the longest context.
    latest = {(ops.graph, ops.kind): ops for ops in entry.ops}
    said = (
        "Time of the operators by the module of the source that they came from, in a traced run. "
        "Open a module to see what is within it."
    )
    parts = [part for ops in latest.values() for part in _traced(ops, entry)]
    return _section(f"Where the time goes: {entry.name}", said, *parts)


def _traced(ops: OpProfile, entry: Contender) -> list[Html]:
    phase = Phase(ops.kind, ops.tokens, ops.graph)
    whole = ops.kernels + max(ops.overhead, 0)
    overhead = _leaf("between operators", ops.overhead, whole, quiet=True)
    root = tree(ops.by_module())
    rows = [_branch(child, whole, 0) for child in root.ordered()]
    if root.own:
        rows.append(_leaf("(no module)", root.own, whole))
    operators = ops.by_op()
    head: list[object] = ["operator", "nodes", "ms", "share", *ops.columns]
    shown: list[list[object]] = [
        [element("code", o.op), o.nodes, *_share(o.milliseconds, whole), *ops.cells(o)]
        for o in operators[:_TOP]
    ]
    if rest := operators[_TOP:]:
        time, nodes = sum(o.milliseconds for o in rest), sum(o.nodes for o in rest)
        blank = ["" for _ in ops.columns]
        shown.append([f"{len(rest)} more", nodes, *_share(time, whole), *blank])
    return [
        element("h3", str(phase)),
        element("p", traced_cost(ops, entry.timing(phase))),
        element("p", f"Roofline: {ops.ceilings}.") if ops.ceilings is not None else Html(""),
        element("div", *rows, overhead, class_="tree"),
        table(head, shown),
    ]


def traced_cost(ops: OpProfile, timing: Latencies | None) -> str:
    """How long a call is in the engine while traced, and how long one is that is not."""
    said = f"{ops.engine:.3f} ms in the engine while traced"
    return said + ("." if timing is None else f", {timing.median * 1e3:.3f} ms a call without.")


def _share(time: float, whole: float) -> list[str]:
    return [f"{time:.3f}", f"{time / (whole or 1):.0%}"]


def _branch(branch: Branch, whole: float, depth: int) -> Html:
    if not branch.children:
        return _leaf(branch.name, branch.own, whole, depth)
    inner = [_branch(child, whole, depth + 1) for child in branch.ordered()]
    if branch.own:
        inner.append(_leaf("(itself)", branch.own, whole, depth + 1))
    summary = element("summary", _bar(branch.name, branch.total, whole, depth))
    return element("details", summary, *inner, open="" if depth == 0 else None)


def _leaf(name: str, time: float, whole: float, depth: int = 0, *, quiet: bool = False) -> Html:
    return element("div", _bar(name, time, whole, depth), class_="leaf quiet" if quiet else "leaf")


def _bar(name: str, time: float, whole: float, depth: int) -> Html:
    """A line of the tree; whatever its depth, its bar is on the scale of all others."""
    share = max(time, 0) / whole if whole else 0
    bar = element("i", style=f"width:{share:.2%}")
    return element(
        "div",
        element("span", name, class_="label", title=name, style=f"--depth:{depth}"),
        element("span", bar, class_="bar"),
        element("span", f"{time:.3f} ms"),
        element("span", f"{share:.0%}"),
        class_="row",
    )


def _memory(report: ProfileReport) -> Html:
    head: list[object] = ["", *(entry.name for entry in report.measured)]
    last = [entry.timings[-1] for entry in report.measured]
    lines = {
        "weights": [amount(entry.weights) for entry in report.measured],
        "bits per weight": [
            UNKNOWN if entry.bits is None else f"{entry.bits:.3g}" for entry in report.measured
        ],
        f"states, {last[0].phase}": [amount(timing.states) for timing in last],
        "buffers of the states": [amount(timing.states_held) for timing in last],
        "arena of the engine": [amount(entry.arena) for entry in report.measured],
        "process before loading": [amount(entry.before) for entry in report.measured],
        "process after loading": [amount(entry.loaded) for entry in report.measured],
        "process at its peak": [amount(entry.peak) for entry in report.measured],
        "seconds to load": [f"{entry.load_seconds:.3g}" for entry in report.measured],
    }
    rows: list[list[object]] = [[name, *values] for name, values in lines.items()]
    said = "Each measured by itself; they overlap, so they do not add up to the process."
    return _section("Memory", said, table(head, rows))


def _states(report: ProfileReport) -> Html | None:
    parts = []
    for entry in report.measured:
        if not entry.states:
            continue
        contexts = [t.phase.tokens for t in entry.timings if t.phase.kind == "step"]
        batch = entry.timings[0].batch
        columns = [f"at {tokens:,}" for tokens in contexts]
        head: list[object] = ["state", "number", "layout", "shape", "dtype", *columns]
        kinds: dict[object, list[StateSpec]] = {}
        for spec in entry.states:
            kinds.setdefault((spec.layout, spec.shape, spec.dtype), []).append(spec)
        rows: list[list[object]] = [
            [
                element("code", alike[0].input, title=", ".join(spec.input for spec in alike)),
                len(alike),
                str(alike[0].layout),
                f"[{', '.join(map(str, alike[0].shape))}]",
                alike[0].dtype,
                *(amount(sum(s.nbytes(batch, n) for s in alike)) for n in contexts),
            ]
            for alike in kinds.values()
        ]
        parts += [element("h3", entry.name), table(head, rows, class_="text")]
    if not parts:
        return None
    said = (
        "What a session carries from step to step: the first state of each kind, how many there "
        "are, and the bytes of all of them at each context, all rows."
    )
    return _section("States", said, *parts)


def _closing(report: ProfileReport) -> Html:
    terms = [join(element("dt", term), element("dd", meaning)) for term, meaning in _TERMS.items()]
    options = report.options
    said = (
        f"Each ran in a process of its own. Before each measurement {options.get('warmup')} ms of "
        f"calls did not count; it then took at least {options.get('duration')} seconds and "
        f"{options.get('iterations')} calls, in rounds in which all took turns."
    )
    return element(
        "footer", element("h2", "How to read this"), element("p", said), element("dl", *terms)
    )
