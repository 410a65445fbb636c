"""Steps in parts: cut where a row ends, ended rows left out from there on, and where they are long.

Every operator of a step graph works row by row, so the outcome is that of separate runs, and no
mask enters the graph.  Rows 3, 0 and 5 tokens long take two steps: tokens 0-2 of rows 0 and 2,
then tokens 3-4 of row 2.  Whole sequences, of an encoder, run apart by their length, and so do
blocks of tokens that see each other.  An engine that takes only so many tokens at once gets no
more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array
from intaglio.runtime.carried_states import CarriedStates
from intaglio.runtime.graph_entry import GraphEntry, TensorSpec
from intaglio.runtime.session_state import State
from intaglio.runtime.step_inputs import Sizes, check_out, shape_of
from intaglio.runtime.stepper import Stepper
from intaglio.state import BATCH, TIME, entries_of

Counts = npt.NDArray[np.int64]
Rows = npt.NDArray[np.intp]


def step_parts(
    stepper: Stepper,
    state: State,
    entry: GraphEntry,
    arrays: Mapping[str, Array],
    sizes: Sizes,
    counts: Counts,
    out: Mapping[str, Array] | None,
) -> dict[str, Array]:
    """Take a step of the first `counts` tokens of each row; see `Session.step`.

    Args:
        stepper: what runs the parts.
        state: whose carried states are replaced once every part has run.
        entry: names and shapes of inputs and outputs.
        arrays: inputs, checked.
        sizes: their sizes.
        counts: int64 [batch], from 0 to time.
        out: the caller's arrays for outputs, by name.

    Returns:
        The outputs, 0 beyond a row's length.
    """
    results = _zeros(entry.outputs, sizes, out)
    if entry.whole:
        _run_alike(stepper, state, entry, arrays, sizes, counts, results)
        return results
    carried = state.begin(sizes[BATCH])
    if entry.limits.ends:
        state.carried = _by_length(stepper, carried, entry, arrays, sizes, counts, results)
        return results
    stops = _stops(counts, stepper.most_tokens)
    if len(stops) > 1 or counts.min() < counts.max():
        carried = _own_copy(carried, entry, counts)
    start = 0
    for stop in stops:
        rows = np.flatnonzero(counts >= stop)
        part = carried if len(rows) == len(counts) else carried.gather(rows)
        window = slice(start, stop)
        cut = {s.name: arrays[s.name][index_of(s, rows, window)] for s in entry.inputs}
        outputs = stepper.step(part, cut, {**sizes, BATCH: len(rows), TIME: stop - start})
        for spec in entry.outputs:
            results[spec.name][index_of(spec, rows, window)] = outputs[spec.name]
        if part is not carried:
            carried.scatter(rows, part)
        start = stop
    state.carried = carried
    return results


def _run_alike(
    stepper: Stepper,
    state: State,
    entry: GraphEntry,
    arrays: Mapping[str, Array],
    sizes: Sizes,
    counts: Counts,
    results: Mapping[str, Array],
) -> None:
    """Run whole sequences of each length together: a later token may change an earlier one."""
    for length in np.unique(counts[counts > 0]):
        rows, window = np.flatnonzero(counts == length), slice(0, int(length))
        cut = {s.name: arrays[s.name][index_of(s, rows, window)] for s in entry.inputs}
        alike = {**sizes, BATCH: len(rows), TIME: int(length)}
        outputs = stepper.step(state.start_over(len(rows)), cut, alike)
        for spec in entry.outputs:
            results[spec.name][index_of(spec, rows, window)] = outputs[spec.name]


def _by_length(
    stepper: Stepper,
    carried: CarriedStates,
    entry: GraphEntry,
    arrays: Mapping[str, Array],
    sizes: Sizes,
    counts: Counts,
    results: Mapping[str, Array],
) -> CarriedStates:
    """Run rows of each length together: a block of tokens that see each other is not cut."""
    whole = _own_copy(carried, entry, counts)
    for length in np.unique(counts[counts > 0]):
        rows, window = np.flatnonzero(counts == length), slice(0, int(length))
        part = whole.gather(rows)
        cut = {s.name: arrays[s.name][index_of(s, rows, window)] for s in entry.inputs}
        outputs = stepper.step(part, cut, {**sizes, BATCH: len(rows), TIME: int(length)})
        for spec in entry.outputs:
            results[spec.name][index_of(spec, rows, window)] = outputs[spec.name]
        whole.scatter(rows, part)
    return whole


def _stops(counts: Counts, most_tokens: int | None) -> list[int]:
    """Where parts end: where a row does, and so that none has more than `most_tokens`."""
    last = int(counts.max())
    ends = range(most_tokens, last, most_tokens) if most_tokens else ()
    return sorted({*counts[counts > 0].tolist(), *ends})


def _own_copy(carried: CarriedStates, entry: GraphEntry, counts: Counts) -> CarriedStates:
    """A copy with room for the whole step: the session keeps the original if a part fails."""
    if entry.limits.batch is not None and counts.min() < counts.max():
        raise InputError(
            f"lengths is {counts.tolist()}: rows of unequal length are stepped in smaller batches, "
            f"but the bundle was exported for a batch of exactly {entry.limits.batch}. "
            "Export it with a free batch."
        )
    past_length = carried.past_length + counts
    carried.require_equal_rows(past_length, "The step")
    copy = carried.gather(slice(None))
    copy.reserve(int(past_length.max()))
    return copy


def _zeros(
    specs: Sequence[TensorSpec], sizes: Sizes, out: Mapping[str, Array] | None
) -> dict[str, Array]:
    out = out or {}
    check_out(out, [(spec.name, shape_of(spec, sizes), np.dtype(spec.dtype)) for spec in specs])
    results: dict[str, Array] = {}
    for spec in specs:
        results[spec.name] = out.get(spec.name, np.empty(shape_of(spec, sizes), spec.dtype))
        results[spec.name][...] = 0
    return results


def index_of(spec: TensorSpec, rows: Rows | slice, window: slice) -> Any:
    """Index of some rows and a window of time in an array shaped like `spec`."""
    found: list[Any] = []
    for dim in spec.shape:
        each = entries_of(dim)
        if each is not None:
            found.append(slice(window.start * each, window.stop * each))
        else:
            found.append(rows if dim == BATCH else slice(None))
    return tuple(found)
