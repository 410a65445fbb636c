"""`--check-passes`: exact passes are checked, not trusted.

The graph before and after a pass runs in ONNX Runtime, unoptimised, on random inputs and random
carried states; a result that moves beyond rounding fails at the pass that moved it.  Where the pass
gave the graph its states, the comparison is the whole sequence at once against splits of it.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from intaglio.call_ends import last_end, lengths
from intaglio.errors import CheckError
from intaglio.state import BATCH, PAST_LENGTH, TIME, Layout, StateSpec

from . import evaluate, stepping
from .base import Context
from .stepping import Array

LIMITS = {"float64": 1e-10, "float32": 2e-5, "float16": 1e-2, "bfloat16": 5e-2}
"""How far rounding may move max|a-b| / max|b|, by dtype of the output."""


def check(
    name: str,
    before: ir.Model,
    after: ir.Model,
    states_before: Sequence[StateSpec],
    context: Context,
) -> float:
    """Largest error of `after` against `before`.

    Raises:
        CheckError: an output or a state moved beyond rounding.
    """
    same = len(_stepped(states_before)) == len(_stepped(context.states))
    if same or context.own:
        errors = _same_interface(before, after, context)
    else:
        errors = _splits(before, after, context)
    worst = 0.0
    for what, (got, wanted) in errors:
        error = _error(got, wanted)
        worst = max(worst, error)
        limit = LIMITS.get(str(wanted.dtype), 0.0)  # whole numbers may not move at all
        if not error <= limit:
            raise CheckError(
                f"the pass {name!r} changed {what}: error {error:.2e}, where rounding allows "
                f"{limit:.0e}. An exact pass may not do that: it is wrong for "
                "this graph; leave it out and report it."
            )
    return worst


def _stepped(states: Sequence[StateSpec]) -> list[StateSpec]:
    """The states that steps change."""
    return [spec for spec in states if spec.layout is not Layout.PREPARED]


Pairs = list[tuple[str, tuple[Array, Array]]]


def _error(got: Array, wanted: Array) -> float:
    if got.shape != wanted.shape:
        return float("inf")
    if not wanted.size:
        return 0.0
    if not np.issubdtype(wanted.dtype, np.floating):
        return 0.0 if np.array_equal(got, wanted) else float("inf")
    wide, found = wanted.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(wide)
    if not np.array_equal(wide[~finite], found[~finite], equal_nan=True):
        return float("inf")
    if not finite.any():
        return 0.0
    largest = float(np.abs(wide[finite]).max())
    return float(np.abs(found[finite] - wide[finite]).max()) / max(largest, 1e-30)


def _same_interface(before: ir.Model, after: ir.Model, context: Context) -> Pairs:
    """Both graphs on the same inputs and random states, one token and several."""
    batch = context.batch or 2
    room = min(context.max_context or 12, 12)
    states = _stepped(context.states)
    pairs: Pairs = []
    for sizes in context.trials or ({BATCH: batch, TIME: n} for n in (1, min(5, room))):
        time = sizes.get(TIME, 1)
        past = np.arange(batch, dtype=np.int64) % max(1, room - time + 1)
        past += int(bool(context.own))  # a row that is new takes initial values instead of a state
        feeds: dict[str, Array] = context.drawn(sizes, time) or dict(
            stepping.random_inputs(
                before, context.states, sizes, seed=time, defaults=context.defaults
            )
        )
        if states:
            carried, past = stepping.random_states(states, past, room, seed=time)
            feeds |= carried
        if not context.trials:  # a model of whole inputs may have one of that name
            feeds[PAST_LENGTH] = past
        feeds |= _prepared(feeds, batch, context)
        wanted, got = (_run(model, feeds) for model in (before, after))
        specs = {spec.output: spec for spec in context.states}
        for name, array in wanted.items():
            what = f"{name!r} at {', '.join(f'{s} = {n}' for s, n in sizes.items())}"
            if name not in got:
                raise CheckError(f"the output {what} is gone")
            both = [_valid(specs.get(name), x, past + time) for x in (got[name], array)]
            pairs.append((what, (both[0], both[1])))
    return pairs


def _run(model: ir.Model, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
    taken = {str(value.name) for value in model.graph.inputs}
    return evaluate.run(model, {name: array for name, array in feeds.items() if name in taken})


def _prepared(given: Mapping[str, Array], batch: int, context: Context) -> Mapping[str, Array]:
    """What `prepare` makes of the conditions in `given`, or of random ones where none are."""
    if context.prepare is None:
        return {}
    drawn = stepping.random_inputs(
        context.prepare, [], {BATCH: batch, TIME: 1}, defaults=context.defaults
    )
    return evaluate.run(context.prepare, {name: given.get(name, drawn[name]) for name in drawn})


def _valid(spec: StateSpec | None, array: Array, lengths: Array) -> Array:
    """`array` without what a static cache holds beyond the tokens of each row: nobody reads it."""
    if spec is None or spec.layout is not Layout.STATIC or spec.axis is None:
        return array
    kept = np.moveaxis(array.copy(), spec.axis, 1)
    for row, length in zip(kept, lengths, strict=True):
        row[int(length) :] = 0
    return kept


def _splits(before: ir.Model, after: ir.Model, context: Context) -> Pairs:
    """The whole sequence through `before`, against `after` in one call and in several."""
    windows = [spec.window for spec in context.states if spec.window]
    time = min(max([7, *(w + 3 for w in windows)]), 80, context.max_context or 80)
    time = last_end(context.ends, max(time, *context.ends[:3]) if context.ends else time)
    batch = context.batch or 2
    sizes = {BATCH: batch, TIME: time}
    inputs = context.drawn(sizes, 0) or stepping.random_inputs(
        before, [], sizes, defaults=context.defaults
    )
    wanted = evaluate.run(before, inputs)
    pairs: Pairs = []
    for parts in _partitions(time, context.ends):
        got: Mapping[str, Array] = stepping.roll(after, context.states, inputs, parts)
        pairs += [
            (f"{name!r} split as {parts}", (_last_of(got[name], wanted[name]), wanted[name]))
            for name in wanted
        ]
    return pairs


def _last_of(got: Array, wanted: Array) -> Array:
    """The last token of what is there for every one, where it was for the last one alone."""
    if got.ndim == wanted.ndim + 1:
        return got[:, -1]
    return got[:, -1:] if got.ndim == wanted.ndim > 1 == wanted.shape[1] else got


def _partitions(time: int, ends: Sequence[int]) -> list[list[int]]:
    if ends:
        return [[time], lengths(ends, 0, time)]
    ones = [1] * time
    return [[time], ones] + ([[2, time - 3, 1]] if time > 3 else [])
