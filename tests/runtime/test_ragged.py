"""Rows of unequal length: the outcome of each is that of a run of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from intaglio.errors import InputError, StateError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN, Limits
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]
MakeSession = Callable[..., Session]
MakeIds = Callable[..., Array]

MIXED = ("recurrent", "conv", "window", "static")
LENGTHS = [[3, 0, 5], [1, 2, 3], [5, 5, 1], [0, 0, 4], [4, 4, 4], [0, 0, 0]]


@pytest.mark.parametrize("layouts", [("recurrent",), ("conv",), ("window",), ("static",), MIXED])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_unequal_rows_equal_separate_runs(
    make_session: MakeSession, make_ids: MakeIds, layouts: tuple[str, ...], lengths: list[int]
) -> None:
    """Three times over, with tokens in between, through a growing cache; padding is never read."""
    session, alone = make_session(*layouts, capacity=4), [make_session(*layouts) for _ in range(3)]
    for seed in range(3):
        ids = make_ids(3, 5, seed=seed)
        padding = np.arange(5) >= np.array(lengths)[:, None]
        found = session.step({"input_ids": np.where(padding, 99, ids)}, lengths=lengths)
        more = session.step({"input_ids": ids[:, :2]})

        for row, length in enumerate(lengths):
            if length:
                expected = alone[row].step({"input_ids": ids[row : row + 1, :length]})
                for name in ("logits", "hidden"):
                    np.testing.assert_allclose(
                        found[name][row, :length], expected[name][0], atol=1e-5
                    )
            expected = alone[row].step({"input_ids": ids[row : row + 1, :2]})
            np.testing.assert_allclose(more["logits"][row], expected["logits"][0], atol=1e-5)
        assert not any(found[name][padding].any() for name in found)
    assert session.state.past_length.tolist() == [3 * (length + 2) for length in lengths]


def test_out_holds_the_outputs_and_zeros(make_session: MakeSession, make_ids: MakeIds) -> None:
    """The caller's array is filled whole, whatever it held."""
    session, twin, ids = make_session("static"), make_session("static"), make_ids(2, 3)
    array = np.full((2, 3, 23), np.nan, np.float32)
    found = session.step({"input_ids": ids}, lengths=[1, 3], out={"logits": array})

    assert found["logits"] is array
    assert np.array_equal(array, twin.step({"input_ids": ids}, lengths=[1, 3])["logits"])
    assert not array[0, 1:].any()


def test_equal_lengths_copy_no_state(make_session: MakeSession, make_ids: MakeIds) -> None:
    """Full or short, the very buffers of the session are stepped."""
    session, ids = make_session(*MIXED), make_ids(2, 3)
    session.step({"input_ids": ids})
    carried = session.state.carried
    session.step({"input_ids": ids}, lengths=[3, 3])
    session.step({"input_ids": ids}, lengths=[2, 2])

    assert session.state.carried is carried
    assert session.state.past_length.tolist() == [8, 8]


@pytest.mark.parametrize(
    "lengths", [[3], [1, 2, 3], [1.0, 2.0], [-1, 2], [4, 1], [[1, 2]], [1, None]]
)
def test_lengths_that_do_not_fit_are_refused(make_session: MakeSession, lengths: Any) -> None:
    """One integer a row, from 0 to the number of tokens given."""
    session = make_session("static")

    with pytest.raises(InputError, match="should be 2 integers from 0 to 3"):
        session.step({"input_ids": np.ones((2, 3), np.int64)}, lengths=lengths)
    assert session.state.batch is None


def test_a_failing_part_leaves_the_state_as_it_was(
    make_session: MakeSession, make_ids: MakeIds
) -> None:
    """Even though the parts before it had run."""
    session, twin, ids = make_session(*MIXED), make_session(*MIXED), make_ids(2, 4)
    for one in (session, twin):
        one.step({"input_ids": ids})
    bad = ids.copy()
    bad[1, 3] = 99
    with pytest.raises(InputError, match="cannot take this step"):
        session.step({"input_ids": bad}, lengths=[2, 4])

    assert session.state.past_length.tolist() == [4, 4]
    assert np.array_equal(
        session.step({"input_ids": ids})["logits"], twin.step({"input_ids": ids})["logits"]
    )


def test_the_longest_row_counts_against_max_context(make_session: MakeSession) -> None:
    """Before any part runs."""
    session = make_session("static", limits=Limits(max_context=4))
    session.step({"input_ids": [[1, 1], [1, 1]]})
    with pytest.raises(StateError, match="hold 5 tokens"):
        session.step({"input_ids": [[1, 1, 1], [1, 1, 1]]}, lengths=[1, 3])

    assert session.state.past_length.tolist() == [2, 2]


def test_a_growing_cache_takes_unequal_rows_only_if_they_end_up_equal(
    make_session: MakeSession, make_ids: MakeIds
) -> None:
    """Equal lengths are served, unequal ones refused with the layout that takes them."""
    session, ids = make_session("grow"), make_ids(2, 3)
    session.step({"input_ids": ids}, lengths=[2, 2])
    with pytest.raises(StateError, match=r"unequal length.*'grow'.*'static'"):
        session.step({"input_ids": ids}, lengths=[2, 3])

    assert session.state.past_length.tolist() == [2, 2]


def test_a_fixed_batch_cannot_be_split(make_session: MakeSession) -> None:
    """Its graph takes all rows or none."""
    session = make_session("static", limits=Limits(batch=2))
    with pytest.raises(InputError, match="batch of exactly 2"):
        session.step({"input_ids": [[1, 1], [1, 1]]}, lengths=[1, 2])
    session.step({"input_ids": [[1, 1], [1, 1]]}, lengths=[1, 1])


def test_whole_sequences_run_by_their_length_whatever_ran_before(
    build_bundle: Callable[..., Path], tmp_path: Path, make_ids: MakeIds
) -> None:
    """Each call stands alone, so that the number of rows may change from call to call."""
    root = build_bundle(tmp_path / "bundle", ())
    manifest = Bundle.open(root).manifest
    manifest.with_graph(MAIN, replace(manifest.main, whole=True)).save(root / "manifest.json")
    session = Session.load(root, threads=1)
    ids = make_ids(3, 4)
    wanted = session.step({"input_ids": ids})["logits"]
    got = session.step({"input_ids": ids}, lengths=[4, 1, 4])["logits"]

    assert np.array_equal(got[[0, 2]], wanted[[0, 2]])
    assert np.array_equal(got[1, :1], wanted[1, :1])
    assert not got[1, 1:].any()
    assert np.array_equal(session.step({"input_ids": ids[:2]})["logits"], wanted[:2])
    assert np.array_equal(session.step({"input_ids": ids[:2]})["logits"], wanted[:2])
    assert session.state.past_length.tolist() == [4, 4]
