"""Sampling: the distributions are those of Hugging Face's logits processors, and draws follow."""

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from transformers.generation import logits_process

from intaglio.errors import InputError
from intaglio.runtime import sampling
from intaglio.runtime.sampling import Sampling, draw_from

Array = npt.NDArray[Any]
LOGITS = np.log(np.array([0.4, 0.1, 0.3, 0.2], np.float32))


def of_hugging_face(how: Sampling, logits: Array, held: list[int]) -> Array:
    """The same distribution by the processors of `generate`, in its order, in float64."""
    steps: list[Any] = [logits_process.RepetitionPenaltyLogitsProcessor(how.repetition_penalty)]
    steps.append(logits_process.TemperatureLogitsWarper(how.temperature))
    if how.top_k is not None:
        steps.append(logits_process.TopKLogitsWarper(how.top_k))
    if how.top_p is not None:
        steps.append(logits_process.TopPLogitsWarper(how.top_p))
    if how.min_p is not None:
        steps.append(logits_process.MinPLogitsWarper(how.min_p))
    ids, scores = torch.tensor([held], dtype=torch.int64), torch.tensor(logits[None].astype(float))
    for step in steps:
        scores = step(ids, scores)
    found: Array = scores.softmax(-1)[0].numpy()
    return found


@pytest.mark.parametrize("vocabulary", [5, 3000])
def test_probabilities_are_those_of_hugging_face(vocabulary: int) -> None:
    """Every combination, over a vocabulary larger than the part that is sorted, too."""
    random = np.random.default_rng(vocabulary)
    logits = random.normal(0, 3, vocabulary).astype(np.float32)
    held = random.integers(0, vocabulary, 4).tolist()
    assert vocabulary < 3000 or vocabulary > sampling._SORTED
    cuts = (None, 1, 3, 2000), (None, 0.3, 0.99, 1.0), (None, 0.0, 0.4)
    for values in product((0.5, 30.0), *cuts, (1.0, 1.7)):
        how = Sampling(*values)
        found = how.probabilities(logits, set(held))
        expected = of_hugging_face(how, logits, held)

        assert ((found > 0) == (expected > 0)).all(), values
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


def test_ties_at_top_k_remain() -> None:
    """As there: of equal scores none is favoured."""
    logits = np.array([1, 2, 2, 2, 0], np.float32)
    found = Sampling(1.0, top_k=2).probabilities(logits)

    np.testing.assert_allclose(found, [0, 1 / 3, 1 / 3, 1 / 3, 0])
    np.testing.assert_allclose(found, of_hugging_face(Sampling(1.0, top_k=2), logits, []))


@pytest.mark.parametrize(
    ("how", "shares"),
    [
        (Sampling(1.0), [0.4, 0.1, 0.3, 0.2]),
        (Sampling(0.5), np.array([16, 1, 9, 4]) / 30),
        (Sampling(1.0, top_k=2), [4 / 7, 0, 3 / 7, 0]),
        (Sampling(1.0, top_k=9), [0.4, 0.1, 0.3, 0.2]),
        (Sampling(1.0, top_p=0.71), [4 / 9, 0, 3 / 9, 2 / 9]),
        (Sampling(1.0, top_p=0.69), [4 / 7, 0, 3 / 7, 0]),
        (Sampling(1.0, top_p=1e-9), [1, 0, 0, 0]),
        (Sampling(1.0, top_k=2, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(1.0, min_p=0.6), [4 / 7, 0, 3 / 7, 0]),
        (Sampling(1.0, min_p=1.0), [1, 0, 0, 0]),
        (Sampling(0.0), [1, 0, 0, 0]),
        (Sampling(1e-6), [1, 0, 0, 0]),
        (Sampling(5e-324), [1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_distribution(how: Sampling, shares: list[float]) -> None:
    """Within four standard deviations of 2000 draws; what is cut off is never drawn."""
    random = np.random.default_rng(0)
    found = np.bincount([how.draw(LOGITS, random) for _ in range(2000)], minlength=4) / 2000

    np.testing.assert_allclose(found, shares, atol=4 * np.sqrt(0.25 / 2000))
    assert not found[np.array(shares) == 0].any()


def test_a_draw_is_never_of_what_has_no_probability() -> None:
    """Not at either end of the interval that a random number comes from."""

    class Fixed:
        def __init__(self, value: float) -> None:
            self.value = value

        def random(self) -> float:
            return self.value

    shares = np.array([0, 0.25, 0, 0.75, 0])
    drawn = [draw_from(shares, Fixed(x)) for x in (0.0, 0.25, np.nextafter(1, 0), 1.0)]  # type: ignore[arg-type]

    assert drawn == [1, 3, 3, 3]


def test_the_penalty_holds_for_greedy_tokens() -> None:
    """And passes over tokens that the model reads but never gives."""
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    random = np.random.default_rng(0)

    assert Sampling(0.0, repetition_penalty=1.5).draw(logits, random, {0, 7}) == 1
    assert Sampling(0.0).draw(logits, random, {0, 7}) == 0


def test_a_cut_asks_for_draws() -> None:
    """Options that the likeliest token would ignore draw, at a temperature of 1 if none is set."""
    assert sampling.sampling({"top_k": 5}).temperature == 1
    assert sampling.sampling({"top_k": 5, "temperature": 0.0}).temperature == 0
    assert sampling.sampling({"top_k": None, "temperature": None}) == Sampling()
    with pytest.raises(InputError, match=r"temperature is nan"):
        Sampling(float("nan"))
