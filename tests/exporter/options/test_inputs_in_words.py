"""Examples in words hold dtype, shape and range, and make examples of these again."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from intaglio.errors import OptionError
from intaglio.exporter.options.inputs_in_words import holds_words, in_words, made_again

FREE = {"ids": {0: "batch", 1: "time"}, "table": {0: "batch"}}
EXAMPLES: dict[str, Any] = {
    "ids": torch.tensor([[5, 17, 3, 9], [8, 3, 4, 16]]),
    "table": torch.tensor([[0, 90], [4, 10], [2, 55]]),
    "frames": torch.randn(2, 9, 40).abs(),
    "codes": torch.tensor([[1.0, 2.0, 5.0], [3.0, 1.0, 4.0]]).repeat(2, 4),
    "mask": torch.ones(40, 40).tril().bool(),
    "bias": torch.full((6, 6), float("-inf")).triu(1),
    "lengths": torch.tensor([3, 1, 4]),
    "scale": torch.tensor(0.25),
    "half": torch.randn(3, 4).bfloat16(),
    "none": torch.zeros(0, 4),
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_words_and_examples_make_each_other(name: str) -> None:
    """What is made again is described alike: a recipe of a recipe is the same."""
    said = in_words({name: EXAMPLES[name]}, FREE)
    made = made_again(said)[name]

    assert (made.dtype, made.shape) == (EXAMPLES[name].dtype, EXAMPLES[name].shape)
    assert in_words({name: made}, FREE) == said == in_words(said, FREE)
    assert holds_words(said)
    assert not holds_words(EXAMPLES)


def test_what_steers_a_model_is_kept_and_other_values_are_not() -> None:
    """Masks, lengths and single numbers are as they were; of rows there is the range alone."""
    made = made_again(in_words(EXAMPLES, FREE))

    for name in ("mask", "bias", "lengths", "scale"):
        assert torch.equal(made[name], EXAMPLES[name])
    assert made["table"].amax(0).tolist() == [4, 90]
    assert made["table"].amin(0).tolist() == [0, 10]
    assert in_words({"ids": EXAMPLES["ids"]}, FREE)["ids"] == {
        "dtype": "int64",
        "shape": [2, 4],
        "low": 3,
        "high": 17,
    }
    assert not torch.equal(made["ids"], EXAMPLES["ids"])


def test_what_is_nested_stays_nested_and_numbers_stay_numbers() -> None:
    given = {
        "x": np.ones((2, 3), np.float32) * [[1], [2]],
        "state": (torch.zeros(1), 3),
        "no": None,
    }
    made = made_again(in_words(given, {}))

    assert isinstance(made["state"], tuple)
    assert made["state"][1] == 3
    assert "no" not in made


def test_without_ranges_floats_are_drawn_anew_with_their_sign() -> None:
    """A bundle that says that all is zero proves nothing by it."""
    said = {"x": {"dtype": "float32", "shape": [4, 5], "low": 0.0, "high": 1e-30}}
    said |= {"y": {"dtype": "float32", "shape": [], "values": [0.0]}}
    made: dict[str, Tensor] = made_again(said, ranges=False)

    assert 1 < made["x"].max() < 9
    assert made["x"].min() >= 0
    assert made["y"] != 0


@pytest.mark.parametrize(
    "said",
    [
        {"dtype": "object", "shape": [2]},
        {"dtype": "float32", "shape": [-1]},
        {"dtype": "float32", "shape": [1 << 40]},
        {"dtype": "float32", "shape": [2], "low": "x", "high": 1},
        {"dtype": "float32", "shape": [2, 3], "low": [1, 2], "high": [3, 4]},
        {"dtype": "int64", "shape": [3], "values": [1]},
        {"dtype": "bool", "shape": [64], "two": [0, 1], "bits": "!"},
        {"dtype": "bool", "shape": [64], "two": [0, 1], "bits": "AAAA"},
        {"dtype": "int64", "shape": [2], "low": 0, "high": 10**30},
        {"dtype": "int64", "shape": [2], "low": 0},
        {"dtype": "int64", "shape": [2], "max": 0},
    ],
)
def test_what_there_cannot_be_is_told(said: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"input 'x' as \{'dtype'"):
        made_again({"x": said})
