"""The assignment problem, against all permutations."""

from itertools import permutations
from typing import Any

import numpy as np
import pytest

from intaglio.exporter.merging.assignment import assignment


def best(gain: Any) -> float:
    rows = range(len(gain))
    return max(float(sum(gain[i, p[i]] for i in rows)) for p in permutations(rows))


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_it_is_the_best_of_all_permutations(size: int) -> None:
    """Real gains, and whole ones with many ties."""
    random = np.random.default_rng(size)
    for _ in range(20):
        for gain in (random.standard_normal((size, size)), random.integers(0, 3, (size, size))):
            found = assignment(gain)
            assert sorted(found) == list(range(size))
            assert gain[np.arange(size), found].sum() == pytest.approx(best(gain), abs=1e-12)


def test_a_permutation_is_found_again() -> None:
    order = np.random.default_rng(0).permutation(200)
    units = np.random.default_rng(1).standard_normal((200, 30))
    assert (units[order][assignment(units @ units[order].T)] == units).all()


def test_gains_are_finite() -> None:
    with pytest.raises(ValueError, match="finite"):
        assignment(np.array([[np.nan]]))
