"""Lanes: threads beside each other, each of which steps streams of its own in rows of its own.

A call of a small model leaves most of a processor idle: its products are too short to be shared
among cores, and what Python does for each token runs on one of them.  Lanes call the engine at the
same time, on one core each, and the work in Python of one runs while the other is in its call.
They share queues, limits and the store, and nothing else.
"""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from intaglio.errors import StateError
from intaglio.runtime.session_state import Snapshot

from .feeds import Portion, Record
from .queues import Queues
from .residents import Residents
from .scheduler import Scheduler


@dataclass(frozen=True, kw_only=True)
class Stats:
    """What has been done so far.

    Attributes:
        calls: of the engine.
        tokens: that streams have consumed.
        saved: how often a stream was saved.
        restored: how often one was brought back.
        open: streams that are open now.
        waiting: of these, how many have input that has not been taken.
        rows: of these, how many have a row.
    """

    calls: int
    tokens: int
    saved: int
    restored: int
    open: int
    waiting: int
    rows: int


class Lanes:
    """The schedulers of some queues, and what other threads ask of them."""

    def __init__(self, queues: Queues, residents: Sequence[Residents]) -> None:
        """Start one for the rows of each of `residents`."""
        self._queues = queues
        self._lanes: list[Scheduler] = []
        try:
            for lane, each in enumerate(residents):
                self._lanes.append(Scheduler(queues, each, lane))
        except BaseException:  # as where there can be no more threads
            queues.close("The streams could not begin.")
            raise

    @property
    def is_here(self) -> bool:
        """Whether the caller must not wait: lanes wait for their threads and for the lock."""
        return any(lane.is_here for lane in self._lanes) or self._queues.is_held_here

    @property
    def stats(self) -> Stats:
        """What has been done so far, and who is there."""
        residents = [lane.residents for lane in self._lanes]
        return Stats(
            calls=sum(lane.calls for lane in self._lanes),
            tokens=sum(lane.tokens for lane in self._lanes),
            saved=sum(each.saved for each in residents),
            restored=sum(each.restored for each in residents),
            open=len(self._queues.records),
            waiting=sum(map(len, self._queues.waiting)),
            rows=sum(map(len, residents)),
        )

    def feed(self, record: Record, feed: Portion, timeout: float | None) -> None:
        """Put a feed into the queue of its stream; see `Queues.put`."""
        self._queues.put(record, feed, 0 if self.is_here else timeout)
        self._lanes[record.lane].wake()

    def save(self, record: Record) -> Snapshot:
        """A copy of the state of a stream, between two steps."""
        return self._lanes[record.lane].save(record).result()

    def end(self, record: Record, *, keep: bool) -> None:
        """Close a stream, saved if `keep`; what it was fed and has not taken fails.

        Where nothing may wait, as on the thread of another lane, it is closed soon; if it cannot be
        saved that is told when the streams are closed.

        Raises:
            StateError: if it cannot be saved; it is not closed then.
        """
        if self._queues.closed is not None:
            return
        lane = self._lanes[record.lane]
        try:
            ended = lane.end(record, keep=keep)
        except StateError:  # all streams are closed by now
            return
        if ended.done() or not self.is_here:
            ended.result()
        else:
            ended.add_done_callback(lambda done: _note(lane, done))

    def leave(self, record: Record) -> None:
        """Note that nobody holds a stream any more; may be called at any place in any thread."""
        self._lanes[record.lane].leave(record)

    def abandon(self) -> None:
        """Let the threads end; may be called at any place in any thread, and waits for nothing."""
        for lane in self._lanes:
            lane.abandon()
        self._queues.close("The streams are held by nobody.")

    def close(self) -> None:
        """End the threads; streams of a folder are saved, what was not taken fails.

        Raises:
            StateError: if a stream could not be saved; that is told once.
        """
        self._queues.close("The streams are closed.")
        if not self.is_here:
            for lane in self._lanes:
                lane.join()
        with self._queues.lock:
            lanes = [lane.unsaved for lane in self._lanes]
            unsaved = [each.popleft() for each in lanes for _ in range(len(each))]
        if unsaved:
            raise StateError(" ".join(unsaved))


def _note(lane: Scheduler, done: "Future[None]") -> None:
    error = done.exception()
    if error is not None:
        lane.unsaved.append(str(error))
