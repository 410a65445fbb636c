"""The manifest of an export: what its graphs take and give, how they were made, what was proven."""

from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import onnx_ir as ir

from intaglio.errors import OptionError
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.sources import json_numbers
from intaglio.exporter.sources.source import Source
from intaglio.passes.analysis.loop_ends import tolerances
from intaglio.passes.pipeline import FP16, FP32
from intaglio.runtime.graph_entry import MAIN, NOT_RUN, GraphEntry, Limits, TargetEntry, TensorSpec
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt.engine_build import GRAPH, TARGET
from intaglio.state import PAST_LENGTH

from .compiled import CompiledGraph, prepares
from .graph_files import own_place, place

LOWERED = "ort/model.onnx"
DTYPES = {FP32: "float32", FP16: "float16"}  # by the words of an export
TURNED_OFF, NO_DEVICE = (f"{NOT_RUN} ({why})" for why in ("turned off", "no device"))
CHECKED = f"{NOT_RUN} (checked by the pass that made it)"
DISTRIBUTIONS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")


def describe(
    source: Source,
    compiled: CompiledGraph,
    how: Recipe,
    data: Mapping[str, tuple[str, ...]],
    text: Mapping[str, Any],
) -> Manifest:
    """The manifest but for its files; `data` are those of the weights that each graph opens."""
    return Manifest(
        source={
            "name": source.name,
            "sha256": source.sha256,
            "format": source.format,
            "model": source.model,
            "config": json_numbers.written(source.config),
        },
        recipe=how.to_json(),
        text=text,
        graphs=_graphs(source, compiled, how, data),
        files={},
        versions={name: version(name) for name in DISTRIBUTIONS},
    )


def _graphs(
    source: Source, compiled: CompiledGraph, how: Recipe, data: Mapping[str, tuple[str, ...]]
) -> dict[str, GraphEntry]:
    """The entries of all graphs, those that prepare others among them."""
    found: dict[str, GraphEntry] = {}
    for name, each in {MAIN: compiled, **compiled.others}.items():
        own = source if name == MAIN else source.others[name]
        found[name] = _entry(own, each, how, data, name)
        if each.prepare is not None:
            other = prepares(name)
            found[other] = replace(_entry(own, each.prepare, how, data, other), whole=True)
            given = found[other].inputs
            found[name] = replace(found[name], conditions=given, prepare=other)
        found.update({n: _beside(other, how, data, n) for n, other in each.beside.items()})
    _check_plan(found)
    return found


def _check_plan(graphs: Mapping[str, GraphEntry]) -> None:
    """Hold what a generation takes to the outputs of the graphs.

    Raises:
        OptionError: if one is not there.
    """
    plan = graphs[MAIN].generates
    if plan is None:
        return
    needed = {MAIN: {plan.logits}, plan.advance: {plan.tokens, *plan.carried.values()}}
    for graph, names in needed.items():
        given = [spec.name for spec in graphs[graph].outputs]
        lacks = sorted(names - set(given))
        if lacks:
            raise OptionError(
                f"The generation takes {lacks[0]!r} of the graph {graph!r}, which gives "
                f"{', '.join(given)}."
            )


def _beside(
    compiled: CompiledGraph, how: Recipe, data: Mapping[str, tuple[str, ...]], name: str
) -> GraphEntry:
    """A graph of whole inputs that a pass made, and held to the one that it was made of."""
    targets = _targets(compiled, how, data, name)
    return GraphEntry(
        inputs=tuple(_tensor(value) for value in compiled.ort.graph.inputs),
        outputs=tuple(_tensor(value) for value in compiled.ort.graph.outputs),
        states=(),
        past_length=False,
        whole=True,
        derived=True,
        targets={
            n: each if n == TARGET else replace(each, parity=CHECKED) for n, each in targets.items()
        },
        passes=tuple(record.to_json() for record in compiled.records),
    )


def _entry(
    source: Source,
    compiled: CompiledGraph,
    how: Recipe,
    data: Mapping[str, tuple[str, ...]],
    graph_name: str,
) -> GraphEntry:
    """What a graph takes, gives, carries from step to step, and allows, and what runs it."""
    graph, context = compiled.ort.graph, compiled.context
    taken = {state.input for state in context.states} | (set() if source.whole else {PAST_LENGTH})
    left = {state.output for state in context.states}
    ends = tolerances(graph)
    return GraphEntry(
        inputs=tuple(
            replace(
                _tensor(value, source.defaults.get(str(value.name))),
                below=source.bounds.get(str(value.name)) or _table_rows(value),
            )
            for value in graph.inputs
            if value.name not in taken
        ),
        outputs=tuple(
            replace(_tensor(value), tolerance=ends.get(str(value.name)))
            for value in graph.outputs
            if value.name not in left
        ),
        states=tuple(context.states),
        past_length=not source.whole and any(v.name == PAST_LENGTH for v in graph.inputs),
        whole=source.whole,
        generates=source.generates,
        targets=_targets(compiled, how, data, graph_name),
        limits=Limits(
            max_context=context.max_context,
            batch=context.batch,
            ends=tuple(end for end in context.ends if end <= (context.max_context or end)),
            sizes={
                symbol: (span.least, span.most, span.step, source.sizes[symbol])
                for symbol, span in context.spans.items()
            },
        ),
        passes=tuple(record.to_json() for record in compiled.records),
    )


def _targets(
    compiled: CompiledGraph, how: Recipe, data: Mapping[str, tuple[str, ...]], graph: str
) -> dict[str, TargetEntry]:
    """What each engine runs, not compared with anything yet."""
    return {
        name: TargetEntry(
            path=path,
            data=data.get(path, ()),
            opset=model.opset_imports[""],
            parity=why,
            dtype=dtype,
        )
        for name, path, model, why, dtype in (
            ("ort", place(LOWERED, graph), compiled.ort, TURNED_OFF, "float32"),
            (TARGET, own_place(GRAPH, graph), compiled.trt, NO_DEVICE, DTYPES[how.dtype]),
        )
        if model is not None
    }


def with_verdict(
    manifest: Manifest,
    target: str,
    verdict: str,
    evidence: Mapping[str, Any] | None = None,
    *,
    name: str = MAIN,
) -> Manifest:
    """The manifest that says of `target` what a verification found, with its evidence if given.

    What prepares the graph has run with it.
    """
    graph = manifest.graphs[name]
    told = replace(graph.targets[target], parity=verdict)
    parity = graph.parity if evidence is None else evidence
    proven = replace(graph, targets={**graph.targets, target: told}, parity=parity)
    manifest = manifest.with_graph(name, proven)
    return manifest if graph.prepare is None else _told(manifest, graph.prepare, target, verdict)


def _told(manifest: Manifest, name: str, target: str, verdict: str) -> Manifest:
    """The manifest that says of what prepares a graph as of that: they ran together."""
    graph = manifest.graphs[name]
    if target not in graph.targets:
        return manifest
    told = replace(graph.targets[target], parity=verdict)
    return manifest.with_graph(name, replace(graph, targets={**graph.targets, target: told}))


def _table_rows(value: ir.Value) -> int | None:
    """Rows of the smallest table that `value` picks rows of, as token ids do; None if of none."""
    tables = [
        table.shape
        for node, port in value.uses()
        if node.op_type == "Gather" and port == 1 and node.attributes.get_int("axis", 0) == 0
        if (table := node.inputs[0]) is not None and table.shape is not None
    ]
    return min((rows for shape in tables if isinstance(rows := shape[0], int)), default=None)


def _tensor(value: ir.Value, default: float | None = None) -> TensorSpec:
    assert value.name is not None
    assert value.dtype is not None
    return TensorSpec(value.name, value.dtype.numpy().name, _shape(value), default)


def _shape(value: ir.Value) -> tuple[int | str, ...]:
    """Sizes and symbols; a dimension that has no name gets that of its place."""
    assert value.shape is not None
    return tuple(
        dim if isinstance(dim, int) else dim.value or f"{value.name}_{axis}"
        for axis, dim in enumerate(value.shape)
    )
