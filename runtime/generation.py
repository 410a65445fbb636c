"""Generating tokens with a session: greedy or sampled, one token a step, until a stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array
from intaglio.runtime.graph_entry import TensorSpec
from intaglio.runtime.session import Session

PROMPT_STEP = 512  # tokens of a prompt consumed at once, which bounds the memory of its logits

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
Stop = Sequence[int | Tokens]


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn from logits.

    The `top_k` most likely tokens remain, of those the fewest whose probabilities sum to at least
    `top_p` (nucleus sampling, Holtzman et al. 2020, arXiv:1904.09751), and one of them is drawn.
    A `temperature` of 0 takes the most likely token.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        for name, value, holds, should in (
            ("temperature", self.temperature, self.temperature >= 0, "at least 0"),
            ("top_k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top_p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "in (0, 1]"),
        ):
            if not holds:
                raise InputError(f"{name} is {value}, should be {should}.")

    def draw(self, logits: Array, random: np.random.Generator) -> int:
        """A token by its `logits` [vocabulary]."""
        if self.temperature == 0:
            return int(logits.argmax())
        tokens = np.argsort(-logits, kind="stable")[: self.top_k]
        scaled = logits[tokens].astype(np.float64) / self.temperature
        weights = np.exp(scaled - scaled[0])
        totals = np.cumsum(weights)
        if self.top_p is not None:
            totals = totals[: np.searchsorted(totals, self.top_p * totals[-1]) + 1]
        chosen = np.searchsorted(totals, random.random() * totals[-1], side="right")
        return int(tokens[min(chosen, len(totals) - 1)])


@dataclass(frozen=True)
class GeneratedRows:
    """What one step generated.

    Attributes:
        tokens: int64 [batch], the next token of each row; -1 where a row had ended before.
        finished: bool [batch], whether a row has ended, with this token or before.
    """

    tokens: npt.NDArray[np.int64]
    finished: npt.NDArray[np.bool_]


def generate(
    session: Session,
    prompt_ids: Tokens,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
) -> Iterator[int]:
    """Generate tokens for one row, as they come.

    The session continues from its state; afterwards it has consumed the prompt and all generated
    tokens but the last.

    Args:
        session: of a bundle whose only input is tokens, int64 [batch, time].
        prompt_ids: at least one token.
        max_new_tokens: where to end, if no stop comes before.
        temperature: divisor of the logits; 0 always takes the most likely token.
        top_k: how many of the most likely tokens to draw from.
        top_p: the share of probability to draw from, in (0, 1].
        seed: of the draws; the same seed gives the same tokens.
        stop: tokens, or sequences of tokens, that end generation; they are generated themselves.
        logits: name of the output [batch, time, vocabulary].

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
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        logits=logits,
    )
    return (int(row.tokens[0]) for row in rows)


def generate_rows(
    session: Session,
    prompts: Sequence[Tokens],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
) -> Iterator[GeneratedRows]:
    """Generate tokens for several rows at once, as `generate` does for one.

    Prompts may be of unequal length.  A row that has ended is left out of later steps; each row
    draws from a random stream of its own.
    """
    name = _token_input(session, logits)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}, should be at least 0.")
    endings = [tuple(s) if isinstance(s, Sequence | np.ndarray) else (s,) for s in stop]
    if not all(endings):
        raise InputError(f"stop is {stop!r}, but an empty sequence cannot end a row.")
    sampling = Sampling(temperature, top_k, top_p)
    ids, lengths = _padded(prompts)
    seeds = np.random.SeedSequence(seed).spawn(len(ids))
    rows = [_Row(sampling, endings, np.random.default_rng(seed)) for seed in seeds]
    return _stream(session, name, logits, ids, lengths, rows, max_new_tokens)


class _Row:
    """One row's random stream, and its tokens as far as a stop may need them."""

    def __init__(
        self, sampling: Sampling, endings: Sequence[tuple[int, ...]], random: np.random.Generator
    ) -> None:
        self.finished = False
        self._sampling = sampling
        self._endings = endings
        self._random = random
        self._tail: list[int] = []
        self._kept = max(map(len, endings), default=1)

    def draw(self, scores: Array) -> int:
        """The next token, -1 once the row has ended."""
        if self.finished:
            return -1
        token = self._sampling.draw(scores, self._random)
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
