"""What streams were fed and have not taken: queues with limits, which any thread may fill.

Each stream belongs to a lane for its life, that one which has fewest when it is opened.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from intaglio.errors import FullError, StateError

from .feeds import Portion, Record


@dataclass(frozen=True, kw_only=True)
class StreamLimits:
    """How much is taken in; see `Streams`."""

    streams: int
    queue: int
    backlog: int
    context: int | None
    chunk: int | None
    save_every: int | None


class Queues:
    """Open streams and what they were fed.

    Attributes:
        limits: how much is taken in.
        records: the open streams by name.
        waiting: for each lane those of its streams that were fed, the one first that has waited
            longest.
        lock: held where `waiting` is read or a queue changes.
        closed: why nothing is taken in any more.
        enders: called once that is so.
    """

    def __init__(self, limits: StreamLimits, lanes: int) -> None:
        self.limits = limits
        self.records: dict[str, Record] = {}
        self.waiting: list[OrderedDict[Record, None]] = [OrderedDict() for _ in range(lanes)]
        self.closed: str | None = None
        self.enders: list[Callable[[], None]] = []
        self._unlock()
        self._hoping: list[Future[None]] = []
        self._open = [0] * lanes
        self._count = 0

    def _unlock(self) -> None:
        self.lock = threading.RLock()  # what is collected as garbage may close within it
        self._roomy = threading.Condition(self.lock)

    def add(self, record: Record) -> None:
        """Take in a stream, and give it its lane.

        Raises:
            FullError: if there are as many as there may be.
            StateError: if one of its name is open, or all are closed.
        """
        with self.lock:
            self.require_open()
            if record.name in self.records:
                raise StateError(f"The stream {record.name!r} is open already.")
            if len(self.records) >= self.limits.streams:
                raise FullError(
                    f"{self.limits.streams} streams are open, which is the limit (streams=). "
                    "Close one first."
                )
            record.lane = self._open.index(min(self._open))
            self._open[record.lane] += 1
            self.records[record.name] = record

    def remove(self, record: Record) -> None:
        """Let a stream go whose queue is empty."""
        with self.lock:
            if self.records.pop(record.name, None) is not None:
                self._open[record.lane] -= 1

    def put(self, record: Record, feed: Portion, timeout: float | None) -> None:
        """Put a feed into the queue of its stream.

        Raises:
            FullError: if there is no room for `timeout` seconds.
            StateError: if the stream cannot go on, is closed, or would hold too many tokens.
        """
        until = None if timeout is None else time.monotonic() + timeout
        with self.lock:
            while True:
                self._require_fit(record, feed)
                full = self._full(record)
                if full is None:
                    break
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise FullError(full)
                self._roomy.wait(left)
            record.feeds.append(feed)
            record.queued += feed.tokens
            self._count += 1
            self.waiting[record.lane].setdefault(record)

    def end(self, record: Record) -> None:
        """Take in nothing any more of a stream; who waits to feed it is told so."""
        with self.lock:
            record.ended = True
            self._roomy.notify_all()

    def moved(self, record: Record, tokens: int) -> None:
        """Note, with the lock held, that a stream has taken tokens, and waits anew."""
        record.past += tokens
        record.queued -= tokens
        self.waiting[record.lane].move_to_end(record)

    def pop(self, record: Record) -> Portion:
        """Take the first feed of a stream out of its queue, lock held; then `tell_room`."""
        feed = record.feeds.popleft()
        record.queued -= feed.left
        self._count -= 1
        if not record.feeds:
            self.waiting[record.lane].pop(record, None)
        return feed

    def pop_all(self, record: Record) -> list[Portion]:
        """Take all feeds of a stream out of its queue; then `tell_room`."""
        with self.lock:
            return [self.pop(record) for _ in range(len(record.feeds))]

    def room(self) -> "Future[None]":
        """A future that is done once some feed is, or at once where none waits."""
        hope: Future[None] = Future()
        with self.lock:
            if self._count and self.closed is None:
                self._hoping.append(hope)
                return hope
        hope.set_result(None)
        return hope

    def tell_room(self) -> None:
        """Let those know that wait or hope for room."""
        with self.lock:
            self._roomy.notify_all()
            hoping, self._hoping = self._hoping, []
        tell_all([(each, None) for each in hoping])

    def close(self, reason: str) -> None:
        """Take in nothing any more; who waits for room is told so, and so are the lanes."""
        with self.lock:
            self.closed = self.closed or reason
            self._roomy.notify_all()
        for end in self.enders:
            end()

    def forsake(self, reason: str) -> None:
        """Be closed, without the lock, which threads may have held that are no more."""
        self._unlock()
        self.closed = self.closed or reason

    @property
    def is_held_here(self) -> bool:
        """Whether the caller has the lock, as what is collected as garbage within it has."""
        try:
            self._roomy.notify(0)
        except RuntimeError:
            return False
        return True

    def require_open(self) -> None:
        """Refuse what comes after the end.

        Raises:
            StateError: if it has come.
        """
        if self.closed is not None:
            raise StateError(self.closed)

    def _require_fit(self, record: Record, feed: Portion) -> None:
        self.require_open()
        if record.fault is not None:
            raise StateError(record.fault)
        if record.ended:
            raise StateError(f"The stream {record.name!r} is closed.")
        most, held = self.limits.context, record.past + record.queued
        if most is not None and held + feed.tokens > most:
            raise StateError(
                f"The stream {record.name!r} holds {held} tokens, those that wait counted; "
                f"{feed.tokens} more are beyond its limit of {most}. Open another one."
            )

    def _full(self, record: Record) -> str | None:
        limits = self.limits
        if len(record.feeds) >= limits.queue:
            return (
                f"{len(record.feeds)} feeds of the stream {record.name!r} wait, which is the limit "
                "(queue=). Take its results first."
            )
        if self._count >= limits.backlog:
            return f"{self._count} feeds wait, which is the limit of all streams (backlog=)."
        return None


def tell_all(told: Sequence[tuple[Future[Any], Any]]) -> None:
    """Give futures that were not cancelled their results, or errors.

    Whatever one of them calls raises, all are told; then the first of that is raised.
    """
    raised: BaseException | None = None
    for future, result in told:
        try:
            if not (future.running() or future.set_running_or_notify_cancel()):
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
        except BaseException as error:  # noqa: BLE001  as sys.exit does
            raised = raised or error
    if raised is not None:
        raise raised
