"""No lane waits for what has happened, and nobody for an answer that never comes."""

import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import FullError, InputError, StateError
from intaglio.runtime.streaming.bank import Bank
from intaglio.runtime.streaming.queues import Queues, StreamLimits, tell_all
from intaglio.runtime.streaming.residents import Residents
from intaglio.runtime.streaming.scheduler import Scheduler
from intaglio.runtime.streaming.streams import Streams

Array = npt.NDArray[Any]
OpenStreams = Callable[..., Streams]
WAIT = 60  # seconds until a test that hangs fails
LIMITS = StreamLimits(streams=9, queue=9, backlog=9, context=None, chunk=1, save_every=None)


def test_an_end_that_comes_right_after_a_lane_has_looked_for_it_is_seen() -> None:
    """What wakes the lane then is not taken for news of something that it has yet to look at."""

    class Watched(Queues):
        """Closed as soon as it is seen to be open."""

        @property
        def closed(self) -> str | None:
            found = self.__dict__.get("why")
            if found is None and threading.current_thread().name.startswith("intaglio-streams"):
                self.__dict__["why"] = "gone"
                self.enders[0]()
            return found

        @closed.setter
        def closed(self, why: str | None) -> None:
            self.__dict__["why"] = why

    lane = Scheduler(Watched(LIMITS, 1), cast("Residents", None), 0)
    lane.thread.join(5)
    alive = lane.thread.is_alive()
    lane.wake()
    assert not alive


def test_what_was_stepped_is_told_though_the_engine_breaks_after(
    open_streams: OpenStreams, calls: Any, ids: Any
) -> None:
    """A call for two is refused; alone, one has its outputs; at the other the engine breaks."""
    streams, gate = open_streams(2), threading.Event()
    one, two = streams.open(), streams.open()
    calls.go_on = lambda: gate.wait(WAIT)

    def refuse(given: list[Array]) -> BaseException | None:
        if len(given) == 2:
            return InputError("not both")
        return ZeroDivisionError("broken") if given[0][0, 0] == 2 else None

    calls.refuse = refuse
    blocked = one.feed(ids(3, 3))
    second, first = one.feed(ids(2)), two.feed(ids(1))
    gate.set()
    assert blocked.result(WAIT)["logits"].shape == (1, 2, 23)
    assert first.result(5)["logits"].shape == (1, 1, 23)
    with pytest.raises(StateError, match="ZeroDivisionError"):
        second.result(5)


def test_a_stream_that_cannot_be_rewound_is_told(
    open_streams: OpenStreams, calls: Any, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it was fed is in no queue by then."""
    streams = open_streams(1, chunk=2)
    stream = streams.open()

    def breaks(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Bank, "rewind", breaks)
    calls.refuse = lambda given: InputError("no seven") if given[0][0, 0] == 7 else None
    with pytest.raises(InputError, match="no seven"):
        stream.feed(ids(1, 2, 7, 8)).result(5)
    with pytest.raises(StateError, match="by an error of intaglio: ZeroDivisionError"):
        stream.step(ids(1))


def test_all_are_told_whatever_one_of_them_calls() -> None:
    """The first that is raised is raised again; one that was cancelled hears nothing."""
    futures: list[Future[int]] = [Future() for _ in range(3)]
    futures[2].set_running_or_notify_cancel()
    gone: Future[int] = Future()
    gone.cancel()
    heard = []

    def leaves(number: int) -> Callable[[object], None]:
        def done(_: object) -> None:
            heard.append(number)
            sys.exit(number)

        return done

    for number, future in enumerate(futures):
        future.add_done_callback(leaves(number))
    with pytest.raises(SystemExit) as found:
        tell_all([(futures[0], 5), (gone, 6), (futures[1], InputError("bad")), (futures[2], 7)])
    assert (heard, found.value.code) == ([0, 1, 2], 0)
    assert (futures[0].result(), futures[2].result()) == (5, 7)
    assert isinstance(futures[1].exception(), InputError)
    assert gone.cancelled()


def test_what_waits_for_room_is_told_that_its_stream_is_closed(
    open_streams: OpenStreams, calls: Any, ids: Any
) -> None:
    """Though no feed leaves the queues, which others fill."""
    streams, gate, there = open_streams(2, backlog=1, lanes=2), threading.Event(), threading.Event()

    def go_on() -> None:
        there.set()
        gate.wait(WAIT)

    calls.go_on = go_on
    one, two = streams.open(), streams.open()
    stepped = one.feed(ids(1))
    assert there.wait(WAIT)
    with pytest.raises(FullError, match="1 feeds wait"):
        two.feed(ids(1), timeout=0)
    told: Future[BaseException] = Future()

    def waits() -> None:
        try:
            two.feed(ids(1))
        except StateError as error:
            told.set_result(error)

    thread = threading.Thread(target=waits)
    thread.start()
    two.close()
    found = told.result(5)
    gate.set()
    thread.join(WAIT)
    assert "closed" in str(found)
    stepped.result(WAIT)


def test_a_stream_may_be_closed_by_what_its_parking_tells(
    open_streams: OpenStreams, tmp_path: Path, calls: Any, ids: Any
) -> None:
    """It is closed then, and nothing is saved under its name."""
    streams, gate = open_streams(2, store=tmp_path), threading.Event()
    one, other = streams.open("one"), streams.open("other")
    one.step(ids(1))
    calls.go_on = lambda: gate.wait(WAIT)
    one.feed(ids(2)).add_done_callback(lambda _: one.feed(ids(3)).add_done_callback(closes))
    parked: Future[None] = Future()

    def closes(_: object) -> None:
        one.close()

    def parks(_: object) -> None:  # right after the call in which the feed above is queued
        try:
            one.park()
        except StateError as error:
            parked.set_exception(error)

    other.feed(ids(2)).add_done_callback(parks)
    gate.set()
    with pytest.raises(StateError, match="'one' is closed"):
        parked.result(WAIT)
    assert (streams.saved(), streams.stats.open) == ([], 1)


def test_streams_may_be_closed_by_what_is_collected_within_the_lock(
    open_streams: OpenStreams, ids: Any
) -> None:
    """The lane, which needs the lock for that, is not waited for."""
    streams = open_streams(2)
    stream, ended = streams.open(), threading.Event()
    stream.step(ids(1))

    def collected() -> None:
        with streams._queues.lock:  # where garbage may be collected at any time
            stream.close()
            with pytest.raises(StateError, match="must not wait"):
                stream.save()
        ended.set()

    threading.Thread(target=collected, daemon=True).start()
    assert ended.wait(5)
    assert streams.open().step(ids(1))["logits"].shape == (1, 1, 23)
    with pytest.raises(StateError, match="closed"):
        stream.step(ids(1))


def test_what_a_call_collects_closes_its_streams_after_it(
    open_streams: OpenStreams, calls: Any, alone: Callable[..., Array], ids: Any
) -> None:
    """A row that is stepped stays whose it is until then."""
    streams = open_streams(2)
    stream = streams.open()

    def go_on() -> None:
        calls.go_on = lambda: None
        stream.close()

    calls.go_on = go_on
    logits = stream.feed(ids(1, 2)).result(WAIT)["logits"]
    np.testing.assert_allclose(logits, alone([[1, 2]]), atol=2e-5)
    with pytest.raises(StateError, match=f"{stream.name!r} is closed"):
        stream.step(ids(1))


def test_streams_that_are_collected_wait_for_nothing(
    bundle_of: Callable[..., Path], calls: Any, ids: Any
) -> None:
    """Whoever collects them may hold what a lane waits for."""
    streams, gate, there = Streams(bundle_of("conv"), 2), threading.Event(), threading.Event()

    def go_on() -> None:
        there.set()
        gate.wait(WAIT)

    calls.go_on = go_on
    future, gone = streams.open().feed(ids(1)), weakref.ref(streams)
    assert there.wait(WAIT)
    ended = threading.Event()

    def collects() -> None:
        nonlocal streams
        del streams
        gc.collect()
        ended.set()

    threading.Thread(target=collects, daemon=True).start()
    assert ended.wait(5)
    assert gone() is None
    gate.set()
    assert future.result(WAIT)["logits"].shape == (1, 1, 23)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_fork_is_refused_streams(open_streams: OpenStreams, ids: Any) -> None:
    """It has no lanes; who holds the lock in its parent is not there to let it go."""
    streams, held, gate = open_streams(2), threading.Event(), threading.Event()
    stream = streams.open()

    def holds() -> None:
        with streams._queues.lock:  # as any thread may at the instant of a fork
            held.set()
            gate.wait(WAIT)

    thread = threading.Thread(target=holds)
    thread.start()
    assert held.wait(WAIT)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child = os.fork()
    if not child:
        signal.alarm(20)
        told = 0
        for ask in (lambda: stream.step(ids(1)), streams.open, stream.save):
            try:
                ask()
            except StateError as error:
                told += "not of its forks" in str(error)
        stream.close()
        streams.close()
        os._exit(told)
    gate.set()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert stream.step(ids(1))["logits"].shape == (1, 1, 23)


def test_streams_are_saved_where_the_interpreter_ends(
    open_streams: OpenStreams, bundle_of: Callable[..., Path], tmp_path: Path
) -> None:
    """Nobody closes them, and nobody holds those that are collected just before."""
    code = """if True:
        import sys
        from intaglio.runtime.streaming.streams import Streams
        held = Streams(sys.argv[1], 2, store=sys.argv[2]).open("held")
        left = Streams(sys.argv[1], 2, store=sys.argv[2]).open("left")
        for stream in (held, left):
            stream.step({"input_ids": [[1]]})
        del stream
        del left
    """
    command = [sys.executable, "-c", code, str(bundle_of("conv")), str(tmp_path)]
    subprocess.run(command, check=True, timeout=WAIT)
    streams = open_streams(2, bundle=bundle_of("conv"), store=tmp_path)
    assert streams.saved() == ["held", "left"]
    assert streams.resume("left").past_length == 1
