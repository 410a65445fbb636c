"""A profile as tables for a terminal."""

from collections.abc import Sequence

from intaglio.runtime.profile.ops import OpProfile
from intaglio.runtime.profile.report import Contender, Latencies, Phase, ProfileReport

from .console import Console
from .summary import amount, module_name

TOP = 8  # modules and operators that are listed


def show(console: Console, report: ProfileReport) -> None:
    """Print latencies, memory and operators of each contestant, then the ratios."""
    machine, threads = report.machine, report.options["threads"]
    load = machine["load_before"]
    console.text(
        f"machine  {machine['processor']}, {machine['cores']} cores, "
        f"threads: {threads or 'as the engine chooses'}, "
        f"load average {'unknown' if load is None else load[0]}"
    )
    for entry in report.measured:
        console.text()
        _contestant(console, entry, report.percentiles)
    if ratios := report.ratios:
        console.text(f"\nlatency against {report.measured[0].name}, median of pairs (quartiles)")
        console.table(
            [
                [r.name, str(r.phase), f"{r.ratio:.2f}", f"({r.low:.2f} to {r.high:.2f})"]
                for r in ratios
            ],
            ["name", "phase", "ratio", ""],
        )


def _contestant(console: Console, entry: Contender, percentiles: Sequence[float]) -> None:
    about = ", ".join(
        f"a step is {value}" if key == "step" else value
        for key, value in entry.about.items()
        if value and key != "intaglio"
    )
    console.text(f"{entry.kind:<7}  {entry.name} ({about}), loaded in {entry.load_seconds:.2f} s")
    names = ["median", *(f"p{rank:g}" for rank in percentiles)]
    head = ["ms", *names, "calls", "tokens/s", "states", "capacity", "process"]
    console.table([_timing(timing, percentiles) for timing in entry.timings], head)
    console.paragraph("memory", _memory(entry))
    for ops in {
        (profile.graph, profile.kind): profile for profile in entry.ops
    }.values():  # the longest context
        _ops(console, ops, entry)


def _timing(timing: Latencies, percentiles: Sequence[float]) -> list[str]:
    ranks = [50, *percentiles]
    return [
        str(timing.phase),
        *(f"{timing.percentile(rank) * 1e3:.3f}" for rank in ranks),
        str(len(timing.seconds)),
        f"{timing.tokens_per_second:.0f}",
        "-" if timing.states is None else amount(timing.states),
        "-" if timing.capacity is None else str(timing.capacity),
        "-" if timing.peak is None else amount(timing.peak),
    ]


def _memory(entry: Contender) -> str:
    parts = {
        "weights": entry.weights,
        "arena of the engine": entry.arena,
        "process at its peak": entry.peak,
        "before loading": entry.before,
    }
    words = [f"{name} {amount(size)}" for name, size in parts.items() if size is not None]
    if entry.bits is not None:
        words.insert(1, f"{entry.bits:.3g} bits per weight")
    return ", ".join(words)


def _ops(console: Console, ops: OpProfile, entry: Contender) -> None:
    phase = Phase(ops.kind, ops.tokens, ops.graph)
    timing = entry.timing(phase)
    without = "" if timing is None else f", {timing.median * 1e3:.3f} ms a call without"
    console.text(
        f"\nwhere the time goes, {phase}: {ops.engine:.3f} ms in the engine while traced{without}; "
        f"{ops.overhead:.3f} ms between operators"
    )
    if ops.ceilings is not None:
        console.text(f"roofline: {ops.ceilings}")
    modules = [(module_name(name), time) for name, time in ops.by_module()]
    console.table(
        [[name, *_share(time, ops)] for name, time in _shortened(modules)],
        ["module", "ms", "share"],
    )
    found = ops.by_op()
    rows = [[f"{o.nodes} x {o.op}", *_share(o.milliseconds, ops), *ops.cells(o)] for o in found]
    rest = sum(each.milliseconds for each in found[TOP:])
    more = [[f"{len(found) - TOP} more", *_share(rest, ops), *("" for _ in ops.columns)]]
    console.table(rows[:TOP] + more * (len(found) > TOP), ["operator", "ms", "share", *ops.columns])


def _shortened(rows: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    kept, rest = list(rows[:TOP]), rows[TOP:]
    return kept + [(f"{len(rest)} more", sum(time for _, time in rest))] * bool(rest)


def _share(time: float, ops: OpProfile) -> list[str]:
    return [f"{time:.3f}", f"{time / (ops.kernels or 1):.0%}"]
