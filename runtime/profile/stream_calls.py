"""Steps of many streams together, as a server takes them: each is fed a token, all are awaited."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt

from intaglio.runtime.session import Session
from intaglio.runtime.streaming.handle import StreamHandle
from intaglio.runtime.streaming.streams import Streams
from intaglio.state import Layout

ON = 64  # tokens that streams go on from their context before they are begun anew

Inputs = Mapping[str, npt.NDArray[Any]]
_clock = time.perf_counter


class StreamCalls:
    """Rounds of one token of each stream, at a context and at most `ON` tokens after it."""

    def __init__(
        self,
        session: Session,
        count: int,
        context: int,
        inputs: Callable[[int], Inputs],
        conditions: Inputs | None,
    ) -> None:
        """Open `count` streams over the engine of `session`, which consume the context.

        Args:
            session: its own state is not used.
            count: of streams, each with a row of the engine's memory.
            context: tokens that each has consumed before.
            inputs: of one row and so many tokens.
            conditions: of one row, where the bundle takes any.

        Raises:
            BundleError: if the bundle allows no streams, or no tokens after the context.
        """
        self._streams = Streams(session, count, chunk=max(context, 1))
        self._begun = inputs(context)
        self._token, self._conditions, self._context = inputs(1), conditions, context
        most = self._streams.session.state.most_tokens
        self._on = ON if most is None else min(ON, most - context)
        self._open: list[StreamHandle] = []
        self._count, self._taken = count, self._on

    def __call__(self) -> float:
        """Seconds of a round."""
        if self._taken >= self._on:
            self._begin()
        self._taken += 1
        start = _clock()
        self._round(self._token)
        return _clock() - start

    @property
    def states(self) -> int:
        """Bytes of the states of all streams after a step at the context, without conditions."""
        session = self._streams.session
        return sum(
            spec.nbytes(self._count, self._context + 1)
            for spec in session.entry.states_of(session.target)
            if spec.layout is not Layout.PREPARED
        )

    def _begin(self) -> None:
        """Streams at the context, in place of those that went on from it."""
        for stream in self._open:
            stream.close()
        self._open = [self._streams.open(conditions=self._conditions) for _ in range(self._count)]
        self._round(self._begun)
        self._taken = 0

    def _round(self, inputs: Inputs) -> None:
        for future in [stream.feed(inputs) for stream in self._open]:
            future.result()

    def close(self) -> None:
        """End the streams and the thread that steps them."""
        self._streams.close()
