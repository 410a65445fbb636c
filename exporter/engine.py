"""The engines of TensorRT, in a bundle that is written: built, and proven as far as can be."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from intaglio.errors import BuildError, DeviceError, MissingExtraError, UnsupportedError
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.calibration_data import Arrays
from intaglio.exporter.sources.source import Source
from intaglio.exporter.writing.bundle_writer import BundleWriter
from intaglio.exporter.writing.describe import NO_DEVICE, with_verdict
from intaglio.exporter.writing.graph_files import own_place
from intaglio.exporter.writing.trt import add_engine
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import FAILED, MAIN, NOT_RUN, PASSED
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt.engine_build import REQUEST, TARGET, BuildRequest, read_built
from intaglio.runtime.trt.kernels import INDEX

from .attempt import Attempt, limits_of, refused


def with_engines(
    writer: BundleWriter,
    source: Source,
    made: Attempt,
    how: Recipe,
    clock: Clock,
    data: str | Path | Arrays | None,
    requests: Mapping[str, BuildRequest],
    jobs: int | None = None,
) -> Attempt:
    """Build the engines of a bundle that is written, and prove them, if that is asked for.

    Args:
        writer: of the bundle.
        source: what it was made from.
        made: the bundle.
        how: what was asked for.
        clock: is told what is done.
        data: to verify with.
        requests: what to build for, by the names of graphs.
        jobs: processes that compile kernels, at most.

    Raises:
        ParityError: if a graph, or its engine, does not compute what the source does.
        IntaglioError: whatever else stands in the way of building one.
    """
    manifest, notes = made.manifest, list(made.notes)
    with clock.phase("build"):
        for name, request in requests.items():
            graph = made.compiled.graphs[name].trt
            assert graph is not None
            try:
                manifest, advice = add_engine(writer, manifest, name, graph, request, clock, jobs)
            except (BuildError, UnsupportedError) as error:
                if not manifest.graphs[name].derived:
                    raise
                manifest = _without(writer, manifest, name)
                advice = (f"TensorRT has no engine of the graph {name!r}: {error}",)
            notes += (line for line in advice if line not in notes)
    for name, each in {MAIN: made.compiled, **made.compiled.others}.items() if how.verify else ():
        run = partial(
            verify,
            writer.path,
            source,
            graph=name,
            data=each.context.calibration if data is None else data,
            target="trt",
            steps=min(how.steps, each.context.max_context or how.steps),
            tolerance=limits_of(how.tolerance, manifest, name),
            keep=False,
            progress=clock.report,
        )
        with clock.phase("verify"):
            verdict, faults, told = _proven(_built(writer, name), run)
        manifest = with_verdict(manifest, TARGET, verdict, name=name)
        if faults:
            raise refused(writer, manifest, faults)
        notes += (line for line in told if line not in notes)
    return replace(made, manifest=manifest, notes=tuple(notes))


def _without(writer: BundleWriter, manifest: Manifest, name: str) -> Manifest:
    """The manifest without the target for a graph that a pass made, whose files go."""
    entry = manifest.graphs[name]
    (writer.path / entry.targets[TARGET].path).unlink(missing_ok=True)
    for place in (REQUEST, INDEX):
        (writer.path / own_place(place, name)).unlink(missing_ok=True)
    targets = {target: each for target, each in entry.targets.items() if target != TARGET}
    graphs = {**manifest.graphs, name: replace(entry, targets=targets)}
    return writer.write_manifest(replace(manifest, graphs=graphs))


def _built(writer: BundleWriter, name: str) -> bool:
    """Whether a graph has its engine, and what prepares it, too."""
    graph = Bundle.open(writer.path).graph(name)
    graphs = [
        graph,
        *([] if (other := graph.entry.prepare) is None else [graph.bundle.graph(other)]),
    ]
    return all(read_built(each) is not None for each in graphs)


def require_proof(writer: BundleWriter, manifest: Manifest) -> None:
    """Refuse a bundle whose engine has not run.

    Raises:
        ParityError: if it has not.
    """
    targets = [graph.targets.get(TARGET) for graph in manifest.graphs.values()]
    if any(target is not None and target.parity != PASSED for target in targets):
        why = "The engine of TensorRT has not run: it takes the GPU that it is for."
        raise refused(writer, manifest, why)


def _proven(built: bool, verify: Callable[..., ParityReport]) -> tuple[str, str, tuple[str, ...]]:
    """Verify a graph for TensorRT, and its engine where that can run.

    Args:
        built: whether there is an engine.
        verify: verifies the graph, or else the engine.

    Returns:
        The engine's verdict, what is wrong, if anything, and what the user should know.
    """
    found = verify(lowered=True)
    if not found.passed:
        return FAILED, f"The graph for TensorRT, run by ONNX Runtime: {found.summary()}", ()
    if not built or not flavours.has_device():
        return NO_DEVICE, "", ()
    try:
        found = verify(lowered=False)
    except (DeviceError, MissingExtraError) as error:
        return f"{NOT_RUN} (see the notes)", "", (f"The engine did not run here: {error}",)
    if not found.passed:
        return FAILED, f"The engine of TensorRT: {found.summary()}", ()
    return PASSED, "", ()
