"""A bundle on one page: what goes in and out, what it carries, how it was made, what was proven."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import GraphEntry, TargetEntry, TensorSpec
from intaglio.runtime.manifest import Manifest
from intaglio.state import StateSpec

from .console import Console

FEW = 6  # streams that are told one by one


def damage(bundle: Bundle) -> dict[str, str]:
    """What is wrong with files of a bundle, by their names; empty if it is whole."""
    wrong = {}
    for name in bundle.manifest.files:
        try:
            bundle.check(name)
        except BundleError as error:
            wrong[name] = str(error)
    return wrong


def show(
    console: Console,
    manifest: Manifest,
    where: str,
    damage: Mapping[str, str],
    estimate: int | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """Print the summary of the bundle that `manifest` describes.

    Args:
        console: where to print.
        manifest: of the bundle.
        where: it lies.
        damage: files with their faults.
        estimate: of its bytes, where the bundle is one that would be written.
        names: of the graphs to tell of; None for all.
    """
    source = manifest.source
    if estimate is None:
        size = sum(record.bytes for record in manifest.files.values())
        console.text(f"bundle   {where}, {amount(size)}, written by intaglio {manifest.intaglio}")
    else:
        console.text(f"plan     {where}, about {amount(estimate)}; nothing was written")
    console.text(f"source   {source['name']}, sha256 {source['sha256'][:12]}")
    if source.get("model"):
        console.text(f"model    {source['model']}")
    if manifest.text:
        ends = ", ".join(map(str, manifest.text["eos"])) or "none"
        console.text(f"text     {manifest.text['tokenizer']}, tokens that end a text: {ends}")
    graphs = {name: manifest.graphs[name] for name in names or manifest.graphs}
    for name, entry in graphs.items():
        if len(manifest.graphs) > 1:
            console.text(f"\ngraph    {name}")
        _show_graph(console, entry)
    if estimate is not None:
        return
    console.text("\nfiles")
    console.table(
        [
            [name, amount(record.bytes), damage.get(name, "")]
            for name, record in sorted(manifest.files.items())
        ],
        ["path", "size", ""],
    )


def _show_graph(console: Console, entry: GraphEntry) -> None:
    """What runs a graph, what goes in and out, how it was made, what was proven."""
    for name, target in entry.targets.items():
        console.text(
            f"target   {name}: {target.path}, opset {target.opset}{_dtype(target)}, {target.parity}"
            f"{_accuracy(entry) if name == 'ort' else ''}"
        )
    console.text(f"sizes    {_sizes(entry)}" if entry.whole else f"context  {_context(entry)}")
    if entry.whole:
        console.text("calls    whole inputs; nothing is carried from one call to the next")
    _tensors(console, "inputs", entry.inputs)
    _tensors(console, "outputs", entry.outputs)
    if entry.conditions:
        _tensors(console, f"conditions, once for a sequence, to {entry.prepare}", entry.conditions)
    console.text(f"\nstates   {len(entry.states)}, for each row {_carried(entry.states)}")
    stored = {name: entry.states_of(name) for name in entry.targets}
    for name, states in stored.items():
        if states != entry.states:
            console.text(f"         on {name} {_carried(states)}")
    rows = [
        _state(spec, {name: states[index].dtype for name, states in stored.items()})
        for index, spec in enumerate(entry.states)
    ]
    hint, head = "", ["input", "shape", "dtype", "layout", "bytes per row", "module"]
    if not console.flags.verbose and len(kinds := _kinds(rows)) < len(rows):
        head, rows = ["number", "first", *head[1:-1]], kinds
        hint = "  each state, its module, and what grows with the context: -v"
    console.table(rows, head)
    if hint:
        console.text(hint)
    changed = [record for record in entry.passes if record["changed"]]
    console.text(f"\npasses   {len(entry.passes)} ran, {len(changed)} changed the graph")
    shown = entry.passes if console.flags.verbose else changed
    console.table([_pass(record) for record in shown], ["name", "nodes", "checked"])
    if console.flags.verbose:
        _notes(console, entry.passes)
    console.text(f"\nparity   {_scope(entry.parity)}")
    show_parity(console, entry.parity)


def show_parity(console: Console, parity: Mapping[str, Any]) -> None:
    """Print each output and state where it is farthest from the source, whatever the split.

    Where there are many, those that are beyond their limit and the nearest to it, unless all were
    asked for.
    """
    rows = parity.get("rows", ())
    names = dict.fromkeys(row["name"] for row in rows)
    worst = [max((r for r in rows if r["name"] == name), key=_severity) for name in names]
    shown = worst if console.flags.verbose else _worst(worst)
    console.table(
        [
            [row["name"], f"{float(row['error']):.1e}", f"{row['limit']:.0e}", _token(row)]
            for row in shown
        ],
        ["stream", "largest error", "limit", "after token"],
    )
    if hidden := len(worst) - len(shown):
        console.text(f"  {hidden} more, all farther from their limit")
    if parity.get("quantization"):
        moved = (f"{name} {error:.1e}" for name, error in parity["quantization"].items())
        console.text(f"the new weights moved the source's own outputs: {', '.join(moved)}")


def amount(size: int) -> str:
    """Bytes as people read them."""
    if size < 1000:
        return f"{size} B"
    for unit, scale in (("kB", 1e3), ("MB", 1e6), ("GB", 1e9)):
        if size < 1000 * scale or unit == "GB":
            break
    return f"{size / scale:.3g} {unit}"


def _accuracy(entry: GraphEntry) -> str:
    """What a reader has to know of the products with weights of few bits."""
    records = (record.get("details", {}) for record in entry.passes)
    found: Mapping[str, Any] = next((d for d in records if "accuracy" in d), {})
    some, all_ = found.get("in_two_parts", (0, 0))
    return {
        "fast": "; activations rounded to 8 bits",
        "mixed": f"; activations rounded to 8 bits, in two parts for {some} of {all_} products",
        "fine": "; activations in two parts of 8 bits",
        "exact": "; weights of few bits in full precision: slow, to verify with",
    }.get(found.get("accuracy", ""), "")


def module_name(path: str) -> str:
    """A module's path for people; the root has none."""
    return path or "(top)"


def _context(entry: GraphEntry) -> str:
    limits = entry.limits
    tokens = f"up to {limits.max_context} tokens" if limits.max_context else "any length"
    if limits.ends:
        places = ", ".join(map(str, limits.ends[:4]))
        tokens += f" in blocks that end after {places}{', ...' if limits.ends[4:] else ''}"
    return tokens if limits.batch is None else f"{tokens}, batch of {limits.batch}"


def _sizes(entry: GraphEntry) -> str:
    """The sizes that the free axes of a graph of whole inputs take."""
    parts = []
    for symbol, (least, most, step, _) in entry.limits.sizes.items():
        words = f"{least} or more" if most is None else f"{least} to {most}"
        parts.append(f"{symbol} {words}{f' in steps of {step}' if step > 1 else ''}")
    return ", ".join(parts) or "fixed"


def _tensors(console: Console, title: str, specs: Sequence[TensorSpec]) -> None:
    console.text(f"\n{title}")
    console.table(
        [[spec.name, _shape(spec.shape), spec.dtype, _default(spec)] for spec in specs],
        ["name", "shape", "dtype", ""],
    )


def _default(spec: TensorSpec) -> str:
    return "" if spec.default is None else f"may be left out: {spec.default:g}"


def _carried(states: Sequence[StateSpec]) -> str:
    sums: dict[tuple[str, ...], int] = {(): 0}
    for spec in states:
        by = ("token of context",) if spec.grows else spec.own_dims
        sums[by] = sums.get(by, 0) + spec.nbytes(1, 1)
    fixed = sums.pop(())
    parts = [amount(fixed)] if fixed or not sums else []
    parts += [f"{amount(size)} for each {' and '.join(by)}" for by, size in sums.items()]
    return " and ".join(parts)


def _state(spec: StateSpec, dtypes: Mapping[str, str]) -> list[str]:
    """A line of the table; `dtypes` are those that targets store the state in."""
    each = ("token",) if spec.grows else spec.own_dims
    size = amount(spec.nbytes(1, 1)) + "".join(f" a {dim}" for dim in each)
    others = "".join(f", {name} {dtype}" for name, dtype in dtypes.items() if dtype != spec.dtype)
    return [
        *(spec.input, _shape(spec.shape), spec.dtype + others),
        *(str(spec.layout), size, spec.module),
    ]


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _kinds(rows: Sequence[list[str]]) -> list[list[str]]:
    """The first line of those that differ in names alone, after their number."""
    kinds: dict[tuple[str, ...], list[list[str]]] = {}
    for row in rows:
        kinds.setdefault(tuple(row[1:-1]), []).append(row)
    return [[str(len(alike)), *alike[0][:-1]] for alike in kinds.values()]


def _worst(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of many lines the first, those beyond their limit, and the nearest to it, in their order."""
    if len(rows) <= FEW:
        return list(rows)
    nearest = sorted(rows[1:], key=_nearness, reverse=True)[: FEW - 1]
    return [row for row in rows if row is rows[0] or row in nearest or _nearness(row) > 1]


def _nearness(row: Mapping[str, Any]) -> float:
    """The error by its limit."""
    error = _severity(row)
    return error / row["limit"] if row["limit"] else error and math.inf


def _pass(record: Mapping[str, Any]) -> list[str]:
    before, after = record["nodes"]
    nodes = f"{before} -> {after}" if record["changed"] else f"{before}, unchanged"
    checked = "-" if record["error"] is None else f"{record['error']:.1e}"
    return [record["name"], nodes, checked]


def _notes(console: Console, passes: Sequence[Mapping[str, Any]]) -> None:
    for record in passes:
        for note in record["notes"]:
            console.text(f"  {record['name']}: {note}")


def _dtype(target: TargetEntry) -> str:
    return "" if target.dtype == "float32" else f", {target.dtype}"


def _scope(parity: Mapping[str, Any]) -> str:
    """What was compared with what."""
    if not parity:
        return "not compared with the source"
    told = {"steps": "?", "batch": "?", "against": "?", "precision": "?", "splits": (), **parity}
    why = f" ({told['cause']})" if told.get("cause") else ""
    if parity.get("whole"):
        return (
            f"{'holds' if parity.get('passed') else 'fails'} over {told['steps']} calls, against "
            f"{told['against']} in {told['precision']}{why}, at {'; '.join(told['splits'])}"
        )
    rows = "random rows" if parity.get("data") is None else "rows of the data"
    verdict = "holds" if parity.get("passed") else "fails"
    unknown = len(parity.get("unknown", ()))
    states = f"; {unknown} states against one call of all tokens alone" if unknown else ""
    return (
        f"{verdict} over {told['steps']} steps of {told['batch']} {rows}, against "
        f"{told['against']} in {told['precision']}{why}, in parts of {'; '.join(told['splits'])}"
        f"{states}"
    )


def _token(row: Mapping[str, Any]) -> str:
    return "-" if row["worst_step"] is None else str(row["worst_step"])


def _severity(row: Mapping[str, Any]) -> float:
    error = float(row["error"])
    return math.inf if math.isnan(error) else error
