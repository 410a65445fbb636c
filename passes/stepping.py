"""Driving a step graph by hand, in ONNX Runtime: random inputs, first states, splits of a sequence.

Passes are checked with this; programs use `intaglio.runtime.Session`, which does not copy states.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnxruntime import InferenceSession

from intaglio.state import (
    BATCH,
    CAPACITY,
    OWN,
    PAST,
    PAST_LENGTH,
    TIME,
    Layout,
    StateSpec,
    entries_of,
    time_of,
)

from . import evaluate
from .graph import constant, dims

Array = npt.NDArray[Any]
Arrays = dict[str, Array]

SIZE = 6
"""Taken for each free size that is neither batch nor time."""


def random_inputs(
    model: ir.Model,
    states: Sequence[StateSpec],
    sizes: Mapping[str, int],
    seed: int = 0,
    defaults: Mapping[str, float] | None = None,
) -> Arrays:
    """Random arrays of `sizes` for the source's own inputs; ids stay within their embedding.

    What may be left out holds its default: random masks would hide all tokens of some row.
    """
    random = np.random.default_rng(seed)
    carried = {spec.input for spec in states} | {PAST_LENGTH}
    feeds: Arrays = {}
    for value in model.graph.inputs:
        if value.name in carried or value.name is None:
            continue
        shape = [_sized(dim, sizes) for dim in dims(value) or ()]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if value.name in (defaults or {}):
            feeds[value.name] = np.full(shape, (defaults or {})[value.name], dtype)
        elif np.issubdtype(dtype, np.integer):
            feeds[value.name] = random.integers(0, _rows(value), shape).astype(dtype)
        else:
            feeds[value.name] = random.standard_normal(shape).astype(dtype)
    return feeds


def _sized(dim: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    each = entries_of(dim)
    return sizes.get(dim, SIZE) if each is None else each * sizes[TIME]


def _rows(value: ir.Value) -> int:
    """Rows of the smallest table that `value` indexes; 2 where it indexes none."""
    tables = [
        array.shape[0]
        for node, index in value.uses()
        if node.op_type == "Gather" and index == 1
        and (array := constant(node.inputs[0])) is not None
    ]  # fmt: skip
    return min(tables, default=2)


def first_states(states: Sequence[StateSpec], batch: int, capacity: int) -> Arrays:
    """States of `batch` rows that have seen nothing."""
    sizes: dict[str, int] = {BATCH: batch, CAPACITY: capacity, PAST: 0}
    return {
        spec.input: np.full(
            [d if isinstance(d, int) else sizes[d] for d in spec.shape],
            spec.initial,
            spec.dtype,
        )
        for spec in states
    }


def random_states(
    states: Sequence[StateSpec], past: Array, capacity: int, seed: int = 0
) -> tuple[Arrays, Array]:
    """States with random contents after `past` tokens per row (equal rows where a cache grows)."""
    random = np.random.default_rng(seed)
    if any(spec.layout is Layout.GROW for spec in states):
        past = np.full_like(past, past.max())
    filled = first_states(states, len(past), capacity)
    for spec in states:
        shape = list(filled[spec.input].shape)
        if spec.layout is Layout.GROW and spec.axis is not None:
            shape[spec.axis] = int(past.max())
        filled[spec.input] = np.asarray(0.3 * random.standard_normal(shape)).astype(spec.dtype)
    return filled, past


def roll(
    model: ir.Model,
    states: Sequence[StateSpec],
    inputs: Mapping[str, Array],
    parts: Sequence[int],
    session: InferenceSession | None = None,
) -> Arrays:
    """Outputs of `model` for `inputs` given in `parts` along time, joined along it.

    Of an output without time, and of a state that the source carries itself, it is the last value.
    A `session` of `model` serves many calls.
    """
    session = session or evaluate.session(model)
    batch = _rows_of(model, inputs)
    names = [output.name for output in session.get_outputs()]
    wants_past = PAST_LENGTH in {entry.name for entry in session.get_inputs()}
    timed = {v.name: at for v in model.graph.inputs if (at := time_of(dims(v) or ())) is not None}
    carried = first_states(states, batch, sum(parts))
    following = {spec.output: spec.input for spec in states}
    results: dict[str, list[Array]] = {name: [] for name in names if name not in following}
    done = 0
    for part in parts:
        feeds = {
            name: tokens_of(array, timed.get(name), done, done + part)
            for name, array in inputs.items()
        }
        if wants_past:
            feeds[PAST_LENGTH] = np.full(batch, done, np.int64)
        for name, array in zip(names, session.run(names, {**feeds, **carried}), strict=True):
            if name in following:
                carried[following[name]] = array
            else:
                results[name].append(array)
        done += part
    shapes = {str(value.name): dims(value) or () for value in model.graph.outputs}
    joined = {
        name: arrays[-1] if (at := time_of(shapes[name])) is None else np.concatenate(arrays, at[0])
        for name, arrays in results.items()
    }
    return joined | {spec.output: carried[spec.input] for spec in states if spec.op == OWN}


def tokens_of(array: Array, at: tuple[int, int] | None, begin: int, end: int) -> Array:
    """The tokens from `begin` to before `end`, time lying as `time_of` says; all without time."""
    if at is None:
        return array
    axis, each = at
    return array.take(range(begin * each, end * each), axis)


def _rows_of(model: ir.Model, inputs: Mapping[str, Array]) -> int:
    """Rows of `inputs`; 1 where no axis of them is that of rows."""
    for value in model.graph.inputs:
        shape = dims(value) or ()
        if value.name in inputs and BATCH in shape:
            return int(inputs[str(value.name)].shape[shape.index(BATCH)])
    return 1
