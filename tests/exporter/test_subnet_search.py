"""The search spends bits where they gain most, as far as its evaluations can tell."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from intaglio.exporter.subnet_search import Budget, Gains, Sizes, Tried, _filled
from intaglio.models.supernet import BITS

LAYERS = 6


class Layers(Sizes):
    """Layers of 100 to 600 weights without groups."""

    def __init__(self) -> None:
        self.weights = 100 * np.arange(1, LAYERS + 1)
        self._pairs, self._others, self._times = 0, 0, None


@pytest.fixture(scope="module")
def tried() -> tuple[Layers, Any, list[Tried]]:
    """Random assignments, the loss of each, and what each bit takes off it."""
    random = np.random.default_rng(0)
    gains = random.lognormal(0, 1, LAYERS) * np.array([[1.0], [0.3]])
    wanted = [(bits,) * LAYERS for bits in BITS]
    wanted += [tuple(map(int, random.integers(2, 5, LAYERS))) for _ in range(30)]
    sizes = Layers()
    return sizes, gains, [sizes.of(bits, loss(gains, bits)) for bits in wanted]


def loss(gains: Any, bits: Any) -> float:
    return 10 - float(sum(gains[: b - BITS[0], i].sum() for i, b in enumerate(bits)))


def test_what_is_told_after_some_evaluations_is_what_bits_gain(tried: Any) -> None:
    sizes, gains, rows = tried
    guesses = Gains(rows, sizes, np.random.default_rng(1))
    found = np.mean([guesses.drawn() for _ in range(50)], 0)
    np.testing.assert_allclose(found, gains, atol=0.25 * gains.max())


def test_the_best_of_a_few_guesses_is_near_the_best_of_all(tried: Any) -> None:
    """And better than the same bits for all layers, which take as much."""
    sizes, gains, rows = tried
    budget = Budget(3.0, "bits")
    guesses = Gains(rows, sizes, np.random.default_rng(1))
    found = min(loss(gains, _filled(sizes, guesses.drawn(), budget)) for _ in range(20))
    best = min(
        loss(gains, bits)
        for bits in product(BITS, repeat=LAYERS)
        if sizes.of(bits).mean <= budget.limit
    )
    same = loss(gains, (3,) * LAYERS)
    assert found < same
    assert found <= best + 0.1 * (same - best)
