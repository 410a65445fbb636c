"""Which token comes next, by the scores of all: options, in the order in which they are applied.

1. `repetition_penalty` divides the positive scores of tokens that the row holds, and multiplies
   negative ones (CTRL, Keskar et al. 2019, arXiv:1909.05858, section 4.1).
2. `temperature` divides all scores; 0 takes the likeliest token, and the others have no effect.
3. `top_k` keeps the likeliest tokens (Fan et al. 2018, arXiv:1805.04833).
4. `top_p` keeps, of these, the fewest whose probabilities sum to that share (nucleus sampling,
   Holtzman et al. 2020, arXiv:1904.09751).
5. `min_p` keeps, of these, those at least that share as likely as the likeliest (Nguyen et al.
   2024, arXiv:2407.01082).

The probabilities of what is left are made to sum to 1 again.  That is the order, and those are the
results, of the logits processors of Hugging Face's `generate`, ties at `top_k` included.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, TypedDict

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.arrays import Array

_SORTED = 1024  # tokens that are looked at for a nucleus before more are

Probabilities = npt.NDArray[np.float64]


class SamplingOptions(TypedDict, total=False):
    """Options of a draw; one that is None is left out."""

    temperature: Annotated[
        float | None,
        "divisor of the scores; 0 always takes the likeliest token; 1 if top_k, top_p or min_p "
        "is given, else 0.",
    ]
    top_k: Annotated[int | None, "how many of the likeliest tokens to draw from."]
    top_p: Annotated[float | None, "the share of probability to draw from, in (0, 1]."]
    min_p: Annotated[
        float | None, "least probability to draw from, as a share of the greatest, in [0, 1]."
    ]
    repetition_penalty: Annotated[
        float | None, "makes tokens that the row holds less likely; above 0, 1 changes nothing."
    ]


@dataclass(frozen=True)
class Sampling:
    """How the next token of a row is drawn; see the module for what each option does."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        top_k, top_p, min_p, penalty = self.top_k, self.top_p, self.min_p, self.repetition_penalty
        for name, value, holds, should in (
            (
                "temperature",
                self.temperature,
                0 <= self.temperature < np.inf,
                "a number of at least 0",
            ),
            ("top_k", top_k, top_k is None or top_k >= 1, "at least 1"),
            ("top_p", top_p, top_p is None or 0 < top_p <= 1, "in (0, 1]"),
            ("min_p", min_p, min_p is None or 0 <= min_p <= 1, "in [0, 1]"),
            ("repetition_penalty", penalty, 0 < penalty < np.inf, "a number above 0"),
        ):
            if not holds:
                raise InputError(f"{name} is {value}, should be {should}.")

    def probabilities(self, logits: Array, held: Collection[int] = ()) -> Probabilities:
        """The distribution of the next token, float64 [vocabulary].

        Args:
            logits: [vocabulary].
            held: tokens that the row holds, for the repetition penalty.
        """
        scores = self._scores(logits, held)
        if self.temperature == 0:
            found = np.zeros(len(scores))
            found[scores.argmax()] = 1
            return found
        with np.errstate(over="ignore"):  # of a tiny temperature: all but the likeliest are out
            weights: Probabilities = np.exp((scores - scores.max()) / self.temperature)
        if self.top_k is not None and self.top_k < len(weights):
            last = np.partition(scores, -self.top_k)[-self.top_k]
            weights[scores < last] = 0
        if self.top_p is not None and self.top_p < 1:
            weights = _nucleus(weights, self.top_p)
        if self.min_p is not None:
            weights[weights < self.min_p] = 0  # the weight of the likeliest is 1
        weights /= weights.sum()
        return weights

    def draw(self, logits: Array, random: np.random.Generator, held: Collection[int] = ()) -> int:
        """A token by its `logits` [vocabulary]; see `probabilities`."""
        if self.temperature == 0:
            unchanged = self.repetition_penalty == 1
            return int((logits if unchanged else self._scores(logits, held)).argmax())
        return draw_from(self.probabilities(logits, held), random)

    def _scores(self, logits: Array, held: Collection[int]) -> npt.NDArray[np.float64]:
        scores = logits.astype(np.float64)
        if self.repetition_penalty != 1 and held:
            ids = np.fromiter(held, np.int64, len(held))
            ids = ids[ids < len(scores)]  # a model may read tokens that it never gives
            some, penalty = scores[ids], self.repetition_penalty
            scores[ids] = np.where(some < 0, some * penalty, some / penalty)
        return scores


def sampling(options: SamplingOptions) -> Sampling:
    """The record of `options`.

    Raises:
        InputError: if a value means nothing.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if given.keys() & {"top_k", "top_p", "min_p"}:  # they are given in order to draw
        given.setdefault("temperature", 1.0)
    return Sampling(**given)  # type: ignore[arg-type]


def draw_from(probabilities: Probabilities, random: np.random.Generator) -> int:
    """A token by the `probabilities` [vocabulary] of all, which sum to about 1."""
    totals = np.cumsum(probabilities)
    token = int(np.searchsorted(totals, random.random() * totals[-1], side="right"))
    if token == len(totals):  # the product was rounded up to the sum
        token = int(np.flatnonzero(probabilities)[-1])
    return token


def _nucleus(weights: Probabilities, share: float) -> Probabilities:
    """The greatest of `weights` that sum to `share` of all, and 0 for the others."""
    least, count = share * weights.sum(), min(_SORTED, len(weights))
    while True:
        some = np.argpartition(-weights, count - 1)[:count]
        if count == len(weights) or weights[some].sum() >= least:
            break
        count = min(8 * count, len(weights))
    some = some[np.lexsort((some, -weights[some]))]
    kept = some[: np.searchsorted(np.cumsum(weights[some]), least) + 1]
    found = np.zeros_like(weights)
    found[kept] = weights[kept]
    return found
