"""Files of adapters, and the conditions that they become."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime.adapters import Adapter, conditions
from intaglio.runtime.graph_entry import TensorSpec

ROWS = {"rows": np.array([4, 1]), "row_delta": np.ones((2, 3), np.float32)}
SPECS = (
    TensorSpec("adapter_a_w_places", "int64", (5,), 0.0),
    TensorSpec("adapter_a_w_row_delta", "float32", (4, 3), 0.0),
    TensorSpec("label", "int64", ("batch",)),
)


def test_a_file_gives_what_was_written(tmp_path: Path) -> None:
    Adapter(base="ab", parts={"a.w": ROWS}).save(tmp_path / "x")
    read = Adapter.read(tmp_path / "x")
    assert (read.base, list(read.parts)) == ("ab", ["a.w"])
    np.testing.assert_array_equal(read.parts["a.w"]["rows"], [4, 1])


def test_rows_become_the_places_of_their_deltas() -> None:
    """Row 4 is the first of the delta, row 1 the second; all others have none."""
    found = conditions(Adapter(base="", parts={"a.w": ROWS}), SPECS)
    assert found["adapter_a_w_places"].tolist() == [0, 2, 0, 0, 1]
    assert found["adapter_a_w_row_delta"].tolist() == [[1] * 3] * 2 + [[0] * 3] * 2


def test_the_base_is_what_adds_nothing() -> None:
    assert {n: x.any() for n, x in conditions(None, SPECS).items()} == {
        "adapter_a_w_places": False,
        "adapter_a_w_row_delta": False,
    }


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"rows": np.array([4, 1])}, "lacks 'row_delta'"),
        (ROWS | {"rows": np.array([4, 4])}, "distinct"),
        (ROWS | {"rows": np.array([-1, 4])}, "at least 0"),
        (ROWS | {"row_delta": np.full((2, 3), np.nan, np.float32)}, "finite"),
        (ROWS | {"rows": np.array([1, 2, 3])}, "do not fit"),
        ({"gain": np.ones(3)}, "no part of an adapter"),
    ],
)
def test_what_is_no_adapter_is_refused(tmp_path: Path, parts: dict[str, Any], words: str) -> None:
    Adapter(base="", parts={"a.w": parts}).save(tmp_path / "x.npz")
    with pytest.raises(InputError, match=words):
        Adapter.read(tmp_path / "x.npz")


def test_a_file_of_other_arrays_is_no_adapter(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", a=np.ones(3))
    with pytest.raises(InputError, match="does not say what base"):
        Adapter.read(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("name", "parts", "words"),
    [
        ("a.w", ROWS | {"rows": np.array([5, 1])}, "names 5 of 5"),
        ("a.v", ROWS, "no place"),
        ("a.w", {"down": np.ones((1, 3)), "up": np.ones((5, 1))}, "no place"),
    ],
)
def test_what_a_bundle_has_no_place_for(name: str, parts: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        conditions(Adapter(base="", parts={name: parts}), SPECS)
