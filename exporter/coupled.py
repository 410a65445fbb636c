"""Which channels of which weights belong together, of a source and of a bundle.

A source is traced once; what its couplings name are then the parameters and buffers of its state
dict, so that whatever works on state dicts, as merging does, needs no graph.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Unpack

import onnx_ir as ir

from intaglio.errors import BundleError, SourceError
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.load import Unloaded, load
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import trace
from intaglio.keywords import spelled_out
from intaglio.passes import pipeline
from intaglio.passes.analysis.coupling import Coupling, Member
from intaglio.passes.analysis.coupling import couplings as couplings_of_graph
from intaglio.passes.base import Context
from intaglio.passes.graph import load_graph
from intaglio.runtime.arrays import Array
from intaglio.runtime.bundle import BundleGraph

from .proving.quantized import portable_path


@spelled_out
def couplings(source: Unloaded | Source, **options: Unpack[LoadKeywords]) -> list[Coupling]:
    """Groups of channels of a source that may be put in any order, by names of its state dict.

    ``permuted`` of `intaglio.passes.analysis.coupling` puts the tensors of a state dict in
    another order.  A group that would need what no state dict holds, as a table of positions, is
    none.

    Args:
        source: what `load_source` takes, or what it returned.
        **options: those of `LoadKeywords`.

    Raises:
        IntaglioError: if it cannot be loaded or traced.
    """
    loaded = load(source, LoadOptions.of(options))
    traced = trace(loaded)
    stepped = not (loaded.whole or loaded.states)
    steps = [step for step in pipeline.tidy() if stepped or not step.for_tokens]
    pipeline.run(traced.model, steps, Context(max_context=traced.max_context))
    names = set(_held(loaded))
    found = couplings_of_graph(traced.model, weights=names)
    further: dict[str, list[str]] = {}
    for name, kept in traced.aliases.items():
        further.setdefault(kept, []).append(name)
    return [_with_aliases(group, further) for group in found]


def _held(source: Source) -> Mapping[str, Any]:
    if isinstance(source.body, ir.Model):
        return source.body.graph.initializers
    return source.module.state_dict(keep_vars=True)


def _with_aliases(group: Coupling, further: Mapping[str, list[str]]) -> Coupling:
    """The group with every name of a tied weight: a state dict may hold each."""
    members: list[Member] = []
    for member in group.members:
        names = [member.name, *further.get(member.name, ())]
        members += [replace(member, name=name) for name in names]
    return replace(group, members=tuple(members))


def couplings_of_bundle(graph: BundleGraph) -> list[Coupling]:
    """The same of a graph of a bundle, in its portable form; states are permuted with weights.

    Raises:
        BundleError: if the bundle has no portable graph.
    """
    path = portable_path(graph)
    if path not in graph.bundle.manifest.files:
        raise BundleError(
            f"{graph.bundle.root} has no portable graph, from which couplings are read. "
            "Export without --no-portable."
        )
    graph.bundle.check(path)
    model = load_graph(graph.bundle.root, path)
    states = [(spec.input, spec.output) for spec in graph.entry.states if spec.output]
    return couplings_of_graph(model, states=states)


def require_alike(
    first: Source, own: Mapping[str, Array], second: Source, weights: Mapping[str, Array]
) -> None:
    """Hold the weights of a second model to the names and shapes of the first one's, `own`.

    Raises:
        SourceError: if they differ; the first difference is named.
    """
    for name, array in own.items():
        if name not in weights:
            raise SourceError(f"{second.path} lacks {name}, which {first.path} has.")
        if weights[name].shape != array.shape:
            raise SourceError(
                f"{name} is {list(array.shape)} in {first.path} and {list(weights[name].shape)} "
                f"in {second.path}: they are not of one kind."
            )
    extra = next((name for name in weights if name not in own), None)
    if extra is not None:
        raise SourceError(f"{second.path} has {extra}, which {first.path} lacks.")
