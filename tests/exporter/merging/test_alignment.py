"""Distance and alignment of two models."""

import numpy as np
import pytest

from intaglio.exporter.merging.alignment import alignment, distance

RANDOM = np.random.default_rng(0)
FIRST = {"w": RANDOM.standard_normal((8, 6)), "b": RANDOM.standard_normal(8), "n": np.array(3)}


def test_a_model_is_aligned_with_itself() -> None:
    assert alignment(FIRST, FIRST) == pytest.approx(1)
    assert alignment(FIRST, {**FIRST, "w": 3 * FIRST["w"]}, share=0) == pytest.approx(1)


def test_it_is_the_sum_of_products_of_directions() -> None:
    """By loops over all pairs of directions of one matrix."""
    second = {**FIRST, "w": RANDOM.standard_normal((8, 6))}
    (u, s, v), (x, r, y) = (
        np.linalg.svd(each["w"], full_matrices=False) for each in (FIRST, second)
    )
    left, right = (int((each >= 0.3 * each[0]).sum()) for each in (s, r))
    total = sum((u[:, i] @ x[:, j]) * (v[i] @ y[j]) for i in range(left) for j in range(right))
    assert alignment(FIRST, second) == pytest.approx(total / ((left + right) / 2))


def test_the_distance_is_that_of_all_floats() -> None:
    second = {"w": FIRST["w"] + 1, "b": FIRST["b"], "n": np.array(9)}
    assert distance(FIRST, second) == pytest.approx(48**0.5)
