"""Conditions: what is given once for a sequence, and carried along with its states."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conditioned_bundle import CONDITIONS, write

from intaglio.errors import BundleError, InputError, StateError
from intaglio.runtime.bundle import Bundle
from intaglio.runtime.graph_entry import MAIN, GraphEntry, TensorSpec
from intaglio.runtime.manifest import FILE_NAME
from intaglio.runtime.prepared_conditions import Preparer
from intaglio.runtime.session import Session

Array = npt.NDArray[Any]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("conditions") / "bundle")


@pytest.fixture
def session(bundle: Path) -> Session:
    return Session.load(bundle, threads=1)


RANDOM = np.random.default_rng(0)
X = RANDOM.standard_normal((3, 4, 2)).astype(np.float32)
MEMORY = RANDOM.standard_normal((3, 5, 2)).astype(np.float32)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]])
BIAS = np.array([1, -1], np.float32)
GIVEN = {"memory": MEMORY, "mask": MASK, "bias": BIAS}


def expected(x: Array, memory: Array, mask: Array | None = None, bias: Array = BIAS) -> Array:
    """What the steps give for rows `x` that are conditioned so."""
    mask = np.ones(memory.shape[:2]) if mask is None else mask
    mean = (mask[..., None] * 2 * memory).sum(1) / mask.sum(1)[:, None]
    found: Array = x.cumsum(1) + mean[:, None] + 2 * bias
    return found


def close(got: Array, wanted: Array) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_conditions_hold_for_every_step(session: Session) -> None:
    """However the tokens are cut, rows of unequal length included."""
    session.condition(GIVEN)
    wanted = expected(X, MEMORY, MASK)
    assert session.state.batch == 3
    parts = [session.step({"x": X[:, :1]})["y"], session.step({"x": X[:, 1:]})["y"]]
    close(np.concatenate(parts, 1), wanted)
    session.state.reset()
    ragged = session.step({"x": X}, lengths=[4, 1, 2])["y"]
    for row, length in enumerate((4, 1, 2)):
        close(ragged[row, :length], wanted[row, :length])


def test_steps_have_axes_of_their_conditions(tmp_path: Path) -> None:
    """An output along the source, an input that picks entries of it, whatever its length is now."""
    session = Session.load(write(tmp_path / "bundle", own_axis=True), threads=1)
    at = np.array([[0, 4, 2, 1]] * 3)
    session.condition(GIVEN)
    share = MASK / MASK.sum(1)[:, None]
    found = session.step({"x": X, "at": at}, lengths=[4, 1, 2])
    assert found["w"].shape == (3, 4, 5)
    close(found["w"][0], np.stack([share[0]] * 4))
    close(found["picked"][2, :2, 0], share[2][[0, 4]])
    assert not found["w"][1, 1:].any()
    with pytest.raises(InputError, match=r"'at' has 5 at .* should be from 0 to 4"):
        session.step({"x": X[:, :1], "at": np.full((3, 1), 5)})
    session.state.reset()
    session.condition({"memory": MEMORY[:, :2], "bias": BIAS})
    with pytest.raises(InputError, match=r"'at' has 4 at .* should be from 0 to 1"):
        session.step({"x": X, "at": at})
    assert session.step({"x": X, "at": at % 2})["w"].shape == (3, 4, 2)


def test_what_may_be_left_out_is_filled_and_a_dtype_widened(session: Session) -> None:
    session.condition({"memory": MEMORY.astype(np.float16)})
    close(session.step({"x": X})["y"],
          expected(X, MEMORY.astype(np.float16).astype(np.float32), bias=np.zeros(2)))  # fmt: skip


def test_they_are_carried_along(session: Session, tmp_path: Path) -> None:
    """By forks, chosen rows, snapshots in memory and on disk, and a reset."""
    session.condition(GIVEN)
    session.step({"x": X[:, :2]})
    twin, path = session.fork(), tmp_path / "state.npz"
    session.state.save(path)
    wanted = expected(X, MEMORY, MASK)[:, 2:]
    close(twin.step({"x": X[:, 2:]})["y"], wanted)
    twin.state.restore(path)
    twin.state.select([2, 0, 2])
    close(twin.step({"x": X[[2, 0, 2], 2:]})["y"], wanted[[2, 0, 2]])
    session.state.reset([1])
    session.state.reset()
    close(session.step({"x": X})["y"], expected(X, MEMORY, MASK))


def test_a_number_is_given_again_with_some_rows() -> None:
    """It has no axis to pad."""
    given = (TensorSpec("label", "int64", ("batch",)), TensorSpec("scale", "float32", ()))
    entry = GraphEntry(
        inputs=(), outputs=(), states=(), past_length=False, targets={}, conditions=given
    )
    preparer = Preparer(entry, (), lambda _: {})
    held = preparer.prepare(preparer.read({"label": [1, 2, 3], "scale": np.float32(2)}))
    part = preparer.read({"label": [7], "scale": np.float32(2)})
    found = preparer.put(held, np.array([1]), part)

    assert found.given["label"].tolist() == [1, 7, 3]
    assert found.given["scale"].shape == ()
    with pytest.raises(InputError, match="'scale' holds for all rows"):
        preparer.put(held, np.array([1]), preparer.read({"label": [7], "scale": np.float32(3)}))


@pytest.mark.parametrize("source", [2, 5, 8], ids=["shorter", "as long", "longer"])
def test_rows_are_given_others_while_the_rest_goes_on(session: Session, source: int) -> None:
    """A mask hides what the shorter ones are padded with; all else stays as it is."""
    session.condition(GIVEN)
    session.step({"x": X[:, :2]})
    session.state.reset([1])
    other = RANDOM.standard_normal((1, source, 2)).astype(np.float32)
    session.condition({"memory": other, "bias": BIAS}, rows=[1])
    found = session.step({"x": X[:, 2:]})["y"]
    close(found[[0, 2]], expected(X, MEMORY, MASK)[[0, 2], 2:])
    close(found[1:2], expected(X[1:2, 2:], other))


def test_the_same_sizes_may_be_given_again_at_any_time(session: Session) -> None:
    """From then on they hold, for rows that have begun as well."""
    session.condition(GIVEN)
    session.step({"x": X[:, :2]})
    session.condition({"memory": -MEMORY, "mask": MASK, "bias": BIAS})
    close(session.step({"x": X[:, 2:]})["y"], expected(X, -MEMORY, MASK)[:, 2:])


BAD = {
    "unknown": ({"picture": MEMORY}, None, InputError, r"no condition 'picture'.* memory, mask"),
    "missing": ({"mask": MASK}, None, InputError, "condition 'memory' is missing"),
    "rank": ({"memory": MEMORY[0]}, None, InputError, r"condition 'memory' has the shape \(5, 2\)"),
    "dtype": ({**GIVEN, "mask": MASK / 2}, None, InputError, "'mask' is float64, should be int64"),
    "size": ({**GIVEN, "mask": MASK[:, :4]}, None, InputError, r"'mask' has the shape \(3, 4\)"),
    "empty": ({"memory": MEMORY[:, :0]}, None, InputError, "source = at least 1"),
    "rows": ({"memory": MEMORY}, [1], InputError, "conditions have 3 rows; there are 1"),
    "no such row": ({"memory": MEMORY[:1]}, [7], StateError, "indices from 0 to 2"),
    "for all rows": ({"memory": MEMORY[:1]}, [1], InputError, "'bias' holds for all rows"),
    "row count in mid-sequence": ({"memory": MEMORY[:2]}, None, StateError, "2 rows, and the sequ"),
    "size in mid-sequence": ({"memory": MEMORY[:, :4]}, None, StateError, "source = 4, and the se"),
    "size of a row in mid-sequence": (
        {"memory": MEMORY[:1, :4], "bias": BIAS}, [1], StateError, "source = 4, and the sequence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_told_and_changes_nothing(session: Session, case: str) -> None:
    given, rows, kind, words = BAD[case]
    session.condition(GIVEN)
    session.step({"x": X[:, :2]})
    with pytest.raises(kind, match=words):
        session.condition(given, rows=rows)
    close(session.step({"x": X[:, 2:]})["y"], expected(X, MEMORY, MASK)[:, 2:])


def test_a_step_without_conditions_says_what_it_lacks(session: Session) -> None:
    for lengths in (None, [1, 2, 3]):
        with pytest.raises(StateError, match=r"condition\(\{\.\.\.\}\) with memory, mask, bias"):
            session.step({"x": X}, lengths=lengths)
    with pytest.raises(InputError, match="'mask' is a condition, which holds for the whole"):
        session.step({"x": X, "mask": MASK})
    with pytest.raises(StateError, match="No row has conditions yet"):
        session.condition({"memory": MEMORY[:1]}, rows=[0])
    session.condition(GIVEN)
    with pytest.raises(StateError, match="The step has 2 rows, the carried state 3"):
        session.step({"x": X[:2]})


def test_a_size_that_no_mask_hides_is_not_padded(tmp_path: Path) -> None:
    """Without a mask, zeros would count."""
    unmasked = Bundle.open(write(tmp_path / "bundle"))
    plain = tuple(replace(s, default=None) for s in CONDITIONS)
    main = replace(unmasked.manifest.main, conditions=plain)
    prepare = replace(unmasked.manifest.graphs["prepare"], inputs=plain)
    manifest = replace(unmasked.manifest, graphs={MAIN: main, "prepare": prepare})
    manifest.save(unmasked.root / FILE_NAME)
    session = Session.load(unmasked.root, threads=1)
    session.condition(GIVEN)
    part = {"memory": MEMORY[:1, :3], "mask": MASK[:1, :3], "bias": BIAS}
    with pytest.raises(InputError, match="no condition is a mask that could hide"):
        session.condition(part, rows=[1])


def test_snapshots_are_of_one_bundle_and_whole(session: Session, tmp_path: Path) -> None:
    """Another preparation is another bundle; arrays of other shapes are damage."""
    session.condition(GIVEN)
    session.step({"x": X})
    taken = session.state.save()
    other = Session.load(write(tmp_path / "other", factor="3.0"), threads=1)
    with pytest.raises(StateError, match="belongs to another bundle"):
        other.state.restore(taken)
    for damaged in (
        replace(taken, conditions={**taken.conditions, "mask": MASK[:, :2]}),
        replace(taken, conditions={}),
        replace(taken, prepared={**taken.prepared, "prepared_mask": MASK}),
        replace(taken, prepared={}),
    ):
        with pytest.raises(StateError, match="The snapshot is damaged"):
            session.state.restore(damaged)
    close(session.step({"x": X[:, :1]})["y"],
          expected(np.concatenate([X, X[:, :1]], 1), MEMORY, MASK)[:, 4:])  # fmt: skip


def test_a_bundle_without_conditions_takes_none(bundle: Path) -> None:
    """The graph that prepares, stepped by itself, is one."""
    with pytest.raises(InputError, match="takes no conditions"):
        Session.load(bundle, graph="prepare").condition({"memory": MEMORY})


def test_a_manifest_whose_graphs_do_not_fit_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "bundle")
    manifest = Bundle.open(folder).manifest
    wrong = replace(manifest.main, conditions=CONDITIONS[:2])
    with pytest.raises(BundleError, match="conditions are not the inputs of 'prepare'"):
        replace(manifest, graphs={**manifest.graphs, MAIN: wrong}).save(folder / FILE_NAME)
