"""From a source to its graphs: trace it, run the passes, lower the result for each target."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import onnx_ir as ir
from torch import nn

from intaglio.passes import pipeline
from intaglio.passes.base import Context, Pass
from intaglio.passes.low_bit import PARTS
from intaglio.passes.lower.ort_low_bit import Accuracy

from .calibration import Arrays, read_calibration
from .recipe import Recipe
from .shapes import Shapes
from .source import Source
from .trace import trace

Progress = Callable[[str, float | None], None]


class Clock:
    """Times the phases of an export and tells the user's callable about them."""

    def __init__(self, progress: Progress | None) -> None:
        self.seconds: dict[str, float] = {}
        self._progress = progress
        self._phase = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what runs in the context under `name`, again or for the first time."""
        self._phase = name
        if self._progress is not None:
            self._progress(name, None)
        start = time.perf_counter()
        yield
        seconds = self.seconds.get(name, 0.0) + time.perf_counter() - start
        self.seconds[name] = round(seconds, 3)

    def report(self, what: str, done: float | None) -> None:
        """Pass on the progress made within the phase."""
        if self._progress is not None:
            self._progress(f"{self._phase}: {what}", done)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """The graphs made from a source: the portable one and the one for each target.

    `records` end with those of the lowering for ONNX Runtime; `told` is what tracing had to say.
    """

    portable: ir.Model
    ort: ir.Model
    trt: ir.Model | None
    context: Context
    records: Sequence[pipeline.PassRecord]
    told: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should hear: of tracing, and advice of passes."""
        return (*self.told, *(line for r in self.records for line in r.result.advice))


@dataclass(frozen=True)
class Teacher:
    """What calibrated passes learn from, and where they keep what they have finished."""

    data: str | Path | Arrays
    work: Path | None

    @classmethod
    def of(cls, data: str | Path | Arrays | None, work: Path | None) -> Self | None:
        """One with `data`, none without."""
        return None if data is None else cls(data, work)


def compile_source(
    source: Source,
    extra: Sequence[Pass],
    how: Recipe,
    clock: Clock,
    teacher: Teacher | None = None,
) -> Compiled:
    """Trace `source` and run all passes, `extra` being the user's.

    Raises:
        IntaglioError: if it cannot be traced, or a pass refuses it.
    """
    batch = _fixed_batch(source, Shapes.from_json(how.shapes))
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
        trt = None
        if "trt" in how.targets:
            trt = model.clone()
            records += pipeline.lower(
                trt, "trt", context, dtype=how.dtype, check=how.check_passes, progress=clock.report
            )
    ort, lowered = lower(model, context, how, clock, how.ort_accuracy)
    return Compiled(
        portable=model,
        ort=ort,
        trt=trt,
        context=context,
        records=[*records, *lowered],
        told=tuple(traced.notes),
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


def _fixed_batch(source: Source, shapes: Shapes) -> int | None:
    """Return 1 if `shapes` allow that batch alone; another fixed one gains nothing over a free."""
    declared = {
        name: tuple(source.dynamic[name].get(axis, size) for axis, size in enumerate(value.shape))
        for name, value in source.inputs.items()
    }
    return 1 if shapes.fixed_batch(declared) == 1 else None


def weigh(compiled: Compiled) -> int:
    """Bytes of the weights of all graphs, which share what is the same.

    One that is made of others counts only where they are not all there.
    """
    graphs = (compiled.portable, compiled.ort, compiled.trt)
    models = [model for model in graphs if model is not None]
    values = {name: v for model in models for name, v in model.graph.initializers.items()}
    tensors = {
        tensor.name: tensor.nbytes
        for value in values.values()
        if (tensor := value.const_value) is not None
        and not all(part in values for part in json.loads(value.metadata_props.get(PARTS, '[""]')))
    }
    return sum(tensors.values())
