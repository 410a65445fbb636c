"""Many streams over one engine: each is opened, fed, and closed by itself, and all step together.

with Streams("bundle/", rows=16) as streams:
    stream = streams.open()
    logits = stream.step({"input_ids": ids})["logits"]
"""

import os
import threading
import uuid
import weakref
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from intaglio.errors import BundleError, InputError, StateError
from intaglio.runtime.bundle import Bundle, BundleGraph
from intaglio.runtime.engines import AUTO, choose_target
from intaglio.runtime.graph_entry import MAIN
from intaglio.runtime.machine import cores
from intaglio.runtime.prepared_conditions import Conditions
from intaglio.runtime.session import Session
from intaglio.runtime.session_state import Snapshot
from intaglio.state import BATCH

from .bank import Bank, width_of
from .feed_reader import FeedReader
from .feeds import Outputs, Portion, Record
from .handle import Inputs, StreamHandle
from .lanes import Lanes, Stats
from .queues import Queues, StreamLimits
from .residents import Residents
from .store import Store

ROWS, QUEUE, CHUNK = 16, 8, 32
OPEN, WAITING = 16, 4  # times the rows: streams that may be open, and feeds that may wait
SMALL, FEW = 1 << 25, 8  # bytes of weights up to which lanes pay by default; rows that each has
WORTH = 4  # a step of fewer rows may cost copies of the weights' size divided by this


class Streams:
    """Sequences over one engine, of which those with input step in one call.

    Any thread may open, feed and close streams; a thread of its own steps them.  A stream without
    input does not move.  Use it in a `with` statement, or call `close`.

    Attributes:
        session: whose engine steps them; its own state is not used.
        rows: streams that have their state in the engine's memory at once.
        width: of these, how many a call of the engine may step.
        lanes: calls of the engine that may run beside each other.
        queue: feeds of one stream that may wait.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | Bundle | Session,
        rows: int = ROWS,
        *,
        target: str = AUTO,
        graph: str = MAIN,
        threads: int | None = None,
        lanes: int | None = None,
        capacity: int | None = None,
        context: int | None = None,
        streams: int | None = None,
        queue: int = QUEUE,
        backlog: int | None = None,
        chunk: int = CHUNK,
        reproducible: bool = False,
        store: str | os.PathLike[str] | None = None,
        save_every: int | None = None,
    ) -> None:
        """Open a bundle for streams.

        Args:
            bundle: the folder that `intaglio export` wrote, or a session of it.
            rows: streams that have their state in the engine's memory at once.  Others wait in
                `store`, and come back bit for bit.  Rounded up to as many for each lane.
            target: as of `Session.load`, as `graph`, `threads` and `capacity` are; a session has
                its own.
            graph: which of the bundle's graphs to step.
            threads: threads for the work inside one operator.
            lanes: calls of the engine that run beside each other, each over the rows of its own
                streams.  By default, where `threads` is left open as well and the weights are few,
                one for each core, with a thread each and 8 rows at least; otherwise 1.
            capacity: tokens that caches have room for at the start.
            context: tokens that one stream may hold at most; what the bundle allows otherwise.
            streams: how many may be open, 16 times the rows otherwise.
            queue: feeds of one stream that may wait.
            backlog: feeds of all streams that may wait, 4 times the rows otherwise, or `queue` if
                that is more.
            chunk: tokens of one stream that a call takes at most, rounded down to a power of two:
                a longer feed takes several, between which others step.
            reproducible: let each call have all rows, so that what a stream gives does not depend,
                to the last bit, on who else has input.
            store: a folder for the states of streams that have no row; they are kept in memory
                otherwise.  Those of a folder can be resumed by another process.
            save_every: tokens after which a stream is saved to the folder though it has a row.

        Raises:
            BundleError: as of `Session.load`, and if the graph carries no state from step to step
                or was exported for a batch in which rows cannot be at different tokens.
            InputError: if a number is below 1, or `save_every` lacks its folder.
        """
        for name, count in [("rows", rows), ("queue", queue), ("chunk", chunk)]:
            _require_count(name, count)
        for name, given in [
            ("threads", threads), ("lanes", lanes), ("streams", streams), ("backlog", backlog),
            ("context", context), ("save_every", save_every),
        ]:  # fmt: skip
            if given is not None:
                _require_count(name, given)
        if save_every is not None and store is None:
            raise InputError("save_every needs a folder to save to: give store= as well.")
        if not isinstance(bundle, Session):
            bundle = Bundle.open(bundle)
            if lanes is None and threads is None:
                lanes = _lanes_of(bundle.graph(graph), target, rows)
                threads = 1 if lanes > 1 else None
            bundle = Session.load(
                bundle, target, graph=graph, threads=threads, capacity=capacity, grow=True
            )
        self.session = bundle.fork()
        self.session.state.reset()
        entry, state = self.session.entry, self.session.state
        fixed, specs = entry.limits.batch, state.settings.changing
        lanes = min(lanes or 1, rows)
        self.width = width_of(entry, specs, -(-rows // lanes), self.session.most_rows)
        if entry.whole:
            raise BundleError(
                "Each call of this graph takes whole inputs and carries nothing to the next, so it "
                "has no streams. Call Session.step."
            )
        alone = width_of(replace(entry, limits=replace(entry.limits, batch=None)), specs, 2, None)
        if self.width > 1 and fixed is not None and (alone == 1 or entry.conditions):
            raise BundleError(
                f"The bundle was exported for a batch of exactly {fixed}, whose rows cannot be at "
                "different tokens or have conditions of their own. Export it with a free batch."
            )
        self.lanes = min(lanes, -(-rows // self.width))
        each = -(-rows // (self.width * self.lanes))  # banks of a lane
        self.rows = self.lanes * each * self.width
        self.queue = queue
        most_tokens = self.session.stepper.most_tokens
        chunk = min(chunk, most_tokens or chunk)
        weights = _weights(self.session.graph, self.session.target)
        bounds = [bound for bound in (context, state.most_tokens) if bound is not None]
        limits = StreamLimits(
            streams=streams or OPEN * self.rows,
            queue=queue,
            backlog=backlog or max(WAITING * self.rows, queue),
            context=min(bounds, default=None),
            chunk=None if entry.limits.ends else 1 << (chunk.bit_length() - 1),
            save_every=save_every,
        )
        self._entry = entry
        self._reader = FeedReader(entry)
        self._preparing = threading.Lock()
        self._store, self._queues = Store(store), Queues(limits, self.lanes)
        residents = []
        for _ in range(self.lanes):
            stepper = self.session.fork().stepper
            banks = [
                Bank(
                    state.copy(), stepper, entry, self.width,
                    all_rows=reproducible or fixed is not None, worth=weights // WORTH,
                )
                for _ in range(each)
            ]  # fmt: skip
            residents.append(Residents(banks, state.copy(), self._store))
        self._lanes = Lanes(self._queues, residents)
        self._ends = weakref.finalize(self, self._lanes.abandon)
        self._ends.atexit = False  # the lanes see to that, and wait

    def __repr__(self) -> str:
        """In short: ``Streams('kws', ort, rows=16)``."""
        session = self.session
        return f"Streams({session.bundle.root.name!r}, {session.target}, rows={self.rows})"

    @property
    def folder(self) -> os.PathLike[str] | None:
        """Where streams are saved, None for memory."""
        return self._store.folder

    @property
    def stats(self) -> Stats:
        """What has been done so far, and who is there."""
        return self._lanes.stats

    def open(
        self, name: str | None = None, *, conditions: Mapping[str, npt.ArrayLike] | None = None
    ) -> StreamHandle:
        """Begin a sequence.

        Args:
            name: under which it is saved; one that no other has, if None.
            conditions: what holds for the whole of it, of one row, where the bundle takes any.

        Raises:
            FullError: if as many streams are open as there may be.
            InputError: if conditions are missing or wrong, or no file can have the name.
            StateError: if a stream of this name is open or saved.
        """
        self._queues.require_open()
        name = uuid.uuid4().hex if name is None else name
        self._store.check(name)
        if self._store.folder is not None and name in self._store:
            raise StateError(
                f"There is a saved stream {name!r}: go on with resume({name!r}), or drop it with "
                f"forget({name!r})."
            )
        return self._hold(Record(name, self._prepared(conditions)))

    def resume(self, name: str) -> StreamHandle:
        """Go on with a stream that was saved to the folder, bit for bit.

        Its `past_length` tells how many tokens it had then.

        Raises:
            FullError: if as many streams are open as there may be.
            StateError: if there is no such stream, it is open, or what was saved is damaged.
        """
        self._store.check(name)
        if name in self._queues.records:
            raise StateError(f"The stream {name!r} is open already.")
        if self._store.folder is None or name not in self._store:
            raise StateError(f"There is no saved stream {name!r}. Begin one with open({name!r}).")
        snapshot = self._store.take(name)
        state = self.session.state.copy()
        state.restore(snapshot)
        if state.batch != 1:
            raise StateError(f"What is saved as {name!r} has {state.batch or 0} rows, not one.")
        record = Record(name, state.carried.conditions)
        record.past = record.saved = int(state.past_length[0])
        return self._hold(record)

    def saved(self) -> list[str]:
        """The names of the streams that are saved in the folder, open ones among them."""
        return [] if self._store.folder is None else [*self._store.names()]

    def forget(self, name: str) -> None:
        """Delete what was saved of a stream.

        Raises:
            StateError: if the stream is open.
        """
        self._store.check(name)
        if name in self._queues.records:
            raise StateError(f"The stream {name!r} is open: close it instead.")
        self._store.drop(name)

    def feed(
        self, stream: StreamHandle, inputs: Inputs, *, timeout: float | None = None
    ) -> "Future[Outputs]":
        """Queue the next tokens of a stream.

        A feed that fails leaves its stream as it was before; what was fed after it fails with it.

        Args:
            stream: of these streams.
            inputs: as `Session.step` takes them, of one row; they are copied.
            timeout: seconds to wait for room in the queues; None waits for ever, and 0 not at all.

        Returns:
            A future of the outputs by name, of one row, in memory of their own.  One that is
            cancelled before its turn is left out.  What is called when it is done runs on the
            engine's thread, where nothing may wait: it finds full queues at once.

        Raises:
            FullError: if there was no room in time.
            InputError: if an input is missing, unknown, or of a wrong dtype, shape or value.
            StateError: if the stream is closed, could not be brought back, or would hold more
                tokens than it may.
        """
        record = stream._record  # noqa: SLF001  which no user should hold
        if stream.streams is not self:
            raise StateError(f"The stream {stream.name!r} is one of other streams.")
        held = record.conditions
        arrays, sizes = self._reader.read(inputs, {} if held is None else held.own_sizes)
        feed = Portion(self._entry, arrays, sizes)
        self._lanes.feed(record, feed, timeout)
        return feed.future

    def room(self) -> "Future[None]":
        """A future that is done when a feed has left the queues: then try again."""
        return self._queues.room()

    def require_another_thread(self) -> None:
        """Refuse to wait on the thread that steps.

        Raises:
            StateError: if the caller runs there, as what a future calls when it is done does.
        """
        if self._lanes.is_here:
            raise StateError(
                "What is called when a future is done must not wait for a step: use feed, whose "
                "future calls in its turn."
            )

    def snapshot(self, record: Record) -> Snapshot:
        """See `StreamHandle.save`."""
        self.require_another_thread()
        return self._lanes.save(record)

    def end(self, record: Record, *, keep: bool) -> None:
        """See `StreamHandle.close` and `StreamHandle.park`."""
        self._lanes.end(record, keep=keep)

    def close(self) -> None:
        """End all streams; those of a folder are saved first, and can be resumed.

        Feeds that wait fail.

        Raises:
            StateError: if a stream could not be saved; all others are.
        """
        self._ends.detach()
        self._lanes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _hold(self, record: Record) -> StreamHandle:
        self._queues.add(record)
        stream = StreamHandle(self, record)
        weakref.finalize(stream, self._lanes.leave, record).atexit = False
        return stream

    def _prepared(self, given: Mapping[str, Any] | None) -> Conditions | None:
        preparer = self.session.state.preparer
        if preparer is None:
            if given:
                raise InputError("This bundle takes no conditions: give all inputs to each feed.")
            return None
        arrays = preparer.read(given or {})
        rows = preparer.sizes(arrays).get(BATCH, 1)
        if rows != 1:
            raise InputError(f"A stream has one row, and its conditions have {rows}.")
        with self._preparing:
            return preparer.prepare(arrays)


def _require_count(name: str, count: Any) -> None:
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise InputError(f"{name} is {count!r}, should be a whole number of at least 1.")


def _lanes_of(graph: BundleGraph, target: str, rows: int) -> int:
    """How many lanes pay on this machine: more than one where a call is too small for its cores."""
    target = choose_target(graph, target)
    small = target == "ort" and _weights(graph, target) <= SMALL
    return max(1, min(cores(), rows // FEW)) if small else 1


def _weights(graph: BundleGraph, target: str) -> int:
    """Bytes of the files that an engine reads."""
    files, found = graph.bundle.manifest.files, graph.target(target)
    return sum(files[name].bytes for name in (found.path, *found.data))
