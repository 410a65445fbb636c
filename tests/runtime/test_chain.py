"""A chain gives what its graphs give one after the other; what does not fit is named."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import intaglio
from intaglio.errors import BundleError, InputError
from intaglio.graphs import Graph
from intaglio.runtime import Chain, Session


class Halves(nn.Module):
    """Two inputs and two outputs within, so that names decide."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def first(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"high": y + 1, "low": y.tanh()}

    def second(self, low: Tensor, high: Tensor) -> Tensor:
        y: Tensor = self.head(low * high.sigmoid())
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.second(**self.first(x))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("chain") / "bundle"
    x, y = torch.randn(2, 4), torch.randn(2, 6)
    graphs = {
        "main": Graph(inputs={"x": x}, axes={"x": "batchx4"}),
        "first": Graph("first", inputs={"x": x}, axes={"x": "batchx4"}),
        "second": Graph(
            "second", inputs={"low": y, "high": 2 * y}, axes={"low": "batchx6", "high": "batchx6"}
        ),
    }
    intaglio.export(Halves(), path, graphs=graphs)
    return path


def test_outputs_go_to_the_inputs_of_their_names(bundle: Path) -> None:
    """For any number of rows, call after call."""
    chain = Chain.load(bundle, ["first", "second"], threads=1)
    whole = Session.load(bundle, threads=1)
    for rows in (1, 5):
        x = {"x": np.random.default_rng(rows).normal(size=(rows, 4)).astype(np.float32)}
        (wanted,), (found,) = whole.step(x).values(), chain.step(x).values()
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    with pytest.raises(InputError, match="'x'"):
        chain.step({})


def test_graphs_that_do_not_fit_are_named(bundle: Path, two_graphs: Path) -> None:
    with pytest.raises(BundleError, match=r"'first' of .* takes 'x', which the graph 'first' of"):
        Chain.load(bundle, ["first", "first"])
    with pytest.raises(BundleError, match=r"gives '.*' float32 \[batch, 3\], and .* takes 'x' flo"):
        Chain.load(bundle, ["main", "first"])
    with pytest.raises(BundleError, match="'third' is not of the chain, which has: first, second"):
        Chain.load(bundle, ["first", "second"], replaced={"third": bundle})
    with pytest.raises(BundleError, match=r"'scan' of .* is stepped, or takes conditions"):
        Chain.load(two_graphs, ["scan"])
    with pytest.raises(BundleError, match="at least one graph"):
        Chain([])
