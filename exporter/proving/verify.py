"""Whether a bundle computes what its source computes, step by step, outputs and states alike.

The bundle runs over the same tokens several times: one at a time, all at once, and in parts of
unequal length.  Outputs are compared at every token, states after the 1st, 2nd, 63rd, 64th and last
(around the chunks of 64 in which linear attention is computed), with the source in float64 where it
runs so.  error(a, b) = max|a-b| / max|b|, over all tokens.  The tokens are random, or the user's,
see `trial.py`.  A bundle with weights of few bits is held to its source with these weights
dequantized, see `quantized.py`.  What is compared, and how strictly, follows from the graph, the
source and the command: what the manifest claims is held to them, see `claims.py`.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, Unpack

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from intaglio.call_ends import last_end
from intaglio.errors import BundleError, OptionError
from intaglio.exporter.options.loading import LoadKeywords, LoadOptions
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.options.tolerance import check_tolerance
from intaglio.exporter.options.turns import one_at_a_time
from intaglio.exporter.sources.load import Unloaded, load
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.pace import at_pace
from intaglio.keywords import spelled_out
from intaglio.passes.calibration import Calibration
from intaglio.passes.graph import load_graph
from intaglio.runtime import report_file
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.compare import Deviation
from intaglio.runtime.engines import ORT, preparing_target
from intaglio.runtime.graph_entry import MAIN, GraphEntry
from intaglio.runtime.session import Session
from intaglio.state import time_of

from .as_made import as_made
from .bisect import bisect as find_divergence
from .claims import SOUGHT, check_claims, owned, same_names, tokens_to_run
from .follow import (
    STATE_STEPS,
    Arrays,
    Follower,
    Progress,
    first_tokens,
    splits_of,
    time_axes,
    tokens_in,
    words_of,
)
from .further import SHORT, Further, long_inputs
from .own_rounding import own_rounding
from .own_steps import verify_own
from .parity import QUANTIZATION, ParityReport, Row
from .portable import portable_session
from .quantized import (
    KL,
    KL_LIMIT,
    LOGITS,
    MOVED,
    MOVED_LIMIT,
    accuracy_of,
    dequantized,
    moved_by_quantization,
    quantization_error,
)
from .reference import Reference, reference
from .rounding import EXACT, limits_of, rounds_activations
from .source_numbers import SourceNumbers, source_numbers
from .trial import draw
from .trt_graph import graph_session
from .whole_calls import verify_calls


@spelled_out
@one_at_a_time
def verify(
    bundle: str | Path | Bundle,
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
    recipe: Recipe | str | Path | None = None,
    **options: Unpack[LoadKeywords],
) -> ParityReport:
    """Compare a bundle with the source that it was exported from.

    How to load the source is as `recipe` says, or the bundle's own, where it is not given.  Of the
    bundle's own neither code is run without `allow_code`, nor are ranges of floats read.

    Args:
        bundle: the folder that `intaglio export` wrote, or what was opened of it.
        source: what `load_source` takes, or what it returned.
        data: what to run, as for calibration: a file ``.npz`` or ``.txt``, a folder of these, or
            arrays by the names of inputs, or what was read of them; random inputs otherwise.
        target: what to run: the graph for ONNX Runtime, or the engine of TensorRT.
        graph: which graph of the bundle to compare.
        lowered: run the graph for TensorRT in ONNX Runtime instead of its engine, with the bodies
            of functions in place of plugins: it proves the lowering where there is no GPU.
        steps: tokens to run, fewer where the model's context ends or the data has no longer rows.
        batch: rows to run, unless the bundle has a fixed number.
        tolerance: limits by name of output or state, instead of what follows from the graph: 1e-4,
            and 2e-2 for what is computed from fp16 or from activations of 8 bits, 5e-2 from bf16;
            1e-3 for the divergence of next tokens where activations have 8 bits, `logits.kl`, and
            0.75 for what quantization moved an output by, in the mean: `NAME.quantization`.
        thorough: run all values of integer inputs, as many tokens as the context has, and more
            rows.
        bisect: name the first node that diverges, where parity fails.
        keep: write what was found into the bundle's `report.json`, where that can be written.
        progress: is told what runs and, where known, the fraction of it that is done.
        recipe: one whose words on the source are taken, and no others.
        **options: how to load the source, those of `LoadKeywords`.

    Raises:
        BundleError: if the bundle cannot be opened, or has other inputs or outputs than the source.
        OptionError: if `steps` or `batch` is not positive, `tolerance` names what is not there or
            is no number from 0, or an option of loading says nothing about the source.
        DeviceError: if the engine of `target` cannot run here.
        SourceError: if the source cannot be loaded.
        InputError: if `data` cannot be read or does not fit the inputs.
    """
    opened = Bundle.open(bundle)
    chosen = opened.graph(graph)
    entry, target = chosen.entry, "trt" if lowered else target
    path = chosen.target(target).path
    check_tolerance(tolerance or {}, names_of(entry))
    if steps < 1 or batch < 1:
        raise OptionError(f"{steps} steps of {batch} rows cannot be compared; at least 1 of 1 can.")
    if isinstance(source, Source):
        LoadOptions.of(options).take("a source that is loaded already")
    else:
        loaded = isinstance(source, nn.Module | ExportedProgram)
        source = load(source, as_made(options, opened.manifest, recipe, in_memory=loaded))
    source = at_pace(_of_graph(source, chosen), pace_of(entry))
    check_claims(entry, source)
    source = replace(source, whole=entry.whole)
    session = graph_session(chosen) if lowered else Session.load(opened, target, graph=graph)
    steps = min(tokens_to_run(entry, source, steps), session.state.most_tokens or steps)
    steps = last_end(entry.limits.ends, steps)
    batch = entry.limits.batch or min(batch, session.most_rows or batch)
    if progress is not None:
        progress("source", None)
    runs = load_graph(opened.root, path).graph
    prepare = _preparing(chosen, target)
    limits = _limits(runs, entry, tolerance or {}, prepare)
    if source.states:
        if data is not None:
            raise OptionError(
                "Data to verify with is for models of sequences; one that carries its own states "
                "is verified with random inputs. Leave --data out."
            )
        report = verify_own(source, session, steps, batch, limits)
        return _finish(report, opened, graph, source, EXACT, bisect=bisect, keep=keep)
    if entry.whole:
        held = dequantized(source, chosen)
        report = verify_calls(session, source, held, data, limits)
        return _finish(report, opened, graph, held or source, EXACT, bisect=bisect, keep=keep)
    numbers = source_numbers(source)
    values = _sought(numbers, entry)
    trial = draw(source, batch, steps, data, entry.limits.max_context, values)
    steps = last_end(entry.limits.ends, trial.steps)
    drawn = trial.inputs
    portable = portable_session(chosen) if target == "ort" else None
    held = dequantized(source, chosen)
    wanted = reference(held or source, drawn)
    same_names(entry, "outputs", wanted.outputs)
    inputs = {name: value.numpy() for name, value in drawn.items()}
    axes = time_axes(source)
    sought = last_end(entry.limits.ends, min(SOUGHT, steps))
    head = inputs if entry.whole else first_tokens(inputs, axes, sought)
    run = Follower(
        session=session,
        states=owned(session, head, sought, wanted),
        inputs=inputs,
        axes=axes,
        wanted=wanted,
        limits=limits,
        progress=progress,
    )
    splits = splits_of(steps, entry.limits.ends)
    rows, unknown = run.compare(splits)
    if run.tells_the_last_alone and not entry.limits.ends:
        rows += _prefixes(run, drawn, lambda inputs: reference(held or source, inputs))
    moved = None
    if held is not None:
        itself = reference(source, drawn, states=False).outputs
        moved = quantization_error(wanted.outputs, itself)
        rows += _moved(moved_by_quantization(wanted.outputs, itself, limits), source, steps)
    more, covers = Further(
        run=run,
        source=source,
        graph=runs,
        numbers=numbers,
        refer=lambda inputs: reference(held or source, inputs),
        rows=entry.limits.batch,
        limit=_least(entry.limits.max_context, session.state.most_tokens),
    ).compare(trial, thorough=thorough)
    rows += more
    if portable is not None:
        tokens = steps if entry.whole else last_end(entry.limits.ends, min(SHORT, steps))
        rows += _portable(run, portable, tokens, held or source, limits, tolerance or {})
        covers = replace(covers, portable=tokens)
    others = tuple(name for name in opened.manifest.graphs if name != graph)
    covers = replace(covers, unknown=unknown, graphs=others)
    report = ParityReport(
        against=(held or source).name,
        precision=wanted.precision,
        cause=wanted.cause,
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
    if not report.passed and held is None:
        rounding = own_rounding(source, drawn, wanted.outputs)
        if covers.tokens > steps and any(math.isnan(row.found.error) for row in report.failures):
            longer = long_inputs(source, entry.limits.batch, covers.tokens)
            rounding |= own_rounding(
                source, longer, reference(source, longer, states=False).outputs
            )
        report = replace(report, rounding=rounding)
    limit = max(EXACT, *_own(limits))
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
    if bisect and any(row.kind != QUANTIZATION for row in report.failures):
        divergence = find_divergence(bundle.root, source, limit=limit, name=graph)
        report = replace(report, divergence=divergence)
    if keep:
        section = "verify" if graph == MAIN else f"verify {graph}"
        report_file.keep(bundle, section, report.to_json())
    return report


def pace_of(entry: GraphEntry) -> int:
    """Entries along time of the inputs of a graph that make one token."""
    found = (time_of(spec.shape) for spec in entry.inputs)
    return 1 if entry.whole else next((at[1] for at in found if at is not None), 1)


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
    arrays = {name: value.numpy() for name, value in drawn.items()}
    steps = tokens_in(arrays, run.axes)
    rows: list[Row] = []
    for count in (n for n in STATE_STEPS if n < steps):
        inputs = first_tokens(arrays, run.axes, count)
        part = {name: torch.from_numpy(value) for name, value in inputs.items()}
        found, _ = replace(run, inputs=inputs, wanted=refer(part)).compare([[count]])
        rows += found
    return rows


def _portable(
    run: Follower,
    session: Session,
    tokens: int,
    source: Source,
    limits: Mapping[str, float],
    tolerance: Mapping[str, float],
) -> list[Row]:
    """Outputs and states of the portable graph, beside what `source` makes of the first tokens."""
    inputs = first_tokens(run.inputs, run.axes, tokens)
    wanted = reference(source, {name: torch.from_numpy(x) for name, x in inputs.items()})
    path = session.graph.target(session.target).path
    runs, prepare = load_graph(session.graph.root, path).graph, _preparing(session.graph, ORT)
    own = _limits(runs, session.entry, tolerance, prepare)
    half = last_end(session.entry.limits.ends, tokens // 2)
    split = [tokens] if session.entry.whole or not 0 < half < tokens else [half, tokens - half]
    limits = {name: limit for name, limit in own.items() if name in limits}
    follower = replace(run, session=session, inputs=inputs, wanted=wanted, limits=limits)
    rows, _ = follower.compare([split])
    return [replace(row, split=f"{row.split} in {path}") for row in rows]


def _moved(found: Iterable[Deviation], source: Source, steps: int) -> list[Row]:
    """What quantization moved, as rows of a report."""
    return [
        Row(kind=QUANTIZATION, module="", split=f"1 x {steps}", against=source.name, found=each)
        for each in found
    ]


def _own(limits: Mapping[str, float]) -> list[float]:
    """Limits of outputs and states: of the values of a graph."""
    return [limit for name, limit in limits.items() if name != KL and not name.endswith(MOVED)]


def _sought(numbers: SourceNumbers, entry: GraphEntry) -> dict[str, tuple[int, ...]]:
    """Values that the source compares integer inputs with, as far as they may hold them."""
    below = {spec.name: spec.entries or 0 for spec in entry.inputs}
    return {
        name: tuple(sorted(n for n in found if 0 <= n < below.get(name, 0)))
        for name, found in numbers.values.items()
    }


def _least(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)


def names_of(entry: GraphEntry) -> list[str]:
    """What may be given a tolerance: outputs, states, and what is told of outputs beside them."""
    outputs = [spec.name for spec in entry.outputs]
    names = [*outputs, *(spec.input for spec in entry.states)]
    return [*names, *([KL] if LOGITS in outputs else []), *(f"{name}{MOVED}" for name in outputs)]


def _preparing(graph: BundleGraph, target: str) -> ir.Graph | None:
    """The graph that makes states of the conditions of `graph`, as it runs beside a target."""
    if graph.entry.prepare is None:
        return None
    prepare = graph.bundle.graph(graph.entry.prepare)
    return load_graph(graph.root, prepare.target(preparing_target(graph, target)).path).graph


def _limits(
    graph: ir.Graph, entry: GraphEntry, tolerance: Mapping[str, float], prepare: ir.Graph | None
) -> dict[str, float]:
    """A limit for every output and state of the graph that runs, and for what is told beside."""
    found = limits_of(graph, entry.states, prepare)
    names = [*(spec.name for spec in entry.outputs), *(spec.input for spec in entry.states)]
    limits = {name: found.get(name, EXACT) for name in names}
    limits |= {f"{spec.name}{MOVED}": MOVED_LIMIT for spec in entry.outputs}
    rounding = any(rounds_activations(each) for each in (graph, prepare) if each is not None)
    if LOGITS in found and rounding:
        limits[KL] = KL_LIMIT
    return {name: tolerance.get(name, limit) for name, limit in limits.items()}
