"""States are saved, restored, selected and reset row by row, and fit only where they belong."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from killed import after_calls

from intaglio.errors import StateError
from intaglio.runtime.session import Session
from intaglio.runtime.session_state import Snapshot

Array = npt.NDArray[Any]
MakeBundle = Callable[..., Path]
MakeSession = Callable[..., Session]
MakeIds = Callable[..., Array]

LAYOUTS = [("recurrent",), ("conv",), ("window",), ("static",), ("grow",)]
MIXED = ("recurrent", "conv", "window", "static")
every_layout = pytest.mark.parametrize("layouts", [*LAYOUTS, MIXED], ids="+".join)


def tokens(session: Session, ids: Array) -> Array:
    """Logits of `ids`, one token a step."""
    return np.concatenate(
        [session.step({"input_ids": token[:, None]})["logits"] for token in ids.T], axis=1
    )


@every_layout
@pytest.mark.parametrize("on_disk", [False, True])
def test_a_restored_state_continues_bit_for_bit(
    make_bundle: MakeBundle,
    make_ids: MakeIds,
    tmp_path: Path,
    layouts: tuple[str, ...],
    on_disk: bool,
) -> None:
    """In the session it was taken from, after it went elsewhere, and in a fresh one."""
    bundle, ids = make_bundle(*layouts), make_ids(2, 20)
    session = Session.load(bundle, threads=1, capacity=4)
    tokens(session, ids[:, :5])
    snapshot = session.state.save(tmp_path / "state.npz")
    continued = tokens(session, ids[:, 5:])

    for one in (session, Session.load(bundle, threads=1, capacity=64)):
        one.state.restore(tmp_path / "state.npz" if on_disk else snapshot)
        assert np.array_equal(one.state.past_length, [5, 5])
        assert one.state.capacity in (None, 8)
        assert np.array_equal(tokens(one, ids[:, 5:]), continued)


@every_layout
def test_a_snapshot_is_a_copy(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """Later steps do not reach into it, and restoring it twice gives the same twice."""
    session, ids = make_session(*layouts), make_ids(1, 6)
    tokens(session, ids)
    snapshot = session.state.save()
    before = {name: array.copy() for name, array in snapshot.arrays.items()}
    first = tokens(session, ids)
    session.state.restore(snapshot)

    assert np.array_equal(tokens(session, ids), first)
    assert all(np.array_equal(before[name], snapshot.arrays[name]) for name in before)


def test_a_snapshot_survives_the_disk(make_session: MakeSession, tmp_path: Path) -> None:
    """Every field and array, whatever the file is called."""
    session = make_session(*MIXED)
    session.step({"input_ids": [[1, 2], [3, 4]]})
    saved = session.state.save(tmp_path / "no-ending")
    loaded = Snapshot.load(tmp_path / "no-ending")

    assert (loaded.fingerprint, loaded.capacity) == (saved.fingerprint, saved.capacity)
    assert loaded.past_length.tolist() == [2, 2]
    assert loaded.arrays.keys() == saved.arrays.keys()
    assert all(np.array_equal(loaded.arrays[name], saved.arrays[name]) for name in saved.arrays)
    assert [entry.name for entry in tmp_path.glob("*no-ending*")] == ["no-ending"]


def test_a_snapshot_before_the_first_step_is_the_initial_state(make_session: MakeSession) -> None:
    """Restoring it frees the batch again."""
    session = make_session(*MIXED)
    empty = session.state.save()
    session.step({"input_ids": [[1]]})
    session.state.restore(empty)

    assert session.state.batch is None
    session.step({"input_ids": [[1], [2]]})


def test_a_snapshot_of_another_bundle_is_refused(make_session: MakeSession) -> None:
    """States of the same names and shapes, but of other weights."""
    one, other = make_session("static"), make_session("static", seed=1)
    for session in (one, other):
        session.step({"input_ids": [[1]]})

    with pytest.raises(StateError, match="belongs to another bundle"):
        other.state.restore(one.state.save())
    assert other.state.past_length.tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 damaged", b"no archive at all"])
def test_a_file_that_is_no_snapshot_is_refused(
    make_session: MakeSession, tmp_path: Path, content: bytes
) -> None:
    """By a message about the file, not about its format's inner workings."""
    path = tmp_path / "state.npz"
    path.write_bytes(content)

    with pytest.raises(StateError, match="is not a snapshot"):
        make_session("conv").state.restore(path)


def test_a_foreign_archive_and_an_absent_file_are_refused(
    make_session: MakeSession, tmp_path: Path
) -> None:
    """An .npz without our header, one of a newer version, and a path that leads nowhere."""
    state = make_session("conv").state
    np.savez(tmp_path / "other.npz", x=np.zeros(1))
    np.savez(tmp_path / "newer.npz", intaglio=np.array('{"version": 9}'))

    with pytest.raises(StateError, match="is not a snapshot"):
        state.restore(tmp_path / "other.npz")
    with pytest.raises(StateError, match="version 9"):
        state.restore(tmp_path / "newer.npz")
    with pytest.raises(StateError, match="cannot be read"):
        state.restore(tmp_path / "absent.npz")


def test_a_snapshot_never_runs_code(make_session: MakeSession, tmp_path: Path) -> None:
    """Pickled arrays are refused."""
    session = make_session("conv")
    session.step({"input_ids": [[1]]})
    session.state.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as content:
        arrays = dict(content)
    arrays["past.0.conv"] = np.array([Path()], object)
    np.savez(tmp_path / "bad.npz", **arrays)

    with pytest.raises(StateError, match="is not a snapshot"):
        session.state.restore(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("past_length", np.array([-1])),
        ("past_length", np.array([2.0])),
        ("past_length", np.array(2)),
        ("past_length", np.array([[2]])),
        ("capacity", 0),
        ("capacity", 2**62),
        ("capacity", "8"),
        ("capacity", None),
    ],
)
def test_a_snapshot_that_counts_nonsense_is_refused(
    make_session: MakeSession, key: str, value: Any
) -> None:
    """Whoever wrote the file: nothing is allocated or replaced."""
    session = make_session("static")
    session.step({"input_ids": [[1, 2]]})
    bad = dataclasses.replace(session.state.save(), **{key: value})

    with pytest.raises(StateError, match="is damaged"):
        session.state.restore(bad)
    assert session.state.past_length.tolist() == [2]


def test_a_snapshot_may_be_restored_twice(make_session: MakeSession) -> None:
    """It is a copy: what follows the first time does not change the second."""
    session = make_session(*MIXED)
    session.step({"input_ids": [[1, 2]]})
    snapshot = session.state.save()
    results = []
    for _ in range(2):
        session.state.restore(snapshot)
        results.append(session.step({"input_ids": [[3]]})["logits"])

    assert np.array_equal(results[0], results[1])


def test_a_snapshot_whose_arrays_do_not_fit_is_refused(make_session: MakeSession) -> None:
    """A wrong shape is named before any of the state is replaced."""
    session = make_session("static")
    session.step({"input_ids": [[1, 2]]})
    good = session.state.save()
    arrays = {name: array[:, :, :1] for name, array in good.arrays.items()}
    bad = Snapshot(
        fingerprint=good.fingerprint,
        past_length=good.past_length,
        capacity=good.capacity,
        arrays=arrays,
    )

    with pytest.raises(StateError, match="damaged"):
        session.state.restore(bad)
    assert session.state.past_length.tolist() == [2]


def test_a_snapshot_larger_than_a_fixed_capacity_is_refused(make_bundle: MakeBundle) -> None:
    """Where the cache may not grow, it cannot hold the tokens."""
    bundle = make_bundle("static")
    large = Session.load(bundle, capacity=16)
    large.step({"input_ids": np.ones((1, 10), np.int64)})
    small = Session.load(bundle, capacity=8, grow=False)

    with pytest.raises(StateError, match="fixed capacity 8"):
        small.state.restore(large.state.save())


@every_layout
def test_select_keeps_orders_and_repeats_rows(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """The rows continue as they would have in their old place."""
    session, ids, more = make_session(*layouts), make_ids(3, 4), make_ids(3, 3, seed=1)
    tokens(session, ids)
    stayed = tokens(session.fork(), more)
    session.state.select([2, 0, 0])

    assert session.state.batch == 3
    np.testing.assert_allclose(tokens(session, more[[2, 0, 0]]), stayed[[2, 0, 0]], atol=1e-5)
    session.state.select(np.array([True, False, False]))
    assert session.state.batch == 1


@pytest.mark.parametrize("rows", [[2], [-1], [0.0], [True], [[0]], []])
def test_rows_that_do_not_exist_are_refused(make_session: MakeSession, rows: Any) -> None:
    """Neither wrapped around nor cast."""
    session = make_session("conv")
    session.step({"input_ids": [[1], [2]]})

    with pytest.raises(StateError, match=r"rows is|no row"):
        session.state.select(rows)
    assert session.state.batch == 2


def test_rows_come_with_the_first_step(make_session: MakeSession) -> None:
    """Before it there is nothing to choose from."""
    with pytest.raises(StateError, match="no rows yet"):
        make_session("conv").state.select([0])


@every_layout
def test_reset_starts_over(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """Bit for bit as a fresh session, with all rows or all rows named."""
    session, ids = make_session(*layouts), make_ids(2, 5)
    first = tokens(session, ids)
    session.state.reset()
    assert np.array_equal(tokens(session, ids), first)
    session.state.reset([0, 1])
    assert session.state.batch == 2
    assert np.array_equal(tokens(session, ids), first)


@pytest.mark.parametrize("layouts", [("recurrent",), ("conv",), ("window",), ("static",), MIXED])
def test_reset_of_one_row_leaves_the_others(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...]
) -> None:
    """The row starts over beside one that goes on, each at its own position."""
    session, ids, more = make_session(*layouts), make_ids(2, 5), make_ids(2, 4, seed=1)
    tokens(session, ids)
    session.state.reset([0])
    assert session.state.past_length.tolist() == [0, 5]
    found = tokens(session, more)

    fresh, kept = make_session(*layouts), make_session(*layouts)
    tokens(kept, ids[1:])
    np.testing.assert_allclose(found[:1], tokens(fresh, more[:1]), atol=1e-5)
    np.testing.assert_allclose(found[1:], tokens(kept, more[1:]), atol=1e-5)


def test_a_growing_cache_cannot_reset_one_row_of_two(make_session: MakeSession) -> None:
    """It holds the same tokens for all rows; the message names the layout that does not."""
    session = make_session("grow")
    session.step({"input_ids": [[1], [2]]})

    with pytest.raises(StateError, match=r"unequal length.*'grow'.*'static'"):
        session.state.reset([0])
    assert session.state.past_length.tolist() == [1, 1]


def test_memory_is_what_the_buffers_take(make_session: MakeSession) -> None:
    """Two buffers for a swapped state, one for a cache in place; it does not grow with steps."""
    recurrent, static = make_session("recurrent"), make_session("static", capacity=16)
    for session in (recurrent, static):
        for _ in range(8):
            session.step({"input_ids": [[1], [2]]})

    assert recurrent.state.memory == 2 * (2 * 2 * 4 * 4) * 4
    assert static.state.memory == 2 * (2 * 2 * 16 * 4) * 4
    assert (recurrent.state.capacity, static.state.capacity) == (None, 16)


def test_a_snapshot_of_nan_or_of_tokens_that_it_lacks_is_refused(
    make_session: MakeSession, tmp_path: Path
) -> None:
    session = make_session("static")
    session.step({"input_ids": [[1, 2]]})
    before = session.state.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as archive:
        content = dict(archive)
    name = next(n for n, x in before.arrays.items() if x.dtype.kind == "f")
    np.savez(tmp_path / "holed.npz", **{**content, name: np.full_like(content[name], np.nan)})

    with pytest.raises(StateError, match="counts 549755813888 tokens, and no array"):
        session.state.restore(dataclasses.replace(before, past_length=np.array([1 << 39])))
    with pytest.raises(StateError, match=f"holds NaN in '{name}'"):
        session.state.restore(tmp_path / "holed.npz")
    assert session.state.past_length.tolist() == [2]


def test_a_snapshot_is_the_old_or_the_new_one_when_its_writer_is_killed(tmp_path: Path) -> None:
    """After any call of the system that saving makes."""
    path = tmp_path / "state.npz"

    def save(name: str) -> None:
        zero = np.zeros(1, np.int64)
        Snapshot(fingerprint=name, past_length=zero, capacity=1, arrays={"h": zero}).save(path)

    seen = [
        Snapshot.load(path).fingerprint
        for _ in after_calls(lambda: save("old"), lambda: save("new"), step=10)
    ]
    assert set(seen) == {"old", "new"}
    save("next")
    assert [*tmp_path.iterdir()] == [path]
