"""What a session has consumed, so that a text that begins alike goes on from there.

A conversation is written out anew for each turn, and most of it is what the turn before ended with.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from intaglio.runtime.generation import generate
from intaglio.runtime.rewind import Mark, mark, rewind
from intaglio.runtime.session import Session


class Consumed:
    """The tokens of a session of one row, from the beginning, and a point to which it can go back.

    Caches alone go back to any token; states of fixed shape to the end of the last prompt, where
    they are copied.

    Attributes:
        kept: how many tokens of the last text the session had before.
    """

    def __init__(self, session: Session) -> None:
        """Know of no tokens yet."""
        self.kept = 0
        self._session = session
        self._ids: list[int] = []
        self._mark: Mark | None = None

    def generate(self, ids: Sequence[int], **options: Any) -> Iterator[int]:
        """Generate tokens after `ids`, of which the session may have consumed the first.

        Args:
            ids: of the text from its beginning, at least one.
            options: of `intaglio.runtime.generate`.

        Yields:
            Tokens: those that follow in a session which begins anew.
        """
        same = self.kept = self._resume(ids)
        made: list[int] = []
        try:
            options["consumed"] = ids[:same]
            for token in generate(self._session, ids[same:], **options):
                if not made:  # the prompt is consumed, and no token after it
                    self._set_mark()
                made.append(token)
                yield token
        finally:
            past = int(self._session.state.past_length.sum())
            told = [*ids, *made]
            self._ids = told[:past] if past <= len(told) else []

    def _resume(self, ids: Sequence[int]) -> int:
        """Take the session back to where `ids` part from what it has consumed; how many it has."""
        same = _alike(self._ids, ids[:-1])
        if same < len(self._ids):
            same = self._back(same)
        if not same:
            self._session.state.reset()
            self._mark = None
        return same

    def _set_mark(self) -> None:
        state = self._session.state
        self._mark = None if state.carried.only_caches else mark(state, lasting=True)

    def _back(self, same: int) -> int:
        """Go back to `same` tokens, or to the point before; how many there then are."""
        state = self._session.state
        if state.carried.only_caches:
            rewind(state, mark(state, lasting=True), np.array([same]))
            return same
        length = 0 if self._mark is None else int(self._mark.past_length[0])
        if self._mark is None or length > same:
            return 0
        rewind(state, self._mark, np.array([length]))
        return length


def _alike(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with alike."""
    pairs = zip(first, second, strict=False)
    return next(
        (place for place, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second))
    )
