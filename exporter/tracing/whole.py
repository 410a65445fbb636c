"""Whether a model takes whole inputs, or can be stepped: said by the user, or found by running it.

A model without an axis of time is whole, and so is one whose results for a token change with later
tokens, or that gives one result for all of them: nothing that is carried between calls could serve
it.  One result of the vocabulary is what a language model gives for its last token.  A model that
looks back alone is stepped; where that fails, the user says which it should be.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from intaglio.errors import OptionError, SourceError
from intaglio.exporter.sources.outputs import is_reserved, vocabularies
from intaglio.exporter.sources.source import Source
from intaglio.state import PAST_LENGTH, TIME

from .pace import paced
from .running import Run, runner

Results = dict[str, npt.NDArray[Any]]

MOVED = 1e-4  # of the largest value: beyond what sums in another order make
EQUAL = 1e-6  # of the largest value: what does not change at all, but for rounding
MORE = 2  # tokens that tell an axis of time from others

AS_STEPS = "To step through it all the same, say that it is not whole: --no-whole."
AS_WHOLE = "To export it for whole inputs, with nothing carried between calls: --whole."


def settled(source: Source, asked: bool | None) -> Source:
    """The source, whole or not: as `asked`, or as it is found.

    Raises:
        SourceError: if it is stepped, and an input has a name that step graphs keep.
    """
    others = {name: settled(other, asked) for name, other in source.others.items()}
    source = replace(source, others=others) if others else source
    found = source
    if not source.states:  # which compute one step, and say so themselves
        counted = source if source.whole or asked else paced(source)
        found = _found(counted) if asked is None else replace(counted, whole=asked)
        if found.whole and counted is not source:  # whole inputs are counted in entries
            said = found.notes[len(counted.notes) :]
            found = replace(source, whole=True, notes=(*source.notes, *said))
    own = {state.input for state in source.states}
    names = [] if found.whole else [n for n in source.dynamic if n not in own or n == PAST_LENGTH]
    reserved = [name for name in names if is_reserved(name)]
    if reserved:
        raise SourceError(
            f"The input {reserved[0]!r} has a name that step graphs keep for what they carry. "
            f"Rename that argument of forward. {AS_WHOLE}"
        )
    return found


def require_stepped(source: Source, conditions: Sequence[str]) -> None:
    """Refuse conditions of what takes all its inputs in each call.

    Args:
        source: as `settled` returns it.
        conditions: inputs that are asked to be given once for a sequence.

    Raises:
        OptionError: if no graph that is stepped through tokens takes one of them.
    """
    graphs = (source, *source.others.values())
    for name in conditions:
        taking = [each for each in graphs if name in each.dynamic]
        if taking and all(each.whole or each.states for each in taking):
            carried = ", ".join(state.input for each in taking for state in each.states)
            why = f"carries its own states ({carried})" if carried else "takes whole inputs"
            raise OptionError(
                f"--condition names {name!r}, but the model {why}: each call takes {name!r} anew, "
                "and nothing holds for a sequence of calls. Leave --condition out, or keep time as "
                "an axis of the other inputs."
            )


def _found(source: Source) -> Source:
    if source.whole:
        return source
    why = _why_whole(source)
    if not why:
        return source
    return replace(source, whole=True, notes=(*source.notes, f"Exported whole: {why}"))


def _why_whole(source: Source) -> str:
    if TIME not in source.symbols:
        return "it has no axis of time, and each call takes all of its inputs."
    try:
        run = runner(source)
        axes = _time_axes(source, run)
    except Exception:  # noqa: BLE001  what does not run is told where it is traced
        return ""
    if not any(axis is not None for axis in axes.values()):
        if _tells_next_token(source, run):
            return ""
        return f"it gives one result for all tokens together. {AS_STEPS}"
    ahead = _looks_ahead(source, run, axes)
    if not ahead or _in_blocks(source, run, axes):
        return ""
    return f"{ahead!r} of a token changes with later tokens."


def _tells_next_token(source: Source, run: Run) -> bool:
    """Whether all results are of the vocabulary: a language model gives those of its last token."""
    if not isinstance(source.body, nn.Module):
        return False
    largest = max(vocabularies(source.body), default=0)
    return all(x.shape[-1:] == (largest,) for x in run(source.inputs).values())


def _time_axes(source: Source, run: Run) -> dict[str, int | None]:
    """The axis of each output that has a size for each number of tokens, None for none."""
    step = source.spans[TIME].step if TIME in source.spans and source.pace == 1 else 1
    more = source.draw({TIME: source.sizes[TIME] + MORE * step}, 0)
    first, second = run(source.inputs), run(more)
    return {
        name: next(
            (i for i, (n, m) in enumerate(zip(x.shape, second[name].shape, strict=True)) if n != m),
            None,
        )
        for name, x in first.items()
    }


def _looks_ahead(source: Source, run: Run, axes: dict[str, int | None]) -> str:
    """The first output in which an earlier token changes with the last one; empty for none."""
    tokens = source.sizes[TIME]
    inputs = source.inputs
    changed = _last_changed(source, inputs)
    first, again, second = run(inputs), run(inputs), run(changed)
    for name, axis in axes.items():
        if axis is None or first[name].shape[axis] % tokens:
            continue
        earlier = range(first[name].shape[axis] // tokens * (tokens - 1))
        a, b, noise = (
            each[name].astype(np.float64).take(earlier, axis) for each in (first, second, again)
        )
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        same = np.allclose(a, noise, rtol=0, atol=0, equal_nan=True)
        if same and not np.allclose(a, b, rtol=0, atol=MOVED * scale, equal_nan=True):
            return name
    return ""


def _in_blocks(source: Source, run: Run, axes: dict[str, int | None]) -> bool:
    """Whether there is a token before which nothing changes with those from it on.

    Then tokens look ahead within blocks, which calls may take whole.
    """
    tokens, inputs = source.sizes[TIME], source.inputs
    first = run(inputs)
    return any(
        _same_before(first, run(_last_changed(source, inputs, tokens - end)), axes, end, tokens)
        for end in range(1, tokens)
    )


def _same_before(
    first: Results, second: Results, axes: dict[str, int | None], end: int, tokens: int
) -> bool:
    """Whether two results agree in all that belongs to the first `end` of `tokens`."""
    for name, axis in axes.items():
        if axis is None or first[name].shape[axis] % tokens:
            return False
        before = range(first[name].shape[axis] // tokens * end)
        a, b = (each[name].astype(np.float64).take(before, axis) for each in (first, second))
        scale = np.abs(a[np.isfinite(a)]).max(initial=0)
        if not np.allclose(a, b, rtol=0, atol=EQUAL * scale, equal_nan=True):
            return False
    return True


def _last_changed(source: Source, inputs: dict[str, Tensor], count: int = 1) -> dict[str, Tensor]:
    """The inputs with other values at the last `count` tokens."""
    others = source.draw({}, 1)
    changed = {}
    for name, value in inputs.items():
        copy = value.clone()
        for axis, symbol in source.dynamic.get(name, {}).items():
            if symbol == TIME:
                entries = count * source.pace
                last = (axis, copy.shape[axis] - entries, entries)
                copy.narrow(*last).copy_(others[name].narrow(*last))
        changed[name] = copy
    return changed
