"""The whole way from a checkpoint to a bundle: load, trace, run the passes, write, verify."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack, get_args

from intaglio.errors import BuildError, OptionError, UnsupportedError
from intaglio.exporter.options.clock import Clock, Progress
from intaglio.exporter.options.loading import LoadOptions
from intaglio.exporter.options.recipe import ExportKeywords, FolderLayout, Recipe, completed, decide
from intaglio.exporter.options.tolerance import check_tolerance
from intaglio.exporter.options.turns import one_at_a_time
from intaglio.exporter.proving.parity import ParityReport
from intaglio.exporter.sources.calibration_data import Arrays, data_hash
from intaglio.exporter.sources.load import Unloaded, load
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.whole import require_stepped, settled
from intaglio.exporter.writing.bundle_writer import BundleWriter, check_place
from intaglio.exporter.writing.compiled import CompiledGraph, weigh
from intaglio.exporter.writing.describe import describe
from intaglio.exporter.writing.trt import requests
from intaglio.jobs import Where
from intaglio.keywords import spelled_out
from intaglio.passes.base import Calibrated, Pass
from intaglio.passes.lower.ort_low_bit import Accuracy
from intaglio.passes.pipeline import FP16, FP32
from intaglio.places import require_writable
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.trt import flavour as flavours
from intaglio.spelling import perhaps

from .attempt import Attempt, attempt
from .compile import HERE, Teacher, compile_all
from .engine import require_proof, with_engines

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

    def __repr__(self) -> str:
        """In short: ``ExportReport('kws', 29800 bytes, parity holds)``."""
        parity = "not compared" if self.parity is None else "parity holds"
        return f"ExportReport({str(self.out)!r}, {self.bytes} bytes, {parity})"

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


@spelled_out
@one_at_a_time
def export(
    source: Unloaded | Source,
    out: str | Path,
    *,
    recipe: Recipe | str | Path | None = None,
    calib: str | Path | Arrays | None = None,
    data: str | Path | Arrays | None = None,
    work: str | Path | None = None,
    require_parity: bool = False,
    require_target: Sequence[str] = (),
    force: bool = False,
    dry_run: bool = False,
    jobs: int | None = None,
    ray: str | None = None,
    progress: Progress | None = None,
    **options: Unpack[ExportKeywords],
) -> ExportReport:
    """Export a checkpoint to a bundle at `out`, verified against its source.

    Options that are None are as the recipe says, or as `Recipe` has them.  Of several threads one
    exports or verifies at a time, and the others wait: tracing changes classes of PyTorch
    meanwhile, so no other thread should run the module, or trace one by other means.

    Args:
        source: what `load_source` takes, or what it returned.
        out: the bundle's folder.
        recipe: a recipe, or the file that a bundle holds as `recipe.toml`.
        calib: what calibrated passes learn from: a file ``.npz`` or ``.txt``, a picture, a folder
            of these, or arrays by the names of inputs.
        data: what to verify with, in the same forms; if not given, what calibrated passes learned
            from, the rows first that they did not fit; without these, random inputs.
        work: where calibrated passes keep each layer that is finished, for a run that is cut off
            to go on; else a folder beside `out`, gone when the bundle is there.
        require_parity: refuse to export without verification.
        require_target: targets without which there is to be no bundle; else one for ONNX Runtime
            is written where TensorRT alone refuses, and the notes say why.
        force: replace a bundle that is there.
        dry_run: load, trace and run the passes, refuse what an export would, and write nothing.
        jobs: processes beside each other, at most, that solve layers for passes and compile kernels
            for TensorRT; None for none of the first, and one per processor of the others.  What
            they find is the same.
        ray: the address of a Ray cluster that solves the layers instead.
        progress: is told each phase and, where known, the fraction of it that is done.
        **options: those of `ExportKeywords`.

    Raises:
        ParityError: if the bundle does not compute what the source does; the attempt is kept
            beside `out` with the suffix ``.failed``.
        IntaglioError: whatever else the user can mend; `out` is then as it was.
    """
    asked = _asked(recipe, options, calib, data, require_parity, require_target)
    clock = Clock(progress)
    if dry_run:
        return _rehearsed(source, Path(out), asked, clock, force=force)
    with BundleWriter(out, force=force) as writer:
        loaded, asked = _loaded(source, asked, clock)
        teacher = Teacher.of(calib, Path(work or f"{writer.destination}.work"))
        compiled = _compiled(
            loaded, asked, clock, teacher, Where(jobs=1 if jobs is None else jobs, ray=ray)
        )
        made = _made(writer, loaded, compiled, asked, clock, jobs)
        if require_parity:
            require_proof(writer, made.manifest)
        manifest = writer.commit(made.manifest)
    if teacher is not None and work is None:
        teacher.forget()
    return ExportReport(
        out=Path(out),
        manifest=manifest,
        parity=made.parity,
        seconds=clock.seconds,
        notes=(*asked.notes, *loaded.notes, *made.notes),
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What an export is to do, as far as it is known before the source is loaded.

    `required` tells that a bundle without an engine of TensorRT is of no use.
    """

    how: Recipe
    loading: LoadOptions
    passes: Sequence[Pass]
    calib: str | Path | Arrays | None
    data: str | Path | Arrays | None
    required: bool
    notes: Sequence[str]


def _asked(
    recipe: Recipe | str | Path | None,
    options: ExportKeywords,
    calib: str | Path | Arrays | None,
    data: str | Path | Arrays | None,
    require_parity: bool,
    require_target: Sequence[str],
) -> Asked:
    """What was asked for, once it is known that it can be asked for.

    Raises:
        IntaglioError: if it cannot.
    """
    how, loading = decide(recipe, options)
    _check(how, require_parity=require_parity, require_target=require_target)
    passes = how.build_passes(allow_code=loading.allow_code)
    if calib is not None and not any(isinstance(step, Calibrated) for step in passes):
        raise OptionError("Calibration data is given, and no pass that learns from it.")
    how, notes = _with_hashes(how, {"calib": calib, "data": data})
    for step in passes:
        step.check_options(data=calib is not None)
    return Asked(
        how=how,
        loading=loading,
        passes=passes,
        calib=calib,
        data=data,
        required="trt" in require_target or "ort" not in how.targets,
        notes=notes,
    )


def _with_hashes(
    how: Recipe, given: Mapping[str, str | Path | Arrays | None]
) -> tuple[Recipe, list[str]]:
    """The recipe with the hash of each of the data `given`, and how it differs from what it had.

    Raises:
        InputError: if data is not there.
        OptionError: if a pass learned from data by the recipe, and none is given.
    """
    found = {name: data_hash(data) for name, data in given.items() if data is not None}
    wanted = how.hashes.get("calib")
    if wanted is not None and "calib" not in found:
        raise OptionError(
            f"The recipe's passes learned from data of the SHA-256 {wanted}. Give it with --calib."
        )
    notes = [
        f"--{name} is other data than the recipe was made with, whose SHA-256 is {hash_}."
        if name in found
        else f"The recipe was made with --{name} of the SHA-256 {hash_}, which is not given."
        for name, hash_ in how.hashes.items()
        if found.get(name) != hash_
    ]
    return replace(how, hashes=found), notes


def _loaded(source: Unloaded | Source, asked: Asked, clock: Clock) -> tuple[Source, Asked]:
    """The source with its weights, once it is known whether it takes whole inputs."""
    with clock.phase("load"):
        loaded = settled(load(source, asked.loading), asked.how.whole)
        require_stepped(loaded, asked.loading.condition)
    return loaded, replace(asked, how=completed(asked.how, loaded.asked))


def _compiled(
    source: Source, asked: Asked, clock: Clock, teacher: Teacher | None, where: Where = HERE
) -> CompiledGraph:
    """The graphs for each target; without those for TensorRT, if it refuses and may."""
    compiled = compile_all(source, asked.passes, asked.how, clock, teacher, where)
    if compiled.lacks is not None and asked.required:
        raise compiled.lacks
    return compiled


def _made(
    writer: BundleWriter,
    source: Source,
    compiled: CompiledGraph,
    asked: Asked,
    clock: Clock,
    jobs: int | None,
) -> Attempt:
    """The bundle, verified; without an engine of TensorRT, if none can be built and none must."""
    wanted = None if compiled.trt is None else requests(compiled, source, asked.how)
    made = attempt(writer, source, compiled, asked.how, clock, asked.data)
    if wanted is None:
        return made
    try:
        return with_engines(writer, source, made, asked.how, clock, asked.data, wanted, jobs)
    except (BuildError, UnsupportedError) as error:
        if asked.required:
            raise
        writer.clear()
        alone = made.compiled.without_trt(error)
        return attempt(writer, source, alone, asked.how, clock, asked.data)


def _rehearsed(
    source: Unloaded | Source, out: Path, asked: Asked, clock: Clock, *, force: bool
) -> ExportReport:
    """What an export would do, as far as that can be told without writing anything."""
    check_place(out, force=force)
    require_writable(out)
    loaded, asked = _loaded(source, asked, clock)
    compiled = _compiled(loaded, asked, clock, Teacher.of(asked.calib, None))
    return ExportReport(
        out=out,
        manifest=describe(loaded, compiled, asked.how, {}, {}),
        parity=None,
        seconds=clock.seconds,
        notes=(*asked.notes, *loaded.notes, *compiled.notes),
        estimate=weigh(compiled),
    )


def _check(how: Recipe, *, require_parity: bool, require_target: Sequence[str]) -> None:
    """Refuse what cannot be, before anything is loaded."""
    how.require_types()
    for target in require_target:
        if target not in how.targets:
            raise OptionError(
                f"{target!r} is required, and not among the targets: {', '.join(how.targets)}. "
                f"Add it: --target {','.join((*how.targets, target))}."
            )
    for target in how.targets:
        if target not in TARGETS:
            raise OptionError(
                f"There is no target {target!r}{perhaps(target, TARGETS)}; there are: "
                f"{', '.join(TARGETS)}."
            )
    if "trt" in how.targets and how.flavour != flavours.AUTO:
        flavours.choose(how.flavour)
    if how.kv not in ("static", "grow"):
        raise OptionError(f"kv is {how.kv!r}; it should be static or grow.")
    if how.ort_accuracy not in get_args(Accuracy):
        words = ", ".join(get_args(Accuracy))
        raise OptionError(f"ort_accuracy is {how.ort_accuracy!r}; it should be one of: {words}.")
    if how.layout not in get_args(FolderLayout):
        words = ", ".join(get_args(FolderLayout))
        raise OptionError(f"layout is {how.layout!r}; it should be one of: {words}.")
    if how.dtype not in (FP32, FP16):
        raise OptionError(f"The dtype {how.dtype} is not supported yet; fp32 and fp16 are.")
    if how.dtype == FP16 and "trt" not in how.targets:
        raise OptionError(
            "fp16 is for TensorRT, and ONNX Runtime computes in fp32 on processors. Add "
            "--target ort,trt, or leave --dtype out."
        )
    check_tolerance(how.tolerance)
    if how.steps < 1:
        raise OptionError(f"steps is {how.steps}; compare at least one.")
    if require_parity and not how.verify:
        raise OptionError("Parity cannot be required of an export that is not verified.")
