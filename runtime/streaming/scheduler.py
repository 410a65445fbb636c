"""Who steps next in a lane: its thread owns its rows and steps them, all others leave it work.

Every call of the engine takes tokens of as many streams as have the same number to take.  The
stream that has waited longest is always among them, so a single token waits for one call of each
other number at most, however long a prompt somebody else was fed: prompts are taken in parts of a
power of two of tokens, and join the end of the queue after each.  How a feed is parted follows from
its own length alone, so the shapes that a stream is stepped in do not depend on who else is there.
"""

import atexit
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any

from intaglio.errors import IntaglioError, StateError
from intaglio.runtime.session_state import Snapshot

from .bank import Bank
from .feeds import Outputs, Portion, Record
from .queues import Queues, tell_all
from .residents import Residents

TOKENS = 256  # of all streams that one call of longer parts takes, so that others wait for less
PATIENCE, LONGEST = 0.1, 0.005  # how long to wait for the streams of the last call: a part of it, s

Done = tuple[Portion, Outputs | BaseException]


@dataclass(frozen=True)
class Plan:
    """A call of the engine: whose tokens, and who gives a row to whom before it."""

    bank: Bank
    length: int
    group: list[Record]
    victims: list[Record]


class Scheduler:
    """The thread that steps the streams of a lane of `queues` in the rows of `residents`.

    Attributes:
        calls: of the engine so far.
        tokens: that its streams have consumed.
        residents: its rows.
        thread: that steps them.
        unsaved: which streams could not be saved, and why, where nobody waits to be told.
    """

    def __init__(self, queues: Queues, residents: Residents, lane: int) -> None:
        """Start it."""
        self._queues, self.residents, self._lane = queues, residents, lane
        self._waiting = queues.waiting[lane]
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._left: SimpleQueue[Record] = SimpleQueue()
        self._tasks: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._hot, self._patience, self._ended_at = 0, 0.0, 0.0
        self._telling = 0  # calls of `_tell`, one within another
        self.calls = self.tokens = 0
        self.unsaved: deque[str] = deque(maxlen=100)
        self._unheard = False  # whether nobody asks for what could not be saved
        queues.enders.append(self.wake)
        self.thread = threading.Thread(
            target=self._work, name=f"intaglio-streams-{lane}", daemon=True
        )
        self.thread.start()
        _RUNNING.add(self)

    # What other threads call.

    @property
    def is_here(self) -> bool:
        """Whether the caller is on its thread, which must not wait for itself."""
        return threading.current_thread() is self.thread

    def wake(self) -> None:
        """Let it look at its queues and tasks."""
        self._wake.put(None)

    def save(self, record: Record) -> "Future[Snapshot]":
        """A copy of the state of a stream, between two steps; fails with a StateError if closed."""

        def copied() -> Snapshot:
            if not self._is_open(record):
                raise StateError(f"The stream {record.name!r} is closed.")
            return self.residents.snapshot(record)

        return self._ask(copied)

    def end(self, record: Record, *, keep: bool) -> "Future[None]":
        """Close a stream, saved if `keep`; what it was fed and has not taken fails.

        The future fails with a StateError if it cannot be saved; it is not closed then.  One that
        is closed already cannot be saved.
        """
        return self._ask(lambda: self._end(record, keep=keep))

    def leave(self, record: Record) -> None:
        """Note that nobody holds a stream any more; may be called at any place in any thread."""
        self._left.put(record)
        self.wake()

    def abandon(self) -> None:
        """Let what cannot be saved be told by the thread, as nobody else will."""
        self._unheard = True

    def join(self) -> None:
        """Wait until it has ended, as it does once the queues are closed."""
        self.thread.join()

    def end_with_process(self) -> None:
        """Close its queues, as the interpreter ends."""
        self._queues.close("The interpreter has ended.")

    def forsake(self) -> None:
        """Note that this is a copy of it in a forked process, where its thread is not."""
        self._queues.forsake("Streams are those of the process that opened them, not of its forks.")

    def _ask(self, task: Callable[[], Any]) -> "Future[Any]":
        """What `task` returns, run by the thread between two calls of the engine.

        What a future calls there has its answer at once.  What is collected as garbage on the
        thread, anywhere else, finds rows and queues half changed: its task waits for its turn.
        """
        answer: Future[Any] = Future()
        if self.is_here and self._telling:
            try:
                answer.set_result(task())
            except IntaglioError as error:
                answer.set_exception(error)
            return answer
        with self._queues.lock:
            self._queues.require_open()
            self._tasks.append((task, answer))
        self.wake()
        return answer

    # What the thread does.

    def _work(self) -> None:
        try:
            while True:
                while not self._wake.empty():  # before anything that they tell of is looked at
                    self._wake.get()
                last = self._queues.closed is not None  # before the last tasks
                self._do_tasks()
                if last:
                    break
                self._await_others()
                with self._queues.lock:
                    plan = self._plan()
                if plan is None:
                    self._wake.get()
                else:
                    self._take(plan)
        except BaseException as error:  # noqa: BLE001  whoever waits has to hear of it
            self._queues.close(f"The streams have ended, by an error of intaglio: {error!r}.")
        self._finish()

    def _do_tasks(self) -> None:
        while self._tasks:
            task, answer = self._tasks.popleft()
            try:
                answer.set_result(task())
            except BaseException as error:
                answer.set_exception(error)
                if not isinstance(error, IntaglioError):
                    raise
        while not self._left.empty():
            record = self._left.get()
            record.ended = True
            if not record.feeds:  # otherwise what it was fed is taken before it goes
                self._go(record)

    def _await_others(self) -> None:
        """Give the streams of the last call a moment to come with their next tokens."""
        until = self._ended_at + self._patience
        while 0 < len(self._waiting) < self._hot:
            left = until - time.monotonic()
            if left <= 0:
                break
            try:
                self._wake.get(timeout=left)
            except Empty:
                break

    def _plan(self) -> Plan | None:
        for first in self._waiting:
            bank, victims = self.residents.row_for(first)
            if bank is None:
                continue
            length = self._length(first)
            group, most = [first], bank.width
            if length > 1:
                most = max(1, min(most, TOKENS // length))
            free = bank.free + len(victims) - (first.bank is None)
            idle = self.residents.idle(bank, victims)
            for other in self._waiting:
                if len(group) >= most:
                    break
                if other is first or other in victims or other.kind != first.kind:
                    continue
                if self._length(other) != length:
                    continue
                if other.bank is None and not free and idle:
                    victims.append(idle.pop(0))
                    free = 1
                if other.bank is None and free:
                    free -= 1
                elif other.bank is not bank:
                    continue
                group.append(other)
            return Plan(bank, length, group, victims)
        return None

    def _length(self, record: Record) -> int:
        """How many tokens of a stream the next call takes."""
        left, chunk = record.feeds[0].left, self._queues.limits.chunk
        return left if chunk is None else 1 << (min(left, chunk).bit_length() - 1)

    def _take(self, plan: Plan) -> None:
        began = time.monotonic()
        try:
            for victim in plan.victims:
                self.residents.park(victim)
        except IntaglioError as error:
            self._tell(self._failed(plan.group[0], error))
            return
        group: list[Record] = []
        done: list[Done] = []  # whatever ends the call: these are in no queue any more
        try:
            for record in plan.group:
                if record.bank is None:
                    self._admit(record, plan.bank, done)
                if record.bank is not None and self._begin(record, plan.length):
                    group.append(record)
            if group:
                self._run(plan.bank, plan.length, group, done)
            self._ended_at = time.monotonic()
            if plan.length == 1:
                self._hot = len(group)
                self._patience = min(PATIENCE * (self._ended_at - began), LONGEST)
        finally:
            self._tell(done)
        self._save_some(group)

    def _admit(self, record: Record, bank: Bank, done: list[Done]) -> None:
        """Give a stream a row; if it cannot be brought back, what it was fed fails."""
        try:
            self.residents.admit(record, bank)
        except (IntaglioError, MemoryError) as error:
            record.fault = f"The stream {record.name!r} cannot be brought back: {error}"
            fault = StateError(record.fault)
            done += self._failed(record, fault, fault)

    def _begin(self, record: Record, length: int) -> bool:
        """Whether the next feed of a stream is still wanted."""
        feed = record.feeds[0]
        if feed.begun:
            return True
        if not feed.begin():
            with self._queues.lock:
                self._queues.pop(record)
            self._queues.tell_room()
            self._check_left(record)
            return False
        if length < feed.tokens:
            assert record.bank is not None
            feed.mark = record.bank.mark(record)
        return True

    def _run(self, bank: Bank, length: int, group: list[Record], done: list[Done]) -> None:
        """Step a group; where the engine refuses that, each stream of it alone."""
        inputs = {record: record.feeds[0].part(length) for record in group}
        try:
            outputs = bank.step(inputs, length, [record.conditions for record in group])
        except (IntaglioError, MemoryError) as error:
            if len(group) == 1:
                done += self._failed(group[0], error)
                return
            for record in group:
                self._run(bank, length, [record], done)
            return
        self.calls += 1
        self.tokens += length * len(group)
        with self._queues.lock:
            for record in group:
                feed = record.feeds[0]
                results = feed.add(length, outputs[record])
                self.residents.served(record)
                self._queues.moved(record, length)
                if results is not None:
                    self._queues.pop(record)
                    done.append((feed, results))
        for record in group:
            self._check_left(record)

    def _failed(
        self, record: Record, error: BaseException, rest: BaseException | None = None
    ) -> list[Done]:
        """Take what a stream was fed out of its queue, and bring it back to before the first.

        Args:
            record: of the stream.
            error: of the first.
            rest: of the others, None for the news that the first has failed.
        """
        if isinstance(error, MemoryError):
            error = StateError("There is no memory for the step; no stream has moved.")
        rest = rest or StateError("What the stream was fed before has failed.")
        feeds = self._queues.pop_all(record)
        done: list[Done] = [(feed, rest if index else error) for index, feed in enumerate(feeds)]
        for feed in feeds[:1]:
            if feed.mark is not None and record.bank is not None:
                try:
                    record.bank.rewind(record, feed.mark)
                except BaseException:
                    self._tell(done)
                    raise
                record.past -= feed.done
        self._check_left(record)
        return done

    def _tell(self, done: Sequence[Done]) -> None:
        """Give the futures their results; what they call may call anything of streams."""
        self._telling += 1
        try:
            tell_all([(feed.future, result) for feed, result in done])
        finally:
            self._telling -= 1
            if done:
                self._queues.tell_room()

    def _save_some(self, group: Sequence[Record]) -> None:
        every = self._queues.limits.save_every
        for record in group if every is not None else ():
            between = not record.feeds or not record.feeds[0].done
            there = record.bank is not None
            if there and between and record.past - (record.saved or 0) >= (every or 0):
                try:
                    self.residents.save(record)
                except IntaglioError as error:
                    self.unsaved.append(str(error))  # told at the end; its tokens are not lost yet

    def _check_left(self, record: Record) -> None:
        """Let a stream go, soon, that nobody holds and that has taken all it was fed."""
        if record.ended and not record.feeds:
            self.leave(record)

    def _go(self, record: Record) -> None:
        """Let a stream go that nobody holds, if it has not been closed."""
        if not self._is_open(record):
            return
        store = self.residents.store
        try:
            self._end(record, keep=store.folder is not None and record.fault is None)
        except IntaglioError as error:
            self.unsaved.append(str(error))
            self.residents.release(record)
            self._queues.remove(record)

    def _end(self, record: Record, *, keep: bool) -> None:
        closed = StateError(f"The stream {record.name!r} is closed.")
        if not self._is_open(record):
            if keep:
                raise closed
            return
        if keep:
            self._tell(self._failed(record, closed, closed))
            if not self._is_open(record):  # what was told has closed it
                raise closed
            self.residents.save(record)
        self._queues.end(record)
        self._tell(self._failed(record, closed, closed))
        if not self._is_open(record):
            return
        if not keep and record.fault is None:
            self.residents.store.drop(record.name)
        self.residents.release(record)
        self._queues.remove(record)

    def _is_open(self, record: Record) -> bool:
        return self._queues.records.get(record.name) is record

    def _finish(self) -> None:
        """Answer everybody, and save what can be continued."""
        closed = StateError(self._queues.closed)
        while self._tasks:
            self._tasks.popleft()[1].set_exception(closed)
        with self._queues.lock:
            mine = [each for each in self._queues.records.values() if each.lane == self._lane]
        for record in mine:
            try:
                self._tell(self._failed(record, closed, closed))
                self._go(record)
            except BaseException as error:  # noqa: BLE001  of a broken bank: the others go on
                self.unsaved.append(f"The stream {record.name!r} is lost: {error!r}.")
        self._queues.tell_room()
        if self._unheard and self.unsaved:
            raise StateError(" ".join(self.unsaved))


_RUNNING: "weakref.WeakSet[Scheduler]" = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Wait until streams of folders are saved that nobody has closed."""
    running = [*_RUNNING]
    for each in running:
        each.end_with_process()
    for each in running:
        each.join()
    unsaved = [told for each in running for told in each.unsaved]
    if unsaved:
        raise StateError(" ".join(unsaved))


def _forsake_all() -> None:
    for each in [*_RUNNING]:
        each.forsake()


if hasattr(os, "register_at_fork"):  # which Windows lacks, as it does forks
    os.register_at_fork(after_in_child=_forsake_all)
