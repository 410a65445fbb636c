"""What waits is bounded: who feeds too much is told, or waits."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from intaglio.errors import FullError
from intaglio.runtime.streaming.queues import Queues, StreamLimits
from intaglio.runtime.streaming.streams import Streams

OpenStreams = Callable[..., Streams]
WAIT = 60  # seconds until a test that hangs fails


def test_queues_are_bounded(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """Each stream's, that of all, and the number of streams; who waits long enough is taken."""
    streams, gate = open_streams(2, streams=3, queue=2, backlog=3), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    one, two, _ = (streams.open() for _ in range(3))
    with pytest.raises(FullError, match="3 streams are open, which is the limit"):
        streams.open()
    futures = [one.feed(ids(1), timeout=0), one.feed(ids(2), timeout=0)]
    with pytest.raises(FullError, match=r"2 feeds of the stream .* wait, which is the limit"):
        one.feed(ids(3), timeout=0.01)
    futures.append(two.feed(ids(1), timeout=0))
    with pytest.raises(FullError, match="3 feeds wait, which is the limit of all"):
        two.feed(ids(1), timeout=0)
    waiting: list[Future[Any]] = []
    thread = threading.Thread(target=lambda: waiting.append(one.feed(ids(3))))
    thread.start()
    gate.set()
    thread.join(WAIT)
    assert [f.result(WAIT)["logits"].shape for f in (*futures, *waiting)] == [(1, 1, 23)] * 4


def test_queues_close_within_their_lock() -> None:
    """As where streams that nobody holds are collected, on the thread that plans a call of them."""
    limits = StreamLimits(streams=1, queue=1, backlog=1, context=None, chunk=1, save_every=None)
    queues = Queues(limits, 1)

    def collected() -> None:
        with queues.lock:
            queues.close("gone")

    thread = threading.Thread(target=collected, daemon=True)
    thread.start()
    thread.join(5)
    assert (thread.is_alive(), queues.closed) == (False, "gone")
