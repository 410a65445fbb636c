"""Generating tokens with a session: greedy or sampled, one token a step, until a stop."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.keywords import spelled_out
from intaglio.runtime.arrays import Array
from intaglio.runtime.sampled_row import SampledRow
from intaglio.runtime.sampling import Sampling, SamplingOptions, sampling
from intaglio.runtime.session import Session
from intaglio.runtime.speculative import Draft, Speculation
from intaglio.runtime.token_reader import TokenReader

Tokens = Sequence[int] | npt.NDArray[np.integer[Any]]
Stop = Sequence[int | Tokens]


@dataclass(frozen=True)
class GeneratedRows:
    """What one step generated.

    Attributes:
        tokens: int64 [batch], the next token of each row; -1 where a row had ended before, or,
            with a draft, where others got more tokens of one step.
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
    draft: Draft | None = None,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
    consumed: Tokens = (),
    **options: Unpack[SamplingOptions],
) -> Iterator[int]:
    """Generate tokens for one row, as they come.

    The session continues from its state; afterwards it has consumed the prompt and all generated
    tokens but the last.

    Args:
        session: of a bundle whose only input is tokens, int64 [batch, time].
        prompt_ids: at least one token.
        max_new_tokens: where to end, if no stop comes before.
        draft: a small model that proposes tokens, of which a step of this one takes as many as
            fit: the same greedy tokens, the same distribution of others, in fewer steps.  Its
            session stands where this one does, before and after.
        seed: of the draws; the same seed gives the same tokens.
        stop: tokens, or sequences of tokens, that end generation; they are generated themselves.
        logits: name of the output [batch, time, vocabulary].
        consumed: tokens that the session has consumed before, for a penalty to count.
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
        draft=draft,
        seed=seed,
        stop=stop,
        logits=logits,
        consumed=[consumed],
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
    draft: Draft | None = None,
    seed: int | None = None,
    stop: Stop = (),
    logits: str = "logits",
    consumed: Sequence[Tokens] | None = None,
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
        draft: as `generate` takes it, with as many rows; each accepts as many tokens as fit it.
        seed: of the draws of all rows.
        stop: ends a row, as `generate` takes it.
        logits: name of the output [batch, time, vocabulary].
        consumed: of each row, tokens that the session has consumed before, for a penalty to count.
        **options: how tokens are drawn, see `intaglio.runtime.sampling`.
    """
    reader = TokenReader(session, logits)
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}, should be at least 0.")
    endings = [tuple(s) if isinstance(s, Sequence | np.ndarray) else (s,) for s in stop]
    if not all(endings):
        raise InputError(f"stop is {stop!r}, but an empty sequence cannot end a row.")
    chosen = sampling(options)
    if samplings is not None and any(value is not None for value in options.values()):
        raise InputError(f"samplings says how each row draws: leave out {', '.join(options)}.")
    given = _checked(prompts)
    each = [chosen] * len(given) if samplings is None else list(samplings)
    if len(each) != len(given):
        raise InputError(f"samplings has {len(each)} entries for {len(given)} rows.")
    seeds = np.random.SeedSequence(seed).spawn(len(given))
    rows = [
        SampledRow(how, endings, np.random.default_rng(own), prompt, max_new_tokens)
        for how, own, prompt in zip(each, seeds, given, strict=True)
    ]
    for row, before in zip(rows, consumed or [()] * len(rows), strict=True):
        row.count(before)
    speculation = None if draft is None else Speculation(reader, draft, logits, rows)
    if not max_new_tokens:
        return iter(())
    if speculation is not None:
        return _drafted(speculation, rows)
    return _plain(reader, given, rows)


def _plain(
    reader: TokenReader, prompts: Sequence[Sequence[int]], rows: Sequence[SampledRow]
) -> Iterator[GeneratedRows]:
    """A step for each token of all rows."""
    scores: Sequence[Array] | Array = [found[-1] for found in reader.read(prompts)]
    for left in reversed(range(rows[0].left)):
        tokens = np.array(
            [-1 if row.ended else row.draw(s) for row, s in zip(rows, scores, strict=True)],
            np.int64,
        )
        finished = np.array([row.ended for row in rows])
        yield GeneratedRows(tokens, finished)
        if finished.all() or not left:
            return
        counts = (~finished).astype(np.int64) if finished.any() else None
        scores = reader.step(tokens, counts)


def _drafted(speculation: Speculation, rows: Sequence[SampledRow]) -> Iterator[GeneratedRows]:
    """What each step gave, token by token; sessions are left as `_plain` leaves them."""
    told = [0] * len(rows)
    try:
        for block in speculation.blocks():
            for index in range(max(map(len, block))):
                tokens = np.array([new[index] if index < len(new) else -1 for new in block])
                told = [n + (index < len(new)) for n, new in zip(told, block, strict=True)]
                ended = [
                    row.ended and n == len(row.made) for row, n in zip(rows, told, strict=True)
                ]
                yield GeneratedRows(tokens, np.array(ended))
    except GeneratorExit:  # whoever asked has stopped asking
        speculation.settle(told)
        raise
    speculation.settle(told)


def _checked(prompts: Sequence[Tokens]) -> list[list[int]]:
    """Prompts as lists of one or more tokens."""
    found = []
    for row, prompt in enumerate(prompts):
        array = np.asarray(prompt)
        if array.ndim == 1 and not array.size:
            raise InputError(f"The prompt of row {row} is empty: give one token at least.")
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise InputError(
                f"The prompt of row {row} is {prompt!r}, should be one or more integers."
            )
        found.append([int(token) for token in array])
    if not found:
        raise InputError("There is no prompt. Give at least one row.")
    return found
