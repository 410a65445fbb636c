"""What `intaglio run` does: continue a text, or step through arrays, and time each step."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.call_ends import lengths
from intaglio.errors import InputError
from intaglio.runtime.consumed import Consumed
from intaglio.runtime.generation import generate
from intaglio.runtime.graph_entry import GraphEntry, TensorSpec
from intaglio.runtime.session import Session
from intaglio.state import BATCH, time_of
from intaglio.whole_files import output

from .chat import Texts
from .codecs import Codec, TokenizerCodec

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Latency:
    """Seconds of each step; the first one consumed the prompt if there was one.

    Of tokens that a draft proposed several come at once: `drafted` has the mean of all told.
    """

    seconds: Sequence[float]
    prompt: int
    drafted: bool = False

    def to_json(self) -> dict[str, Any]:
        """Milliseconds of the prompt, and mean, median and 90th percentile of the steps after."""
        first, rest = self.seconds[:1], self.seconds[1:] if self.prompt else self.seconds
        median, p90 = (float(np.percentile(rest, q)) * 1e3 if rest else None for q in (50, 90))
        return {
            "prompt_tokens": self.prompt,
            "prompt_ms": first[0] * 1e3 if self.prompt and first else None,
            "steps": len(rest),
            "mean_ms": float(np.mean(rest)) * 1e3 if rest else None,
            "median_ms": median,
            "p90_ms": p90,
        }

    def __str__(self) -> str:
        """One line for people."""
        values = self.to_json()
        parts = []
        if values["prompt_ms"] is not None:
            parts.append(f"prompt of {self.prompt} tokens in {values['prompt_ms']:.2f} ms")
        if values["steps"] and self.drafted:
            parts.append(f"{values['steps']} tokens, each {values['mean_ms']:.2f} ms (mean)")
        elif values["steps"]:
            parts.append(
                f"{values['steps']} steps, each {values['median_ms']:.2f} ms (median), "
                f"{values['p90_ms']:.2f} ms (p90)"
            )
        return ", ".join(parts)


def continue_text(
    session: Session,
    prompt: str | Sequence[int],
    stop: Sequence[str],
    tell: Callable[[str, int | None], None],
    words: Codec | None = None,
    held: Consumed | None = None,
    **options: Any,
) -> tuple[list[int], str, Latency]:
    """Generate tokens after `prompt`, telling their text as it comes.

    Args:
        session: of a language model.
        prompt: what to continue, as the codec reads it, or tokens that it has read.
        stop: texts that end generation.
        tell: is given each piece of text and the token that completed it, None where none did.
        words: the codec; the bundle's own without one.
        held: what the session has consumed, to go on from what `prompt` has in common with it.
        options: of `intaglio.runtime.generate`.

    Returns:
        The tokens, their text, and the time that each took, drawing included.

    Raises:
        InputError: if the bundle is no language model, or an option does not fit it.
    """
    words = words or Texts.of(session).codec(session.entry)
    ids = words.encode(prompt) if isinstance(prompt, str) else prompt
    make = partial(generate, session) if held is None else held.generate
    tokens = make(
        ids,
        stop=words.endings(stop),
        logits=session.entry.outputs[0].name,
        **options,
    )
    made, pieces, seconds = [], [], []
    for token, spent in _timed(tokens):
        made.append(token)
        seconds.append(spent)
        pieces.append(words.decode(token))
        tell(pieces[-1], token)
        if isinstance(words, TokenizerCodec) and _ends(pieces, stop):
            break
    if rest := words.finish():
        pieces.append(rest)
        tell(rest, None)
    given = len(ids) - (0 if held is None else held.kept)
    return made, "".join(pieces), Latency(seconds, given, options.get("draft") is not None)


def _ends(pieces: Sequence[str], stop: Sequence[str]) -> bool:
    """Whether the last piece completes one of the texts `stop`."""
    tail = "".join(pieces)
    return any(text in tail[-len(pieces[-1]) - len(text) :] for text in stop if pieces[-1])


def _timed(tokens: Iterator[int]) -> Iterator[tuple[int, float]]:
    start = time.perf_counter()
    for token in tokens:
        yield token, time.perf_counter() - start
        start = time.perf_counter()


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write arrays as .npz, under the very name that was given."""
    with output(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def rows_of(entry: GraphEntry, arrays: Mapping[str, Array]) -> int:
    """How many rows arrays by name hold; 1 where no input is of rows."""
    found = (arrays[s.name] for s in entry.inputs if s.name in arrays and s.shape[:1] == (BATCH,))
    return next((len(array) for array in found if array.ndim), 1)


def step_arrays(
    session: Session, arrays: Mapping[str, Array], steps: int | None = None
) -> tuple[dict[str, Array], Latency]:
    """Give arrays to the session one time step after the other, at most `steps` of them.

    Tokens that see each other are one step.

    A graph of whole inputs gets them at once.  One without time, as of a cell, takes a step of
    each entry along an axis more than its inputs have, behind that of the rows: [batch, time, ...].

    Returns:
        The outputs of all steps joined along time, or of the last one where an output has no time.

    Raises:
        InputError: if the arrays do not fit the bundle.
    """
    entry = session.entry
    if entry.whole:
        start = time.perf_counter()
        outputs = session.step(arrays)
        return outputs, Latency([time.perf_counter() - start], 0)
    timeless = all(time_of(spec.shape) is None for spec in entry.inputs)
    specs = [spec for spec in entry.inputs if spec.name in arrays]
    found = {spec.name: _time(spec, arrays[spec.name]) for spec in specs}
    axes = {name: axis for name, axis in found.items() if axis is not None}
    if timeless and not axes:
        arrays, axes = {n: x[None] for n, x in arrays.items()}, dict.fromkeys(arrays, (0, 1))
        steps, single = 1, True
    else:
        single = False
    tokens = _count(arrays, axes, entry)
    calls = [1] * tokens if single else lengths(entry.limits.ends, 0, tokens)
    calls = calls[:steps]
    made, seconds = [], []
    for at, call in zip(accumulate(calls, initial=0), calls, strict=False):
        part = {n: _cut(x, axes.get(n), at, call, drop=timeless) for n, x in arrays.items()}
        start = time.perf_counter()
        made.append(session.step(part))
        seconds.append(time.perf_counter() - start)
    outputs = {}
    for spec in entry.outputs:
        each = [step[spec.name] for step in made]
        if (along := time_of(spec.shape)) is not None:
            outputs[spec.name] = np.concatenate(each, axis=along[0])
        elif timeless and not single:
            outputs[spec.name] = np.stack(each, axis=int(BATCH in spec.shape[:1]))
        else:
            outputs[spec.name] = each[-1]
    return outputs, Latency(seconds, 0)


def _time(spec: TensorSpec, array: Array) -> tuple[int, int] | None:
    """The axis of time in an array for an input, and entries that make a token.

    For one without time it is an axis that the array has more.
    """
    if (along := time_of(spec.shape)) is not None:
        if array.ndim != len(spec.shape):
            shape = ", ".join(map(str, spec.shape))
            raise InputError(
                f"The array {spec.name!r} has the shape {list(array.shape)}; it should be "
                f"[{shape}]."
            )
        return along
    more = array.ndim == len(spec.shape) + 1
    return (int(BATCH in spec.shape[:1]), 1) if more else None


def _count(
    arrays: Mapping[str, Array], axes: Mapping[str, tuple[int, int]], entry: GraphEntry
) -> int:
    lengths = {-(-arrays[name].shape[axis] // each) for name, (axis, each) in axes.items()}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"The arrays {', '.join(axes) or '(none)'} have "
            f"{', '.join(map(str, sorted(lengths))) or 'no'} time steps; they should all have the "
            f"same number, at least one. The bundle takes "
            f"{', '.join(spec.name for spec in entry.inputs)}."
        )
    return int(lengths.pop())


def _cut(
    array: Array, along: tuple[int, int] | None, token: int, count: int, *, drop: bool
) -> Array:
    """The entries of one call: all of an array without time, what is left of them at its end."""
    if along is None:
        return array
    axis, each = along
    places = range(token * each, min((token + count) * each, array.shape[axis]))
    found: Array = array.take(token, axis) if drop else array.take(places, axis)
    return found
