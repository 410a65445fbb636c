"""The whole way from a checkpoint to a bundle: load, trace, run the passes, write, verify."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
from torch import nn
from torch.export import ExportedProgram

from intaglio.errors import OptionError, ParityError
from intaglio.passes import pipeline
from intaglio.passes.base import Calibrated, Context, Pass
from intaglio.runtime.manifest import NOT_RUN, Limits, Manifest, Target, TensorSpec
from intaglio.state import PAST_LENGTH

from .bundle import BundleWriter
from .calibration import Arrays, read_calibration
from .factory import read_config
from .genai import add_genai
from .graph_files import save_graphs
from .load import load_source
from .parity import ParityReport
from .recipe import FILE_NAME as RECIPE
from .recipe import Recipe, as_entry, read_recipe
from .shapes import Shapes
from .source import Source
from .trace import trace
from .verify import verify as verify_bundle

TARGETS = ("ort",)
PORTABLE = "model.onnx"
LOWERED = "ort/model.onnx"
DISTRIBUTIONS = ("numpy", "onnx", "onnx-ir", "onnxruntime", "onnxscript", "torch")

Progress = Callable[[str, float | None], None]


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """What an export did: the bundle's place and manifest, the evidence, seconds per phase."""

    out: Path
    manifest: Manifest
    parity: ParityReport | None
    seconds: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of the bundle's files together, without the manifest."""
        return sum(record.bytes for record in self.manifest.files.values())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "out": str(self.out),
            "bytes": self.bytes,
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
    work: str | Path | None = None,
    kv: Literal["static", "grow"] | None = None,
    ort_accuracy: Literal["fast", "exact"] | None = None,
    shapes: Shapes | None = None,
    dtype: str | None = None,
    tolerance: Mapping[str, float] | None = None,
    check_passes: bool | None = None,
    verify: bool | None = None,
    steps: int | None = None,
    require_parity: bool = False,
    force: bool = False,
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
        targets: the engines to lower for.
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
        work: where calibrated passes keep each layer that is finished, for a run that is cut off
            to go on; else a folder beside `out`, gone when the bundle is there.
        kv: layout of key-value caches: one buffer written in place, or past and present.
        ort_accuracy: how ONNX Runtime multiplies by weights of few bits: activations rounded to 8
            bits, or slowly in full precision, for verification only.
        shapes: what the bundle has to serve; a batch fixed to 1 allows faster attention.
        dtype: what the weights are stored in; fp32 so far.
        tolerance: limits of parity by name, instead of the defaults.
        check_passes: hold every exact pass to its promise on random inputs.
        verify: compare the written bundle with the source.
        steps: how many steps to compare.
        require_parity: refuse to export without verification.
        force: replace a bundle that is there.
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
    clock = _Clock(progress)
    with BundleWriter(out, force=force) as writer:
        with clock.phase("load"):
            if not isinstance(source, Source):
                source = load_source(
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
        batch = _fixed_batch(source, Shapes.from_json(how.shapes))
        place = None if calib is None else Path(work or f"{writer.destination}.work")
        teacher = None if calib is None else _Teacher(calib, place)
        compiled = _compile(source, parsed, how, batch, clock, teacher)
        with clock.phase("write"):
            manifest = _write(writer, source, compiled, how)
            if how.layout == "genai":
                manifest = add_genai(writer.path, manifest)
        parity = None
        if how.verify:
            with clock.phase("verify"):
                parity = verify_bundle(
                    writer.path,
                    source,
                    steps=how.steps,
                    tolerance=how.tolerance,
                    keep=False,  # the manifest holds it
                    progress=clock.report,
                )
            manifest = _with_evidence(manifest, parity)
        if parity is not None and not parity.passed:
            kept = writer.fail(manifest)
            raise ParityError(f"{parity.summary()} The attempt is kept in {kept}.")
        manifest = writer.commit(manifest)
        if place is not None and work is None:
            shutil.rmtree(place, ignore_errors=True)
    return ExportReport(
        out=Path(out),
        manifest=manifest,
        parity=parity,
        seconds=clock.seconds,
        notes=(*source.notes, *compiled.notes),
    )


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """The graphs made from a source: the portable one and the one for ONNX Runtime."""

    portable: ir.Model
    ort: ir.Model
    context: Context
    records: Sequence[pipeline.PassRecord]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Teacher:
    """What calibrated passes learn from, and where they keep what they have finished."""

    data: str | Path | Arrays
    work: Path | None


class _Clock:
    """Times the phases of an export and tells the user's callable about them."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs in the context under `name`."""
        self._phase = name
        if self._progress is not None:
            self._progress(name, None)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)

    def report(self, what: str, done: float | None) -> None:
        """Pass on the progress made within the phase."""
        if self._progress is not None:
            self._progress(f"{self._phase}: {what}", done)


def _compile(
    source: Source,
    extra: Sequence[Pass],
    how: Recipe,
    batch: int | None,
    clock: _Clock,
    teacher: _Teacher | None,
) -> _Compiled:
    with clock.phase("trace"):
        traced = trace(source)
    model = traced.model
    context = Context(
        max_context=traced.max_context,
        batch=batch,
        defaults=source.defaults,
        progress=clock.report,
    )
    if teacher is not None:
        with clock.phase("calibration"):
            data = read_calibration(teacher.data, source, traced.max_context)
        context.calibration, context.work = data, teacher.work
        context.module = source.body if isinstance(source.body, nn.Module) else None
    with clock.phase("passes"):
        steps = pipeline.whole(extra) if source.whole else pipeline.standard(how.kv, extra)
        records = pipeline.run(model, steps, context, check=how.check_passes, progress=clock.report)
        ort = model.clone()
        records += pipeline.lower(
            ort,
            "ort",
            context,
            accuracy=how.ort_accuracy,
            check=how.check_passes,
            progress=clock.report,
        )
    advice = [line for record in records for line in record.result.advice]
    return _Compiled(
        portable=model,
        ort=ort,
        context=context,
        records=records,
        notes=(*traced.notes, *advice),
    )


def _write(
    writer: BundleWriter,
    source: Source,
    compiled: _Compiled,
    how: Recipe,
) -> Manifest:
    graphs = {PORTABLE: compiled.portable} if how.portable else {}
    with writer.told():
        (writer.path / RECIPE).write_text(how.to_toml(), encoding="utf-8")
        opened = save_graphs(writer.path, {**graphs, LOWERED: compiled.ort})
    graph, context = compiled.ort.graph, compiled.context
    taken = {PAST_LENGTH, *(state.input for state in context.states)}
    left = {state.output for state in context.states}
    return writer.write_manifest(
        Manifest(
            source={
                "name": source.name,
                "sha256": source.sha256,
                "format": source.format,
                "model": source.model,
                "config": source.config,
            },
            passes=tuple(record.to_json() for record in compiled.records),
            recipe=how.to_json(),
            inputs=tuple(
                replace(
                    _tensor(value, source.defaults.get(str(value.name))), below=_table_rows(value)
                )
                for value in graph.inputs
                if value.name not in taken
            ),
            outputs=tuple(_tensor(v) for v in graph.outputs if v.name not in left),
            states=tuple(context.states),
            past_length=any(value.name == PAST_LENGTH for value in graph.inputs),
            whole=source.whole,
            text={} if source.text is None else source.text.save(writer.path),
            targets={
                "ort": Target(
                    path=LOWERED,
                    data=opened[LOWERED],
                    opset=compiled.ort.opset_imports[""],
                    parity=f"{NOT_RUN} (turned off)",
                )
            },
            files={},
            limits=Limits(max_context=context.max_context, batch=context.batch),
            versions={name: version(name) for name in DISTRIBUTIONS},
        )
    )


def _with_evidence(manifest: Manifest, parity: ParityReport) -> Manifest:
    verdict = "passed" if parity.passed else "failed"
    targets = {**manifest.targets, "ort": replace(manifest.targets["ort"], parity=verdict)}
    return replace(manifest, targets=targets, parity=parity.to_json())


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


def _check(how: Recipe, *, require_parity: bool) -> None:
    """Refuse what cannot be, before anything is loaded."""
    if tuple(how.targets) != TARGETS:
        raise OptionError(f"The targets {', '.join(how.targets)} are not supported yet; ort is.")
    if how.kv not in ("static", "grow"):
        raise OptionError(f"kv is {how.kv!r}; it should be static or grow.")
    if how.ort_accuracy not in ("fast", "exact"):
        raise OptionError(f"ort_accuracy is {how.ort_accuracy!r}; it should be fast or exact.")
    if how.layout not in ("bundle", "genai"):
        raise OptionError(f"layout is {how.layout!r}; it should be bundle or genai.")
    if how.dtype != "fp32":
        raise OptionError(f"The dtype {how.dtype} is not supported yet; fp32 is.")
    if require_parity and not how.verify:
        raise OptionError("Parity cannot be required of an export that is not verified.")


def _fixed_batch(source: Source, shapes: Shapes) -> int | None:
    """Return 1 if `shapes` allow that batch alone; another fixed one gains nothing over a free."""
    declared = {
        name: tuple(source.dynamic[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in source.inputs.items()
    }
    return 1 if shapes.fixed_batch(declared) == 1 else None
