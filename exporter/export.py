"""The whole way from a checkpoint to a bundle: load, trace, run the passes, write, verify."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn
from torch.export import ExportedProgram

from intaglio.errors import DeviceError, MissingExtraError, OptionError, ParityError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.recipe import Recipe, as_entry, read_recipe
from intaglio.exporter.options.served_shapes import Shapes
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.proving.verify import verify as verify_bundle
from intaglio.exporter.sources.calibration_data import Arrays
from intaglio.exporter.sources.factory import read_config
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source
from intaglio.exporter.writing.bundle_writer import BundleWriter, check_place
from intaglio.exporter.writing.compiled import weigh
from intaglio.exporter.writing.describe import NO_DEVICE, describe, with_verdict
from intaglio.exporter.writing.trt import add_engine, prepare
from intaglio.passes.base import Calibrated, Pass
from intaglio.passes.lower.ort_low_bit import Accuracy
from intaglio.passes.pipeline import FP16, FP32
from intaglio.runtime.graph_entry import FAILED, NOT_RUN, PASSED
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt import flavour as flavours
from intaglio.runtime.trt.engine_build import RECORD, TARGET

from .attempt import attempt
from .compile import Teacher, compile_source

TARGETS = ("ort", "trt")


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export did: the bundle's place and manifest, the evidence, seconds per phase.

    After a dry run the manifest lists no files, and `estimate` is about what they would hold.
    """

    out: Path
    manifest: Manifest
    parity: ParityReport | None
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    estimate: int | None = None

    @property
    def bytes(self) -> int:
        """Size of the bundle's files together, without the manifest."""
        written = sum(record.bytes for record in self.manifest.files.values())
        return written if self.estimate is None else self.estimate

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "out": str(self.out),
            "bytes": self.bytes,
            "dry_run": self.estimate is not None,
            "seconds": dict(self.seconds),
            "notes": list(self.notes),
            "parity": None if self.parity is None else self.parity.to_json(),
            "manifest": self.manifest.to_json(),
        }


def export(
    source: str | Path | nn.Module | ExportedProgram | Source,
    out: str | Path,
    *,
    recipe: Recipe | str | Path | None = None,
    targets: Sequence[str] | None = None,
    model: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    key: str | None = None,
    import_from: Sequence[str | Path] = (),
    inputs: Mapping[str, Any] | str | Path | None = None,
    axes: Mapping[str, Sequence[int | str]] | None = None,
    passes: Sequence[str | Pass | Callable[..., Any]] | None = None,
    calib: str | Path | Arrays | None = None,
    data: str | Path | Arrays | None = None,
    work: str | Path | None = None,
    kv: Literal["static", "grow"] | None = None,
    ort_accuracy: Accuracy | None = None,
    shapes: Shapes | None = None,
    dtype: str | None = None,
    flavour: Literal["auto", "tensorrt", "rtx"] | None = None,
    sm: Sequence[int] | None = None,
    tolerance: Mapping[str, float] | None = None,
    check_passes: bool | None = None,
    verify: bool | None = None,
    steps: int | None = None,
    require_parity: bool = False,
    force: bool = False,
    dry_run: bool = False,
    portable: bool | None = None,
    layout: Literal["bundle", "genai"] | None = None,
    allow_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint to a bundle at `out`, verified against its source.

    Options that are None are as the recipe says, or as `Recipe` has them.

    Args:
        source: what `load_source` takes, or what it returned.
        out: the bundle's folder.
        recipe: a recipe, or the file that a bundle holds as `recipe.toml`.
        targets: the engines to lower for: ort, which is in every bundle, and trt.
        model: the model that the weights belong to, see `load_source`.
        config: what the model is built with, see `load_source`.
        key: where the file holds the state dict, see `load_source`.
        import_from: folders with the model's code, see `load_source`.
        inputs: example inputs, see `load_source`.
        axes: the dimensions of inputs, see `load_source`.
        passes: the user's passes, as ``NAME:OPTIONS``, objects or functions; run before
            statefulize.
        calib: what calibrated passes learn from: a file ``.npz`` or ``.txt``, a folder of these,
            or arrays by the names of inputs.
        data: what to verify with, in the same forms; if not given, what calibrated passes learned
            from, the rows first that they did not fit; without these, random inputs.
        work: where calibrated passes keep each layer that is finished, for a run that is cut off
            to go on; else a folder beside `out`, gone when the bundle is there.
        kv: layout of key-value caches: one buffer written in place, or past and present.
        ort_accuracy: how ONNX Runtime multiplies by weights of few bits: ``fast`` rounds
            activations to 8 bits, ``fine`` takes them in two parts of 8 bits; ``auto`` is fine
            where rounding shows on calibration data, and everywhere if it alone fails parity;
            ``exact`` has full precision, slowly, for verification only.
        shapes: what the bundle has to serve; a batch fixed to 1 allows faster attention.
        dtype: what TensorRT takes products, attention, convolutions and recurrences in, fp32 or
            fp16, and stores their weights and caches in; ONNX Runtime computes in fp32.
        flavour: which TensorRT builds: the full one, which needs a GPU, TensorRT-RTX, or the first
            that can here.
        sm: compute capabilities that the kernels of TensorRT's plugins are compiled for, 87 for
            8.7; by default those of RTX 30, 40 and 50 and of A100.
        tolerance: limits of parity by name, instead of the defaults.
        check_passes: hold every exact pass to its promise on random inputs.
        verify: compare the written bundle with the source.
        steps: how many steps to compare.
        require_parity: refuse to export without verification.
        force: replace a bundle that is there.
        dry_run: load, trace and run the passes, refuse what an export would, and write nothing.
        portable: keep `model.onnx`, the graph for any runtime.
        layout: whether the folder is a bundle alone, or one that onnxruntime-genai opens as well.
        allow_code: run ``FILE.py:FUNCTION`` passes, and code that the checkpoint names.
        allow_pickle: load pickled objects, see `load_source`.
        progress: is told each phase and, where known, the fraction of it that is done.

    Raises:
        ParityError: if the bundle does not compute what the source does; the attempt is kept
            beside `out` with the suffix ``.failed``.
        IntaglioError: whatever else the user can mend; `out` is then as it was.
    """
    how = (recipe if isinstance(recipe, Recipe) else read_recipe(recipe)).override(
        targets=targets,
        model=model,
        config=None if config is None else read_config(config),
        key=key,
        axes=axes,
        passes=None if passes is None else [as_entry(entry) for entry in passes],
        kv=kv,
        ort_accuracy=ort_accuracy,
        shapes=None if shapes is None else shapes.to_json(),
        dtype=dtype,
        flavour=flavour,
        sm=sm,
        tolerance=tolerance,
        check_passes=check_passes,
        verify=verify,
        steps=steps,
        portable=portable,
        layout=layout,
    )
    _check(how, require_parity=require_parity)
    parsed = how.build_passes(allow_code=allow_code)
    if calib is not None and not any(isinstance(step, Calibrated) for step in parsed):
        raise OptionError("Calibration data is given, and no pass that learns from it.")
    clock = Clock(progress)

    def load() -> Source:
        with clock.phase("load"):
            if isinstance(source, Source):
                return source
            return load_source(
                source,
                model=how.model or None,
                config=how.config or None,
                key=how.key or None,
                import_from=import_from,
                inputs=inputs,
                axes=how.axes,
                allow_code=allow_code,
                allow_pickle=allow_pickle,
            )

    if dry_run:
        check_place(Path(out), force=force)
        loaded = load()
        compiled = compile_source(loaded, parsed, how, clock, Teacher.of(calib, None))
        return ExportReport(
            out=Path(out),
            manifest=describe(loaded, compiled, how, {}, {}),
            parity=None,
            seconds=clock.seconds,
            notes=(*loaded.notes, *compiled.notes),
            estimate=weigh(compiled),
        )
    with BundleWriter(out, force=force) as writer:
        loaded = load()
        place = None if calib is None else Path(work or f"{writer.destination}.work")
        compiled = compile_source(loaded, parsed, how, clock, Teacher.of(calib, place))
        request = None if compiled.trt is None else prepare(compiled, how)
        made = attempt(writer, loaded, compiled, how, clock, data)
        manifest, notes = made.manifest, (*loaded.notes, *made.compiled.notes)

        def failed(why: str) -> ParityError:
            return ParityError(f"{why} The attempt is kept in {writer.fail(manifest)}.")

        if made.parity is not None and not made.parity.passed:
            raise failed(made.parity.summary())
        if compiled.trt is not None and request is not None:
            with clock.phase("build"):
                manifest, advice = add_engine(writer, manifest, compiled.trt, request, clock)
            notes += advice
            if how.verify:
                with clock.phase("verify"):
                    verdict, faults, advice = _prove_engine(
                        manifest,
                        lambda graph: verify_bundle(
                            writer.path,
                            loaded,
                            data=compiled.context.calibration if data is None else data,
                            target="trt",
                            graph=graph,
                            steps=how.steps,
                            tolerance=how.tolerance,
                            keep=False,
                            progress=clock.report,
                        ),
                    )
                manifest, notes = with_verdict(manifest, TARGET, verdict), notes + advice
                if faults:
                    raise failed(faults)
            if require_parity and manifest.main.targets[TARGET].parity != PASSED:
                raise failed("The engine of TensorRT has not run: it takes the GPU that it is for.")
        manifest = writer.commit(manifest)
        if place is not None and work is None:
            shutil.rmtree(place, ignore_errors=True)
    return ExportReport(
        out=Path(out),
        manifest=manifest,
        parity=made.parity,
        seconds=clock.seconds,
        notes=notes,
    )


def _prove_engine(
    manifest: Manifest, verify: Callable[[bool], ParityReport]
) -> tuple[str, str, tuple[str, ...]]:
    """Verify the graph for TensorRT, and its engine where that can run.

    Args:
        manifest: of the bundle.
        verify: verifies the graph, or else the engine.

    Returns:
        The engine's verdict, what is wrong, if anything, and what the user should know.
    """
    found = verify(True)
    if not found.passed:
        return FAILED, f"The graph for TensorRT, run by ONNX Runtime: {found.summary()}", ()
    if RECORD not in manifest.files or not flavours.has_device():
        return NO_DEVICE, "", ()
    try:
        found = verify(False)
    except (DeviceError, MissingExtraError) as error:
        return f"{NOT_RUN} (see the notes)", "", (f"The engine did not run here: {error}",)
    if not found.passed:
        return FAILED, f"The engine of TensorRT: {found.summary()}", ()
    return PASSED, "", ()


def _check(how: Recipe, *, require_parity: bool) -> None:
    """Refuse what cannot be, before anything is loaded."""
    for target in how.targets:
        if target not in TARGETS:
            raise OptionError(f"There is no target {target!r}; there are: {', '.join(TARGETS)}.")
    if "trt" in how.targets and how.flavour != flavours.AUTO:
        flavours.choose(how.flavour)
    if how.kv not in ("static", "grow"):
        raise OptionError(f"kv is {how.kv!r}; it should be static or grow.")
    if how.ort_accuracy not in get_args(Accuracy):
        words = ", ".join(get_args(Accuracy))
        raise OptionError(f"ort_accuracy is {how.ort_accuracy!r}; it should be one of: {words}.")
    if how.layout not in ("bundle", "genai"):
        raise OptionError(f"layout is {how.layout!r}; it should be bundle or genai.")
    if how.dtype not in (FP32, FP16):
        raise OptionError(f"The dtype {how.dtype} is not supported yet; fp32 and fp16 are.")
    if how.dtype == FP16 and "trt" not in how.targets:
        raise OptionError(
            "fp16 is for TensorRT, and ONNX Runtime computes in fp32 on processors. Add "
            "--target ort,trt, or leave --dtype out."
        )
    if require_parity and not how.verify:
        raise OptionError("Parity cannot be required of an export that is not verified.")
