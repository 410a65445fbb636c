"""What a source that carries its own states computes: it runs token by token, with those states.

Each step takes the states that the step before gave, from their initial values on, in float64 where
the module runs so; a graph runs as its file has it.  A bundle is held to that step for step, in
outputs and states, whatever the parts in which it takes the tokens.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from intaglio.errors import BundleError
from intaglio.exporter.sources.outputs import name_outputs
from intaglio.exporter.sources.source import Source
from intaglio.exporter.tracing.adopt import open_original, run_original
from intaglio.runtime.compare import Comparison
from intaglio.runtime.session import Session
from intaglio.state import TIME

from .follow import STATE_STEPS, splits_of, time_axes, words_of
from .parity import OUTPUT, STATE, ParityReport, Row
from .rounding import EXACT
from .trial import SEED
from .widened import Widened, cause, precision_of

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Call = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class OwnSteps:
    """Inputs, outputs and states of every step.

    `precision` is what the source ran in, and `cause` says why where that is not float64.
    """

    inputs: Sequence[dict[str, Array]]
    outputs: Sequence[Arrays]
    states: Sequence[Arrays]
    precision: str
    cause: str


def follow(source: Source, batch: int, steps: int) -> OwnSteps:
    """Run `source` over `steps` steps of random inputs, always the same."""
    inputs = list(_drawn(source, batch, steps))
    if isinstance(source.body, ir.Model):
        engine = open_original(source)

        def run(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
            arrays = run_original(engine, {name: x.numpy() for name, x in given.items()})
            return {name: torch.from_numpy(x) for name, x in arrays.items()}

        return replace(_follow(source, batch, inputs, run, widen=False), cause="as its file has it")

    def call(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return name_outputs(source.module, source.module(**given))

    try:
        return _follow(source, batch, inputs, call, widen=True, within=Widened(source.module))
    except Exception as error:  # noqa: BLE001  a module that fixes its dtype inside runs as it is
        found = _follow(source, batch, inputs, call, widen=False)
        return replace(found, cause=cause(found.precision, error))


def _timed(source: Source) -> dict[str, int]:
    return {name: axis for name, (axis, _) in time_axes(source).items()}


def _drawn(source: Source, batch: int, steps: int) -> Iterator[dict[str, Tensor]]:
    """The inputs of each step that are no states."""
    axes, states = (
        {name: axis for name, (axis, _) in time_axes(source).items()},
        {own.input for own in source.states},
    )
    whole = source.random_inputs(batch, steps, SEED)
    for step in range(steps):
        drawn = whole if axes else source.random_inputs(batch, 1, SEED + step)
        yield {
            name: value.narrow(axes[name], step, 1) if name in axes else value
            for name, value in drawn.items()
            if name not in states
        }


def _follow(
    source: Source,
    batch: int,
    inputs: Sequence[dict[str, Tensor]],
    call: Call,
    *,
    widen: bool,
    within: AbstractContextManager[Any] | None = None,
) -> OwnSteps:
    following = {own.output: own.input for own in source.states}
    states = {name: _wide(x, widen=widen) for name, x in _first(source, batch).items()}
    outputs: list[Arrays] = []
    kept: list[Arrays] = []
    floats: list[Tensor] = []
    with torch.no_grad(), within or contextlib.nullcontext():
        for given in inputs:
            results = call({n: _wide(x, widen=widen) for n, x in given.items()} | states)
            states = {name: results[output].clone() for output, name in following.items()}
            outputs.append({name: x.numpy().copy() for name, x in results.items()})
            kept.append({name: x.numpy() for name, x in states.items()})
            floats = [*results.values()]
    ran_in = precision_of(floats)
    return OwnSteps(
        inputs=[{name: x.numpy() for name, x in given.items()} for given in inputs],
        outputs=outputs,
        states=kept,
        precision=ran_in,
        cause=cause(ran_in, None),
    )


def _wide(value: Tensor, *, widen: bool) -> Tensor:
    return value.double() if widen and value.is_floating_point() else value


def _first(source: Source, batch: int) -> dict[str, Tensor]:
    """The states before the first step."""
    found = {}
    for own in source.states:
        like = source.random_inputs(batch, 1, SEED)[own.input]
        initial = torch.as_tensor(np.asarray(own.initial)).to(like.dtype)
        found[own.input] = initial.expand(like.shape).clone()
    return found


def verify_own(
    source: Source, session: Session, steps: int, batch: int, limits: Mapping[str, float]
) -> ParityReport:
    """Compare a bundle with `source`, over `steps` steps of `batch` rows.

    Raises:
        BundleError: if the bundle has other outputs than the source.
    """
    wanted, axes = (
        follow(source, batch, steps),
        {name: axis for name, (axis, _) in time_axes(source).items()},
    )
    _require_outputs(source, session, wanted)
    rows: list[Row] = []
    splits = splits_of(steps) if axes else [[1] * steps]
    for split in splits:
        comparisons = Comparison(EXACT, limits), Comparison(EXACT, limits)
        run_split(session, wanted, axes, split, STATE_STEPS, comparisons)
        for kind, comparison in zip((OUTPUT, STATE), comparisons, strict=True):
            rows += [
                Row(kind=kind, module="", split=words_of(split), against="source", found=each)
                for each in comparison.deviations()
            ]
    return ParityReport(
        against=source.name,
        precision=wanted.precision,
        cause=wanted.cause,
        steps=steps,
        batch=batch,
        seed=SEED,
        splits=tuple(map(words_of, splits)),
        rows=rows,
    )


def _require_outputs(source: Source, session: Session, wanted: OwnSteps) -> None:
    states = {own.output for own in source.states}
    returned = {spec.name for spec in session.entry.outputs}
    given = {name for name in wanted.outputs[0] if name not in states or name in returned}
    if given != returned:
        raise BundleError(
            f"The bundle has the outputs {', '.join(returned)}, the source {', '.join(given)}. "
            "Verify it against the checkpoint that its manifest names."
        )


def run_split(
    session: Session,
    wanted: OwnSteps,
    axes: Mapping[str, int],
    split: Sequence[int],
    compare_at: Sequence[int],
    comparisons: tuple[Comparison, Comparison],
) -> None:
    """Run the bundle in parts of `split` steps, and add what it gives to the comparisons.

    Args:
        session: of the bundle.
        wanted: what the source does.
        axes: the time axis of each input that has one; without any, each part is one step.
        split: the number of steps of each part.
        compare_at: after which steps states are compared, beside the last one.
        comparisons: of outputs, and of states.
    """
    outputs, states = comparisons
    places = {
        spec.name: spec.shape.index(TIME) if TIME in spec.shape else None
        for spec in session.entry.outputs
    }
    taken = {spec.name for spec in session.entry.inputs}
    session.state.reset()
    ends = [sum(split[:i]) for i in range(len(split) + 1)]
    for begin, end in pairwise(ends):
        part = {
            name: np.concatenate([w[name] for w in wanted.inputs[begin:end]], axes[name])
            if name in axes
            else wanted.inputs[begin][name]
            for name in wanted.inputs[0]
            if name in taken
        }
        found = session.step(part)
        for step in range(begin, end):
            mine, theirs = {}, {}
            for name, axis in places.items():
                if axis is not None:
                    mine[name] = found[name].take(step - begin, axis)
                    theirs[name] = wanted.outputs[step][name].take(0, axis)
                elif step == end - 1:
                    mine[name], theirs[name] = found[name], wanted.outputs[step][name]
            outputs.add(step + 1, mine, theirs)
        if end in compare_at or end == ends[-1]:
            states.add(end, session.state.save().arrays, wanted.states[end - 1])
