"""Errors of streams against their reference: the formula, the limits, and no way around a NaN."""

import json
import math

import numpy as np
import pytest

from intaglio.errors import ParityError
from intaglio.runtime.compare import Comparison, Deviation

NAN, INF = math.nan, math.inf


def compared(*steps: tuple[list[float], list[float]], limit: float = 0.1) -> Deviation:
    """The deviation of one array `y`, given as (found, expected) for each step."""
    comparison = Comparison(limit)
    for step, (found, expected) in enumerate(steps):
        comparison.add(step, {"y": np.array(found)}, {"y": np.array(expected)})
    (deviation,) = comparison.deviations()
    assert comparison.passed == (deviation.passed and not deviation.vacuous)
    return deviation


def test_the_error_is_a_ratio_of_maxima_over_all_steps() -> None:
    """The largest difference and the largest reference may lie at different steps."""
    found = compared(([1.0, 2.0], [1.0, 2.5]), ([10.0], [10.0]), ([0.0], [0.25]))

    assert found.error == pytest.approx(0.05)
    assert (found.difference, found.reference) == (0.5, 10.0)
    assert (found.worst_step, found.steps) == (0, 3)
    assert found.passed


def test_the_reference_is_the_second_stream() -> None:
    """The error is not symmetric."""
    assert compared(([8.0], [10.0])).error == pytest.approx(0.2)
    assert compared(([10.0], [8.0])).error == pytest.approx(0.25)


@pytest.mark.parametrize("limit", [0.19, 0.2, 0.21])
def test_the_limit_is_inclusive(limit: float) -> None:
    """A limit of 0 lets equal streams pass."""
    assert compared(([4.0], [5.0]), limit=limit).passed == (limit >= 0.2)
    assert compared(([4.0], [4.0]), limit=0).passed


@pytest.mark.parametrize(
    ("found", "expected"),
    [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, INF), (INF, -INF), (-INF, 1.0)],
)
@pytest.mark.parametrize("when", [0, 1, 2])
def test_what_is_no_number_fails_whatever_the_limit(
    found: float, expected: float, when: int
) -> None:
    """At any step, on one side alone; its step is the worst."""
    steps = [([1.0, 2.0], [1.0, 2.1])] * 3
    steps[when] = ([1.0, found], [1.0, expected])
    deviation = compared(*steps, limit=INF)

    assert math.isnan(deviation.error)
    assert not deviation.passed
    assert deviation.worst_step == when


def test_the_same_infinity_on_both_sides_is_no_difference() -> None:
    """Masked logits are -inf in the source and in the engine; the rest still counts."""
    assert compared(([-INF, 1.0], [-INF, 2.0])).error == pytest.approx(0.5)
    assert compared(([-INF], [-INF])).error == 0


def test_the_same_nan_on_both_sides_is_no_difference_but_proves_nothing() -> None:
    """As of a variance over a single row; where nothing else was seen, nothing was compared."""
    deviation = compared(([NAN, 1.0], [NAN, 2.0]), ([NAN, NAN], [NAN, NAN]))
    assert deviation.error == pytest.approx(0.5)
    assert deviation.undefined == 3
    assert not deviation.vacuous
    assert compared(([NAN], [NAN])).vacuous
    assert math.isnan(compared(([NAN, 1.0], [NAN, NAN]), limit=INF).error)


def test_a_reference_of_zeros_allows_zeros_only() -> None:
    """There is nothing to measure a difference by."""
    assert compared(([0.0], [0.0])).passed
    assert compared(([1e-30], [0.0])).error == INF


def test_each_name_has_its_own_limit() -> None:
    """One failure fails the whole."""
    comparison = Comparison(1e-4, {"state": 0.5})
    expected = {"logits": np.ones(2), "state": np.ones(2)}
    comparison.add(
        0, {"logits": np.ones(2), "state": np.full(2, 1.4), "more": np.ones(1)}, expected
    )

    assert [(d.name, d.limit, d.passed) for d in comparison.deviations()] == [
        ("logits", 1e-4, True),
        ("state", 0.5, True),
    ]
    assert comparison.passed
    comparison.add(1, {"logits": np.full(2, 1.1), "state": np.ones(2)}, expected)
    assert not comparison.passed


def test_nothing_compared_is_nothing_passed() -> None:
    """An empty stream is no evidence."""
    assert not Comparison(1.0).passed


def test_low_precision_is_compared_exactly() -> None:
    """float16 differences do not overflow, and integers count as numbers."""
    assert compared(([6e4], [-6e4])).error == pytest.approx(2.0)
    comparison = Comparison(0.1)
    half = np.array([6e4], np.float16)
    comparison.add(0, {"y": half, "i": np.array([250], np.uint8)}, {"y": -half, "i": np.array([5])})

    assert [d.error for d in comparison.deviations()] == [pytest.approx(2.0), 49.0]


def test_a_missing_array_or_another_shape_is_an_error() -> None:
    """Broadcasting would hide it."""
    with pytest.raises(ParityError, match="y is missing at step 7"):
        Comparison(1.0).add(7, {}, {"y": np.zeros(1)})
    with pytest.raises(ParityError, match=r"\(1, 2\) at step 0, the reference \(2, 2\)"):
        Comparison(1.0).add(0, {"y": np.zeros((1, 2))}, {"y": np.zeros((2, 2))})


def test_the_json_form_holds_no_nan() -> None:
    """A manifest is strict JSON even when parity failed."""
    comparison = Comparison(0.5)
    comparison.add(3, {"y": np.array([NAN])}, {"y": np.array([1.0])})
    entry = json.loads(json.dumps(comparison.to_json(), allow_nan=False))

    assert entry["passed"] is False
    assert entry["deviations"]["y"] == {
        "error": "nan",
        "limit": 0.5,
        "difference": "nan",
        "reference": 0.0,
        "worst_step": 3,
        "steps": 1,
        "undefined": 0,
        "passed": False,
    }
