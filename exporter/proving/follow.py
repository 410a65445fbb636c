"""A bundle on given tokens, in several splits, beside what its source makes of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy.typing as npt

from intaglio.call_ends import last_end, lengths
from intaglio.exporter.sources.source import Source
from intaglio.passes.stepping import tokens_of
from intaglio.runtime.compare import Comparison, Deviation
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.session import Session
from intaglio.state import TIME, Layout, StateSpec, time_of

from .parity import KL as DIVERGENCE
from .parity import OUTPUT, STATE, Row
from .quantized import KL, LOGITS, MeanKl
from .reference import Reference
from .rounding import EXACT

STATE_STEPS = (1, 2, 63, 64)

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]
Progress = Callable[[str, float | None], None]


def time_axes(source: Source) -> dict[str, tuple[int, int]]:
    """Which axis of each input is time, where it has one, and how many entries make a token."""
    return {
        name: (axis, source.pace)
        for name, axes in source.dynamic.items()
        for axis, symbol in axes.items()
        if symbol == TIME
    }


def start_over(session: Session, inputs: Arrays) -> Arrays:
    """Bring a session to the start of a sequence, on the conditions among `inputs`; the others."""
    session.state.reset()
    given = {spec.name: inputs[spec.name] for spec in session.entry.conditions}
    if given:
        session.condition(given)
    return {name: array for name, array in inputs.items() if name not in given}


@dataclass(frozen=True, kw_only=True)
class Follower:
    """A session on given inputs, beside what the source makes of them.

    `states` are those of the session, each with the call of the source that it is.
    """

    session: Session
    states: Sequence[StateSpec]
    inputs: Arrays
    axes: Mapping[str, tuple[int, int]]
    wanted: Reference
    limits: Mapping[str, float]
    progress: Progress | None

    def compare(self, splits: Sequence[Sequence[int]]) -> tuple[list[Row], tuple[str, ...]]:
        """Rows of every output and state for each split, and the states unknown to the source."""
        changing = [spec for spec in self.states if spec.layout is not Layout.PREPARED]
        specs = {spec.input: spec for spec in changing}
        unknown = [name for name, spec in specs.items() if self.wanted.state(spec, 1) is None]
        rows: list[Row] = []
        first: Arrays = {}
        for split in splits:
            kl = MeanKl(self.limits[KL]) if KL in self.limits else None
            outputs, states, last = self._follow(
                split, [specs[n] for n in specs if n not in unknown], kl
            )
            rows += self._rows(OUTPUT, outputs, split, "source")
            rows += self._rows(STATE, states, split, "source")
            if kl is not None:
                rows.append(_row(DIVERGENCE, "", split, "source", kl.deviation()))
            if first:
                others = Comparison(EXACT, self.limits)
                others.add(sum(split), last, {name: first[name] for name in unknown})
                rows += self._rows(STATE, others, split, f"split {words_of(splits[0])}")
            first = first or last
        return rows, tuple(unknown)

    def _follow(
        self, split: Sequence[int], specs: Sequence[StateSpec], kl: MeanKl | None
    ) -> tuple[Comparison, Comparison, Arrays]:
        """Run one split; the outputs and states compared, and the states at the end."""
        axes = {spec.name: time_of(spec.shape) for spec in self.session.entry.outputs}
        outputs, states = Comparison(EXACT, self.limits), Comparison(EXACT, self.limits)
        steps = sum(split)
        carried: Arrays = {}
        for begin, end, found in self._steps(split):
            for token in range(begin, end):
                got = {n: _at(found[n], axis, token - begin) for n, axis in axes.items()}
                expected = self._expected(token, steps)
                outputs.add(token + 1, got, expected)
                if kl is not None:
                    kl.add(token + 1, got[LOGITS], expected[LOGITS])
            if end in STATE_STEPS or end == steps:
                carried = self.session.state.save().arrays
                states.add(end, carried, self._states(specs, end))
        return outputs, states, carried

    @property
    def tells_the_last_alone(self) -> bool:
        """Whether the source gives some output for its last token alone."""
        steps = tokens_in(self.inputs, self.axes)
        return any(
            time_of(spec.shape) is None or self._at_end(spec, steps)
            for spec in self.session.entry.outputs
        )

    def _at_end(self, spec: TensorSpec, steps: int) -> bool:
        """Whether the source gives once what the bundle gives for each of `steps` tokens."""
        array, at = self.wanted.outputs[spec.name], time_of(spec.shape)
        if at is None:
            return False
        return array.ndim < len(spec.shape) or array.shape[at[0]] != steps * at[1]

    def _expected(self, token: int, steps: int) -> Arrays:
        """What the source gives for one token, where it gives something for it."""
        found = {}
        for spec in self.session.entry.outputs:
            array = self.wanted.outputs[spec.name]
            at = time_of(spec.shape)
            once = at is None or self._at_end(spec, steps)
            if not once:
                found[spec.name] = _at(array, at, token)
            elif token == steps - 1:
                kept = at is not None and array.ndim == len(spec.shape)
                found[spec.name] = array.take(0, at[0]) if at is not None and kept else array
        return found

    def _steps(self, split: Sequence[int]) -> Iterator[tuple[int, int, Arrays]]:
        inputs = start_over(self.session, self.inputs)
        ends = [sum(split[:i]) for i in range(len(split) + 1)]
        for begin, end in pairwise(ends):
            if self.progress is not None:
                said = f"tokens in parts of {words_of(split)}, {begin} of {ends[-1]}"
                self.progress(said, begin / ends[-1])
            part = {
                name: tokens_of(value, self.axes.get(name), begin, end)
                for name, value in inputs.items()
            }
            yield begin, end, self.session.step(part)

    def _states(self, specs: Sequence[StateSpec], tokens: int) -> Arrays:
        found = {spec.input: self.wanted.state(spec, tokens) for spec in specs}
        return {name: value for name, value in found.items() if value is not None}

    def _rows(
        self, kind: str, found: Comparison, split: Sequence[int], against: str
    ) -> Iterator[Row]:
        modules = {spec.input: spec.module for spec in self.states}
        for deviation in found.deviations():
            yield _row(kind, modules.get(deviation.name, ""), split, against, deviation)


def first_tokens(
    inputs: Arrays, axes: Mapping[str, tuple[int, int]], tokens: int
) -> dict[str, Array]:
    """The beginning of inputs whose time lies as `axes` says."""
    return {name: tokens_of(value, axes.get(name), 0, tokens) for name, value in inputs.items()}


def tokens_in(inputs: Arrays, axes: Mapping[str, tuple[int, int]]) -> int:
    """How many tokens `inputs` have; 1 where none of them has time."""
    found = (inputs[name].shape[axis] // each for name, (axis, each) in axes.items())
    return next(found, 1)


def _row(kind: str, module: str, split: Sequence[int], against: str, found: Deviation) -> Row:
    return Row(kind=kind, module=module, split=words_of(split), against=against, found=found)


def _at(array: Array, at: tuple[int, int] | None, token: int) -> Array:
    """What belongs to one token; without an axis of time where it has one entry alone."""
    if at is None:
        return array
    found = tokens_of(array, at, token, token + 1)
    return found.squeeze(at[0]) if at[1] == 1 else found


def splits_of(steps: int, blocks: Sequence[int] = ()) -> list[list[int]]:
    """One at a time, all at once, and parts that end where states are compared.

    Where calls end after certain tokens alone: each as soon as it may, all at once, and in two.
    """
    if blocks:
        first = last_end(blocks, steps // 2)
        parts = [lengths(blocks, 0, steps), [steps], [first, steps - first]]
        return [part for i, part in enumerate(parts) if 0 not in part and part not in parts[:i]]
    third = steps - 2 * (steps - STATE_STEPS[-1]) // 3  # so that two long parts follow
    ends = sorted({0, *(n for n in (*STATE_STEPS, third) if n < steps), steps})
    splits = [[1] * steps, [steps], [b - a for a, b in pairwise(ends)]]
    return [split for i, split in enumerate(splits) if split not in splits[:i]]


def words_of(split: Sequence[int]) -> str:
    """A split for people: ``512 x 1``, ``1 + 1 + 61``."""
    if len(set(split)) == 1:
        return f"{len(split)} x {split[0]}"
    return " + ".join(map(str, split))
