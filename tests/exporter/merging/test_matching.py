"""Weight matching finds the order in which units were put, and averages what is in one order."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from intaglio.exporter.coupled import couplings
from intaglio.exporter.merging.matching import match, match_many, mean
from intaglio.exporter.sources.load import load_source
from intaglio.models import llama
from intaglio.passes.analysis.coupling import Coupling, permuted


def net() -> nn.Module:
    """Convolutions with norms and a sum over them, and a head: three groups."""
    return Residual()


class Residual(nn.Module):
    """One block of a residual network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y: torch.Tensor = self.head((x + self.second(torch.relu(self.first(x)))).mean((2, 3)))
        return y


def random_weights(module: nn.Module) -> dict[str, Any]:
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return {name: x.numpy().copy() for name, x in module.state_dict().items()}


def cases() -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    torch.manual_seed(0)
    config = llama.Config(vocab_size=20, hidden_size=16, intermediate_size=24, num_layers=1)
    ids = torch.randint(20, (2, 5))
    return {
        "residual": (net(), {"inputs": [torch.randn(2, 3, 8, 8)]}),
        "llama": (llama.build(config), {"inputs": {"input_ids": ids}}),
    }


@pytest.fixture(scope="module", params=["residual", "llama"])
def known(request: pytest.FixtureRequest) -> tuple[dict[str, Any], list[Coupling]]:
    module, options = cases()[request.param]
    weights = random_weights(module)
    return weights, couplings(load_source(module, **options))


def test_a_permuted_model_is_put_back(known: tuple[dict[str, Any], list[Coupling]]) -> None:
    """Every group in a random order: after matching, all weights are what they were."""
    weights, groups = known
    random = np.random.default_rng(0)
    orders = {group.name: random.permutation(group.size) for group in groups}
    assert len(groups) > 1
    moved = permuted(weights, groups, orders)
    assert any((moved[name] != weights[name]).any() for name in weights)

    found = match(weights, moved, groups)

    for name, array in weights.items():
        np.testing.assert_array_equal(found.weights[name], array, err_msg=name)


def test_the_orders_that_are_told_make_the_weights(
    known: tuple[dict[str, Any], list[Coupling]],
) -> None:
    weights, groups = known
    random = np.random.default_rng(1)
    other = {n: x + random.standard_normal(x.shape).astype(x.dtype) if x.dtype.kind == "f" else x
             for n, x in weights.items()}  # fmt: skip
    moved = permuted(other, groups, {g.name: random.permutation(g.size) for g in groups})
    found = match(weights, moved, groups)
    again = moved
    for group in groups:
        again = permuted(again, [group], {group.name: found.orders[group.name]})
    apart = {n for n in weights if not np.array_equal(again[n], found.weights[n])}
    assert apart == set()


def test_three_models_come_into_one_order(known: tuple[dict[str, Any], list[Coupling]]) -> None:
    weights, groups = known
    random = np.random.default_rng(2)
    models = [weights] + [
        permuted(weights, groups, {g.name: random.permutation(g.size) for g in groups})
        for _ in range(2)
    ]
    found = mean([each.weights for each in match_many(models, groups)])
    for name, array in weights.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, err_msg=name)


def test_a_mean_has_shares_of_floats_and_the_first_of_integers() -> None:
    first = {"w": np.array([0.0, 4.0], np.float32), "count": np.array(3)}
    second = {"w": np.array([4.0, 0.0], np.float32), "count": np.array(5)}
    found = mean([first, second], [0.75, 0.25])
    assert found["w"].tolist() == [1.0, 3.0]
    assert found["w"].dtype == np.float32
    assert int(found["count"]) == 3
