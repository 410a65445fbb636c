"""Whether a bundle computes what its source computes, step by step, outputs and states alike.

The bundle runs over the same tokens several times: one at a time, all at once, and in parts of
unequal length.  Outputs are compared at every token, states after the 1st, 2nd, 63rd, 64th and last
(around the chunks of 64 in which linear attention is computed), with the source in float64 where it
runs so.  error(a, b) = max|a-b| / max|b|, over all tokens.  The tokens are random, or the user's,
see `trial.py`.  A bundle with weights of few bits is held to its source with these weights
dequantized, see `quantized.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy.typing as npt

from intaglio.errors import BundleError, OptionError
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.huggingface.directory import FORMAT as HUGGINGFACE
from intaglio.exporter.sources.load import Unloaded, load
from intaglio.exporter.sources.source import Source
from intaglio.keywords import spelled_out
from intaglio.models import FORMAT
from intaglio.passes.calibration import Calibration
from intaglio.runtime import report_file
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.compare import Comparison, Deviation
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.session import Session
from intaglio.state import TIME, StateSpec

from .bisect import bisect as find_divergence
from .parity import INT8_ACTIVATIONS, OUTPUT, STATE, ParityReport, Row
from .parity import KL as DIVERGENCE
from .quantized import KL, KL_LIMIT, LOGITS, MeanKl, accuracy_of, dequantized, quantization_error
from .quantized import LIMIT as LOW_BIT_LIMIT
from .reference import Reference, reference
from .trial import draw
from .trt_graph import graph_session

LIMITS = {"float16": 2e-2, "bfloat16": 5e-2}
LIMIT = 1e-4  # of all other dtypes
STATE_STEPS = (1, 2, 63, 64)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Progress = Callable[[str, float | None], None]


@spelled_out
def verify(
    bundle: str | Path,
    source: Unloaded | Source,
    *,
    data: str | Path | Arrays | Calibration | None = None,
    target: Literal["ort", "trt"] = "ort",
    graph: bool = False,
    steps: int = 512,
    batch: int = 2,
    tolerance: Mapping[str, float] | None = None,
    bisect: bool = False,
    keep: bool = True,
    progress: Progress | None = None,
    **options: Unpack[LoadKeywords],
) -> ParityReport:
    """Compare a bundle with the source that it was exported from.

    Model and config are those that the bundle names, if they are not given and it names one of
    intaglio's.

    Args:
        bundle: the folder that `intaglio export` wrote.
        source: what `load_source` takes, or what it returned.
        data: what to run, as for calibration: a file ``.npz`` or ``.txt``, a folder of these, or
            arrays by the names of inputs, or what was read of them; random inputs otherwise.
        target: what to run: the graph for ONNX Runtime, or the engine of TensorRT.
        graph: run the graph for TensorRT in ONNX Runtime instead of its engine, with the bodies of
            functions in place of plugins: it proves the lowering where there is no GPU.
        steps: tokens to run, fewer where the model's context ends or the data has no longer rows.
        batch: rows to run, unless the bundle has a fixed number.
        tolerance: limits by name of output or state, instead of the default of the graph's dtype:
            1e-4 for fp32, 2e-2 for fp16, 5e-2 for bf16; 2e-2 where weights of few bits meet
            activations of 8, and 1e-3 for the divergence of next tokens there, `logits.kl`.
        bisect: name the first node that diverges, where parity fails.
        keep: write what was found into the bundle's `report.json`, where that can be written.
        progress: is told what runs and, where known, the fraction of it that is done.
        **options: how to load the source, those of `LoadKeywords`.

    Raises:
        BundleError: if the bundle cannot be opened, or has other inputs or outputs than the source.
        OptionError: if `steps` or `batch` is not positive, `tolerance` names what is not there, or
            an option of loading says nothing about the source.
        DeviceError: if the engine of `target` cannot run here.
        SourceError: if the source cannot be loaded.
        InputError: if `data` cannot be read or does not fit the inputs.
    """
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    target = "trt" if graph else target
    limits = _limits(manifest, opened.graph().target(target).dtype, tolerance or {})
    if steps < 1 or batch < 1:
        raise OptionError(f"{steps} steps of {batch} rows cannot be compared; at least 1 of 1 can.")
    loading = LoadOptions.of(options)
    if isinstance(source, Source):
        loading.take("a source that is loaded already")
    else:
        source = load(source, as_named(loading, manifest))
    _require_same(manifest, "inputs", source.dynamic)
    steps = min(steps, manifest.main.limits.max_context or steps)
    session = graph_session(opened.graph()) if graph else Session.load(opened, target)
    steps = min(steps, session.state.most_tokens or steps)
    batch = manifest.main.limits.batch or min(batch, session.most_rows or batch)
    if progress is not None:
        progress("source", None)
    trial = draw(source, batch, steps, data, manifest.main.limits.max_context)
    drawn, steps = trial.inputs, trial.steps
    held = dequantized(source, opened)
    wanted = reference(held or source, drawn)
    _require_same(manifest, "outputs", wanted.outputs)
    moved = None
    if held is not None:
        moved = quantization_error(wanted.outputs, reference(source, drawn, states=False).outputs)
    run = _Run(
        session=session,
        inputs={name: value.numpy() for name, value in drawn.items()},
        axes={
            name: axis
            for name, axes in source.dynamic.items()
            for axis, symbol in axes.items()
            if symbol == TIME
        },
        wanted=wanted,
        limits=limits,
        progress=progress,
    )
    splits = [[steps]] if manifest.main.whole else _splits(steps)
    rows, unknown = run.compare(splits)
    report = ParityReport(
        against=(held or source).name,
        precision=wanted.precision,
        steps=steps,
        batch=batch,
        seed=trial.seed,
        data=trial.data,
        splits=tuple(map(_words, splits)),
        rows=rows,
        unknown=unknown,
        quantization=moved,
        accuracy=accuracy_of(manifest),
    )
    if bisect and not report.passed:
        limit = LOW_BIT_LIMIT if KL in limits else LIMIT
        divergence = find_divergence(Path(bundle), held or source, limit=limit)
        report = replace(report, divergence=divergence)
    if keep:
        report_file.keep(opened, "verify", report.to_json())
    return report


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A session on given inputs, beside what the source makes of them."""

    session: Session
    inputs: Arrays
    axes: Mapping[str, int]
    wanted: Reference
    limits: Mapping[str, float]
    progress: Progress | None

    def compare(self, splits: Sequence[Sequence[int]]) -> tuple[list[Row], tuple[str, ...]]:
        """Rows of every output and state for each split, and the states unknown to the source."""
        specs = {spec.input: spec for spec in self.session.entry.states}
        unknown = [name for name, spec in specs.items() if self.wanted.state(spec, 1) is None]
        rows: list[Row] = []
        first: Arrays = {}
        for split in splits:
            kl = MeanKl(self.limits[KL]) if KL in self.limits else None
            outputs, states, last = self._follow(
                split, [specs[n] for n in specs if n not in unknown], kl
            )
            rows += self._rows(OUTPUT, outputs, split, "source")
            rows += self._rows(STATE, states, split, "source")
            if kl is not None:
                rows.append(_row(DIVERGENCE, "", split, "source", kl.deviation()))
            if first:
                others = Comparison(LIMIT, self.limits)
                others.add(sum(split), last, {name: first[name] for name in unknown})
                rows += self._rows(STATE, others, split, f"split {_words(splits[0])}")
            first = first or last
        return rows, tuple(unknown)

    def _follow(
        self, split: Sequence[int], specs: Sequence[StateSpec], kl: MeanKl | None
    ) -> tuple[Comparison, Comparison, Arrays]:
        """Run one split; the outputs and states compared, and the states at the end."""
        axes = {
            spec.name: spec.shape.index(TIME) if TIME in spec.shape else None
            for spec in self.session.entry.outputs
        }
        outputs, states = Comparison(LIMIT, self.limits), Comparison(LIMIT, self.limits)
        steps = sum(split)
        carried: Arrays = {}
        for begin, end, found in self._steps(split):
            for token in range(begin, end):
                got = {n: _at(found[n], axis, token - begin) for n, axis in axes.items()}
                expected = {
                    name: _at(self.wanted.outputs[name], axis, token)
                    for name, axis in axes.items()
                    if axis is not None or token == steps - 1
                }
                outputs.add(token + 1, got, expected)
                if kl is not None:
                    kl.add(token + 1, got[LOGITS], expected[LOGITS])
            if end in STATE_STEPS or end == steps:
                carried = self.session.state.save().arrays
                states.add(end, carried, self._states(specs, end))
        return outputs, states, carried

    def _steps(self, split: Sequence[int]) -> Iterator[tuple[int, int, Arrays]]:
        self.session.state.reset()
        ends = [sum(split[:i]) for i in range(len(split) + 1)]
        for begin, end in pairwise(ends):
            if self.progress is not None:
                self.progress(f"tokens in parts of {_words(split)}", begin / ends[-1])
            part = {
                name: value.take(range(begin, end), self.axes[name]) if name in self.axes else value
                for name, value in self.inputs.items()
            }
            yield begin, end, self.session.step(part)

    def _states(self, specs: Sequence[StateSpec], tokens: int) -> Arrays:
        found = {spec.input: self.wanted.state(spec, tokens) for spec in specs}
        return {name: value for name, value in found.items() if value is not None}

    def _rows(
        self, kind: str, found: Comparison, split: Sequence[int], against: str
    ) -> Iterator[Row]:
        modules = {spec.input: spec.module for spec in self.session.entry.states}
        for deviation in found.deviations():
            yield _row(kind, modules.get(deviation.name, ""), split, against, deviation)


def _row(kind: str, module: str, split: Sequence[int], against: str, found: Deviation) -> Row:
    return Row(kind=kind, module=module, split=_words(split), against=against, found=found)


def _at(array: Array, axis: int | None, index: int) -> Array:
    return array if axis is None else array.take(index, axis)


def _splits(steps: int) -> list[list[int]]:
    """One at a time, all at once, and parts that end where states are compared."""
    third = steps - 2 * (steps - STATE_STEPS[-1]) // 3  # so that two long parts follow
    ends = sorted({0, *(n for n in (*STATE_STEPS, third) if n < steps), steps})
    splits = [[1] * steps, [steps], [b - a for a, b in pairwise(ends)]]
    return [split for i, split in enumerate(splits) if split not in splits[:i]]


def _words(split: Sequence[int]) -> str:
    if len(set(split)) == 1:
        return f"{len(split)} x {split[0]}"
    return " + ".join(map(str, split))


def _limits(manifest: Manifest, dtype: str, tolerance: Mapping[str, float]) -> dict[str, float]:
    """A limit for every output and state of a graph that computes in `dtype`."""
    dtypes = {spec.dtype for spec in (*manifest.main.inputs, *manifest.main.outputs)}
    dtypes |= {dtype, *(spec.dtype for spec in manifest.main.states)}
    default = max(LIMITS.get(each, LIMIT) for each in dtypes)
    names = [spec.name for spec in manifest.main.outputs]
    names += [spec.input for spec in manifest.main.states]
    special = {}
    if accuracy_of(manifest) in INT8_ACTIVATIONS:
        default = max(default, LOW_BIT_LIMIT)
        special = {KL: KL_LIMIT} if LOGITS in names else {}
    names += special
    unknown = [name for name in tolerance if name not in names]
    if unknown:
        raise OptionError(
            f"There is no output or state {unknown[0]!r} to give a tolerance; there are: "
            f"{', '.join(names)}."
        )
    return {name: tolerance.get(name, special.get(name, default)) for name in names}


def as_named(options: LoadOptions, manifest: Manifest) -> LoadOptions:
    """`options` with the model and the config that the bundle names, if they name neither."""
    if options.model is not None or options.config is not None:
        return options
    model, config = named_by(manifest)
    return replace(options, model=model, config=config)


def named_by(manifest: Manifest) -> tuple[str | None, Mapping[str, Any] | None]:
    """Model and config that the bundle names, for a file of weights alone.

    Only a model of intaglio's own: to build another would run code of the bundle's choice.
    """
    model, kind = manifest.source.get("model"), manifest.source["format"]
    if not model or ":" in model or kind == FORMAT or kind.startswith(HUGGINGFACE):
        return None, None
    return model, manifest.source.get("config")


def _require_same(manifest: Manifest, what: str, names: Mapping[str, Any]) -> None:
    own = [spec.name for spec in getattr(manifest.main, what)]
    if set(own) != set(names):
        raise BundleError(
            f"The bundle has the {what} {', '.join(own)}, the source {', '.join(names)}. "
            "Verify it against the checkpoint that its manifest names."
        )
