"""Feeds of a form that was read before are checked as those of a new one are."""

from typing import Any

import numpy as np
import pytest

from intaglio.errors import InputError
from intaglio.runtime.graph_entry import GraphEntry, Limits, TensorSpec
from intaglio.runtime.streaming.feed_reader import FORMS, FeedReader

ENTRY = GraphEntry(
    inputs=(
        TensorSpec("ids", "int64", ("batch", "time"), below=10),
        TensorSpec("pair", "int64", ("batch", "time", 2), below=(3, 4)),
        TensorSpec("x", "float32", ("batch", "time")),
    ),
    outputs=(TensorSpec("y", "float32", ("batch", "time")),),
    states=(),
    targets={},
    past_length=False,
    limits=Limits(),
)


def feed(**changed: Any) -> dict[str, Any]:
    given = {"ids": np.array([[3]]), "pair": np.array([[[1, 2]]]), "x": np.ones((1, 1), "f4")}
    return given | changed


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"ids": np.array([[10]])}, r"'ids' has 10 at \[0, 0\]"),
        ({"ids": np.array([[-1]])}, r"'ids' has -1 at \[0, 0\]"),
        ({"pair": np.array([[[3, 3]]])}, r"'pair' has 3 at \[0, 0, 0\]"),
        ({"x": np.ones((1, 1))}, "'x' is float64"),
        ({"x": np.ones((1, 2), "f4")}, "time"),
        ({"ids": [[11]]}, "'ids' has 11"),
        ({"ids": np.ones((2, 1), int), "pair": np.ones((2, 1, 2), int),
          "x": np.ones((2, 1), "f4")}, "its feed has 2"),
        ({"y": np.ones(1)}, "There is no input 'y'"),
    ],
)  # fmt: skip
def test_a_form_that_is_known_hides_no_fault(changed: dict[str, Any], words: str) -> None:
    reader = FeedReader(ENTRY)
    for _ in range(2):
        reader.read(feed(), {})
        with pytest.raises(InputError, match=words):
            reader.read(feed(**changed), {})


def test_what_was_read_is_a_copy_of_the_dtype_of_the_graph() -> None:
    reader = FeedReader(ENTRY)
    for _ in range(2):
        given = feed(ids=np.array([[3]], np.int8))
        arrays, sizes = reader.read(given, {"source": 5})
        given["ids"][:] = 7

        assert arrays["ids"].tolist() == [[3]]
        assert arrays["ids"].dtype == np.int64
        assert sizes == {"source": 5, "batch": 1, "time": 1}


def test_forms_do_not_pile_up() -> None:
    reader = FeedReader(ENTRY)
    for time in range(1, 2 * FORMS):
        wide = {"ids": np.ones((1, time), int), "pair": np.ones((1, time, 2), int)}
        _, sizes = reader.read(feed(**wide, x=np.ones((1, time), "f4")), {})
        assert sizes["time"] == time

    assert len(reader._known) == FORMS
