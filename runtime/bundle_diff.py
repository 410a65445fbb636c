"""What differs between two bundles: interface, passes, nodes of each module, and weights.

Weights are compared by name, one at a time, mapped from their files.  The distance of two weights
is max|a-b| / max|a|, a being the first bundle's.  What has another form in one of them, of few bits
or in factors, is written out and compared (`weight_pairs`).
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.engines import AUTO, choose_target
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.onnx_graph import OnnxGraph, Tensor, read_graph
from intaglio.runtime.weight_pairs import WeightPair, pair_weights
from intaglio.runtime.weights import Total, total, weights_of


@dataclass(frozen=True)
class Entry:
    """One thing that differs: `a` and `b` describe it in each bundle, None where it is absent."""

    kind: str
    name: str
    a: str | None
    b: str | None


@dataclass(frozen=True)
class NodeChange:
    """How many nodes of an operator a module has in each bundle."""

    module: str
    op: str
    a: int
    b: int


@dataclass(frozen=True)
class WeightChange:
    """A weight that differs; `distance` is None unless both hold numbers of one shape."""

    name: str
    a: str | None
    b: str | None
    distance: float | None


@dataclass(frozen=True, kw_only=True)
class BundleDiff:
    """What differs between two bundles, and the sizes of both.

    `entries` hold inputs, outputs, states, limits and facts; `passes` those that only one bundle
    ran or that ran with other options, in order; `pairs` the parameters that both hold in other
    forms, the worst first, and `weights` the initializers that differ and that no pair tells of;
    `equal_weights` counts the weights that are the same bit for bit.
    """

    entries: Sequence[Entry]
    passes: Sequence[Entry]
    nodes: Sequence[NodeChange]
    pairs: Sequence[WeightPair]
    weights: Sequence[WeightChange]
    equal_weights: int
    counts: tuple[int, int]
    totals: tuple[Total, Total]

    @property
    def same(self) -> bool:
        """Whether nothing that runs differs."""
        return not (self.entries or self.nodes or self.pairs or self.weights)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "same": self.same,
            "entries": [vars(entry) for entry in self.entries],
            "passes": [vars(entry) for entry in self.passes],
            "nodes": [vars(change) for change in self.nodes],
            "pairs": [pair.to_json() for pair in self.pairs],
            "weights": [vars(change) for change in self.weights],
            "equal_weights": self.equal_weights,
            "node_counts": list(self.counts),
            "weight_totals": [entry.to_json() for entry in self.totals],
        }


def compare_bundles(a: Bundle, b: Bundle, target: str = AUTO, *, graph: str = MAIN) -> BundleDiff:
    """Compare what two bundles hold of a graph for a target.

    Raises:
        BundleError: if one has no such graph or target, or its files cannot be read.
    """
    pair = [bundle.graph(graph) for bundle in (a, b)]
    left, right = graphs = [read_graph(each, choose_target(each, target)) for each in pair]
    pairs, told = pair_weights(a, b, left, right)
    equal, weights = _weights(a, b, left, right, told)
    first, second = (total(weights_of(graph)) for graph in graphs)
    return BundleDiff(
        entries=list(_entries(*pair)),
        passes=list(_passes(*pair)),
        nodes=_nodes(*graphs),
        pairs=pairs,
        weights=weights,
        equal_weights=equal,
        counts=(len(graphs[0].nodes), len(graphs[1].nodes)),
        totals=(first, second),
    )


def _entries(a: BundleGraph, b: BundleGraph) -> Iterator[Entry]:
    for kind, left, right in (
        ("input", _tensors(a.entry.inputs), _tensors(b.entry.inputs)),
        ("output", _tensors(a.entry.outputs), _tensors(b.entry.outputs)),
        ("condition", _tensors(a.entry.conditions), _tensors(b.entry.conditions)),
        ("state", _states(a.entry), _states(b.entry)),
        ("fact", _facts(a), _facts(b)),
    ):
        for name in dict.fromkeys([*left, *right]):
            if left.get(name) != right.get(name):
                yield Entry(kind, name, left.get(name), right.get(name))


def _tensors(specs: Sequence[Any]) -> dict[str, str]:
    return {spec.name: f"{spec.dtype} {_shape(spec.shape)}" for spec in specs}


def _states(entry: GraphEntry) -> dict[str, str]:
    return {
        spec.input: f"{spec.dtype} {_shape(spec.shape)} {spec.layout} of {spec.module or 'the top'}"
        for spec in entry.states
    }


def _facts(graph: BundleGraph) -> dict[str, str]:
    """What a user chose or gets, beside tensors."""
    manifest, entry = graph.bundle.manifest, graph.entry
    limits, source = entry.limits, manifest.source
    facts = {
        "source": f"{source['name']}, sha256 {source['sha256']}",
        "model": source.get("model"),
        "max_context": limits.max_context,
        "batch": limits.batch,
        "ends": limits.ends or None,
        "past_length": entry.past_length or None,
        "intaglio": manifest.intaglio,
        **{f"target {name}": f"opset {t.opset}" for name, t in entry.targets.items()},
    }
    return {name: str(value) for name, value in facts.items() if value is not None}


def _passes(a: BundleGraph, b: BundleGraph) -> Iterator[Entry]:
    """Passes of one bundle alone, and those that had other options or did something else."""
    left, right = ([_pass(record) for record in each.entry.passes] for each in (a, b))
    one, other = ([name for name, _ in side] for side in (left, right))
    for tag, i, j, k, m in SequenceMatcher(None, one, other, autojunk=False).get_opcodes():
        if tag != "equal":
            yield from (Entry("pass", name, did, None) for name, did in left[i:j])
            yield from (Entry("pass", name, None, did) for name, did in right[k:m])
            continue
        for (name, did), (_, did_other) in zip(left[i:j], right[k:m], strict=True):
            if did != did_other:
                yield Entry("pass", name, did, did_other)


def _pass(record: Mapping[str, Any]) -> tuple[str, str]:
    options = ", ".join(f"{key}={value!r}" for key, value in record.get("options", {}).items())
    before, after = record["nodes"]
    return record["name"], f"{f'{options}; ' if options else ''}{after - before:+d} nodes"


def _nodes(a: OnnxGraph, b: OnnxGraph) -> list[NodeChange]:
    left, right = (Counter((node.module, node.op) for node in graph.nodes) for graph in (a, b))
    return [
        NodeChange(module, op, left[module, op], right[module, op])
        for module, op in dict.fromkeys([*left, *right])
        if left[module, op] != right[module, op]
    ]


def _weights(
    a: Bundle, b: Bundle, left: OnnxGraph, right: OnnxGraph, told: Collection[str]
) -> tuple[int, list[WeightChange]]:
    """How many are equal, and those that differ but for what pairs have `told`."""
    equal, changes = 0, []
    for name in dict.fromkeys([*left.tensors, *right.tensors]):
        one, other = left.tensors.get(name), right.tensors.get(name)
        distance = None
        if one is not None and other is not None and _kind(one) == _kind(other):
            if _same(one.content(a), other.content(b)):
                equal += 1
                continue
            distance = _distance(one.values(a), other.values(b))
        if name not in told:
            changes.append(WeightChange(name, _kind(one), _kind(other), distance))
    return equal, changes


def _kind(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{tensor.dtype} {_shape(tensor.shape)}"


def _same(one: Any, other: Any) -> bool:
    return one is not None and other is not None and bool(np.array_equal(one, other))


def _distance(one: Any, other: Any) -> float | None:
    """max|a-b| / max|a|; None where there are no numbers, or some that are not finite."""
    if one is None or other is None or not one.size:
        return None
    left, right = one.astype(np.float64), other.astype(np.float64)
    if not (np.isfinite(left).all() and np.isfinite(right).all()):
        return None
    largest = float(np.abs(left).max())
    difference = float(np.abs(left - right).max())
    return difference / largest if largest else difference


def _shape(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"
