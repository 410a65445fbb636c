"""A stream as its user holds it."""

import asyncio
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Mapping
from concurrent.futures import Future
from os import PathLike
from typing import Any, Protocol, Self

import numpy.typing as npt

from intaglio.errors import FullError, StateError
from intaglio.runtime.session_state import Snapshot

from .feeds import Outputs, Record

Inputs = Mapping[str, npt.ArrayLike]


class Owner(Protocol):
    """What a stream asks of the streams that it is one of; see `Streams`."""

    queue: int

    @property
    def folder(self) -> PathLike[str] | None:
        """Where streams are saved."""

    def feed(
        self, stream: "StreamHandle", inputs: Inputs, *, timeout: float | None = None
    ) -> "Future[Outputs]":
        """Queue the next tokens."""

    def room(self) -> "Future[None]":
        """Done when there may be room."""

    def require_another_thread(self) -> None:
        """Refuse to wait on the thread that steps."""

    def snapshot(self, record: Record) -> Snapshot:
        """Copy the state."""

    def end(self, record: Record, *, keep: bool) -> None:
        """Close it."""


class StreamHandle:
    """One sequence: tokens in, outputs out, in the order in which they were fed.

    Threads may share it.  One that nobody holds any more is closed once it has taken what it was
    fed; where the streams have a folder it is saved.

    Attributes:
        streams: those that it is one of.
    """

    def __init__(self, streams: Owner, record: Record) -> None:
        self.streams = streams
        self._record = record

    @property
    def name(self) -> str:
        """Under which it is saved."""
        return self._record.name

    @property
    def past_length(self) -> int:
        """Tokens that it has consumed."""
        return self._record.past

    @property
    def saved_length(self) -> int | None:
        """Tokens that it had when it was last saved, None where it never was."""
        return self._record.saved

    def feed(self, inputs: Inputs, *, timeout: float | None = None) -> "Future[Outputs]":
        """Queue the next tokens; see `Streams.feed`."""
        return self.streams.feed(self, inputs, timeout=timeout)

    def step(self, inputs: Inputs) -> Outputs:
        """Feed the next tokens and wait for their outputs; errors are those of `Streams.feed`."""
        self.streams.require_another_thread()
        return self.feed(inputs).result()

    def map(self, inputs: Iterable[Inputs]) -> Iterator[Outputs]:
        """The outputs of each of `inputs`, which are taken ahead as far as the queue has room.

        For inputs that do not depend on outputs; where they do, call `step` for each.
        """
        self.streams.require_another_thread()
        pending: deque[Future[Outputs]] = deque()
        try:
            for each in inputs:
                while True:
                    try:
                        pending.append(self.feed(each, timeout=None if not pending else 0))
                        break
                    except FullError:
                        yield pending.popleft().result()
                while pending and pending[0].done():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    async def afeed(self, inputs: Inputs) -> "asyncio.Future[Outputs]":
        """Queue the next tokens, once there is room, without blocking the event loop."""
        while True:
            try:
                return asyncio.wrap_future(self.feed(inputs, timeout=0))
            except FullError:
                await asyncio.wrap_future(self.streams.room())

    async def astep(self, inputs: Inputs) -> Outputs:
        """As `step`, awaited."""
        return await (await self.afeed(inputs))

    async def amap(
        self, inputs: AsyncIterable[Inputs] | Iterable[Inputs]
    ) -> AsyncIterator[Outputs]:
        """As `map`, for an asynchronous iterable or a plain one."""
        pending: deque[asyncio.Future[Outputs]] = deque()
        ahead = self.streams.queue
        try:
            async for each in _awaited(inputs):
                if len(pending) >= ahead:
                    yield await pending.popleft()
                pending.append(await self.afeed(each))
                while pending and pending[0].done():
                    yield await pending.popleft()
            while pending:
                yield await pending.popleft()
        finally:
            for future in pending:
                future.cancel()

    def save(self) -> Snapshot:
        """A copy of its state between two steps, as `Session.state.restore` takes it."""
        return self.streams.snapshot(self._record)

    def park(self) -> None:
        """Save it to the folder and close it: `Streams.resume` opens it again, in any process.

        Raises:
            StateError: if the streams have no folder, or it cannot be saved.
        """
        if self.streams.folder is None:
            raise StateError(
                "A stream is parked in a folder: open the streams with store=, or keep what "
                "save() returns."
            )
        self.streams.end(self._record, keep=True)

    def close(self) -> None:
        """End it: its row is free, and what was saved of it is forgotten."""
        self.streams.end(self._record, keep=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Stream {self.name!r} of {self.past_length} tokens>"


async def _awaited(inputs: Any) -> AsyncIterator[Inputs]:
    if hasattr(inputs, "__aiter__"):
        async for each in inputs:
            yield each
        return
    for each in inputs:
        yield each
