"""From a source to its graphs: trace it, run the passes, lower the result for each target."""

import shutil
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import onnx_ir as ir
from torch import nn

from intaglio.errors import IntaglioError, OptionError, PassError
from intaglio.exporter.options.clock import Clock
from intaglio.exporter.options.recipe import Recipe
from intaglio.exporter.options.served_shapes import ServedShapes
from intaglio.exporter.proving.derived import differing
from intaglio.exporter.sources.axes import Sizes
from intaglio.exporter.sources.calibration_data import Arrays, read_calibration
from intaglio.exporter.sources.own_states.grown import CACHE
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.trace import Traced, trace
from intaglio.exporter.tracing.whole import AS_WHOLE
from intaglio.exporter.writing.compiled import CompiledGraph, prepares
from intaglio.jobs import Where
from intaglio.passes import pipeline
from intaglio.passes.base import Context, Pass
from intaglio.passes.graph import dims
from intaglio.passes.lower.ort_low_bit import Accuracy
from intaglio.runtime.graph_entry import MAIN
from intaglio.state import time_of

HERE = Where()


@dataclass(frozen=True)
class Teacher:
    """What calibrated passes learn from, and where they keep what they have finished."""

    data: str | Path | Arrays
    work: Path | None

    @classmethod
    def of(cls, data: str | Path | Arrays | None, work: Path | None) -> Self | None:
        """One with `data`, none without."""
        return None if data is None else cls(data, work)

    def forget(self) -> None:
        """Remove what was finished: the bundle holds it."""
        if self.work is not None:
            shutil.rmtree(self.work, ignore_errors=True)


def compile_all(
    source: Source,
    extra: Sequence[Pass],
    how: Recipe,
    clock: Clock,
    teacher: Teacher | None = None,
    where: Where = HERE,
) -> CompiledGraph:
    """Compile every graph of `source`; see `compile_source`.

    Raises:
        OptionError: if a name is needed twice, or shapes are of no input.
        IntaglioError: if one cannot be traced, or a pass refuses it.
    """
    if source.others:
        _require_known(source, how)
        compiled = compile_source(source, extra, _of_graph(how, source), clock, teacher, where)
    else:
        compiled = compile_source(source, extra, how, clock, teacher, where)
    others = {
        name: compile_source(each, extra, _of_graph(how, each), clock, teacher, where)
        for name, each in source.others.items()
    }
    made = {MAIN: compiled, **others}
    if others:
        _require_learnt(made.values())
    taken = [prepares(n) for n, each in made.items() if each.prepare is not None]
    for name in taken:
        if name in made:
            raise OptionError(
                f"The name of the graph {name!r} is needed for what prepares another one, whose "
                "inputs have no time. Call it otherwise."
            )
    taken += [*made, *(n for each in made.values() for n in each.beside)]
    for name in {name for name in taken if taken.count(name) > 1}:
        raise OptionError(
            f"The name of the graph {name!r} is needed for what a pass makes. Call it otherwise."
        )
    whole = replace(compiled, others=others)
    lacks = next((each.lacks for each in whole.graphs.values() if each.lacks), None)
    return whole if lacks is None else whole.without_trt(lacks)


def _require_learnt(graphs: Collection[CompiledGraph]) -> None:
    """Refuse a pass that found no layer in any graph."""
    records = [record for each in graphs for record in each.records if "bits" in record.options]
    changed = {record.name for record in records if record.result.changed}
    for record in records:
        if record.name not in changed:
            raise PassError(f"{record.name}: there is nothing to quantize in any graph.")


def _require_known(source: Source, how: Recipe) -> None:
    """Refuse shapes of an input that no graph has."""
    known = dict.fromkeys(n for each in (source, *source.others.values()) for n in each.dynamic)
    for name in how.shapes:
        if name not in known:
            names = ", ".join(known)
            raise OptionError(f"The shapes name {name!r}; the inputs of the graphs are: {names}.")


def _of_graph(how: Recipe, source: Source) -> Recipe:
    """What is asked of one graph of several: shapes of its own inputs."""
    own = {name: given for name, given in how.shapes.items() if name in source.dynamic}
    return replace(how, shapes=own)


def compile_source(
    source: Source,
    extra: Sequence[Pass],
    how: Recipe,
    clock: Clock,
    teacher: Teacher | None = None,
    where: Where = HERE,
) -> CompiledGraph:
    """Trace `source` and run all passes, `extra` being the user's, their layers solved `where`.

    Raises:
        IntaglioError: if it cannot be traced, or a pass refuses it.
    """
    shapes, declared = ServedShapes.from_json(how.shapes), _declared(source)
    batch = shapes.fixed_batch(declared)
    with clock.phase("trace"):
        traced = trace(source)
    context = Context(
        max_context=traced.max_context,
        batch=batch if batch == 1 else None,  # another gains nothing over a free one
        tokens=shapes.usual_tokens(declared),
        defaults=source.defaults,
        own=source.states,
        progress=clock.report,
        draw=None if source.states else _drawing(source),
        trials=({**source.sizes},) if source.whole else (),
        spans=traced.spans if source.whole else {},
        modules=_modules(source),
        where=where,
    )
    if teacher is not None:
        with clock.phase("calibration"):
            data = read_calibration(teacher.data, source, traced.max_context)
        traced = replace(traced, notes=(*traced.notes, *data.notes))
        context.calibration, context.work = data, teacher.work
        context.module = source.body if isinstance(source.body, nn.Module) else None
    steps = _steps(source, extra, how)
    try:
        return _with_alone(_compile_graph(traced, steps, context, how, clock), how)
    except PassError as error:
        asked = any(error.by is each for each in extra)  # of whole inputs it would say the same
        if asked or source.whole or source.states or how.whole is not None:
            raise
        caches = [note for note in source.notes if CACHE in note]
        raise PassError(" ".join([str(error), *caches, AS_WHOLE])) from error


def _modules(source: Source) -> tuple[str, ...]:
    """Paths of the modules that several graphs are made of; none where there is one graph."""
    if source.beside is None or not isinstance(source.body, nn.Module):
        return ()
    return tuple(path for path, _ in source.body.named_modules() if path)


def _drawing(source: Source) -> Callable[[Sizes, int], dict[str, Any]]:
    """What draws inputs as arrays."""
    return lambda sizes, seed: {n: x.numpy() for n, x in source.draw(sizes, seed).items()}


def _steps(source: Source, extra: Sequence[Pass], how: Recipe) -> list[Pass]:
    """The passes to the portable graph: what has no states, what has its own, what gains them."""
    if source.whole:
        return pipeline.whole(extra)
    if source.states:
        return pipeline.own_states(extra)
    return pipeline.standard(how.kv, extra, last=bool(how.last))


def _compile_graph(
    traced: Traced, steps: Sequence[Pass], context: Context, how: Recipe, clock: Clock
) -> CompiledGraph:
    """Run `steps` on a graph that was traced, and lower what they make of it for each target."""
    model, trt = traced.model, None
    lacks: IntaglioError | None = None
    with clock.phase("passes"):
        records = pipeline.run(model, steps, context, check=how.check_passes, progress=clock.report)
        if "trt" in how.targets:
            try:
                _refuse_rates(model)
                trt, lowered = _lower_for_trt(model, context, how, clock)
                records += lowered
            except PassError as error:
                lacks = error
    ort, lowered = lower(model, context, how, clock, how.ort_accuracy)
    return CompiledGraph(
        portable=model,
        ort=ort,
        trt=trt,
        context=context,
        records=[*records, *lowered],
        told=tuple(traced.notes),
        prepare=_compile_prepare(context, how, clock),
        lacks=lacks,
        beside=_compile_beside(context, how, clock),
    )


def _lower_for_trt(
    model: ir.Model, context: Context, how: Recipe, clock: Clock
) -> tuple[ir.Model, list[pipeline.PassRecord]]:
    """The graph for TensorRT, and the records of the passes that made it."""
    trt = model.clone()
    records = pipeline.lower(
        trt, "trt", context, dtype=how.dtype, check=how.check_passes, progress=clock.report
    )
    return trt, records


def _compile_prepare(context: Context, how: Recipe, clock: Clock) -> CompiledGraph | None:
    """What hoist split off a graph, tidied and lowered as a graph of its own."""
    if context.prepare is None:
        return None
    own = Context(
        batch=context.batch,
        defaults=context.defaults,
        calibration=context.calibration,
        progress=clock.report,
    )
    traced = Traced(model=context.prepare, max_context=None, aliases={}, notes=())
    return _compile_graph(traced, pipeline.after_hoist(), own, how, clock)


def _compile_beside(context: Context, how: Recipe, clock: Clock) -> dict[str, CompiledGraph]:
    """What passes put beside a graph, tidied and lowered for each target."""
    made = {
        name: _compile_graph(
            Traced(model=model, max_context=None, aliases={}, notes=()),
            pipeline.after_hoist(),
            Context(progress=clock.report),
            how,
            clock,
        )
        for name, model in context.beside.items()
    }
    wrong = differing({name: (each.portable, each.trt) for name, each in made.items()})
    return {
        name: each.without_trt(PassError(wrong[name])) if name in wrong else each
        for name, each in made.items()
    }


def _with_alone(compiled: CompiledGraph, how: Recipe) -> CompiledGraph:
    """What is told of graphs that passes put beside this one, where they lack a target."""
    lacking = {n: each.lacks for n, each in compiled.beside.items() if each.lacks is not None}
    if compiled.trt is None or "trt" not in how.targets:
        beside = {name: each.without_trt() for name, each in compiled.beside.items()}
        return replace(compiled, beside=beside)
    told = [f"TensorRT has no engine of the graph {n!r}: {why}" for n, why in lacking.items()]
    return replace(compiled, told=(*compiled.told, *told))


def _refuse_rates(model: ir.Model) -> None:
    for value in model.graph.inputs:
        along = time_of(dims(value) or ())
        if along is not None and along[1] > 1:
            raise PassError(
                f"The input {value.name!r} has {along[1]} entries along time for each token; "
                "engines of TensorRT do not take these yet. Export for ONNX Runtime alone: "
                "--target ort."
            )


def lower(
    portable: ir.Model, context: Context, how: Recipe, clock: Clock, accuracy: Accuracy
) -> tuple[ir.Model, list[pipeline.PassRecord]]:
    """The graph for ONNX Runtime, and the records of the passes that made it of the portable one.

    `accuracy` is that of weights of few bits, see `OrtLowBit`.
    """
    ort = portable.clone()
    with clock.phase("passes"):
        records = pipeline.lower(
            ort,
            "ort",
            context,
            accuracy=accuracy,
            check=how.check_passes,
            progress=clock.report,
        )
    return ort, records


def _declared(source: Source) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input, with symbols for its free dimensions."""
    return {
        name: tuple(source.dynamic[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in source.inputs.items()
    }
