"""A stream as its user holds it: by threads, futures, callbacks, coroutines and iterators."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import StateError
from intaglio.runtime.streaming.streams import Streams

Array = npt.NDArray[Any]
OpenStreams = Callable[..., Streams]
WAIT = 60  # seconds until a test that hangs fails


def test_threads_may_share_streams(open_streams: OpenStreams, alone: Callable[..., Array]) -> None:
    """Each feeds its own and opens and closes more, while all step."""
    streams = open_streams(3, streams=100)
    found: dict[int, Array] = {}
    tokens = np.random.default_rng(0).integers(0, 23, (6, 15))

    def work(index: int) -> None:
        with streams.open() as stream:
            found[index] = np.concatenate(
                [stream.step({"input_ids": [[token]]})["logits"] for token in tokens[index]], 1
            )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
    np.testing.assert_allclose(
        np.concatenate([found[index] for index in range(6)]), alone(tokens), atol=2e-5
    )
    assert (streams.stats.open, streams.stats.rows) == (0, 0)


def test_a_stream_that_is_closed_stays_so(
    open_streams: OpenStreams, tmp_path: Path, ids: Any
) -> None:
    """It neither copies the state of one that has its name now, nor seems to be saved."""
    streams = open_streams(2, store=tmp_path)
    gone, fresh = streams.open("one"), streams.open("two")
    gone.step(ids(1, 2))
    gone.park()
    streams.resume("one").step(ids(3))
    fresh.close()
    for stream in (gone, fresh):
        stream.close()
        for ask, given in ((stream.save, ()), (stream.park, ()), (stream.feed, (ids(1),))):
            with pytest.raises(StateError, match=f"The stream '{stream.name}' is closed"):
                ask(*given)
    assert streams.saved() == ["one"]


def test_a_cancelled_feed_is_left_out(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """What was fed before and after is taken as if it had not been."""
    streams, gate = open_streams(2), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    stream = streams.open()
    futures = [stream.feed(ids(token)) for token in (1, 2, 3)]
    assert futures[1].cancel()
    gate.set()
    futures[2].result(WAIT)
    assert stream.past_length == 2


def test_callbacks_cannot_wait_for_their_own_thread(open_streams: OpenStreams, ids: Any) -> None:
    """They may feed; waiting for a step there would last for ever."""
    streams = open_streams(2)
    stream = streams.open()
    found: Future[Any] = Future()

    def done(_: Future[Any]) -> None:
        errors = []
        for wait in (lambda: stream.step(ids(2)), lambda: [*stream.map([ids(2)])], stream.save):
            try:
                wait()
            except StateError as error:
                errors.append(str(error))
        found.set_result((errors, stream.feed(ids(3))))

    stream.feed(ids(1)).add_done_callback(done)
    errors, following = found.result(WAIT)
    assert ["must not wait for a step" in error for error in errors] == [True] * 3
    assert following.result(WAIT)["logits"].shape == (1, 1, 23)


def test_coroutines_step_streams(open_streams: OpenStreams, alone: Callable[..., Array]) -> None:
    """Many of them in one event loop, with queues that are full most of the time."""
    streams = open_streams(3, queue=2, backlog=4)
    tokens = np.random.default_rng(0).integers(0, 23, (5, 9))

    async def one(row: Array) -> Array:
        stream = streams.open()
        first = (await stream.astep({"input_ids": row[None, :3]}))["logits"]
        feeds = [{"input_ids": row[None, i : i + 1]} for i in range(3, 9)]
        rest = [outputs["logits"] async for outputs in stream.amap(feeds)]
        return np.concatenate([first, *rest], 1)

    async def all_of_them() -> list[Array]:
        return await asyncio.gather(*map(one, tokens))

    found = asyncio.run(all_of_them())
    np.testing.assert_allclose(np.concatenate(found), alone(tokens), atol=2e-5)


def test_map_keeps_the_queue_full_and_the_order(
    open_streams: OpenStreams, alone: Callable[..., Array], ids: Any
) -> None:
    streams = open_streams(2, queue=2)
    outputs = [each["logits"] for each in streams.open().map(ids(token) for token in range(9))]
    np.testing.assert_allclose(np.concatenate(outputs, 1), alone([range(9)]), atol=2e-5)


def test_closing_answers_whoever_waits(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """What was not taken fails, and nothing can be fed any more."""
    streams, gate = open_streams(1), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    stream = streams.open()
    futures = [stream.feed(ids(token)) for token in range(3)]
    thread = threading.Thread(target=streams.close)
    thread.start()
    gate.set()
    thread.join(WAIT)
    with pytest.raises(StateError, match="The streams are closed"):
        futures[2].result(WAIT)
    with pytest.raises(StateError, match="The streams are closed"):
        stream.feed(ids(1))
    stream.close()
    streams.close()
