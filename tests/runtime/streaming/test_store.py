"""Streams that have no row, or no process: saved, brought back bit for bit, refused if damaged."""

import gc
import threading
from collections.abc import Callable
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


def test_streams_outlive_their_process(
    open_streams: OpenStreams, tmp_path: Path, alone: Callable[..., Array], ids: Any
) -> None:
    """What is in the folder is resumed bit for bit; what is damaged is refused, others go on."""
    first = open_streams(1, store=tmp_path)
    one, two, gone = (first.open(name) for name in ("user/1", "..", "gone"))
    for stream in (one, two, gone):
        stream.step(ids(1, 2, 3))
    kept = one.save()
    gone.close()
    two.park()
    first.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "stream-...npz", "stream-user%2F1.npz"
    ]  # fmt: skip
    second = open_streams(1, store=tmp_path)
    assert second.saved() == ["..", "user/1"]
    again = second.resume("user/1")
    assert again.past_length == 3
    for name, array in again.save().arrays.items():
        np.testing.assert_array_equal(array, kept.arrays[name])
    with pytest.raises(StateError, match=r"no saved stream 'gone'.*open\('gone'\)"):
        second.resume("gone")
    with pytest.raises(StateError, match=r"There is a saved stream '..'"):
        second.open("..")
    (tmp_path / "stream-...npz").write_bytes(b"not a snapshot")
    with pytest.raises(StateError, match="is not a snapshot, or it is damaged"):
        second.resume("..")
    second.forget("..")
    second.open("..").step(ids(4))
    np.testing.assert_allclose(
        again.step(ids(5))["logits"], alone([[1, 2, 3, 5]])[:, -1:], atol=2e-5
    )


def test_a_saved_stream_that_is_damaged_meanwhile_fails_alone(
    open_streams: OpenStreams, tmp_path: Path, ids: Any
) -> None:
    """Its own answer; the others go on, and so does the row that it would have had."""
    streams = open_streams(1, store=tmp_path)
    one, two = streams.open("one"), streams.open("two")
    one.step(ids(1))
    two.step(ids(1))
    (tmp_path / "stream-one.npz").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(StateError, match="'one' cannot be brought back"):
            one.step(ids(2))
    assert two.step(ids(2))["logits"].shape == (1, 1, 23)
    one.close()


def test_a_stream_is_saved_every_so_many_tokens(
    open_streams: OpenStreams, tmp_path: Path, ids: Any
) -> None:
    """So that what dies has lost no more than these."""
    streams = open_streams(2, store=tmp_path, save_every=4)
    stream = streams.open("one")
    for token in range(7):
        stream.step(ids(token))
    assert (stream.saved_length, stream.past_length) == (4, 7)
    assert open_streams(2, store=tmp_path).resume("one").past_length == 4


def test_a_stream_that_nobody_holds_is_closed(open_streams: OpenStreams, ids: Any) -> None:
    """What it was fed is taken first; one whose future is cancelled leaves nothing behind."""
    streams = open_streams(2)
    future = streams.open().feed(ids(1, 2, 3))
    gc.collect()
    assert future.result(WAIT)["logits"].shape == (1, 3, 23)
    for _ in range(200):
        if not streams.stats.open:
            break
        threading.Event().wait(0.01)
    assert streams.stats.open == 0
