"""Lanes call the engine beside each other, and share limits, store and end."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import FullError, InputError, StateError
from intaglio.runtime.session import Session
from intaglio.runtime.streaming import streams as streams_module
from intaglio.runtime.streaming.streams import Streams

Array = npt.NDArray[Any]
OpenStreams = Callable[..., Streams]
WAIT = 60  # seconds until a test that hangs fails


def test_lanes_step_at_the_same_time(
    open_streams: OpenStreams, alone: Callable[..., Array], calls: Any, ids: Any
) -> None:
    """Each call waits for one of the other lane, and each stream has its own outputs."""
    streams, both = open_streams(4, lanes=2), threading.Barrier(2)
    calls.go_on = lambda: both.wait(WAIT)
    assert (streams.lanes, streams.width, streams.rows) == (2, 2, 4)
    opened = [streams.open() for _ in range(4)]
    for tokens in ((5, 6, 7), (8,)):
        futures = [stream.feed(ids(i, *tokens)) for i, stream in enumerate(opened[:2])]
        for index, future in enumerate(futures):
            logits = future.result(WAIT)["logits"][:, : 1 + len(tokens)]
            if len(tokens) == 3:
                np.testing.assert_allclose(logits, alone([[index, *tokens]]), atol=2e-5)
    assert streams.stats.calls == len(calls.seen)


@pytest.mark.parametrize("reproducible", [False, True])
def test_streams_of_all_lanes_give_what_sessions_give(
    open_streams: OpenStreams, alone: Callable[..., Array], *, reproducible: bool
) -> None:
    """More streams than rows, prompts cut: bits are the same in whichever lane if asked for."""
    streams = open_streams(4, lanes=2, chunk=4, reproducible=reproducible)
    random = np.random.default_rng(5)
    opened = [streams.open() for _ in range(7)]
    fed: list[list[Array]] = [[] for _ in opened]
    futures: list[list[Any]] = [[] for _ in opened]
    for _ in range(60):
        index, tokens = int(random.integers(7)), int(random.choice([1, 1, 2, 7]))
        fed[index].append(random.integers(0, 23, (1, tokens)))
        futures[index].append(opened[index].feed({"input_ids": fed[index][-1]}))
    for feeds, answers in zip(fed, futures, strict=True):
        given = np.concatenate([answer.result(WAIT)["logits"] for answer in answers], 1)
        np.testing.assert_allclose(given, alone(np.concatenate(feeds, 1)), atol=2e-5)
        if reproducible:
            for single in (streams.open(), streams.open()):  # of both lanes
                steps = [single.step({"input_ids": ids})["logits"] for ids in feeds]
                np.testing.assert_array_equal(np.concatenate(steps, 1), given)


def test_limits_are_those_of_all_lanes(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """So many streams, so many feeds; streams go where there are fewest."""
    streams, gate = open_streams(2, lanes=2, streams=3, backlog=3), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    one, two, three = (streams.open() for _ in range(3))
    with pytest.raises(FullError, match="3 streams are open"):
        streams.open()
    futures = [each.feed(ids(1), timeout=0) for each in (one, two, three)]
    with pytest.raises(FullError, match="3 feeds wait, which is the limit of all"):
        two.feed(ids(1), timeout=0)
    assert (streams.stats.open, streams.stats.waiting) == (3, 3)
    gate.set()
    for future in futures:
        future.result(WAIT)
    two.close()
    streams.open().step(ids(1))  # in the place of the one that went, which had a row free
    assert (streams.stats.rows, streams.stats.saved) == (2, 1)


def test_callbacks_end_streams_of_other_lanes(open_streams: OpenStreams, ids: Any) -> None:
    """Neither lane waits for the other, which waits for it."""
    streams, both = open_streams(2, lanes=2), threading.Barrier(2)
    one, two = streams.open(), streams.open()
    ended: list[Future[None]] = [Future(), Future()]

    def ends(other: Any, told: "Future[None]") -> Callable[[Any], None]:
        def done(_: Any) -> None:
            both.wait(WAIT)
            other.close()
            told.set_result(None)

        return done

    one.feed(ids(1)).add_done_callback(ends(two, ended[0]))
    two.feed(ids(1)).add_done_callback(ends(one, ended[1]))
    for each in ended:
        each.result(WAIT)
    streams.close()
    for stream in (one, two):
        with pytest.raises(StateError, match="closed"):
            stream.step(ids(1))


def test_a_callback_hears_at_the_end_of_what_another_lane_could_not_save(
    open_streams: OpenStreams, tmp_path: Path, ids: Any
) -> None:
    """It must not wait, so the error has nowhere else to go."""
    streams = open_streams(2, lanes=2, store=tmp_path / "saved")
    one, two = streams.open("one"), streams.open("two")
    two.step(ids(1))
    (tmp_path / "saved").rename(tmp_path / "gone")
    (tmp_path / "saved").touch()
    asked = threading.Event()

    def done(_: Any) -> None:
        two.park()
        asked.set()

    one.feed(ids(1)).add_done_callback(done)
    assert asked.wait(WAIT)
    with pytest.raises(StateError, match="'two' cannot be saved"):
        streams.close()


def test_an_error_of_one_lane_ends_all(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """Those that wait in the other are told, too, and its thread ends."""
    streams, gate, there = open_streams(2, lanes=2), threading.Event(), threading.Event()
    one, two = streams.open(), streams.open()

    def refuse(given: list[Array]) -> BaseException | None:
        if given[0][0, 0] == 1:
            return ZeroDivisionError("broken")
        there.set()
        gate.wait(WAIT)
        return None

    calls.refuse = refuse
    first, second = two.feed(ids(2)), two.feed(ids(2))
    assert there.wait(WAIT)
    with pytest.raises(StateError, match="by an error of intaglio: ZeroDivisionError"):
        one.step(ids(1))
    gate.set()
    assert first.result(WAIT)["logits"].shape == (1, 1, 23)
    with pytest.raises(StateError, match="by an error of intaglio"):
        second.result(WAIT)
    streams.close()


def test_streams_of_all_lanes_are_saved(
    open_streams: OpenStreams, tmp_path: Path, alone: Callable[..., Array], ids: Any
) -> None:
    """And are resumed by streams of another number of lanes."""
    first = open_streams(4, lanes=2, store=tmp_path)
    for name in "abc":
        first.open(name).step(ids(1, 2))
    first.close()
    second = open_streams(3, lanes=3, store=tmp_path)
    for name in "abc":
        logits = second.resume(name).step(ids(5))["logits"]
        np.testing.assert_allclose(logits, alone([[1, 2, 5]])[:, -1:], atol=2e-5)


def test_lanes_by_default(bundle_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """One for each core where calls are small and each has rows to share; else one."""
    monkeypatch.setattr(streams_module, "cores", lambda: 4)
    bundle = bundle_of("recurrent")

    def found(source: Any = bundle, rows: int = 64, **options: Any) -> tuple[int, int]:
        with Streams(source, rows, **options) as streams:
            return streams.lanes, streams.rows

    assert found() == (4, 64)
    assert found(rows=25) == (3, 27)
    assert found(rows=15) == (1, 15)
    assert found(threads=2) == (1, 64)
    assert found(Session.load(bundle)) == (1, 64)
    assert found(Session.load(bundle), lanes=2) == (2, 64)
    assert found(lanes=8, rows=5) == (5, 5)
    assert found(bundle_of("grow"), rows=18) == (2, 18)
    monkeypatch.setattr(streams_module, "SMALL", 100)
    assert found() == (1, 64)
    with pytest.raises(InputError, match="lanes is 0, should be a whole number"):
        found(lanes=0)
