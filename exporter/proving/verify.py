"""Whether a bundle computes what its source computes, step by step, outputs and states alike.

The bundle runs over the same tokens several times: one at a time, all at once, and in parts of
unequal length.  Outputs are compared at every token, states after the 1st, 2nd, 63rd, 64th and last
(around the chunks of 64 in which linear attention is computed), with the source in float64 where it
runs so.  error(a, b) = max|a-b| / max|b|, over all tokens.  The tokens are random, or the user's,
see `trial.py`.  A bundle with weights of few bits is held to its source with these weights
dequantized, see `quantized.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

from torch import Tensor

from intaglio.errors import BundleError, OptionError
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.sources.huggingface.directory import FORMAT as HUGGINGFACE
from intaglio.exporter.sources.load import Unloaded, load
from intaglio.exporter.sources.source import Source
from intaglio.keywords import spelled_out
from intaglio.models import FORMAT
from intaglio.passes.calibration import Calibration
from intaglio.passes.graph import load_graph
from intaglio.runtime import report_file
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.manifest import Manifest
from intaglio.runtime.session import Session

from .bisect import bisect as find_divergence
from .follow import LIMIT, STATE_STEPS, Arrays, Follower, Progress, splits_of, time_axes, words_of
from .further import Further
from .own_steps import verify_own
from .parity import INT8_ACTIVATIONS, ParityReport, Row
from .quantized import KL, KL_LIMIT, LOGITS, accuracy_of, dequantized, quantization_error
from .quantized import LIMIT as LOW_BIT_LIMIT
from .reference import Reference, reference
from .source_numbers import SourceNumbers, source_numbers
from .trial import draw
from .trt_graph import graph_session
from .whole_calls import verify_calls

LIMITS = {"float16": 2e-2, "bfloat16": 5e-2}


@spelled_out
def verify(
    bundle: str | Path,
    source: Unloaded | Source,
    *,
    data: str | Path | Arrays | Calibration | None = None,
    target: Literal["ort", "trt"] = "ort",
    graph: str = MAIN,
    lowered: bool = False,
    steps: int = 512,
    batch: int = 2,
    tolerance: Mapping[str, float] | None = None,
    thorough: bool = False,
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
        graph: which graph of the bundle to compare.
        lowered: run the graph for TensorRT in ONNX Runtime instead of its engine, with the bodies
            of functions in place of plugins: it proves the lowering where there is no GPU.
        steps: tokens to run, fewer where the model's context ends or the data has no longer rows.
        batch: rows to run, unless the bundle has a fixed number.
        tolerance: limits by name of output or state, instead of the default of the graph's dtype:
            1e-4 for fp32, 2e-2 for fp16, 5e-2 for bf16; 2e-2 where weights of few bits meet
            activations of 8, and 1e-3 for the divergence of next tokens there, `logits.kl`.
        thorough: run all values of integer inputs, as many tokens as the context has, and more
            rows.
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
    chosen = opened.graph(graph)
    entry, target = chosen.entry, "trt" if lowered else target
    limits = _limits(entry, chosen.target(target).dtype, tolerance or {})
    if steps < 1 or batch < 1:
        raise OptionError(f"{steps} steps of {batch} rows cannot be compared; at least 1 of 1 can.")
    loading = LoadOptions.of(options)
    if isinstance(source, Source):
        loading.take("a source that is loaded already")
    else:
        source = load(source, as_named(loading, opened.manifest))
    source = replace(_of_graph(source, chosen), whole=entry.whole)
    own = {state.input for state in source.states}
    _require_same(entry, "inputs", {n: x for n, x in source.dynamic.items() if n not in own})
    steps = min(steps, entry.limits.max_context or steps)
    session = graph_session(chosen) if lowered else Session.load(opened, target, graph=graph)
    steps = min(steps, session.state.most_tokens or steps)
    batch = entry.limits.batch or min(batch, session.most_rows or batch)
    if progress is not None:
        progress("source", None)
    if source.states:
        if data is not None:
            raise OptionError(
                "Data to verify with is for models of sequences; one that carries its own states "
                "is verified with random inputs. Leave --data out."
            )
        report = verify_own(source, session, steps, batch, limits)
        return _finish(report, opened, graph, source, LIMIT, bisect=bisect, keep=keep)
    if entry.whole:
        held = dequantized(source, chosen)
        report = verify_calls(session, source, held, data, limits)
        limit = LOW_BIT_LIMIT if KL in limits else LIMIT
        return _finish(report, opened, graph, held or source, limit, bisect=bisect, keep=keep)
    numbers = source_numbers(source)
    sought = _sought(numbers, entry)
    trial = draw(source, batch, steps, data, entry.limits.max_context, sought)
    drawn, steps = trial.inputs, trial.steps
    held = dequantized(source, chosen)
    wanted = reference(held or source, drawn)
    _require_same(entry, "outputs", wanted.outputs)
    moved = None
    if held is not None:
        moved = quantization_error(wanted.outputs, reference(source, drawn, states=False).outputs)
    run = Follower(
        session=session,
        inputs={name: value.numpy() for name, value in drawn.items()},
        axes=time_axes(source),
        wanted=wanted,
        limits=limits,
        progress=progress,
    )
    splits = splits_of(steps)
    rows, unknown = run.compare(splits)
    if run.tells_the_last_alone:
        rows += _prefixes(run, drawn, lambda inputs: reference(held or source, inputs))
    more, covers = Further(
        run=run,
        source=source,
        graph=load_graph(opened.root, chosen.target("ort").path).graph,
        numbers=numbers,
        refer=lambda inputs: reference(held or source, inputs),
        rows=entry.limits.batch,
        limit=_least(entry.limits.max_context, session.state.most_tokens),
    ).compare(trial, thorough=thorough)
    rows += more
    report = ParityReport(
        against=(held or source).name,
        precision=wanted.precision,
        steps=steps,
        batch=batch,
        seed=trial.seed,
        data=trial.data,
        splits=tuple(map(words_of, splits)),
        rows=rows,
        unknown=unknown,
        quantization=moved,
        accuracy=accuracy_of(entry),
        covers=covers,
    )
    limit = LOW_BIT_LIMIT if KL in limits else LIMIT
    return _finish(report, opened, graph, held or source, limit, bisect=bisect, keep=keep)


def _finish(
    report: ParityReport,
    bundle: Bundle,
    graph: str,
    source: Source,
    limit: float,
    *,
    bisect: bool,
    keep: bool,
) -> ParityReport:
    """Look for the fault where there is one, and keep what was found, as asked."""
    if bisect and not report.passed:
        divergence = find_divergence(bundle.root, source, limit=limit, name=graph)
        report = replace(report, divergence=divergence)
    if keep:
        section = "verify" if graph == MAIN else f"verify {graph}"
        report_file.keep(bundle, section, report.to_json())
    return report


def _of_graph(source: Source, graph: BundleGraph) -> Source:
    """The part of a source that a graph of the bundle was made from.

    Raises:
        BundleError: if it was made from none.
    """
    if graph.name == MAIN:
        return source
    if graph.name not in source.others:
        raise BundleError(f"{graph} was not made from a method of the source: it has none for it.")
    return source.others[graph.name]


def _prefixes(
    run: Follower, drawn: Mapping[str, Tensor], refer: Callable[[Mapping[str, Tensor]], Reference]
) -> list[Row]:
    """Rows for the first few tokens alone: what a source gives for its last one, it gives once."""
    steps = next(iter(drawn[name].shape[axis] for name, axis in run.axes.items()), 0)
    rows: list[Row] = []
    for count in (n for n in STATE_STEPS if n < steps):
        part = {
            name: value.narrow(run.axes[name], 0, count) if name in run.axes else value
            for name, value in drawn.items()
        }
        inputs = {name: value.numpy() for name, value in part.items()}
        found, _ = replace(run, inputs=inputs, wanted=refer(part)).compare([[count]])
        rows += found
    return rows


def _sought(numbers: SourceNumbers, entry: GraphEntry) -> dict[str, tuple[int, ...]]:
    """Values that the source compares integer inputs with, as far as they may hold them."""
    below = {spec.name: spec.entries or 0 for spec in entry.inputs}
    return {
        name: tuple(sorted(n for n in found if 0 <= n < below.get(name, 0)))
        for name, found in numbers.values.items()
    }


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def _limits(entry: GraphEntry, dtype: str, tolerance: Mapping[str, float]) -> dict[str, float]:
    """A limit for every output and state of a graph that computes in `dtype`."""
    dtypes = {spec.dtype for spec in (*entry.inputs, *entry.outputs)}
    dtypes |= {dtype, *(spec.dtype for spec in entry.states)}
    default = max(LIMITS.get(each, LIMIT) for each in dtypes)
    names = [spec.name for spec in entry.outputs]
    names += [spec.input for spec in entry.states]
    special = {}
    if accuracy_of(entry) in INT8_ACTIVATIONS:
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
    """`options` with graphs, states, model and config that the bundle names, if they name none."""
    options = replace(
        options,
        graphs=options.graphs or manifest.recipe.get("graphs", {}),
        states=options.states or manifest.recipe.get("states", {}),
    )
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


def _require_same(entry: GraphEntry, what: str, names: Mapping[str, Any]) -> None:
    own = [spec.name for spec in getattr(entry, what)]
    own += [spec.name for spec in entry.conditions if what == "inputs"]
    if set(own) != set(names):
        raise BundleError(
            f"The bundle has the {what} {', '.join(own)}, the source {', '.join(names)}. "
            "Verify it against the checkpoint that its manifest names."
        )
