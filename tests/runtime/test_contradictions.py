"""A manifest of the right schema may still say what cannot be; a true one says nothing of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from intaglio.runtime.contradictions import contradictions


@pytest.fixture
def entry(make_bundle: Callable[..., Path]) -> dict[str, Any]:
    """A manifest with a state of every layout."""
    entry: dict[str, Any] = json.loads((make_bundle() / "manifest.json").read_text())
    return entry


def test_true_manifests_are_free_of_them(entry: dict[str, Any]) -> None:
    """Every layout of state, and the batch fixed in its shape or free."""
    assert list(contradictions(entry)) == []
    entry["graphs"]["main"]["limits"]["batch"] = 1
    entry["graphs"]["main"]["states"][0]["shape"][0] = 1
    assert list(contradictions(entry)) == []


@pytest.mark.parametrize("shape", [[], [2, "batch", 4], [4]])
def test_a_state_may_have_its_rows_on_any_axis_or_be_one_for_all(
    entry: dict[str, Any], shape: list[int | str]
) -> None:
    states = entry["graphs"]["main"]["states"]
    next(state for state in states if state["layout"] == "recurrent")["shape"] = shape
    assert list(contradictions(entry)) == []


@pytest.mark.parametrize(
    ("layout", "key", "value", "message"),
    [
        ("static", "shape", [7, 2, "capacity", 4], "'batch' as its first dimension"),
        ("recurrent", "shape", ["batch", "batch", 4], "the dimension 'batch' 2 times"),
        ("recurrent", "shape", ["batch", "time"], "has the dimensions time"),
        ("recurrent", "shape", ["batch", 2**30, 2**30], "nothing can hold"),
        ("conv", "axis", 5, "axis 5 but 3 dimensions"),
        ("static", "axis", None, "'capacity' along its axis"),
        ("static", "axis", 1, "'capacity' along its axis"),
        ("static", "layout", "grow", "'past' along its axis"),
        ("grow", "shape", ["batch", "past", "past", 4], "has the dimensions past, past"),
        ("window", "input", "input_ids", "the name 'input_ids' 2 times"),
        ("window", "output", "logits", "the name 'logits' 2 times"),
        ("window", "input", "past_length", "the name 'past_length' 2 times"),
    ],
)
def test_a_state_that_no_session_could_bind(
    entry: dict[str, Any], layout: str, key: str, value: Any, message: str
) -> None:
    state = next(state for state in entry["graphs"]["main"]["states"] if state["layout"] == layout)
    state[key] = value

    assert any(message in sentence for sentence in contradictions(entry))


@pytest.mark.parametrize(
    ("below", "message"),
    [
        (["nodes", 3], "bounded by 'nodes', which no input has"),
        ([3, None, 5], "bounds for 3 columns"),
        ([[3], [5]], "bounds for 2 rows"),
        ([[3], 5], "bounds for 2 rows"),
    ],
)
def test_bounds_are_of_axes_columns_and_rows_that_are_there(
    entry: dict[str, Any], below: list[Any], message: str
) -> None:
    entry["graphs"]["main"]["inputs"][0]["below"] = below

    assert any(message in sentence for sentence in contradictions(entry))


def test_an_output_has_no_dimension_of_its_own(entry: dict[str, Any]) -> None:
    """A session allocates outputs before the step, by the sizes of its inputs."""
    entry["graphs"]["main"]["outputs"][0]["shape"] = ["batch", "found"]

    assert any("'found', which no input has" in sentence for sentence in contradictions(entry))
