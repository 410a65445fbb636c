"""The engine of TensorRT, in a bundle that is written: built, and proven as far as it can be."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from intaglio.errors import DeviceError, MissingExtraError
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.verify import verify
from intaglio.exporter.sources.calibration_data import Arrays
from intaglio.exporter.sources.source import Source
from intaglio.exporter.writing.bundle_writer import BundleWriter
from intaglio.exporter.writing.describe import NO_DEVICE, with_verdict
from intaglio.exporter.writing.trt import add_engine
from intaglio.runtime.graph_entry import FAILED, NOT_RUN, PASSED
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt.engine_build import RECORD, TARGET, BuildRequest

from .attempt import Attempt, refused


def with_engine(
    writer: BundleWriter,
    source: Source,
    made: Attempt,
    how: Recipe,
    clock: Clock,
    data: str | Path | Arrays | None,
    request: BuildRequest,
) -> Attempt:
    """Build the engine of a bundle that is written, and prove it, if that is asked for.

    Raises:
        ParityError: if its graph, or the engine, does not compute what the source does.
        IntaglioError: whatever else stands in the way of building it.
    """
    graph = made.compiled.trt
    assert graph is not None
    with clock.phase("build"):
        manifest, advice = add_engine(writer, made.manifest, graph, request, clock)
    if not how.verify:
        return replace(made, manifest=manifest, notes=(*made.notes, *advice))

    def run(*, lowered: bool) -> ParityReport:
        return verify(
            writer.path,
            source,
            data=made.compiled.context.calibration if data is None else data,
            target="trt",
            lowered=lowered,
            steps=min(how.steps, made.compiled.context.max_context or how.steps),
            tolerance=how.tolerance,
            keep=False,
            progress=clock.report,
        )

    with clock.phase("verify"):
        verdict, faults, told = _proven(manifest, run)
    manifest = with_verdict(manifest, TARGET, verdict)
    if faults:
        raise refused(writer, manifest, faults)
    return replace(made, manifest=manifest, notes=(*made.notes, *advice, *told))


def require_proof(writer: BundleWriter, manifest: Manifest) -> None:
    """Refuse a bundle whose engine has not run.

    Raises:
        ParityError: if it has not.
    """
    target = manifest.main.targets.get(TARGET)
    if target is not None and target.parity != PASSED:
        why = "The engine of TensorRT has not run: it takes the GPU that it is for."
        raise refused(writer, manifest, why)


def _proven(
    manifest: Manifest, verify: Callable[..., ParityReport]
) -> tuple[str, str, tuple[str, ...]]:
    """Verify the graph for TensorRT, and its engine where that can run.

    Args:
        manifest: of the bundle.
        verify: verifies the graph, or else the engine.

    Returns:
        The engine's verdict, what is wrong, if anything, and what the user should know.
    """
    found = verify(lowered=True)
    if not found.passed:
        return FAILED, f"The graph for TensorRT, run by ONNX Runtime: {found.summary()}", ()
    if RECORD not in manifest.files or not flavours.has_device():
        return NO_DEVICE, "", ()
    try:
        found = verify(lowered=False)
    except (DeviceError, MissingExtraError) as error:
        return f"{NOT_RUN} (see the notes)", "", (f"The engine did not run here: {error}",)
    if not found.passed:
        return FAILED, f"The engine of TensorRT: {found.summary()}", ()
    return PASSED, "", ()
