"""Speculative decoding: a draft proposes tokens, and one step of the model decides on all of them.

What comes is what the model alone would give: the same tokens if they are greedy, the same
distribution if they are drawn (`SampledRow.verified`).  The draft only decides how many come at
once.  Tokens that were not accepted are taken back (`intaglio.runtime.rewind`).  Caches of keys and
values forget them.  States of fixed shape go back to before the step, and the next step, which
gives one more token as any step does, reads what was accepted again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.errors import InputError
from intaglio.runtime.rewind import Mark, mark, rewind
from intaglio.runtime.sampled_row import SampledRow
from intaglio.runtime.sampling import Probabilities
from intaglio.runtime.session import Session
from intaglio.runtime.token_reader import TokenReader
from intaglio.state import Layout

DRAFTED = 4  # tokens that are proposed at once, unless said otherwise
MOST = 64


@dataclass
class Draft:
    """A small model that proposes tokens to a large one of the same vocabulary.

    Attributes:
        session: of the small model, at the same place of the text as the large one's.
        tokens: how many it proposes at once, 1 to 64.
        proposed: tokens that it has proposed so far.
        accepted: how many of these were accepted.
        calls: steps in which the large model decided, or gave a token of its own.
    """

    session: Session
    tokens: int = DRAFTED
    proposed: int = 0
    accepted: int = 0
    calls: int = 0

    def __post_init__(self) -> None:
        """Refuse numbers that mean nothing."""
        if not 1 <= self.tokens <= MOST:
            raise InputError(f"A draft of {self.tokens} tokens: should be 1 to {MOST}.")

    @property
    def acceptance(self) -> float | None:
        """The share of proposed tokens that was accepted."""
        return self.accepted / self.proposed if self.proposed else None

    def to_json(self) -> dict[str, Any]:
        """The numbers, as `--json` prints them."""
        return {
            "tokens": self.tokens,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "acceptance": self.acceptance,
            "calls": self.calls,
        }

    def __str__(self) -> str:
        """One line for people."""
        if self.acceptance is None:
            return "the draft proposed nothing"
        return (
            f"draft: {self.accepted} of {self.proposed} tokens accepted "
            f"({self.acceptance:.0%}), {self.calls} steps of the model"
        )


class Speculation:
    """A generation of several rows with a draft."""

    def __init__(
        self, target: TokenReader, draft: Draft, logits: str, rows: Sequence[SampledRow]
    ) -> None:
        """Let `draft` propose what the rows get.

        Raises:
            InputError: if the draft cannot propose to this model.
        """
        self._draft = draft
        if draft.session is target.session:
            raise InputError("The draft needs a session of its own: give it one by fork or load.")
        if not target.scores_each:
            raise InputError(
                "What a draft proposes is judged by scores after each token, and this bundle gives "
                "them after the last of a step alone: export it without --last."
            )
        small = TokenReader(draft.session, logits)
        if small.vocabulary != target.vocabulary:
            raise InputError(
                f"The draft has a vocabulary of {small.vocabulary} tokens, the model one of "
                f"{target.vocabulary}: a draft has to give the tokens of the model."
            )
        self._rows = rows
        self._readers = target, small
        count = len(rows)
        for reader, what in zip(self._readers, ("model", "draft"), strict=True):
            held = reader.session.state.batch
            if held not in (None, count):
                raise InputError(f"The {what} holds {held} rows, and {count} are generated.")
        self._bases = [reader.past_length(count) for reader in self._readers]
        self._marks: list[Mark | None] = [None, None]
        self._alike = any(
            spec.layout is Layout.GROW or spec.rows is None
            for reader in self._readers
            for spec in reader.session.state.carried.settings.changing
        )

    def blocks(self) -> Iterator[list[list[int]]]:
        """What each row gets of one step after the other, which is appended to it."""
        target, rows = self._readers[0], self._rows
        scores = target.read([row.after(0) for row in rows])
        yield [[row.draw(found[-1])] for row, found in zip(rows, scores, strict=True)]
        while not all(row.done for row in rows):
            owed = self._owed(0)
            count = self._count(owed)
            if count:
                yield self._decide(owed, count)
            else:
                scores = target.read(owed)
                self._draft.calls += 1
                yield [
                    [] if row.done else [row.draw(found[-1])]
                    for row, found in zip(rows, scores, strict=True)
                ]

    def settle(self, told: Sequence[int]) -> None:
        """Let both sessions have consumed all but the last of the `told` tokens of each row."""
        rows = self._rows
        ends = [row.length - len(row.made) + n - 1 for row, n in zip(rows, told, strict=True)]
        for which, reader in enumerate(self._readers):
            self._back(which, np.array(ends))
            used = self._consumed(which)
            owed = [
                row.after(n)[: max(end - n, 0)]
                for row, n, end in zip(rows, used, ends, strict=True)
            ]
            base = int(self._bases[which].max())
            if any(owed) and reader.room(base + max(ends)) >= 0:  # a draft may be full
                reader.read(owed)

    def _decide(self, owed: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """One step of the model on `count` proposed tokens: what each row gets."""
        target, rows = self._readers[0], self._rows
        proposed, chances = self._propose(count)
        self._marks[0] = mark(target.session.state, lasting=False)
        given = [[*before, *new] for before, new in zip(owed, proposed, strict=True)]
        scores = target.read(given, last=count + 1)
        found = [
            [] if row.done else row.verified(each, new, q)
            for row, each, new, q in zip(rows, scores, proposed, chances, strict=True)
        ]
        live = [new for row, new in zip(rows, found, strict=True) if not row.done]
        self._draft.calls += 1
        self._draft.proposed += count * len(live)
        self._draft.accepted += sum(len(new) - 1 for new in live)
        if self._alike:  # an accepted token may stand at the end, as well as one drawn anew
            least = min(map(len, live))
            found = [new[:least] for new in found]
        kept = [_append(row, new) for row, new in zip(rows, found, strict=True)]
        ends = np.array([row.length - 1 for row in rows])
        for which in (0, 1):
            self._back(which, ends)
        return kept

    def _propose(self, count: int) -> tuple[list[list[int]], list[list[Probabilities]]]:
        """`count` tokens for each row that is not done, and what they were drawn from."""
        small, rows = self._readers[1], self._rows
        scores = small.read(self._owed(1))
        state = small.session.state
        self._marks[1] = mark(state, lasting=True)
        proposed: list[list[int]] = [[] for _ in rows]
        chances: list[list[Probabilities]] = [[] for _ in rows]
        # Read by rows of several, the last one as well leaves all of them at the same place.
        steps = count + (len(rows) > 1 and state.carried.only_caches)
        for index in range(1, steps + 1):
            for row, found, new, q in zip(rows, scores, proposed, chances, strict=True):
                if not row.done and index <= count:
                    token, chance = row.propose(found[-1], new)
                    new.append(token)
                    q.append(chance)
            if index < steps:
                scores = small.read([new[-1:] for new in proposed])
        return proposed, chances

    def _count(self, owed: Sequence[Sequence[int]]) -> int:
        """How many tokens to propose: none where accepted ones are to be read again first."""
        target, small = self._readers
        if not target.session.state.carried.only_caches and max(map(len, owed)) > 1:
            return 0
        live = [index for index, row in enumerate(self._rows) if not row.done]
        room = min(
            reader.room(int(base[index]) + self._rows[index].length)
            for reader, base in zip((target, small), self._bases, strict=True)
            for index in live
        )
        left = max(self._rows[index].left for index in live) - 1
        return max(min(self._draft.tokens, left, room), 0)

    def _consumed(self, which: int) -> npt.NDArray[np.int64]:
        """Tokens of each row that a reader has read here."""
        found: npt.NDArray[np.int64] = (
            self._readers[which].past_length(len(self._rows)) - self._bases[which]
        )
        return found

    def _owed(self, which: int) -> list[list[int]]:
        """What a reader has not read of each row; nothing of one that is done."""
        consumed = self._consumed(which).tolist()
        return [
            [] if row.done else row.after(n) for row, n in zip(self._rows, consumed, strict=True)
        ]

    def _back(self, which: int, ends: npt.NDArray[np.int64]) -> None:
        """Take back what a reader has read beyond `ends` tokens of each row."""
        if (to := self._marks[which]) is not None:
            rewind(self._readers[which].session.state, to, self._bases[which] + ends)


def _append(row: SampledRow, tokens: Sequence[int]) -> list[int]:
    """Give a row `tokens` until it is done: what it got."""
    kept = []
    for token in tokens:
        row.append(token)
        kept.append(token)
        if row.done:
            break
    return kept
