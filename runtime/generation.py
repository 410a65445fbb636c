"""Generating tokens with a session: greedy or sampled, one token a step, until a stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.keywords import spelled_out
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.sampling import Sampling, SamplingOptions, sampling
from intaglio.runtime.session import Session

PROMPT_STEP = 512  # tokens of a prompt consumed at once, which bounds the memory of its logits

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
Stop = Sequence[int | Tokens]


@dataclass(frozen=True)
class GeneratedRows:
    """What one step generated.

    Attributes:
        tokens: int64 [batch], the next token of each row; -1 where a row had ended before.
        finished: bool [batch], whether a row has ended, with this token or before.
    """

    tokens: npt.NDArray[np.int64]
    finished: npt.NDArray[np.bool_]


@spelled_out
def generate(
    session: Session,
    prompt_ids: Tokens,
    *,
    max_new_tokens: int,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
    **options: Unpack[SamplingOptions],
) -> Iterator[int]:
    """Generate tokens for one row, as they come.

    The session continues from its state; afterwards it has consumed the prompt and all generated
    tokens but the last.

    Args:
        session: of a bundle whose only input is tokens, int64 [batch, time].
        prompt_ids: at least one token.
        max_new_tokens: where to end, if no stop comes before.
        seed: of the draws; the same seed gives the same tokens.
        stop: tokens, or sequences of tokens, that end generation; they are generated themselves.
        logits: name of the output [batch, time, vocabulary].
        **options: how tokens are drawn, see `intaglio.runtime.sampling`.

    Yields:
        Tokens.

    Raises:
        InputError: if an argument does not fit the session.
        StateError: if the session holds several rows, or has no room for a token.
    """
    rows = generate_rows(
        session,
        [prompt_ids],
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=stop,
        logits=logits,
        **options,
    )
    return (int(row.tokens[0]) for row in rows)


@spelled_out
def generate_rows(
    session: Session,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    samplings: Sequence[Sampling] | None = None,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
    **options: Unpack[SamplingOptions],
) -> Iterator[GeneratedRows]:
    """Generate tokens for several rows at once, as `generate` does for one.

    Prompts may be of unequal length.  A row that has ended is left out of later steps; each row
    draws from a random stream of its own.

    Args:
        session: as `generate` takes it.
        prompts: of each row.
        max_new_tokens: of each row, if no stop comes before.
        samplings: how each row draws, in place of the options, which hold for all rows.
        seed: of the draws of all rows.
        stop: ends a row, as `generate` takes it.
        logits: name of the output [batch, time, vocabulary].
        **options: how tokens are drawn, see `intaglio.runtime.sampling`.
    """
    name = _token_input(session, logits)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}, should be at least 0.")
    endings = [tuple(s) if isinstance(s, Sequence | np.ndarray) else (s,) for s in stop]
    if not all(endings):
        raise InputError(f"stop is {stop!r}, but an empty sequence cannot end a row.")
    chosen = sampling(options)
    if samplings is not None and any(value is not None for value in options.values()):
        raise InputError(f"samplings says how each row draws: leave out {', '.join(options)}.")
    ids, lengths = _padded(prompts)
    each = [chosen] * len(ids) if samplings is None else list(samplings)
    if len(each) != len(ids):
        raise InputError(f"samplings has {len(each)} entries for {len(ids)} rows.")
    seeds = np.random.SeedSequence(seed).spawn(len(ids))
    rows = [
        _Row(how, endings, np.random.default_rng(own), row[:length])
        for how, own, row, length in zip(each, seeds, ids, lengths, strict=True)
    ]
    return _stream(session, name, logits, ids, lengths, rows, max_new_tokens)


class _Row:
    """One row's random stream, and its tokens as far as stops and penalties may need them."""

    def __init__(
        self,
        sampling: Sampling,
        endings: Sequence[tuple[int, ...]],
        random: np.random.Generator,
        prompt: npt.NDArray[np.int64],
    ) -> None:
        self.finished = False
        self._sampling = sampling
        self._endings = endings
        self._random = random
        self._tail: list[int] = []
        self._kept = max(map(len, endings), default=1)
        self._held = set(prompt.tolist())

    def draw(self, scores: Array) -> int:
        """The next token, -1 once the row has ended."""
        if self.finished:
            return -1
        token = self._sampling.draw(scores, self._random, self._held)
        self._held.add(token)
        self._tail = [*self._tail, token][-self._kept :]
        self.finished = any(tuple(self._tail[-len(end) :]) == end for end in self._endings)
        return token


def _stream(
    session: Session,
    name: str,
    logits: str,
    ids: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    rows: Sequence[_Row],
    count: int,
) -> Iterator[GeneratedRows]:
    if count == 0:
        return
    scores = _consume(session, name, logits, ids, lengths)
    for left in reversed(range(count)):
        tokens = np.array([row.draw(s) for row, s in zip(rows, scores, strict=True)], np.int64)
        finished = np.array([row.finished for row in rows])
        yield GeneratedRows(tokens, finished)
        if finished.all() or not left:
            return
        counts = (~finished).astype(np.int64) if finished.any() else None
        scores = session.step({name: tokens[:, None]}, lengths=counts)[logits][:, -1]


def _consume(
    session: Session,
    name: str,
    logits: str,
    ids: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
) -> Array:
    """Step through the prompts; the logits after the last token of each row."""
    scores: dict[int, Array] = {}
    for start in range(0, ids.shape[1], PROMPT_STEP):
        part = ids[:, start : start + PROMPT_STEP]
        counts = np.clip(lengths - start, 0, part.shape[1])
        output = session.step({name: part}, lengths=counts)[logits]
        scores |= {int(row): output[row, counts[row] - 1] for row in np.flatnonzero(counts)}
    return np.stack([scores[row] for row in range(len(ids))])


def _padded(prompts: Sequence[Tokens]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    arrays = [np.asarray(prompt) for prompt in prompts]
    for row, array in enumerate(arrays):
        if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"The prompt of row {row} is {prompts[row]!r}, should be one or more integers."
            )
    if not arrays:
        raise InputError("There is no prompt. Give at least one row.")
    lengths = np.array([len(array) for array in arrays])
    ids = np.zeros((len(arrays), lengths.max()), np.int64)
    for row, array in zip(ids, arrays, strict=True):
        row[: len(array)] = array
    return ids, lengths


def _token_input(session: Session, logits: str) -> str:
    """Name of the input of tokens, of a session fit for generation."""
    entry = session.entry
    if entry.whole:
        raise InputError(
            "Generation needs a model that goes on from what it has seen; this bundle takes whole "
            "sequences, in which each token sees all others. Call session.step with one."
        )
    names = [spec.name for spec in entry.inputs]
    if len(names) != 1 or len(entry.inputs[0].shape) != 2:
        raise InputError(
            f"Generation needs a model that takes tokens [batch, time] alone; this one takes "
            f"{', '.join(names)}. Call session.step yourself."
        )
    outputs = {spec.name: spec for spec in entry.outputs}
    if logits not in outputs or len(outputs[logits].shape) != 3:
        raise InputError(
            f"Generation needs logits [batch, time, vocabulary], and there is no such output "
            f"{logits!r}; the bundle gives {', '.join(map(_shaped, outputs.values()))}. Name one "
            "with logits=; a bundle that was exported with --last gives none for each token."
        )
    return names[0]


def _shaped(spec: TensorSpec) -> str:
    return f"{spec.name} [{', '.join(map(str, spec.shape))}]"
