"""Trials beyond the first: past the numbers in the graph, rows of unequal length, a restored state.

The first trial runs some hundred tokens of rows of equal length.  What a graph does otherwise past
a window or a chunk, what a sum that is carried comes to after thousands of tokens, and what a row
takes from its neighbours shows only here.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from intaglio.call_ends import last_end
from intaglio.exporter.sources.source import Source
from intaglio.passes.analysis.numbers import position_numbers
from intaglio.passes.stepping import tokens_of
from intaglio.runtime.compare import Comparison
from intaglio.runtime.graph_entry import GraphEntry
from intaglio.state import BATCH, TIME, Layout, entries_of

from .coverage import Coverage
from .follow import Array, Arrays, Follower, splits_of, start_over
from .parity import OUTPUT, Row
from .reference import Reference
from .rounding import EXACT
from .source_numbers import SourceNumbers
from .trial import Trial

LONGEST = 8192  # tokens of a run that goes past a number in the graph
SUMMED = 4096  # tokens of a run of carried sums
WORK = 2e11  # parameters times tokens of such a run: a minute or two
HELD = 2**26  # entries of outputs that are held at once
SHORT = 24  # tokens of rows of unequal length
ROWS = 3
THOROUGH_ROWS, THOROUGH_TOKENS = 8, 512

Refer = Callable[[Mapping[str, Tensor]], Reference]


@dataclass(frozen=True, kw_only=True)
class Further:
    """Trials of the bundle that `run` follows, whose graph is `graph`.

    `numbers` are those of the source, `refer` gives what it makes of inputs; `rows` is how many the
    bundle takes, None for any number; `limit` the most tokens.
    """

    run: Follower
    source: Source
    graph: ir.Graph
    numbers: SourceNumbers
    refer: Refer
    rows: int | None
    limit: int | None

    def compare(self, trial: Trial, *, thorough: bool) -> tuple[list[Row], Coverage]:
        """Rows of all further trials after the first one, `trial`, and what was covered."""
        manifest = self.run.session.entry
        seen: dict[str, set[int]] = {}
        _note(seen, trial.inputs)
        tokens, rows = trial.steps, []
        unequal = restored = None
        if trial.data is None:
            for drawn, length in self._runs(tokens, thorough=thorough):
                rows += self._follow(drawn, length)
                _note(seen, drawn)
                tokens = max(tokens, length)
        if TIME in _symbols(self.source):
            unequal = self._unequal(rows)
            restored = self._restored(rows)
        return rows, Coverage(
            tokens=tokens,
            limit=self.limit,
            beyond=tuple(n for n in self._numbers() if n + 1 > tokens and self._allows(n + 1)),
            drawn={
                spec.name: (len(seen[spec.name]), spec.entries)
                for spec in (*manifest.inputs, *manifest.conditions)
                if spec.entries is not None and spec.name in seen
            },
            compared=_missing(self.numbers.values, seen, manifest),
            rows=unequal,
            restored=restored,
        )

    def _numbers(self) -> set[int]:
        windows = {s.window for s in self.run.session.entry.states if s.window is not None}
        return position_numbers(self.graph) | windows | self.numbers.positions

    def _allows(self, tokens: int) -> bool:
        return self.limit is None or tokens <= self.limit

    def _runs(self, done: int, *, thorough: bool) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Inputs of longer runs, and of runs with all values of integer inputs."""
        most = self.limit or math.inf
        goals = [goal for n in self._numbers() if (goal := min(n + 2, most)) <= LONGEST]
        if any(spec.op == "cumulative_sum" for spec in self.run.session.entry.states):
            goals.append(SUMMED)
        if thorough and self.limit is not None:
            goals.append(self.limit)
        goal = min(max(goals, default=0), most, self._affordable())
        goal = self._end(int(goal))
        if goal > done:
            yield long_inputs(self.source, self.rows, goal), goal
        if thorough:
            yield from self._all_values()

    def _affordable(self) -> float:
        weights = [v.const_value for v in self.graph.initializers.values()]
        size = sum(tensor.size for tensor in weights if tensor is not None)
        width = sum(
            math.prod(dim for dim in spec.shape if isinstance(dim, int))
            for spec in self.run.session.entry.outputs
        )
        return min(WORK / max(size, 1), HELD / max(width, 1))

    def _all_values(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        """Inputs in which each value of each integer input occurs."""
        below = {
            spec.name: spec.entries
            for spec in self.run.session.entry.inputs
            if spec.entries is not None
        }
        rows = self.rows or THOROUGH_ROWS
        length = self._end(min(THOROUGH_TOKENS, self.limit or THOROUGH_TOKENS))
        for part in range(math.ceil(max(below.values(), default=0) / (rows * length))):
            drawn = self.source.random_inputs(rows, length, 3 + part)
            for name, count in below.items():
                size = drawn[name].numel()
                values = torch.arange(part * size, (part + 1) * size) % count
                drawn[name] = values.reshape(drawn[name].shape).to(drawn[name].dtype)
            yield drawn, length

    def _follow(self, drawn: Mapping[str, Tensor], tokens: int) -> list[Row]:
        inputs = {name: value.numpy() for name, value in drawn.items()}
        run = replace(self.run, inputs=inputs, wanted=self.refer(drawn))
        ends = self.run.session.entry.limits.ends
        half = tokens // 2
        several = [[tokens], [half, 1, 1, tokens - half - 2]][: 1 + (tokens > 4)]
        rows, _ = run.compare(splits_of(tokens, ends) if ends else several)
        return rows

    def _end(self, tokens: int) -> int:
        """Where a call may end, up to `tokens`."""
        return last_end(self.run.session.entry.limits.ends, tokens)

    def _unequal(self, rows: list[Row]) -> bool | None:
        """Compare rows of unequal length in one call with each row alone."""
        count = min(ROWS, self.run.session.most_rows or ROWS)
        tokens = self._end(min(SHORT, self.limit or SHORT))
        joined = any(s.layout is Layout.GROW for s in self.run.session.entry.states)
        if self.rows is not None or count < 2 or tokens < 2 or joined:
            return None
        lengths = [self._end(max(1, tokens // (row + 1))) for row in range(count)]
        drawn = self.source.random_inputs(count, tokens, 1)
        inputs = {name: value.numpy() for name, value in drawn.items()}
        session = self.run.session
        together = session.step(start_over(session, inputs), lengths=lengths)
        found = Comparison(EXACT, self.run.limits)
        for row, length in enumerate(lengths):
            own = {n: self._row(n, x, row, length) for n, x in inputs.items()}
            alone = session.step(start_over(session, own))
            found.add(length, self._of_row(together, row, length), self._of_row(alone, 0, length))
        rows += self._rows(found, f"lengths {', '.join(map(str, lengths))}", "each row alone")
        return True

    def _row(self, name: str, array: Array, row: int, length: int) -> Array:
        axes = self.source.dynamic.get(name, {})
        length *= self.source.pace
        return _taken(array, axes, {BATCH: slice(row, row + 1), TIME: slice(length)})

    def _of_row(self, outputs: Arrays, row: int, length: int) -> Arrays:
        """The outputs of one row for its own tokens."""
        specs = self.run.session.entry.outputs
        own = {
            str(dim): slice(length * each)
            for spec in specs
            for dim in spec.shape
            if (each := entries_of(dim)) is not None
        }
        return {
            spec.name: _taken(outputs[spec.name], dict(enumerate(spec.shape)), {BATCH: row, **own})
            for spec in specs
        }

    def _restored(self, rows: list[Row]) -> bool:
        """Compare what follows on a saved state, before and after it is restored."""
        tokens = self._end(min(SHORT, self.limit or SHORT))
        drawn = self.source.random_inputs(self.rows or 1, tokens, 1)
        session, half = self.run.session, self._end(tokens // 2)
        half = half if half < tokens else 0
        first = start_over(session, {n: x.numpy() for n, x in drawn.items()})
        if half:
            session.step(self._part(first, 0, half))
        kept = session.state.save()
        wanted = session.step(self._part(first, half, tokens))
        session.state.restore(kept)
        again = session.step(self._part(first, half, tokens))
        found = Comparison(EXACT, self.run.limits)
        found.add(tokens, again, wanted)
        rows += self._rows(found, f"{half} + {tokens - half}", "the same after a restored state")
        return True

    def _part(self, inputs: Arrays, begin: int, end: int) -> Arrays:
        axes = self.run.axes
        return {name: tokens_of(x, axes.get(name), begin, end) for name, x in inputs.items()}

    def _rows(self, found: Comparison, split: str, against: str) -> list[Row]:
        return [
            Row(kind=OUTPUT, module="", split=split, against=against, found=deviation)
            for deviation in found.deviations()
        ]


def _taken(array: Array, axes: Mapping[int, int | str], place: Mapping[str, Any]) -> Array:
    """The part of `array` at `place`, its axes being called `axes`."""
    picked = [place.get(str(axes.get(axis)), slice(None)) for axis in range(array.ndim)]
    part: Array = array[tuple(picked)]
    return part


def long_inputs(source: Source, rows: int | None, tokens: int) -> dict[str, Tensor]:
    """What a run of so many tokens is on; of one row, where a bundle takes any number."""
    return source.random_inputs(rows or 1, tokens, 2)


def _symbols(source: Source) -> set[str]:
    return {symbol for axes in source.dynamic.values() for symbol in axes.values()}


def _note(seen: dict[str, set[int]], drawn: Mapping[str, Tensor]) -> None:
    for name, value in drawn.items():
        if not value.is_floating_point() and value.dtype is not torch.bool:
            seen.setdefault(name, set()).update(np.unique(value.numpy()).tolist())


def _missing(
    compared: Mapping[str, frozenset[int]], seen: Mapping[str, set[int]], manifest: GraphEntry
) -> dict[str, tuple[int, ...]]:
    """What inputs are compared with and could hold, and did not."""
    below = {spec.name: spec.entries for spec in (*manifest.inputs, *manifest.conditions)}
    found = {
        name: tuple(sorted(n for n in numbers if 0 <= n < (below.get(name) or math.inf)))
        for name, numbers in compared.items()
    }
    left = {n: tuple(x for x in values if x not in seen.get(n, ())) for n, values in found.items()}
    return {name: values for name, values in left.items() if values}
