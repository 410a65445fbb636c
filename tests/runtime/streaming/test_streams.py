"""Streams: whoever shares their engine, each gives what a session of its own gives."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conditioned_bundle import write

from intaglio.errors import BundleError, InputError, StateError
from intaglio.runtime.graph_entry import Limits
from intaglio.runtime.session import Session
from intaglio.runtime.streaming.streams import Streams

Array = npt.NDArray[Any]
OpenStreams = Callable[..., Streams]
MIXED = ("recurrent", "conv", "window", "static")
WAIT = 60  # seconds until a test that hangs fails


def fed_at_random(
    streams: Streams, count: int, feeds: int
) -> tuple[list[list[Array]], list[Array]]:
    """What each of `count` streams was fed, one after the other at random, and what it gave."""
    random = np.random.default_rng(3)
    opened = [streams.open() for _ in range(count)]
    fed: list[list[Array]] = [[np.array([[index]])] for index in range(count)]
    futures = [
        [stream.feed({"input_ids": ids[0]})] for stream, ids in zip(opened, fed, strict=True)
    ]
    for _ in range(feeds):
        index, tokens = int(random.integers(count)), int(random.choice([1, 1, 1, 2, 5, 7]))
        fed[index].append(random.integers(0, 23, (1, tokens)))
        futures[index].append(opened[index].feed({"input_ids": fed[index][-1]}))
    given = [[future.result(WAIT)["logits"] for future in each] for each in futures]
    for stream, ids, logits in zip(opened, fed, given, strict=True):  # also those without a row
        ids.append(np.array([[1]]))
        logits.append(stream.step({"input_ids": ids[-1]})["logits"])
    joined = [np.concatenate(each, 1) for each in given]
    assert [stream.past_length for stream in opened] == [ids.shape[1] for ids in joined]
    return fed, joined


@pytest.mark.parametrize(
    "layouts", [("recurrent",), ("conv",), ("window",), ("static",), ("grow",), MIXED], ids="+".join
)
@pytest.mark.parametrize(("rows", "count", "options"), [
    (6, 6, {}), (4, 7, {}), (4, 6, {"reproducible": True}), (1, 2, {}),
])  # fmt: skip
def test_each_stream_gives_what_a_session_gives(
    open_streams: OpenStreams,
    bundle_of: Callable[..., Path],
    alone: Callable[..., Array],
    layouts: tuple[str, ...],
    rows: int,
    count: int,
    options: dict[str, Any],
) -> None:
    """In every layout, with more streams than rows, while caches grow and prompts are cut."""
    streams = open_streams(rows, bundle_of(*layouts), chunk=4, **options)
    fed, given = fed_at_random(streams, count, 25)
    for ids, logits in zip(fed, given, strict=True):
        whole = alone(np.concatenate(ids, 1), *layouts)
        np.testing.assert_allclose(logits, whole, atol=2e-5)
    assert (streams.stats.restored > 0) == (count > rows)


def test_streams_with_input_share_a_call(open_streams: OpenStreams, calls: Any, ids: Any) -> None:
    """Whatever waits when the engine is free is one call of it."""
    streams, gate = open_streams(4), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    opened = [streams.open() for _ in range(4)]
    futures = [stream.feed(ids(index)) for index, stream in enumerate(opened)]
    gate.set()
    for future in futures:
        future.result(WAIT)
    assert sorted(calls.seen) in ([(1, 1), (1, 3)], [(1, 4)])


def test_a_stream_without_input_does_not_move(open_streams: OpenStreams, ids: Any) -> None:
    """Bit for bit, in every layout, whoever steps beside it."""
    streams = open_streams(4, reproducible=True)
    still, *others = [streams.open() for _ in range(4)]
    still.step(ids(1, 2, 3))
    before = still.save()
    for token in range(9):
        for future in [other.feed(ids(token, 5)) for other in others]:
            future.result(WAIT)
    after = still.save()
    assert (after.past_length, still.past_length) == (before.past_length, 3)
    for name, array in before.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)


def test_a_full_stream_keeps_its_cache(
    open_streams: OpenStreams, bundle_of: Callable[..., Path], alone: Callable[..., Array], ids: Any
) -> None:
    """What runs along in its row has no room, and must not write over its last tokens."""
    bundle = bundle_of(*MIXED, limits=Limits(max_context=8))
    streams = open_streams(2, bundle, reproducible=True)
    full, other = streams.open(), streams.open()
    tokens = (4, 3, 2, 1, 4, 3, 2)
    full.step(ids(*tokens))
    other.step(ids(1))
    other.step(ids(2, 3, 4, 5))
    last = full.step(ids(9))["logits"]
    np.testing.assert_allclose(last, alone([[*tokens, 9]])[:, -1:], atol=2e-5)
    kept = full.save()
    other.step(ids(6, 7))
    for name, array in full.save().arrays.items():
        np.testing.assert_array_equal(array, kept.arrays[name])
    with pytest.raises(StateError, match=r"holds 8 tokens.*1 more are beyond its limit of 8"):
        full.feed(ids(1))


def test_reproducible_streams_give_the_same_bits(open_streams: OpenStreams) -> None:
    """Alone or among others, in whichever row: each call has the same shape."""
    streams = open_streams(5, reproducible=True, chunk=4)
    fed, given = fed_at_random(streams, 8, 40)
    for feeds, logits in zip(fed, given, strict=True):
        single = streams.open()
        steps = [single.step({"input_ids": ids})["logits"] for ids in feeds]
        np.testing.assert_array_equal(np.concatenate(steps, 1), logits)


def test_a_prompt_does_not_keep_single_tokens_waiting(
    open_streams: OpenStreams, calls: Any, ids: Any
) -> None:
    """Between two parts of a prompt whoever waits has a turn."""
    streams, gate = open_streams(4, chunk=4), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    prompt, *others = [streams.open() for _ in range(4)]
    futures = [prompt.feed(ids(*[1] * 23))]
    futures += [other.feed(ids(2)) for _ in range(4) for other in others]
    gate.set()
    for future in futures:
        future.result(WAIT)
    lengths = [length for length, _ in calls.seen]
    assert [length for length in lengths if length > 1] == [4] * 5 + [2]
    assert "44" not in "".join(map(str, lengths))[:-4]


def test_who_waits_for_a_row_gets_one_from_those_that_never_pause(
    open_streams: OpenStreams, calls: Any, ids: Any
) -> None:
    """After its share of calls a stream gives way, though it has more to take."""
    streams, gate = open_streams(1, queue=100, backlog=1000), threading.Event()
    calls.go_on = lambda: gate.wait(WAIT)
    first, second = streams.open(), streams.open()
    order: list[str] = []
    futures = [first.feed(ids(1)) for _ in range(60)] + [second.feed(ids(2))]
    futures[-1].add_done_callback(lambda _: order.append("second"))
    futures[59].add_done_callback(lambda _: order.append("first"))
    gate.set()
    for future in futures:
        future.result(WAIT)
    assert order == ["second", "first"]


def test_what_one_stream_is_refused_the_others_get(
    open_streams: OpenStreams, calls: Any, alone: Callable[..., Array], ids: Any
) -> None:
    """It is as it was before the feed, of which a part was taken, and goes on from there."""
    streams, gate = open_streams(4, chunk=2), threading.Event()
    good, bad = streams.open(), streams.open()
    bad.step(ids(5, 6, 7))
    calls.go_on = lambda: gate.wait(WAIT)
    calls.refuse = lambda given: InputError("not 13") if any(13 in each for each in given) else None
    futures = [bad.feed(ids(1, 2, 13)), bad.feed(ids(8)), good.feed(ids(1, 2, 3))]
    gate.set()
    np.testing.assert_allclose(futures[2].result(WAIT)["logits"], alone([[1, 2, 3]]), atol=2e-5)
    with pytest.raises(InputError, match="not 13"):
        futures[0].result(WAIT)
    with pytest.raises(StateError, match="What the stream was fed before has failed"):
        futures[1].result(WAIT)
    assert bad.past_length == 3
    np.testing.assert_allclose(bad.step(ids(8))["logits"], alone([[5, 6, 7, 8]])[:, -1:], atol=2e-5)


def test_a_broken_engine_is_told_to_everybody(
    open_streams: OpenStreams, calls: Any, ids: Any
) -> None:
    """An error that is nobody's fault ends the streams, and no one waits for ever."""
    streams = open_streams(2)
    stream = streams.open()
    calls.refuse = lambda _: ZeroDivisionError("broken")
    with pytest.raises(StateError, match=r"ended, by an error of intaglio: ZeroDivisionError"):
        stream.step(ids(1))
    for again in (lambda: stream.step(ids(1)), streams.open, stream.save):
        with pytest.raises(StateError, match="ended, by an error"):
            again()


def test_bad_input_is_refused_where_it_is_fed(open_streams: OpenStreams, ids: Any) -> None:
    """Nothing of it reaches the engine."""
    streams = open_streams()
    stream = streams.open("one")
    for inputs, message in [
        ({}, "'input_ids' is missing"),
        (ids(1) | {"x": [1]}, "no input 'x'"),
        ({"input_ids": [[1], [2]]}, "A stream has one row, and its feed has 2"),
        ({"input_ids": [[1.0]]}, "is float64"),
        ({"input_ids": [[]]}, "is float64"),
    ]:
        with pytest.raises(InputError, match=message):
            stream.feed(inputs)
    with pytest.raises(StateError, match="is one of other streams"):
        open_streams().feed(stream, ids(1))
    with pytest.raises(StateError, match="'one' is open already"):
        streams.open("one")
    with pytest.raises(InputError, match="takes no conditions"):
        streams.open(conditions={"a": 1})
    counts: list[tuple[str, Any]] = [
        ("rows", 0), ("rows", None), ("queue", "2"), ("lanes", 2.0), ("chunk", True), ("threads", 0)
    ]  # fmt: skip
    for name, count in counts:
        with pytest.raises(InputError, match=f"{name} is {count!r}, should be a whole number"):
            open_streams(**{name: count})
    names: list[Any] = ["", "x" * 300, "\ud800", 7]
    for unfit in names:
        with pytest.raises(InputError, match="is no name of a stream"):
            streams.open(unfit)
    with pytest.raises(InputError, match="save_every needs a folder"):
        open_streams(save_every=3)
    assert stream.past_length == 0


def test_what_cannot_be_streams_is_refused(
    bundle_of: Callable[..., Path], tmp_path: Path, open_streams: OpenStreams, ids: Any
) -> None:
    """A fixed batch whose caches need rows of equal length; one that needs none has them."""
    bundle = bundle_of("grow", limits=Limits(batch=3))
    with pytest.raises(BundleError, match="exactly 3, whose rows cannot be at different tokens"):
        open_streams(3, bundle)
    streams = open_streams(4, bundle_of(*MIXED, limits=Limits(batch=3)))
    assert (streams.rows, streams.width) == (6, 3)
    assert streams.open().step(ids(1))["logits"].shape == (1, 1, 23)
    with pytest.raises(BundleError, match="does not exist"):
        open_streams(3, tmp_path / "nowhere")


def test_sources_of_different_lengths_are_stepped_apart(tmp_path: Path) -> None:
    """Conditions are each stream's own: those of one size share calls, and what holds for all."""
    bundle = write(tmp_path / "bundle")
    random = np.random.default_rng(1)
    x = random.standard_normal((1, 6, 2)).astype(np.float32)
    given: list[dict[str, Array]] = [
        {
            "memory": random.standard_normal((1, size, 2)).astype(np.float32),
            "bias": np.array([bias, 0], np.float32),
        }
        for size, bias in [(3, 1), (3, 1), (3, 2), (5, 1)]
    ]
    session = Session.load(bundle, threads=1)
    with Streams(bundle, 3, threads=1, store=tmp_path / "saved") as streams:
        opened = [streams.open(str(i), conditions=each) for i, each in enumerate(given)]
        for time in range(5):
            futures = [stream.feed({"x": x[:, time : time + 1]}) for stream in opened]
            for future in futures:
                future.result(WAIT)
        with pytest.raises(InputError, match="'bias' is a condition, which holds for the whole"):
            opened[0].feed({"x": x, "bias": [1, 2]})
        with pytest.raises(InputError, match="'memory' is missing"):
            streams.open()
        with pytest.raises(InputError, match="one row, and its conditions have 2"):
            streams.open(conditions={"memory": np.zeros((2, 3, 2), np.float32)})
        assert streams.stats.restored
    with Streams(bundle, 3, threads=1, store=tmp_path / "saved") as streams:
        for index, each in enumerate(given):
            session.state.reset()
            session.condition(each)
            expected = session.step({"x": x})["y"][:, -1:]
            got = streams.resume(str(index)).step({"x": x[:, -1:]})["y"]
            np.testing.assert_allclose(got, expected, atol=1e-5)
            session = Session.load(bundle, threads=1)


def test_ids_of_a_table_of_its_conditions_are_checked(tmp_path: Path) -> None:
    """Where the feed is given, against the size that the stream's own conditions have."""
    memory = np.ones((1, 4, 2), np.float32)
    with Streams(write(tmp_path / "bundle", own_axis=True), 2, threads=1) as streams:
        stream = streams.open(conditions={"memory": memory})
        x = np.ones((1, 1, 2), np.float32)
        assert stream.step({"x": x, "at": [[3]]})["w"].shape == (1, 1, 4)
        with pytest.raises(InputError, match=r"'at' has 4 at .* should be from 0 to 3"):
            stream.feed({"x": x, "at": [[4]]})
