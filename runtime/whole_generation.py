"""Generating a whole, as a picture, from conditions alone: block by block, with several graphs.

A step of main scores the codes of the next block; the block's codes are drawn, each by itself; the
graph `advance` adds them to what is carried and makes the next block of it, and the graph `finish`
makes the result (`intaglio.graphs.Generation`).

Guidance without a classifier (Ho & Salimans 2022, arXiv:2207.12598) takes two rows for each, one
without its condition: scores are (1 + g) with - g without, and g grows from 0 at the first block to
the strength at the last, as in VAR (Tian et al. 2024, arXiv:2404.02905).
"""

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.graphs import AT, CODES, THEN, Generation
from intaglio.runtime.arrays import Array
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.engines import AUTO
from intaglio.runtime.sampling import Sampling
from intaglio.runtime.session import Session
from intaglio.state import BATCH, TIME

Progress = Callable[[int, int], None]


class WholeGenerator:
    """The sessions of a bundle that generates wholes, opened once.

    Attributes:
        main: the session that is stepped.
    """

    def __init__(self, bundle: Bundle, target: str = AUTO, threads: int | None = None) -> None:
        """Open the graphs of `bundle`.

        Raises:
            InputError: if it does not say how it generates, or a step has no known blocks.
            BundleError: if it lacks a graph, or what `Session.load` raises.
        """
        self.main = Session.load(bundle, target, threads=threads)
        plan = self.main.entry.generates
        if plan is None:
            raise InputError(
                f"{bundle.root} does not say how it generates a whole from conditions alone. Give "
                "--prompt or --inputs."
            )
        self._plan: Generation = plan
        if not self.main.entry.limits.ends:
            raise InputError(f"{bundle.root} does not say where the blocks of a step end.")
        self._ends = self.main.entry.limits.ends
        self._advance, self._finish = (
            Session.load(bundle, target, graph=name, threads=threads)
            for name in (plan.advance, plan.finish)
        )

    def generate(
        self,
        conditions: Mapping[str, npt.ArrayLike],
        *,
        guidance: float = 0.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int | None = None,
        progress: Progress | None = None,
    ) -> dict[str, Array]:
        """A whole for each row of `conditions`.

        Args:
            conditions: arrays by name, as main's `entry.conditions` says.
            guidance: strength at the last block, from 0; takes twice the rows.
            temperature: divisor of the scores; 0 always takes the likeliest code.
            top_k: how many of the likeliest codes to draw from.
            top_p: the share of probability to draw from, in (0, 1].
            min_p: the least probability to draw from, as a share of the greatest.
            seed: of the draws; each row draws from a stream of its own.
            progress: is told after each block how many there were, and are.

        Returns:
            The outputs of the graph that finishes.

        Raises:
            InputError: if a condition does not fit, or guidance is asked of what has none.
        """
        sampling = Sampling(temperature, top_k, top_p, min_p)
        given = {name: np.asarray(value) for name, value in conditions.items()}
        rows = self._rows(given)
        streams = [np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(rows)]
        self.main.state.reset()
        self.main.condition(self._both(given) if guidance else given)
        carried = {name: self._zeros(name, rows) for name in self._plan.carried}
        tokens = self._first(rows)
        for block, end in enumerate(self._ends):
            logits = self._scores(tokens, guidance * block / max(len(self._ends) - 1, 1))
            begin = self._ends[block - 1] if block else 0
            following = self._ends[min(block + 1, len(self._ends) - 1)]
            codes = np.array(
                [
                    [sampling.draw(scores, stream) for scores in row]
                    for row, stream in zip(logits, streams, strict=True)
                ],
                np.int64,
            )
            made = self._advance.step(
                {
                    CODES: codes,
                    AT: np.arange(begin, end),
                    THEN: np.arange(end, max(following, end + 1)) % self._ends[-1],
                    **carried,
                }
            )
            tokens = made[self._plan.tokens]
            carried = {name: made[output] for name, output in self._plan.carried.items()}
            if progress is not None:
                progress(block + 1, len(self._ends))
        return self._finish.step(carried)

    def _scores(self, tokens: Array, strength: float) -> Array:
        """Scores of a block's codes [rows, tokens, codes], guided where rows come twice."""
        doubled = self.main.state.batch != len(tokens) and self.main.state.batch is not None
        given = np.concatenate([tokens, tokens]) if doubled else tokens
        logits = self.main.step({self._plan.tokens: given})[self._plan.logits]
        if not doubled:
            return logits
        with_, without = np.split(logits, 2)
        found: Array = (1 + strength) * with_ - strength * without
        return found

    def _rows(self, given: Mapping[str, Array]) -> int:
        """How many rows `given` brings."""
        for spec in self.main.entry.conditions:
            if spec.name in given and BATCH in spec.shape:
                return int(given[spec.name].shape[spec.shape.index(BATCH)])
        return 1

    def _both(self, given: Mapping[str, Array]) -> dict[str, Array]:
        """`given`, and behind it the same rows without what guidance compares with."""
        without = self._plan.unconditional
        if not without:
            raise InputError(
                "The bundle has no condition that stands for none, with which guidance compares: "
                "leave guidance out."
            )
        found = {}
        for spec in self.main.entry.conditions:
            if spec.name not in given:
                continue
            array = given[spec.name]
            other = np.full_like(array, without[spec.name]) if spec.name in without else array
            axis = spec.shape.index(BATCH) if BATCH in spec.shape else None
            found[spec.name] = array if axis is None else np.concatenate([array, other], axis)
        return found

    def _first(self, rows: int) -> Array:
        """Zeros for the tokens of the first block."""
        spec = next(s for s in self.main.entry.inputs if s.name == self._plan.tokens)
        sizes = {BATCH: rows, TIME: self._ends[0]}
        return np.zeros([_size(dim, sizes) for dim in spec.shape], spec.dtype)

    def _zeros(self, name: str, rows: int) -> Array:
        """What a carried input starts from."""
        spec = next(s for s in self._advance.entry.inputs if s.name == name)
        return np.zeros([_size(dim, {BATCH: rows}) for dim in spec.shape], spec.dtype)


def _size(dim: int | str, sizes: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim not in sizes:
        raise InputError(f"A generation starts from zeros of sizes that are known, not of {dim!r}.")
    return sizes[dim]
