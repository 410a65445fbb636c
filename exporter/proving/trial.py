"""What a verification runs on: random inputs, or rows of the user's data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from intaglio.errors import InputError
from intaglio.exporter.sources.calibration_data import Arrays, read_calibration
from intaglio.exporter.sources.source import Source
from intaglio.passes.calibration import Batch, Calibration
from intaglio.state import BATCH, TIME

SEED = 0
RARE = 8  # of random values, one in so many is one that the graph looks for

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Inputs of `steps` steps, drawn by `seed`, or from the data whose SHA-256 is `data`."""

    inputs: dict[str, Tensor]
    steps: int
    seed: int | None = None
    data: str | None = None


def draw(
    source: Source,
    batch: int,
    steps: int,
    data: str | Path | Arrays | Calibration | None = None,
    max_context: int | None = None,
    sought: Mapping[str, Sequence[int]] | None = None,
) -> Trial:
    """Random inputs, always the same, or the beginnings of the longest rows of `data`.

    Rows that calibration keeps from fitting are preferred.  Too few are repeated, and where they
    are shorter than `steps`, the trial is.  All rows have conditions of the sizes that the longest
    one has.

    Args:
        source: whose inputs they are.
        batch: how many rows.
        steps: at most so many.
        data: what `read_calibration` takes, or returned.
        max_context: the longest row that the source takes.
        sought: values of integer inputs that are to occur among random ones.

    Raises:
        InputError: data that cannot be read, is empty, has NaN, or does not fit the inputs.
    """
    if data is None:
        drawn = source.random_inputs(batch, steps, SEED)
        for name, values in (sought or {}).items():
            _plant(drawn[name], values)
        return Trial(inputs=drawn, steps=steps, seed=SEED)
    read = data if isinstance(data, Calibration) else read_calibration(data, source, max_context)
    rows = _longest(read, batch, source)
    steps = min(steps, *(length // source.pace for length, _, _ in rows))
    if not steps:
        raise InputError(
            f"The data has no row of {source.pace} entries along time, which one token takes."
        )
    parts = [_row(read.batches[index], row, steps, source) for _, index, row in rows]
    inputs = {}
    for name, axes in source.dynamic.items():
        along = next((axis for axis, symbol in axes.items() if symbol == BATCH), None)
        arrays = [part[name] for part in parts]
        inputs[name] = torch.from_numpy(arrays[0] if along is None else np.stack(arrays, along))
    return Trial(inputs=inputs, steps=steps, data=read.sha256)


def _plant(drawn: Tensor, values: Sequence[int]) -> None:
    """Let each of `values` occur, several times where there is room: at every eighth place."""
    for turn, place in enumerate(range(RARE - 1, drawn.numel(), RARE) if values else ()):
        drawn.view(-1)[place] = values[turn % len(values)]


def _longest(data: Calibration, count: int, source: Source) -> list[tuple[int, int, int]]:
    """Length, batch and row of `count` rows, of equal sizes beside their length."""
    found = []
    for index in data.held_out or data.fitted:
        batch = data.batches[index]
        lengths = [batch.steps] * batch.rows if batch.lengths is None else batch.lengths.tolist()
        found += [(length, index, row) for row, length in enumerate(lengths)]
    found = sorted(found, key=lambda entry: -entry[0])
    own = {index: _own_sizes(data.batches[index], source) for _, index, _ in found}
    found = [entry for entry in found if own[entry[1]] == own[found[0][1]]][:count]
    return [found[i % len(found)] for i in range(count)]


def _own_sizes(batch: Batch, source: Source) -> dict[str, int]:
    """The sizes of free axes that are neither rows nor steps."""
    return {
        symbol: batch.inputs[name].shape[axis]
        for name, axes in source.dynamic.items()
        for axis, symbol in axes.items()
        if symbol not in (BATCH, TIME)
    }


def _row(batch: Batch, row: int, steps: int, source: Source) -> dict[str, Array]:
    """One row of every input, without its batch axis and cut to `steps`."""
    taken: dict[str, Any] = {BATCH: row, TIME: slice(steps * source.pace)}
    part = {}
    for name, axes in source.dynamic.items():
        array = batch.inputs[name]
        picked = tuple(taken.get(axes.get(i, ""), slice(None)) for i in range(array.ndim))
        part[name] = array[picked]
    return part
