"""The whole way from a checkpoint to a bundle: load, trace, run the passes, write, verify."""

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
from intaglio.passes.base import Context, Pass
from intaglio.runtime.manifest import NOT_RUN, Limits, Manifest, Target, TensorSpec
from intaglio.state import PAST_LENGTH

from .bundle import BundleWriter
from .graph_files import save_graphs
from .load import load_source
from .parity import ParityReport
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
    targets: Sequence[str] = TARGETS,
    model: str | None = None,
    config: Mapping[str, Any] | str | Path | None = None,
    key: str | None = None,
    import_from: Sequence[str | Path] = (),
    inputs: Mapping[str, Any] | str | Path | None = None,
    axes: Mapping[str, Sequence[int | str]] | None = None,
    passes: Sequence[str | Pass] = (),
    kv: Literal["static", "grow"] = "static",
    ort_accuracy: Literal["fast", "exact"] = "fast",
    shapes: Shapes | None = None,
    dtype: str | None = None,
    tolerance: Mapping[str, float] | None = None,
    check_passes: bool = False,
    verify: bool = True,
    steps: int = 512,
    require_parity: bool = False,
    force: bool = False,
    portable: bool = True,
    allow_code: bool = False,
    allow_pickle: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint to a bundle at `out`, verified against its source.

    Args:
        source: what `load_source` takes, or what it returned.
        out: the bundle's folder.
        targets: the engines to lower for.
        model: the model that the weights belong to, see `load_source`.
        config: what the model is built with, see `load_source`.
        key: where the file holds the state dict, see `load_source`.
        import_from: folders with the model's code, see `load_source`.
        inputs: example inputs, see `load_source`.
        axes: the dimensions of inputs, see `load_source`.
        passes: the user's passes, as ``NAME:OPTIONS`` or objects; run before statefulize.
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
        allow_code: run ``FILE.py:FUNCTION`` passes, and code that the checkpoint names.
        allow_pickle: load pickled objects, see `load_source`.
        progress: is told each phase and, where known, the fraction of it that is done.

    Raises:
        ParityError: if the bundle does not compute what the source does; the attempt is kept
            beside `out` with the suffix ``.failed``.
        IntaglioError: whatever else the user can mend; `out` is then as it was.
    """
    if tuple(targets) != TARGETS:
        raise OptionError(f"The targets {', '.join(targets)} are not supported yet; ort is.")
    if kv not in ("static", "grow"):
        raise OptionError(f"kv is {kv!r}; it should be static or grow.")
    if ort_accuracy not in ("fast", "exact"):
        raise OptionError(f"ort_accuracy is {ort_accuracy!r}; it should be fast or exact.")
    if dtype not in (None, "fp32"):
        raise OptionError(f"The dtype {dtype} is not supported yet; fp32 is.")
    if require_parity and not verify:
        raise OptionError("Parity cannot be required of an export that is not verified.")
    parsed = [
        p if isinstance(p, Pass) else pipeline.parse(p, allow_code=allow_code) for p in passes
    ]
    clock = _Clock(progress)
    with BundleWriter(out, force=force) as writer:
        with clock.phase("load"):
            if not isinstance(source, Source):
                source = load_source(
                    source,
                    model=model,
                    config=config,
                    key=key,
                    import_from=import_from,
                    inputs=inputs,
                    axes=axes,
                    allow_code=allow_code,
                    allow_pickle=allow_pickle,
                )
        batch = _fixed_batch(source, shapes)
        compiled = _compile(source, parsed, kv, ort_accuracy, batch, clock, check=check_passes)
        recipe = {
            "targets": list(targets),
            "passes": [p if isinstance(p, str) else p.name for p in passes],
            "kv": kv,
            "ort_accuracy": ort_accuracy,
            "shapes": {} if shapes is None else shapes.to_json(),
            "dtype": "fp32",
            "portable": portable,
        }
        with clock.phase("write"):
            manifest = _write(writer, source, compiled, recipe, portable=portable)
        parity = None
        if verify:
            with clock.phase("verify"):
                parity = verify_bundle(
                    writer.path, source, steps=steps, tolerance=tolerance, progress=clock.report
                )
            manifest = _with_evidence(manifest, parity)
        if parity is not None and not parity.passed:
            kept = writer.fail(manifest)
            raise ParityError(f"{parity.summary()} The attempt is kept in {kept}.")
        manifest = writer.commit(manifest)
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
    kv: Literal["static", "grow"],
    accuracy: Literal["fast", "exact"],
    batch: int | None,
    clock: _Clock,
    *,
    check: bool,
) -> _Compiled:
    with clock.phase("trace"):
        traced = trace(source)
    model = traced.model
    context = Context(max_context=traced.max_context, batch=batch, defaults=source.defaults)
    with clock.phase("passes"):
        steps = pipeline.whole(extra) if source.whole else pipeline.standard(kv, extra)
        records = pipeline.run(model, steps, context, check=check, progress=clock.report)
        ort = model.clone()
        records += pipeline.lower(
            ort, "ort", context, accuracy=accuracy, check=check, progress=clock.report
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
    recipe: Mapping[str, Any],
    *,
    portable: bool,
) -> Manifest:
    graphs = {PORTABLE: compiled.portable} if portable else {}
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
            recipe=recipe,
            inputs=tuple(
                _tensor(v, source.defaults.get(str(v.name)))
                for v in graph.inputs
                if v.name not in taken
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
    targets = {name: replace(entry, parity=verdict) for name, entry in manifest.targets.items()}
    return replace(manifest, targets=targets, parity=parity.to_json())


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


def _fixed_batch(source: Source, shapes: Shapes | None) -> int | None:
    """Return 1 if `shapes` allow that batch alone; another fixed one gains nothing over a free."""
    if shapes is None:
        return None
    declared = {
        name: tuple(source.dynamic[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in source.inputs.items()
    }
    return 1 if shapes.fixed_batch(declared) == 1 else None
