"""What an attention mask allows, found by evaluating the nodes that compute it.

Masks come as sixty nodes from one library and as three from another, so no pattern of nodes is
looked for.  The part of the graph that computes the mask runs in ONNX Runtime for several lengths
and batches with random contents in every other input; the result is compared with the causal mask
`j <= i` and with sliding windows `i - w < j <= i`.
"""

import bisect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from intaglio.passes import evaluate
from intaglio.passes.graph import constant, dims
from intaglio.state import BATCH, TIME

LENGTHS = (1, 2, 3, 7)
LOW = -1e4  # what models add to masked scores, or less: the weight is zero then
LONGEST = 8192
"""Largest constant in a mask's nodes that is looked past; a wider window is not told from none."""


@dataclass(frozen=True)
class Causal:
    """Token i sees the tokens j <= i, and only the last `window` of them where that is set.

    `limit` is the most tokens that a table of the mask holds, None without one.
    """

    window: int | None = None
    limit: int | None = None


def recognise(model: ir.Model, value: ir.Value) -> Causal | None:
    """What the mask `value` of shape [.., T, T] allows; None where it is something else.

    A boolean mask allows where it is true; a float mask where it does not push a score to `LOW` or
    below, and is nothing known if it adds anything else.
    """
    graph = evaluate.part(model, [value])
    numbers = _numbers(graph)
    if any(number > LONGEST for number in numbers):
        return None
    session = evaluate.session(graph)
    random = np.random.default_rng(0)
    windows: set[int | None] = set()

    def run(batch: int, time: int) -> npt.NDArray[Any]:
        feeds = {v.name: _contents(v, batch, time, random) for v in graph.graph.inputs}
        mask: npt.NDArray[Any] = session.run(None, feeds)[0]
        return mask

    for time in _lengths(numbers, run):
        for batch in (1, 2):
            seen = _allowed(run(batch, time), time)
            window = None if seen is None else _window(seen)
            if window is None:
                return None
            windows.add(window if window < time else None)
    narrow = windows - {None}
    if len(narrow) > 1:
        return None
    return Causal(next(iter(narrow), None), _limit(graph))


def _lengths(numbers: Iterable[int], run: Callable[[int, int], Any]) -> list[int]:
    """Lengths to try: small ones, and one past each number, as far as the nodes run at all."""
    wanted = sorted({*LENGTHS, *(number + 2 for number in numbers)})

    def fails(time: int) -> bool:
        try:
            run(1, time)
        except Exception:  # noqa: BLE001  ONNX Runtime raises its own kinds
            return True
        return False

    if not fails(wanted[-1]):
        return wanted
    end = bisect.bisect_left(range(wanted[-1]), True, key=fails)  # a table ends there
    return [*(time for time in wanted if time < end), end - 1]


def _limit(model: ir.Model) -> int | None:
    """Rows of the smallest constant table of which a part as long as the sequence is taken."""
    rows = [
        length
        for node in model.graph
        if node.op_type == "Slice" and (table := constant(node.inputs[0])) is not None
        for length, dim in zip(table.shape, dims(node.outputs[0]) or (), strict=False)
        if TIME in str(dim)
    ]
    return min(rows, default=None)


def _numbers(model: ir.Model) -> set[int]:
    """Whole numbers that the mask is computed with: a window is one of them, or next to one."""
    found: set[int] = set()
    for node in model.graph:
        for array in map(constant, node.inputs):
            if array is None or array.size != 1 or array.dtype == np.bool_:
                continue
            number = float(array.reshape(()).item())
            if LOW < number < 2**31 - 1 and abs(number) > 1 and number.is_integer():
                found.add(int(abs(number)))
    return found


def _contents(
    value: ir.Value, batch: int, time: int, random: np.random.Generator
) -> npt.NDArray[np.generic]:
    sizes = {BATCH: batch, TIME: time}
    shape = [d if isinstance(d, int) else sizes[str(d.value)] for d in value.shape or ()]
    dtype = (value.dtype or ir.DataType.INT64).numpy()
    return random.integers(0, 2, shape).astype(dtype)


def _allowed(mask: npt.NDArray[Any], time: int) -> npt.NDArray[np.bool_] | None:
    """The mask as one [time, time] table of booleans; None if rows of the batch differ."""
    if mask.ndim < 2 or mask.shape[-2:] != (time, time):
        return None
    if mask.dtype == np.bool_:
        allowed = mask
    else:
        if not np.issubdtype(mask.dtype, np.floating):
            return None
        allowed = mask > LOW
        if mask[allowed].any():
            return None
    tables = allowed.reshape(-1, time, time)
    return tables[0] if (tables == tables[0]).all() else None


def _window(allowed: npt.NDArray[np.bool_]) -> int | None:
    """Number of tokens that the last row sees, if all rows see the last so many; else None."""
    time = len(allowed)
    width = int(allowed[-1].sum())
    i, j = np.indices((time, time))
    return width if (allowed == ((j <= i) & (j > i - width))).all() else None
