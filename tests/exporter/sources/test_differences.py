"""A tuned model becomes an adapter where it differs in few rows, few columns, or a low rank."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.errors import SourceError
from intaglio.exporter.sources.differences import adapter_of, parameters
from intaglio.exporter.sources.load import load_source
from intaglio.exporter.sources.source import Source


@pytest.fixture(scope="module")
def base() -> Source:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(24, 32), nn.Linear(32, 24, bias=False))
    return load_source(module, inputs=[torch.randn(2, 3, 24)])


def tuned(base: Source, changed: Any) -> dict[str, Any]:
    weights = {name: weight.copy() for name, weight in parameters(base).items()}
    changed(weights)
    return weights


def test_rows_and_columns_of_one_weight_come_back(base: Source) -> None:
    random = np.random.default_rng(0)

    def change(weights: Any) -> None:
        weights["1.weight"][[3, 7]] += random.standard_normal((2, 32))
        weights["1.weight"][:, [0, 9, 4]] += random.standard_normal((24, 3))

    after = tuned(base, change)
    found = adapter_of(base, after)
    parts = found.parts["1.weight"]
    assert (parts["rows"].tolist(), parts["columns"].tolist()) == ([3, 7], [0, 4, 9])
    assert list(found.parts) == ["1.weight"]
    again = parameters(base)["1.weight"] + found.delta("1.weight", (24, 32))
    np.testing.assert_allclose(again, after["1.weight"], atol=1e-6)


def test_a_merged_lora_comes_back_as_its_rank(base: Source) -> None:
    random = np.random.default_rng(1)
    product = random.standard_normal((32, 3)) @ random.standard_normal((3, 24)) / 10
    after = tuned(base, lambda w: w["0.weight"].__iadd__(product.astype(np.float32)))
    parts = adapter_of(base, after).parts["0.weight"]
    assert (parts["up"].shape, parts["down"].shape) == ((32, 3), (3, 24))
    np.testing.assert_allclose(parts["up"] @ parts["down"], product, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w["0.bias"].__iadd__(1), r"0\.bias was tuned as well"),
        (lambda w: w["0.weight"].__imul__(np.random.default_rng(0).random((32, 24))), "All of 0"),
        (lambda _: None, "nothing to adapt"),
    ],
)
def test_what_no_adapter_holds_is_named(base: Source, change: Any, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        adapter_of(base, tuned(base, change))
