"""A stable sort keeps equal entries in their order, upwards and downwards."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from intaglio.exporter.export import export
from intaglio.runtime.session import Session


class Ranks(nn.Module):
    """Places of the entries in order."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        up = torch.sort(x, stable=True).indices
        return up, torch.sort(x, dim=1, descending=True, stable=True).indices


def test_equal_entries_stay_in_their_order(tmp_path: Path) -> None:
    export(Ranks(), tmp_path / "b", inputs={"x": torch.randn(2, 9)}, whole=True)
    x = np.random.default_rng(0).integers(0, 3, (4, 50)).astype(np.float32)
    found = Session.load(tmp_path / "b").step({"x": x})
    for got, want in zip(found.values(), Ranks()(torch.from_numpy(x)), strict=True):
        np.testing.assert_array_equal(got, want)
