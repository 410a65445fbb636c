"""A deeper look into a bundle: weights and their bits, states at a context, what passes changed."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from intaglio.errors import BundleError
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.bundle_diff import BundleDiff, Entry, compare_bundles
from intaglio.runtime.engines import AUTO, choose_target
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.runtime.onnx_graph import read_graph
from intaglio.runtime.signing import claimed_signer
from intaglio.runtime.trt.engine_build import ENGINE
from intaglio.runtime.trt.engine_build import TARGET as TRT
from intaglio.runtime.trt.kernels import code_of
from intaglio.runtime.weights import Total, Weight, by_kind, by_module, total, weights_of

from .commands.options import by_graph
from .console import Console
from .summary import amount, module_name

CODE = (".plan", ".engine", ".cubin", ".ptx", ".fatbin", ".so", ".dll", ".py")  # what runs
TOP = 20  # rows of a long table, unless --verbose asks for all
NONE = "-"


def look(
    console: Console, graph: BundleGraph, contexts: Sequence[int], batch: int
) -> dict[str, Any]:
    """Print states and weights of a graph, and what passes changed; the former as JSON values."""
    show_states(console, graph.entry, contexts, batch)
    if console.flags.verbose:
        show_changes(console, graph.entry)
    try:
        found = weights(graph)
    except BundleError as error:
        found = []
        console.message(f"note: the weights cannot be counted: {error}")
    show_weights(console, found)
    return {
        "weights": weights_to_json(found),
        "states": {
            spec.input: {str(n): spec.nbytes(batch, n) for n in contexts}
            for spec in graph.entry.states
        },
    }


def compare(
    console: Console, pair: tuple[Bundle, Bundle], names: tuple[str, str], graph: str | None
) -> Mapping[str, Any]:
    """Print what differs between two bundles, of `graph` or of all; the same as JSON values."""
    a, b = pair
    if graph is not None:
        wanted = [a.graph(graph).name]
    else:
        wanted = [name for name in a.graphs if name in b.graphs]
        for name in sorted(a.graphs.keys() ^ b.graphs.keys()):
            console.text(f"graph    {name} is in {names[name in b.graphs]} alone")
    found = {}
    for name in wanted:
        if len(wanted) > 1:
            console.text(f"graph    {name}")
        diff = compare_bundles(a, b, graph=name)
        show_diff(console, diff, names)
        found[name] = diff.to_json()
    return by_graph(found)


def weights(graph: BundleGraph) -> list[Weight]:
    """The weights of what runs first of a graph.

    Raises:
        BundleError: if its file is absent, changed or no graph.
    """
    return weights_of(read_graph(graph, choose_target(graph, AUTO)))


def weights_to_json(found: Sequence[Weight]) -> dict[str, Any]:
    """Bits per weight: of all together, by kind, and by module."""
    return {
        **total(found).to_json(),
        "by_kind": {name: entry.to_json() for name, entry in by_kind(found).items()},
        "by_module": {name: entry.to_json() for name, entry in by_module(found).items()},
    }


def show_weights(console: Console, found: Sequence[Weight]) -> None:
    """Print how many weights there are and the bits of each, scales and offsets included."""
    everything = total(found)
    size = amount(everything.bytes)
    console.text(f"\nweights  {everything.count:,} in {size}, {_bits(everything)} bits each")
    head = ["tensors", "weights", "size", "bits per weight"]
    console.table(_totals(by_kind(found)), ["kind", *head])
    if console.flags.verbose:
        console.table(_totals(by_module(found)), ["module", *head])


def show_states(console: Console, entry: GraphEntry, contexts: Sequence[int], batch: int) -> None:
    """Print the bytes of each state after so many tokens."""
    if not contexts or not entry.states:
        return
    rows = [
        [spec.input, *(amount(spec.nbytes(batch, tokens)) for tokens in contexts)]
        for spec in entry.states
    ]
    sums = [sum(s.nbytes(batch, tokens) for s in entry.states) for tokens in contexts]
    console.text(f"\nstates by context, batch of {batch}")
    console.table(
        [*rows, ["all", *map(amount, sums)]],
        ["input", *(f"at {tokens:,}" for tokens in contexts)],
    )


def show_couplings(console: Console, graph: BundleGraph) -> list[dict[str, Any]]:
    """Print the groups of channels that may be put in any order; the same as JSON values."""
    from intaglio.exporter.coupled import couplings_of_bundle

    found = couplings_of_bundle(graph)
    console.text(f"\ncouplings  {len(found)} groups of channels that may be put in any order")
    most = None if console.flags.verbose else 3
    rows = []
    for group in found:
        along = [f"{member.name}:{member.axis}" for member in group.members]
        more = [] if most is None or len(along) <= most else [f"and {len(along) - most} more"]
        rows.append([group.name, f"{group.size}", f"{group.block}", ", ".join(along[:most] + more)])
    console.table(rows, ["group", "size", "block", "axes of weights"])
    return [group.to_json() for group in found]


def show_code(console: Console, bundle: Bundle) -> None:
    """Print the files that hold code: whoever made the bundle wrote it."""
    code = code_files(bundle)
    console.text(
        f"\ncode     {', '.join(code) or 'none: the bundle holds graphs and weights alone'}"
    )


def show_signature(console: Console, bundle: Bundle) -> dict[str, Any]:
    """Print who signed the bundle, and whether that was checked; the same as JSON values."""
    claimed, fault = None, None
    try:
        claimed = bundle.signer or claimed_signer(bundle.root)
    except BundleError as error:
        fault = str(error)
    if bundle.signer is not None:
        said = f"by {bundle.signer}, checked"
    elif claimed is not None:
        said = f"says to be by {claimed}; not checked: give the key with --require-signature"
    else:
        said = fault or "none: nothing ties the bundle to who made it"
    console.text(f"signed   {said}")
    return {"key": claimed, "checked": bundle.signer is not None}


def code_files(bundle: Bundle) -> list[str]:
    """Files of the bundle that are loaded as code, whatever they are called, or called so.

    Those too that its manifest does not list: a server of Triton runs a model.py that lies there.
    """
    there = (Path(folder, name) for folder, _, names in os.walk(bundle.root) for name in names)
    names = {path.relative_to(bundle.root).as_posix() for path in there}
    found = {name for name in names | bundle.manifest.files.keys() if name.lower().endswith(CODE)}
    for graph in bundle.graphs.values():
        if TRT not in graph.entry.targets:
            continue
        engine = graph.beside(TRT, ENGINE)
        found |= {engine} & bundle.manifest.files.keys()
        with contextlib.suppress(BundleError):  # which is told as damage
            found |= set(code_of(graph))
    return sorted(found)


def show_changes(console: Console, entry: GraphEntry) -> None:
    """Print what each pass did to the nodes of which modules."""
    console.text("\nwhat the passes changed, nodes in each module")
    rows = [
        [record["name"], words, module_words(change["modules"])]
        for record in entry.passes
        for change in record.get("changes", ())
        for words in [_did(change)]
    ]
    console.table(_limited(console, rows), ["pass", "nodes", "modules"])


def show_diff(console: Console, diff: BundleDiff, names: tuple[str, str]) -> None:
    """Print what differs between two bundles."""
    one, other = names
    console.text(f"bundle   {one} against {other}")
    if diff.same:
        console.text("same     inputs, outputs, states, nodes and weights are equal")
    for title, entries in _grouped(diff.entries):
        console.text(f"\n{title}")
        rows = [[entry.name, entry.a or NONE, entry.b or NONE] for entry in entries]
        console.table(rows, ["name", one, other])
    console.text(f"\npasses   {'other ones' if diff.passes else 'the same'}")
    rows = [[entry.name, entry.a or NONE, entry.b or NONE] for entry in diff.passes]
    console.table(rows, ["name", one, other])
    before, after = diff.counts
    console.text(f"\nnodes    {before} against {after}")
    console.table(_limited(console, _node_rows(diff)), ["operator", one, other, "modules"])
    left, right = diff.totals
    console.text(
        f"\nweights  {amount(left.bytes)} against {amount(right.bytes)}, bits of each "
        f"{_bits(left)} against {_bits(right)}; {diff.equal_weights} of them equal"
    )
    rows = [
        [pair.name, pair.a, pair.b, _distance(pair.error), _distance(pair.largest)]
        for pair in diff.pairs
    ]
    console.table(_limited(console, rows), ["parameter", one, other, "|a-b| / |a|", "max|a-b|"])
    rows = [
        [change.name, change.a or NONE, change.b or NONE, _distance(change.distance)]
        for change in sorted(diff.weights, key=lambda change: -(change.distance or 0))
    ]
    console.table(_limited(console, rows), ["name", one, other, "max|a-b| / max|a|"])


def module_words(paths: Sequence[str]) -> str:
    """Module paths in few words: ``layers.{0-2,5}.mlp`` for four of them."""
    patterns: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for path in paths:
        parts = path.split(".")
        place = next((i for i, part in enumerate(parts) if part.isdecimal()), None)
        if place is None:
            patterns[module_name(path),] = []
        else:
            before, after = ".".join(parts[:place]), ".".join(parts[place + 1 :])
            patterns[before, after].append(int(parts[place]))
    return ", ".join(_pattern(key, numbers) for key, numbers in patterns.items())


def _pattern(key: tuple[str, ...], numbers: Sequence[int]) -> str:
    if len(key) == 1:
        return key[0]
    words = _ranges(numbers)
    middle = words if words.isdecimal() else f"{{{words}}}"
    return ".".join(filter(None, [key[0], middle, key[1]]))


def _ranges(numbers: Sequence[int]) -> str:
    """Numbers as ranges: 0-2,5."""
    words = []
    for _, group in groupby(enumerate(sorted(set(numbers))), lambda pair: pair[1] - pair[0]):
        run = [number for _, number in group]
        words.append(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]))
    return ",".join(words)


def _did(change: Mapping[str, Any]) -> str:
    signs = {"removed": "-", "added": "+", "retyped": ""}
    return ", ".join(
        f"{sign}{count} {op}" if sign else f"{count} {op}"
        for kind, sign in signs.items()
        for op, count in change.get(kind, {}).items()
    )


def _grouped(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    return [(f"{kind}s", list(group)) for kind, group in groupby(entries, lambda e: e.kind)]


def _node_rows(diff: BundleDiff) -> list[list[str]]:
    """Modules in which the same operator changed alike stand in one row."""
    alike: dict[tuple[str, int, int], list[str]] = defaultdict(list)
    for change in diff.nodes:
        alike[change.op, change.a, change.b].append(change.module)
    return [[op, str(a), str(b), module_words(modules)] for (op, a, b), modules in alike.items()]


def _totals(totals: Mapping[str, Total]) -> list[list[str]]:
    return [
        [module_name(name), str(t.tensors), f"{t.count:,}", amount(t.bytes), _bits(t)]
        for name, t in totals.items()
    ]


def _limited(console: Console, rows: list[list[str]]) -> list[list[str]]:
    """The first rows, and how many more there are; all of them under --verbose."""
    rest = len(rows) - TOP
    if console.flags.verbose or rest <= 1:
        return rows
    return [*rows[:TOP], [f"{rest} more with -v", *[""] * (len(rows[0]) - 1)]]


def _bits(found: Total) -> str:
    return NONE if found.bits is None else f"{found.bits:.4g}"


def _distance(distance: float | None) -> str:
    return NONE if distance is None else f"{distance:.1e}"
